package stream

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/subject"
)

// Session is one open byte stream. Its methods are safe for concurrent use; one reader and one writer a channel.
// Who holds it must read every channel the peer may write to (io.Copy to io.Discard if need be): an unread
// channel stops its writer once a window is full, by design.
type Session struct {
	nc     *nats.Conn
	node   string
	id     string
	client bool
	opt    options

	mu      sync.Mutex
	cond    *sync.Cond // data, credit or the end arrived
	in      map[string]*inbound
	out     map[string]*outbound
	ctlNext uint64 // number of the next control message of the peer
	heard   time.Time
	live    bool // accepted: the peer owes signs of life
	exit    *skepv1.Exit
	ended   bool
	err     error

	sendMu  sync.Mutex
	ctlSent uint64

	msgs    chan *nats.Msg
	subs    []*nats.Subscription
	control chan *skepv1.StreamControl
	done    chan struct{} // closed by end
	pumped  chan struct{} // closed when pump returned

	release func() bool // client side: forgets the context's callback

	// Node side only.
	request    *nats.Msg
	answerOnce sync.Once
	cancel     context.CancelCauseFunc
}

func newSession(nc *nats.Conn, node, id string, client bool, opt options) *Session {
	s := &Session{
		nc: nc, node: node, id: id, client: client, opt: opt,
		in: map[string]*inbound{}, out: map[string]*outbound{},
		control: make(chan *skepv1.StreamControl, controlBacklog),
		done:    make(chan struct{}),
		pumped:  make(chan struct{}),
	}
	s.cond = sync.NewCond(&s.mu)
	recv, send := []string{In}, []string{Out, Err}
	if client {
		recv, send = send, recv
	}
	// Room for every frame the windows allow, so that nothing is dropped between the connection and pump.
	s.msgs = make(chan *nats.Msg, len(recv)*Window/frameOverhead+2*controlBacklog)
	for _, c := range recv {
		s.in[c] = &inbound{s: s, name: c}
	}
	for _, c := range send {
		s.out[c] = &outbound{s: s, name: c, subj: subject.IO(node, id, c)}
	}
	return s
}

// listen subscribes to what the peer sends and starts the pump.
func (s *Session) listen() error {
	names := []string{s.peerControl()}
	for c := range s.in {
		names = append(names, c)
	}
	for _, c := range names {
		// One channel for all subscriptions keeps the order in which the connection received the messages.
		sub, err := s.nc.ChanSubscribe(subject.IO(s.node, s.id, c), s.msgs)
		if err != nil {
			s.unsubscribe()
			return fmt.Errorf("subscribe to channel %s of stream %s: %w", c, s.id, err)
		}
		s.subs = append(s.subs, sub)
	}
	go s.pump()
	return nil
}

func (s *Session) unsubscribe() {
	for _, sub := range s.subs {
		// A closed connection has no subscriptions left to remove.
		_ = sub.Unsubscribe()
	}
}

func (s *Session) peerControl() string {
	if s.client {
		return ctlToClient
	}
	return ctlToNode
}

func (s *Session) ownControl() string {
	if s.client {
		return ctlToNode
	}
	return ctlToClient
}

// ID is the session's identifier.
func (s *Session) ID() string { return s.id }

// Done is closed when the session has ended, for whatever reason.
func (s *Session) Done() <-chan struct{} { return s.done }

// Reader returns the reading end of a channel: "out" and "err" at the client, "in" at the node.
// Read returns io.EOF when the peer ended the channel, and the session's error when it broke.
func (s *Session) Reader(channel string) io.Reader {
	r, ok := s.in[channel]
	if !ok {
		panic("stream: this side does not read channel " + channel)
	}
	return r
}

// Writer returns the writing end of a channel: "in" at the client, "out" and "err" at the node.
// Write blocks while the peer grants no credit. Close ends the channel; the session goes on.
func (s *Session) Writer(channel string) io.WriteCloser {
	w, ok := s.out[channel]
	if !ok {
		panic("stream: this side does not write channel " + channel)
	}
	return w
}

// Control delivers the peer's resizes, signals and progress; it is closed when the session ends. An unread
// backlog drops its oldest resizes and progress, and ends the session rather than drop a signal.
func (s *Session) Control() <-chan *skepv1.StreamControl {
	_ = s.Accept()
	return s.control
}

// SendControl sends a resize, a signal or progress to the peer.
func (s *Session) SendControl(c *skepv1.StreamControl) error {
	if err := s.Accept(); err != nil {
		return err
	}
	select {
	case <-s.done:
		return s.cause()
	default:
	}
	return s.sendControl(c)
}

// Wait blocks until the session ends. At the client it returns how the node's side ended, or why the stream broke.
// At the node it returns nil and why the client is gone (nil after Exit).
func (s *Session) Wait() (*skepv1.Exit, error) {
	<-s.done
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.exit != nil && s.err == nil {
		return s.exit, nil
	}
	return nil, s.err
}

// Close ends the session at once and tells the peer. After the stream came to its end by itself it only frees
// what is left. It is idempotent.
func (s *Session) Close() error {
	s.abort(ErrClosed, "it closed the stream")
	<-s.pumped
	return nil
}

// abort ends the session with err and tells the peer why.
func (s *Session) abort(err error, say string) {
	if s.end(err) {
		// The peer finds out by our silence if this cannot be sent.
		_ = s.sendControl(&skepv1.StreamControl{Control: &skepv1.StreamControl_Error{Error: say}})
	}
}

// end marks the session as over and reports whether it was this call that did.
func (s *Session) end(err error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.endLocked(err)
}

func (s *Session) endLocked(err error) bool {
	if s.ended {
		return false
	}
	s.ended, s.err = true, err
	close(s.done)
	s.cond.Broadcast()
	if s.cancel != nil && err != nil {
		s.cancel(err)
	}
	return true
}

