package stream

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/fault"
	"skep.dev/libs/id"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
)

// Handler serves one session. It refuses the stream by sess.Refuse (or sess.Exit with a *fault.Error) before it
// used the session; the first use, or Accept, accepts it. ctx ends when the client is gone or the server closes; rpc.ActorOf(ctx) is who opened the stream.
// A handler that returns without Exit ends the stream with exit code 0.
type Handler func(ctx context.Context, sess *Session, req []byte)

// Server is a subject on which streams are opened.
type Server struct {
	nc      *nats.Conn
	node    string
	opt     options
	handler Handler
	subs    []*nats.Subscription
	ctx     context.Context
	cancel  context.CancelFunc
	wg      sync.WaitGroup

	mu       sync.Mutex
	closed   bool
	sessions map[string]*Session
}

// Serve lets clients open streams by requests to subj on this node. The handler runs in a goroutine a session.
func Serve(nc *nats.Conn, subj, node string, h Handler, opts ...Option) (*Server, error) {
	ctx, cancel := context.WithCancel(context.Background())
	v := &Server{nc: nc, node: node, opt: defaults(opts), handler: h, ctx: ctx, cancel: cancel, sessions: map[string]*Session{}}
	for _, on := range []string{subj, subject.ByAnybody(subj)} {
		if on == "" {
			continue
		}
		sub, err := nc.QueueSubscribe(on, v.opt.queue, v.open)
		if err != nil {
			cancel()
			_ = v.unsubscribe() // err says what is wrong
			return nil, fmt.Errorf("serve streams on %s: %w", on, err)
		}
		v.subs = append(v.subs, sub)
	}
	return v, nil
}

// Sessions is how many streams are open.
func (v *Server) Sessions() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.sessions)
}

// Close takes no more streams, ends those that are open and waits for their handlers.
func (v *Server) Close() error {
	v.mu.Lock()
	v.closed = true
	open := make([]*Session, 0, len(v.sessions))
	for _, s := range v.sessions {
		open = append(open, s)
	}
	v.mu.Unlock()
	err := v.unsubscribe()
	for _, s := range open {
		s.abort(ErrClosed, "the node's agent is stopping")
	}
	v.cancel()
	v.wg.Wait()
	return err
}

func (v *Server) unsubscribe() error {
	var errs []error
	for _, sub := range v.subs {
		if err := sub.Unsubscribe(); !errors.Is(err, nats.ErrConnectionClosed) && !errors.Is(err, nats.ErrBadSubscription) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (v *Server) open(m *nats.Msg) {
	if !subject.MayHear(m.Subject, m.Reply) {
		return // nobody to answer to, or somebody who did not ask
	}
	sid := m.Header.Get(HeaderSession)
	if !id.Valid(sid) {
		refuse(m, fault.Invalid("a stream is opened with a header %s of %d characters 0-9a-z", HeaderSession, id.Len))
		return
	}
	s := newSession(v.nc, v.node, sid, false, v.opt)
	s.request = m
	if err := v.add(s); err != nil {
		refuse(m, err)
		return
	}
	ctx, cancel := context.WithCancelCause(rpc.WithActor(rpc.WithTrace(v.ctx, m.Header.Get(rpc.HeaderTrace)), rpc.ActorFrom(m.Subject, m.Reply)))
	s.cancel = cancel
	if err := s.listen(); err != nil {
		cancel(err)
		v.remove(s)
		v.wg.Done()
		refuse(m, fault.Unavailable("%v", err))
		return
	}
	s.grantInitial(m.Header)
	go func() {
		defer v.wg.Done()
		defer v.remove(s)
		defer cancel(nil)
		defer s.finish()
		v.handler(ctx, s, m.Data)
	}()
}

// add registers the session and its goroutine.
func (v *Server) add(s *Session) *fault.Error {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case v.closed:
		return fault.Unavailable("the agent of node %s is stopping", v.node)
	case v.sessions[s.id] != nil:
		return fault.Conflict("stream %s is open already", s.id)
	case len(v.sessions) >= v.opt.limit:
		return fault.Exhausted("node %s has %d streams open, its limit", v.node, v.opt.limit)
	}
	v.sessions[s.id] = s
	v.wg.Add(1)
	return nil
}

func (v *Server) remove(s *Session) {
	v.mu.Lock()
	delete(v.sessions, s.id)
	v.mu.Unlock()
}

// finish ends what the handler left open.
func (s *Session) finish() {
	s.Refuse(fault.New(fault.CodeInternal, "the request was dropped without an answer"))
	select {
	case <-s.done:
	default:
		_ = s.Exit(0, nil) // the peer's timeout covers a connection that cannot carry it
	}
	<-s.pumped
}

// Accept tells the client that the stream is open. Any use of the session does it too; at the client it does
// nothing.
func (s *Session) Accept() error {
	if s.client {
		return nil
	}
	var err error
	s.answerOnce.Do(func() {
		s.setLive()
		r := nats.NewMsg(s.request.Reply)
		r.Header.Set(rpc.HeaderContentType, rpc.TypeProto)
		r.Header.Set(HeaderWindow, strconv.Itoa(Window))
		if r.Data, err = proto.Marshal(&skepv1.StreamOpenReply{Session: s.id}); err == nil {
			err = s.nc.PublishMsg(r)
		}
		if err != nil {
			err = fmt.Errorf("accept stream %s: %w", s.id, err)
			s.end(err)
		}
	})
	return err
}

// Refuse answers the open request with an error and ends the session; it reports false when the stream was
// accepted or refused before.
func (s *Session) Refuse(e *fault.Error) bool {
	refused := false
	if !s.client {
		s.answerOnce.Do(func() {
			refused = true
			refuse(s.request, e)
			s.end(e)
		})
	}
	return refused
}

// Exit ends the stream in order: every channel gets its EOF, then the client's Wait returns code and err's text.
// Only the node's side exits. A *fault.Error before the stream was accepted refuses it instead.
func (s *Session) Exit(code int, err error) error {
	if s.client {
		return errors.New("stream: only the node's side exits")
	}
	var f *fault.Error
	if errors.As(err, &f) && s.Refuse(f) {
		return nil
	}
	if err := s.Accept(); err != nil {
		return err
	}
	select {
	case <-s.done:
		return s.cause()
	default:
	}
	for _, w := range s.out {
		if err := w.Close(); err != nil {
			return err
		}
	}
	x := &skepv1.Exit{Code: int32(code)}
	if err != nil {
		x.Err = err.Error()
	}
	if err := s.sendControl(&skepv1.StreamControl{Control: &skepv1.StreamControl_Exit{Exit: x}}); err != nil {
		return err
	}
	s.end(nil)
	return nil
}

func refuse(m *nats.Msg, e *fault.Error) {
	// A refusal that cannot be sent ends as the client's timeout.
	_ = m.RespondMsg(rpc.ErrorReply(e.Code, e.Message))
}
