package member

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"

	"skep.dev/libs/api"
	"skep.dev/libs/dial"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

const (
	// followEvery is how often a node asks without being told to; a third of it more or less, so that 5,000 do not ask in step.
	followEvery = 30 * time.Second
	// followSpread bounds the pause before a node asks after it was connected again: thousands are at once.
	followSpread = time.Second
	// turnAgain is the pause before a turn that did not come about is tried again. It doubles up to followEvery.
	turnAgain = time.Second
	// maxManagers bounds what a node keeps of an answer.
	maxManagers = 64
)

// Follower keeps the node's record what the managers say of it: whom it may turn to, and what it should be. It asks when it
// is connected, when it is told to (subject.PushRole) and now and then; what it is told is a reason to ask and no more.
//
// Its failure story: without an answer nothing changes. An answer without managers, or of an older epoch than one that was
// heard before, counts for nothing: the record never ends up with nobody to dial.
type Follower struct {
	NC    *nats.Conn // as the node
	Node  string
	Paths Paths
	Log   *zap.Logger
	// Turn is called when the node should have another role than its record says. When it returns nil the record says so; an
	// error has it called again after a while, if the managers still say the same.
	Turn func(ctx context.Context, role string) error
	// Changed is called with the record after its managers changed, nil = nobody.
	Changed func(*Record)
	// Heard is called when a manager answered, nil = nobody.
	Heard func()

	every  time.Duration // 0 = followEvery; tests
	poke   chan struct{}
	ignore uint64 // the epoch of an answer that was ignored and said so
}

// NewFollower prepares one; Run does the work.
func NewFollower(nc *nats.Conn, node string, p Paths, log *zap.Logger) *Follower {
	return &Follower{NC: nc, Node: node, Paths: p, Log: log, poke: make(chan struct{}, 1)}
}

// Ask has the follower ask now. It never blocks.
func (f *Follower) Ask() {
	select {
	case f.poke <- struct{}{}:
	default:
	}
}

// Run follows until ctx ends.
func (f *Follower) Run(ctx context.Context) error {
	sub, err := f.NC.Subscribe(subject.PushRole(f.Node), func(*nats.Msg) { f.Ask() })
	if err != nil {
		return fmt.Errorf("follow the managers: %w", err)
	}
	defer sub.Unsubscribe() //nolint:errcheck // the connection may be closed already
	states := f.NC.StatusChanged(nats.CONNECTED)
	defer f.NC.RemoveStatusListener(states)
	every := f.every
	if every == 0 {
		every = followEvery
	}
	again := time.Duration(0)
	if f.NC.IsConnected() {
		f.Ask()
	}
	for {
		wait := every*2/3 + rand.N(every*2/3)
		if again > 0 {
			wait = min(wait, again)
		}
		select {
		case <-ctx.Done():
			return nil
		case _, open := <-states:
			if !open {
				states = nil // the connection was closed: whoever did that ends us too
				continue
			}
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(rand.N(followSpread)):
			}
		case <-f.poke:
		case <-time.After(wait):
		}
		if !f.NC.IsConnected() {
			continue
		}
		err := f.once(ctx)
		var turn turnError
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.As(err, &turn):
			again = min(max(2*again, turnAgain), followEvery)
			f.Log.Warn("the node does not have its new role yet; trying again", zap.Error(err), zap.Duration("after", again))
		case err != nil:
			again = 0
			f.Log.Debug("the managers were not asked who they are", zap.Error(err))
		default:
			again = 0
		}
	}
}

// turnError: the managers answered and the turn did not come about.
type turnError struct{ error }

func (e turnError) Unwrap() error { return e.error }

