package bus

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	skepv1 "skep.dev/proto/skep/v1"
)

// enlist answers a node that asks to be let into the group. The node's name is proven for workers alone, managers may say
// any: what is let in must show that node's certificate, as a manager's, at the addresses it gives.
func (l *leader) enlist(ctx context.Context, node string, q *skepv1.EnlistRequest) (*skepv1.EnlistReply, error) {
	for what, s := range map[string]string{"address": q.GetAddr(), "route address": q.GetRoute()} {
		if host, port, err := splitAddr(s); err != nil || host == "" || port == 0 || len(s) > 300 {
			return nil, fault.Invalid("enlist node %s: its %s %.300q is not host:port", node, what, s)
		}
	}
	if len(q.GetHostname()) > 256 || len(q.GetVersion()) > 64 {
		return nil, fault.Invalid("enlist node %s: its host name or version is too long", node)
	}
	is, rev, err := l.mayBe(ctx, node)
	if err != nil {
		return nil, err
	}
	// The plan goes by the feed: while that does not know yet that the node is to be a manager, it would let it go again.
	wait, cancel := context.WithTimeout(ctx, 5*time.Second)
	err = l.knows(wait, rev)
	cancel()
	if err != nil {
		return nil, fault.Unavailable("enlist node %s: wait for what was said of it: %v", node, err)
	}
	if q.GetBare() != is.GetWitness() {
		return nil, fault.Denied("node %s joined as a %s, and asks to be let in as a %s: take it out with `skep leave --force` and join it again", node, voterKind(is.GetWitness()), voterKind(q.GetBare()))
	}
	if !l.turn.TryLock() {
		set, _ := l.g.known()
		return nil, fault.Unavailable("%s; node %s is let in after it", doing(set), node)
	}
	defer l.turn.Unlock()
	set, setRev, err := l.read(ctx)
	if err != nil {
		return nil, err
	}
	heard, _ := l.hearing(time.Now())
	next, name, err := admit(set, node, q, heard, l.members(), time.Now())
	if err != nil {
		return nil, err
	}
	if err := l.reached(ctx, set, node, q); err != nil {
		return nil, err
	}
	if next != nil {
		if err := l.write(ctx, next, setRev); err != nil {
			return nil, fault.Unavailable("enlist node %s: %v", node, err)
		}
		set = next
	}
	defer l.g.nudge()
	if name == "" {
		return nil, fault.Unavailable("node %s lost its store: the server it was leaves the group of managers first", node)
	}
	if next != nil {
		l.g.log.Info("a manager was let into the group; its server may start", nodeField(node), serverField(name))
	}
	return &skepv1.EnlistReply{Server: name, Routes: routesOf(set, name), Epoch: set.GetEpoch(), ClusterId: l.g.b.cfg.TLS.Identity().ClusterID, Set: set}, nil
}

// voterKind is what a member of the group is to people.
func voterKind(bare bool) string {
	if bare {
		return "witness"
	}
	return "manager"
}

// mayBe reads, from the store itself, that a node is to be a manager, and what it joined as; at which revision.
func (l *leader) mayBe(ctx context.Context, node string) (*skepv1.NodeObject, uint64, error) {
	e, err := l.spec.Get(ctx, keys.Node.Key(node))
	switch {
	case errors.Is(err, kv.ErrNotFound):
		return nil, 0, fault.Denied("node %s is not part of this cluster: it was removed, or never joined; take it out with `skep leave --force` and join again", node)
	case err != nil:
		return nil, 0, fault.Unavailable("look for node %s: %v", node, err)
	}
	o := &skepv1.NodeObject{}
	if err := proto.Unmarshal(e.Value, o); err != nil {
		return nil, 0, fmt.Errorf("read node %s: %w", node, err)
	}
	if o.GetSpec().GetRole() != skepv1.NodeRole_NODE_ROLE_MANAGER {
		return nil, 0, fault.Denied("node %s is not to be a manager: `skep node promote %s` makes it one", node, node)
	}
	return o, e.Revision, nil
}

