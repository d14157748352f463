package state

import (
	"context"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/printable"
	"skep.dev/libs/rpc"
	skepv1 "skep.dev/proto/skep/v1"
)

// Two machines may come as one node: a disk was copied, or an old snapshot of one was started beside it. What tells them
// apart is the session that an agent makes up at its start, and whether the one before it still answers. Addresses do not:
// a machine has several, changes them, or is behind one with others. An agent that was ended does not answer, so one that
// starts again, on the same machine or another, waits for nobody.

const (
	// selfWithin is how long an agent may take to answer; selfAfter how much longer than another, which answers the same question.
	selfWithin = time.Second
	selfAfter  = 300 * time.Millisecond
	// refusedFor and grantedFor are how long an answer holds: an agent asks for several things at its start.
	refusedFor = 2 * time.Second
	grantedFor = 10 * time.Second
)

// identity is what was found out about who is a node.
type identity struct {
	mu      sync.Mutex
	session string // that was looked at
	err     error  // why it is refused, nil = it is not
	until   time.Time
	logged  string    // the session whose refusal is in the log
	told    time.Time // when an event told of one last
}

// sole refuses an agent while another machine runs as the same node. It costs nothing while the agent is the one whose
// report is stored; another one, and one a node makes up, costs one question to that node at a time.
func (s *Service) sole(ctx context.Context, node, session string) error {
	last := s.ix.Report(node).Session
	if session == "" || last == "" || session == last {
		return nil
	}
	v, _ := s.identities.LoadOrStore(node, &identity{})
	i := v.(*identity)
	i.mu.Lock()
	defer i.mu.Unlock()
	now := time.Now()
	if i.session == session && now.Before(i.until) {
		return i.err
	}
	there, err := s.askSelf(ctx, node, session, last)
	if err != nil {
		return fault.Unavailable("look who runs as node %s: %v", node, err)
	}
	i.session, i.err, i.until = session, nil, now.Add(grantedFor)
	other := otherThan(session, last, there)
	if other == nil {
		return nil
	}
	own := there[session]
	i.err = fault.Conflict("another machine runs as this node: %s at %s; this one, %s at %s, starts nothing while that one is there. "+
		"Is one a copy of the other's disk? Run `skep leave --force` on the copy, then join it with a token", other.GetHostname(), other.GetAddr(), own.GetHostname(), own.GetAddr())
	i.until = now.Add(refusedFor)
	if i.logged != session {
		i.logged = session
		s.log.Warn("two machines run as one node: the second is refused", zap.String("node", node),
			zap.String("hostname", other.GetHostname()), zap.String("addr", other.GetAddr()), zap.String("second", own.GetHostname()), zap.String("second_addr", own.GetAddr()))
	}
	if now.Sub(i.told) >= tellDuplicateEvery {
		i.told = now
		if s.events.nodes.Allow(node, now) {
			s.events.send(ctx, &skepv1.Event{Kind: "node", Id: node, Name: other.GetHostname(), Verb: "duplicate", Message: i.err.Error(),
				Attributes: map[string]string{"hostname": other.GetHostname(), "addr": other.GetAddr(), "second.hostname": own.GetHostname(), "second.addr": own.GetAddr()}})
		}
	}
	return i.err
}

// otherThan is who a session must give way to: who reported last, if that one is there; of several that are new, all but one.
func otherThan(session, last string, there map[string]*skepv1.SelfReply) *skepv1.SelfReply {
	if r := there[last]; r != nil {
		return r
	}
	first := session
	for other := range there {
		first = min(first, other)
	}
	if first == session {
		return nil
	}
	return there[first]
}

// askSelf is who answers as a node, by session. It ends as soon as the one that reported last and the one that asks have
// answered: the addresses of both are told.
func (s *Service) askSelf(ctx context.Context, node, session, last string) (map[string]*skepv1.SelfReply, error) {
	ctx, cancel := context.WithTimeout(ctx, selfWithin)
	defer cancel()
	inbox := s.cfg.NC.NewInbox()
	sub, err := s.cfg.NC.SubscribeSync(inbox)
	if err != nil {
		return nil, err
	}
	defer sub.Unsubscribe() //nolint:errcheck // the connection may be closed
	ask := nats.NewMsg(api.NodeSelf.At(node).Subject())
	ask.Reply = inbox
	ask.Header.Set(rpc.HeaderContentType, rpc.TypeProto)
	if err := s.cfg.NC.PublishMsg(ask); err != nil {
		return nil, err
	}
	there := map[string]*skepv1.SelfReply{}
	for len(there) < mostSelves && (there[last] == nil || there[session] == nil) {
		m, err := sub.NextMsgWithContext(ctx)
		if err != nil { // nobody else answers in time, or nobody at all
			break
		}
		r := &skepv1.SelfReply{}
		if rpc.ReplyError(m.Header) != nil {
			continue
		}
		if _, err := rpc.Decode(m.Data, m.Header.Get(rpc.HeaderContentType), r); err != nil || r.Session == "" {
			continue
		}
		r.Hostname, r.Addr = cutSelf(r.Hostname), cutSelf(r.Addr)
		there[r.Session] = r
		if r.Session == session || r.Session == last {
			var after context.CancelFunc
			ctx, after = context.WithTimeout(ctx, selfAfter)
			defer after()
		}
	}
	return there, nil
}

// mostSelves bounds how many answers are looked at, and cutSelf what one says: a node answers what it likes.
const mostSelves = 16

func cutSelf(text string) string { return printable.Cut(text, 256) }