// once asks and follows.
func (f *Follower) once(ctx context.Context) error {
	try, cancel := context.WithTimeout(ctx, 5*time.Second)
	reply, err := api.Call(try, f.NC, api.StateManagers.At(f.Node), &skepv1.Empty{})
	cancel()
	if err != nil {
		return err
	}
	if f.Heard != nil {
		f.Heard()
	}
	rec, err := Load(f.Paths)
	if err != nil {
		return err
	}
	if reply.Epoch < rec.Epoch {
		if f.ignore != reply.Epoch+1 {
			f.ignore = reply.Epoch + 1
			f.Log.Warn("a manager of a cluster that is over answers: the cluster was founded anew or restored since; what it says is ignored",
				zap.Uint64("epoch", reply.Epoch), zap.Uint64("known", rec.Epoch), zap.String("addr", f.NC.ConnectedAddr()))
		}
		if reply.Epoch != 0 { // 0: that one does not know the group yet
			// What else it says is of a cluster that is over, too: another manager is looked for.
			return f.NC.ForceReconnect()
		}
		return nil
	}
	if rec, err = f.follow(rec, reply); err != nil {
		return err
	}
	if rec.Role == RoleWitness {
		return nil // it is nothing else, whether the group has it now or not
	}
	want := ""
	switch reply.Role {
	case skepv1.NodeRole_NODE_ROLE_MANAGER:
		want = RoleManager
	case skepv1.NodeRole_NODE_ROLE_WORKER:
		want = RoleWorker
	}
	if want == "" || want == rec.Role || f.Turn == nil {
		return nil
	}
	f.Log.Info("the node gets another role", zap.String("role", want), zap.String("before", rec.Role))
	if err := f.Turn(ctx, want); err != nil {
		return turnError{fmt.Errorf("turn this %s into a %s: %w", rec.Role, want, err)}
	}
	return nil
}

// follow writes the managers down if they changed.
func (f *Follower) follow(rec *Record, reply *skepv1.NodeManagersReply) (*Record, error) {
	connected := ""
	if rec.Role == RoleWorker {
		connected = dialed(f.NC)
	}
	managers, ok := others(rec, reply.Addrs, connected)
	if !ok || slices.Equal(managers, rec.Managers) && reply.Epoch == rec.Epoch {
		return rec, nil
	}
	before := rec.Managers
	now, err := Update(f.Paths, func(r *Record) { r.Managers, r.Epoch = managers, reply.Epoch })
	if err != nil {
		return nil, fmt.Errorf("write down the managers: %w", err)
	}
	if rec.Epoch != 0 && now.Epoch > rec.Epoch {
		f.Log.Warn("the cluster was founded anew, or restored, since this node heard of its managers last: only those it has now count",
			zap.Uint64("epoch", now.Epoch), zap.Uint64("before", rec.Epoch), zap.Strings("managers", managers))
	}
	f.Log.Info("the managers changed", zap.Strings("managers", managers), zap.Strings("before", before), zap.Uint64("epoch", now.Epoch))
	if f.Changed != nil {
		f.Changed(now)
	}
	return now, nil
}

// dialed is the address a connection was made to, as whoever made it knew it: a name stays a name. nats.go's own list has no
// part in what a dialer of libs/dial dials.
func dialed(nc *nats.Conn) string {
	if d, ok := nc.Opts.CustomDialer.(*dial.Dialer); ok {
		return d.Addr()
	}
	return strings.TrimPrefix(nc.ConnectedUrl(), "tls://")
}

// others are the managers of an answer without the node itself, in the answer's order; false: it names none. The one this
// worker is connected to stays the last of them when it is known under another address here (a name, a translated one):
// what others advertise may not be reachable from here.
func others(rec *Record, addrs []string, connected string) ([]string, bool) {
	own := ""
	if rec.Role == RoleManager {
		own = rec.Advertise
	}
	out := []string{}
	named := false
	for _, a := range addrs[:min(len(addrs), maxManagers)] {
		if !dialable(a) {
			continue
		}
		named = true
		if a != own && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	if named && dialable(connected) && !slices.Contains(out, connected) && slices.Contains(rec.Managers, connected) {
		out = append(out, connected)
	}
	return out, named
}

// dialable reports whether an address is host:port with something in both.
func dialable(a string) bool {
	host, port, err := net.SplitHostPort(a)
	if err != nil || host == "" || len(host) > 253 {
		return false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n > 0
}