// admit decides on a request to be let in: the set with the new manager and the name of its server, or why not. next is nil
// when the set has it already. The name is empty when the server that the node was must leave first: the node asks again.
func admit(set *skepv1.ManagerSet, node string, q *skepv1.EnlistRequest, heard map[string]bool, members []Member, now time.Time) (next *skepv1.ManagerSet, name string, err error) {
	if members == nil {
		return nil, "", fault.Unavailable("the group of managers has no leader: nobody is let in before it has")
	}
	if len(set.GetManagers()) == 0 {
		return nil, "", fault.Unavailable("the group of managers is being written down")
	}
	if q.GetServer() != "" {
		if memberOf(set, q.GetServer()) == nil {
			return nil, "", fault.Conflict("server %s is not in the group of managers (any more)", q.GetServer())
		}
		return nil, q.GetServer(), nil
	}
	var old *skepv1.Manager
	for _, m := range set.GetManagers() {
		switch {
		case m.GetNodeId() != node:
			if m.GetState() != voter {
				return nil, "", fault.Unavailable("%s; node %s is let in after it", doing(set), node)
			}
		case m.GetState() == leaving:
			return nil, "", fault.Unavailable("node %s still leaves the group of managers as %s", node, m.GetServer())
		case heard[m.GetServer()]:
			return nil, "", fault.Unavailable("a manager runs already as node %s, server %s at %s: the one at %s waits until that is gone. Two machines must not have the identity of one node; if it was copied, take one out with `skep leave --force` and join it anew",
				node, m.GetServer(), m.GetAddr(), q.GetAddr())
		default:
			old = m
		}
	}
	next = proto.CloneOf(set)
	if old != nil && old.GetState() == joining && !slices.ContainsFunc(members, func(m Member) bool { return m.Name == old.GetServer() }) {
		// It asks again: the answer was lost, or it ended before its server started. The name is unused.
		m := memberOf(next, old.GetServer())
		m.Addr, m.Route, m.Hostname, m.Bare = q.GetAddr(), q.GetRoute(), q.GetHostname(), q.GetBare()
		next.Step = &skepv1.ManagerStep{Action: actJoin, NodeId: node, Server: m.GetServer(), Since: timestamppb.New(now)}
		return next, m.GetServer(), nil
	}
	if old == nil || old.GetState() == voter {
		// Copies wait for every manager, also for the server of this one, which is gone for good: they are made after it.
		if s := set.GetStep(); s != nil && !(old != nil && s.GetAction() == actScale) {
			return nil, "", fault.Unavailable("%s; node %s is let in after it", doing(set), node)
		}
	}
	if old != nil {
		// Its store is gone, and the name goes with it, before the new server starts: until then it counts in every majority,
		// and a store that is lost again would be the second that is missing.
		memberOf(next, old.GetServer()).State = leaving
	} else if len(set.GetManagers()) >= maxManagers {
		return nil, "", fault.Exhausted("there are %d managers: more make every change slower and the cluster no safer; let one go first", len(set.GetManagers()))
	}
	if next.Used == nil {
		next.Used = map[string]uint32{}
	}
	next.Used[node]++
	name = serverName(node, next.Used[node])
	next.Managers = append(next.Managers, &skepv1.Manager{
		NodeId: node, Server: name, Addr: q.GetAddr(), Route: q.GetRoute(), State: joining, Hostname: q.GetHostname(), Bare: q.GetBare(),
	})
	slices.SortStableFunc(next.Managers, func(a, b *skepv1.Manager) int { return strings.Compare(a.GetNodeId(), b.GetNodeId()) })
	next.Step = &skepv1.ManagerStep{Action: actJoin, NodeId: node, Server: name, Since: timestamppb.New(now)}
	if old != nil {
		name = ""
	}
	return next, name, nil
}

// doing says what is under way in the group.
func doing(set *skepv1.ManagerSet) string {
	s := set.GetStep()
	who := s.GetNodeId()
	for _, m := range set.GetManagers() {
		if m.GetServer() == s.GetServer() && m.GetHostname() != "" {
			who = m.GetHostname()
		}
	}
	text := "the group of managers changes"
	switch s.GetAction() {
	case actJoin:
		text = fmt.Sprintf("manager %s joins", who)
	case actScale:
		text = fmt.Sprintf("all streams are given %d replicas", set.GetReplicas())
	case actStartWitness, actStopWitness:
		text = "the witness changes"
	case actEvacuate, actRetire, actRemove:
		text = fmt.Sprintf("manager %s leaves", who)
	}
	if s.GetWaitsFor() != "" {
		text += " (waiting: " + s.GetWaitsFor() + ")"
	}
	return text
}

// reached has every manager that is there dial the new one's addresses, this one too: routes are a full mesh.
func (l *leader) reached(ctx context.Context, set *skepv1.ManagerSet, node string, q *skepv1.EnlistRequest) error {
	ctx, cancel := context.WithTimeout(ctx, 2*reachFor)
	defer cancel()
	heard, _ := l.hearing(time.Now())
	var mu sync.Mutex
	var refusal, silent error
	var all sync.WaitGroup
	for _, m := range set.GetManagers() {
		if m.GetState() != voter || m.GetNodeId() == node || !heard[m.GetServer()] {
			continue
		}
		all.Go(func() {
			reply, err := api.Call(ctx, l.nc, api.BusReach.At(m.GetNodeId()), &skepv1.ReachRequest{Addrs: []string{q.GetAddr(), q.GetRoute()}, NodeId: node})
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				silent = fault.Unavailable("enlist node %s: manager %s does not say whether it reaches it: %v", node, called(m), err)
				return
			}
			for _, addr := range slices.Sorted(maps.Keys(reply.GetFailed())) {
				refusal = fault.Denied("manager %s does not reach this node at %s from %s: %s; give an address that every manager reaches (--advertise-addr), and open both ports", called(m), addr, hostOf(m.GetAddr()), reply.GetFailed()[addr])
			}
		})
	}
	all.Wait()
	if refusal != nil {
		return refusal
	}
	return silent
}

// called is a manager's host name and id for people.
func called(m *skepv1.Manager) string {
	if m.GetHostname() == "" || m.GetHostname() == m.GetNodeId() {
		return fmt.Sprintf("%s (%s)", m.GetNodeId(), m.GetAddr())
	}
	return fmt.Sprintf("%s (%s)", m.GetHostname(), m.GetNodeId())
}