func (s *Session) cause() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.causeLocked()
}

func (s *Session) causeLocked() error {
	if s.err != nil {
		return s.err
	}
	return ErrClosed
}

func (s *Session) sendControl(c *skepv1.StreamControl) error {
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	b := make([]byte, headerLen, headerLen+proto.Size(c))
	binary.BigEndian.PutUint64(b, s.ctlSent)
	b, err := proto.MarshalOptions{}.MarshalAppend(b, c)
	if err != nil {
		return fmt.Errorf("encode a control message of stream %s: %w", s.id, err)
	}
	if err := s.nc.Publish(subject.IO(s.node, s.id, s.ownControl()), b); err != nil {
		return fmt.Errorf("send on stream %s: %w", s.id, err)
	}
	s.ctlSent++
	return nil
}

// pump moves messages from the connection into the channels. It never blocks on a reader: credit bounds what
// can be waiting.
func (s *Session) pump() {
	tick := time.NewTicker(s.opt.timeout / 4)
	defer func() {
		tick.Stop()
		if s.release != nil {
			s.release()
		}
		s.unsubscribe()
		close(s.control)
		close(s.pumped)
	}()
	for {
		select {
		case m := <-s.msgs:
			if err := s.receive(m); err != nil {
				s.abort(err, err.Error())
			}
		case <-tick.C:
			s.tick()
		case <-s.done:
			return
		}
	}
}

func (s *Session) tick() {
	s.mu.Lock()
	silent, live, waiting := time.Since(s.heard), s.live, len(s.msgs) > 0
	s.mu.Unlock()
	switch {
	case s.nc.IsClosed():
		s.end(fmt.Errorf("stream %s: %w", s.id, nats.ErrConnectionClosed))
	case !live:
		// Not accepted yet: Dial and Serve bound that phase themselves.
	case silent >= s.opt.timeout && !waiting: // waiting: it was us who stood still
		s.abort(fmt.Errorf("stream to node %s: nothing heard for %s: %w", s.node, s.opt.timeout, ErrGone), "nothing heard from you")
	default:
		// A failed ping shows in the next ticks as a closed connection or as the peer's error.
		p := &skepv1.Ping{Sent: make(map[string]uint64, len(s.out))}
		for name, w := range s.out {
			if n := w.offset.Load(); n > 0 {
				p.Sent[name] = n
			}
		}
		_ = s.sendControl(&skepv1.StreamControl{Control: &skepv1.StreamControl_Ping{Ping: p}})
	}
}

// setLive starts the liveness clock.
func (s *Session) setLive() {
	s.mu.Lock()
	s.live, s.heard = true, time.Now()
	s.mu.Unlock()
}

func (s *Session) receive(m *nats.Msg) error {
	channel := m.Subject[strings.LastIndexByte(m.Subject, '.')+1:]
	if len(m.Data) < headerLen {
		return fmt.Errorf("%w: message of %d bytes on %s", ErrBroken, len(m.Data), channel)
	}
	n, body := binary.BigEndian.Uint64(m.Data), m.Data[headerLen:]
	s.mu.Lock()
	defer s.mu.Unlock()
	s.heard = time.Now()
	if r, ok := s.in[channel]; ok {
		if err := r.pushLocked(n, body); err != nil {
			return err
		}
		s.finishLocked()
		return nil
	}
	if n != s.ctlNext {
		return errGap(channel, s.ctlNext, n)
	}
	s.ctlNext++
	c := &skepv1.StreamControl{}
	if err := proto.Unmarshal(body, c); err != nil {
		return fmt.Errorf("%w: control message: %w", ErrBroken, err)
	}
	return s.controlLocked(c)
}

func (s *Session) controlLocked(c *skepv1.StreamControl) error {
	switch v := c.Control.(type) {
	case *skepv1.StreamControl_Ping:
		// Without this, a lost end of a window would leave both sides waiting for one another, and pinging.
		for name, n := range v.Ping.Sent {
			if r := s.in[name]; r != nil && r.next < n {
				return fmt.Errorf("%w: %s stands at %d, sent were %d: messages were lost, try again", ErrBroken, name, r.next, n)
			}
		}
	case *skepv1.StreamControl_Credit:
		if w := s.out[v.Credit.Channel]; w != nil {
			w.credit += int64(min(v.Credit.Bytes, 1<<40))
			s.cond.Broadcast()
		}
	case *skepv1.StreamControl_Eof:
		if r := s.in[v.Eof]; r != nil {
			r.finalLocked(c.Offset)
		}
		s.finishLocked()
	case *skepv1.StreamControl_Exit:
		if s.client {
			s.exit = v.Exit
			s.finishLocked()
		}
	case *skepv1.StreamControl_Error:
		s.endLocked(fmt.Errorf("stream of node %s: %w: %s", s.node, ErrGone, v.Error))
	default:
		return s.deliverLocked(c)
	}
	return nil
}

// deliverLocked hands a control message to the holder of the session.
func (s *Session) deliverLocked(c *skepv1.StreamControl) error {
	for {
		select {
		case s.control <- c:
			return nil
		default:
		}
		select {
		case old := <-s.control:
			if _, signal := old.Control.(*skepv1.StreamControl_Signal); signal {
				return fmt.Errorf("%w: %d control messages were not taken up", ErrBroken, controlBacklog)
			}
		default:
		}
	}
}

// finishLocked ends the client's session once the exit and all data before it are here.
func (s *Session) finishLocked() {
	if s.exit == nil || s.ended {
		return
	}
	for _, r := range s.in {
		if !r.complete() {
			return
		}
	}
	s.endLocked(nil)
}
