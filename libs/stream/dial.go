package stream

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/fault"
	"skep.dev/libs/id"
	"skep.dev/libs/rpc"
)

// Dial opens a stream to a node: openSubject is subject.Node(node, "exec.open") or one like it, req the request
// the node's handler gets. The stream lives as long as ctx: when ctx ends, so does the session. Whatever the node
// refuses comes back as the *fault.Error it gave; a node nobody serves is Unavailable.
func Dial(ctx context.Context, nc *nats.Conn, openSubject, node string, req proto.Message, opts ...Option) (*Session, error) {
	body, err := proto.Marshal(req)
	if err != nil {
		return nil, fault.Invalid("encode the request to %s: %v", openSubject, err)
	}
	s := newSession(nc, node, id.New(), true, defaults(opts))
	s.release = context.AfterFunc(ctx, func() { s.abort(context.Cause(ctx), "the client gave up") })
	// Subscribed before asking: the node may send from the moment it accepts.
	if err := s.listen(); err != nil {
		s.release()
		return nil, err
	}
	m := nats.NewMsg(rpc.AskOn(nc, openSubject))
	m.Data = body
	m.Header.Set(rpc.HeaderContentType, rpc.TypeProto)
	m.Header.Set(HeaderSession, s.id)
	m.Header.Set(HeaderWindow, strconv.Itoa(Window))
	if t := rpc.Trace(ctx); t != "" {
		m.Header.Set(rpc.HeaderTrace, t)
	}
	octx, cancel := context.WithTimeout(ctx, s.opt.open)
	defer cancel()
	r, err := nc.RequestMsgWithContext(octx, m)
	if err == nil {
		if err = rpc.ReplyError(r.Header); err != nil {
			s.end(err)
			<-s.pumped
			return nil, err
		}
		s.grantInitial(r.Header)
		s.setLive()
		return s, nil
	}
	err = openError(ctx, node, err)
	s.abort(err, "the client gave up") // the node may be about to accept
	<-s.pumped
	return nil, err
}

func openError(ctx context.Context, node string, err error) error {
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		return fault.Unavailable("node %s does not answer", node)
	case ctx.Err() != nil && errors.Is(ctx.Err(), context.Canceled):
		return fmt.Errorf("open a stream to node %s: %w", node, ctx.Err())
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrTimeout):
		return fault.Unavailable("node %s did not answer in time", node)
	default:
		return fault.Unavailable("open a stream to node %s: %v", node, err)
	}
}

// grantInitial takes the peer's receive window as the first credit of every channel.
func (s *Session) grantInitial(h nats.Header) {
	n, err := strconv.ParseInt(h.Get(HeaderWindow), 10, 64)
	if err != nil || n < MaxFrame+frameOverhead {
		n = Window
	}
	s.mu.Lock()
	for _, w := range s.out {
		w.credit += n
	}
	s.cond.Broadcast()
	s.mu.Unlock()
}
