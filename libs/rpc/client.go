package rpc

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/fault"
	"skep.dev/libs/subject"
)

// Call sends req to subject and fills reply (nil = do not look at it). Errors are *fault.Error: what the server
// said, or Unavailable when nobody answers or ctx ends first.
//
// The instance beside the broker that holds the connection is asked first (subject.Near): a request it hears is lost only with the connection,
// which whoever asks notices, and not with the power of another manager, which nobody tells.
func Call(ctx context.Context, nc *nats.Conn, on string, req, reply proto.Message) error {
	body, err := proto.Marshal(req)
	if err != nil {
		return fault.Invalid("encode the request to %s: %v", on, err)
	}
	m := nats.NewMsg(AskOn(nc, on))
	m.Data = body
	m.Header.Set(HeaderContentType, TypeProto)
	if t := Trace(ctx); t != "" {
		m.Header.Set(HeaderTrace, t)
	}
	tellRequest(ctx, m.Header)
	r, err := request(ctx, nc, m)
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		return &nobody{fault.Unavailable("nobody answers %s: is a manager running?", on)}
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrTimeout):
		return fault.Unavailable("%s did not answer in time", on)
	case errors.Is(err, context.Canceled):
		return err
	case err != nil:
		return fault.Unavailable("ask %s: %v", on, err)
	}
	if err := ReplyError(r.Header); err != nil {
		return err
	}
	tellStale(ctx, r.Header)
	if reply == nil {
		return nil
	}
	if _, err := Decode(r.Data, r.Header.Get(HeaderContentType), reply); err != nil {
		return fmt.Errorf("read the reply of %s: %w", on, err)
	}
	return nil
}

// request asks the nearest instance, and any if there is none.
func request(ctx context.Context, nc *nats.Conn, m *nats.Msg) (*nats.Msg, error) {
	if near := subject.Near(m.Subject); near != "" && ctx.Value(anywhereKey{}) == nil {
		first := *m
		first.Subject = near
		if r, err := nc.RequestMsgWithContext(ctx, &first); !errors.Is(err, nats.ErrNoResponders) {
			return r, err
		}
	}
	return nc.RequestMsgWithContext(ctx, m)
}

type anywhereKey struct{}

// Anywhere is ctx for a Call that any instance may hear: the nearest one did not answer.
func Anywhere(ctx context.Context) context.Context {
	return context.WithValue(ctx, anywhereKey{}, true)
}

// ErrNobody is in the chain of the error of a Call that no service heard: nothing was done, so even a change can be
// asked for again.
var ErrNobody = errors.New("nobody answers")

type nobody struct{ fault *fault.Error }

func (n *nobody) Error() string   { return n.fault.Error() }
func (n *nobody) Unwrap() []error { return []error{n.fault, ErrNobody} }

// ReplyError is the fault a reply's headers carry, or nil.
func ReplyError(h nats.Header) error {
	text := h.Get(micro.ErrorHeader)
	code := h.Get(micro.ErrorCodeHeader)
	if text == "" && code == "" {
		return nil
	}
	return &fault.Error{Code: fault.Code(code), Message: text}
}

type traceKey struct{}

// WithTrace makes every Call under ctx carry the trace id.
func WithTrace(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, traceKey{}, id)
}

// Trace is ctx's trace id, or "".
func Trace(ctx context.Context) string {
	s, _ := ctx.Value(traceKey{}).(string)
	return s
}
