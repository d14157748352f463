package state

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/id"
	"skep.dev/libs/keys"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/state/internal/index"
)

// managers is a rig with managers m1, m2, … of which the bus has written down some.
type managers struct {
	*rig
	epoch uint64
}

// group plays the bus: the nodes of those names are voters, the others are not in the group.
func (r *managers) group(nodes ...*skepv1.Node) {
	r.t.Helper()
	set := &skepv1.ManagerSet{Epoch: r.epoch, Replicas: 1}
	for _, n := range nodes {
		set.Managers = append(set.Managers, &skepv1.Manager{
			NodeId: n.Meta.Id, Server: n.Meta.Id + "-1", Addr: n.Description.Hostname + ":2377", State: skepv1.ManagerState_MANAGER_STATE_VOTER, Hostname: n.Description.Hostname})
	}
	body, err := proto.Marshal(set)
	if err != nil {
		r.t.Fatal(err)
	}
	rev, err := r.s.nodes.Put(r.ctx(), keys.Managers.Key(), body)
	if err == nil {
		err = r.s.feeds.Of(subject.NodeB).Wait(r.ctx(), rev)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// beat plays the brokers of managers: they are heard of by every instance; the first one leads.
func (r *managers) beat(nodes ...*skepv1.Node) {
	r.t.Helper()
	for i, n := range nodes {
		body, err := proto.Marshal(&skepv1.ManagerBeat{NodeId: n.Meta.Id, Server: n.Meta.Id + "-1", Version: "v7", Leader: i == 0, Led: true, Epoch: r.epoch})
		if err == nil {
			err = r.nc.Publish(subject.ManagerBeat(n.Meta.Id), body)
		}
		if err != nil {
			r.t.Fatal(err)
		}
	}
	await(r.t, "the beats", func() bool {
		up := r.s.ix.Reachable()
		return !slices.ContainsFunc(nodes, func(n *skepv1.Node) bool { return !up[n.Meta.Id] })
	})
}

// silent makes it so long ago that managers were heard that they count as gone.
func (r *managers) silent(nodes ...*skepv1.Node) {
	past := time.Now().Add(-2 * index.HeardWithin)
	r.s.ix.Listens(past)
	for _, n := range nodes {
		r.s.ix.Heard(&skepv1.ManagerBeat{NodeId: n.Meta.Id, Epoch: r.epoch}, past)
	}
}

func (r *managers) node(ref string) *skepv1.Node {
	r.t.Helper()
	return must[*skepv1.NodeReply](r.t)(call(r.rig, api.NodeInspect, &skepv1.Ref{Ref: ref})).Node
}

func (r *managers) role(ref string, role skepv1.NodeRole) (*skepv1.Node, error) {
	reply, err := call(r.rig, api.NodeUpdate, &skepv1.UpdateNodeRequest{Ref: ref, Role: &role})
	return reply.GetNode(), err
}

func (r *managers) settle(n *skepv1.Node) (*skepv1.Node, error) {
	reply, err := call(r.rig, api.NodeSettle, &skepv1.SettleNodeRequest{NodeId: n.Meta.Id})
	return reply.GetNode(), err
}

func newManagers(t *testing.T) *managers {
	r := &managers{rig: newRig(t, kvtest.Server(t))}
	r.init()
	return r
}

// What node ls shows of managers comes from the group and from their brokers' signs of life.
func TestManagerStatus(t *testing.T) {
	r := newManagers(t)
	m1, m2, m3 := r.admit("m1", manager), r.admit("m2", worker), r.admit("m3", worker)
	want := func(n *skepv1.Node, text string) {
		t.Helper()
		m := r.node(n.Meta.Id).Manager
		got := "none"
		if m != nil {
			got = fmt.Sprintf("%s %v %s %s %s", m.Reachability, m.Leader, m.State, m.Addr, m.Version)
		}
		if got != text {
			t.Errorf("%s: %q, want %q", n.Description.Hostname, got, text)
		}
	}
	want(m1, "reachable true  10.1.1.1 ")
	r.group(m1)
	want(m1, "reachable true voter m1:2377 ")
	must[*skepv1.Node](t)(r.role("m2", manager))
	r.beat(m1)
	want(m1, "reachable true voter m1:2377 v7")
	want(m2, "unknown false joining 10.1.1.1 ")
	r.group(m1, m2)
	want(m2, "unknown false voter m2:2377 ") // this instance has not listened long enough
	r.beat(m2, m1)                           // the lead moved, and both were heard saying so
	want(m2, "reachable true voter m2:2377 v7")
	r.silent(m2)
	want(m2, "unreachable false voter m2:2377 ")
	want(m3, "none")
	// Of a cluster that is over nothing is believed, nor of what is no manager.
	r.epoch = 4
	r.group(m1, m2)
	r.s.ix.Heard(&skepv1.ManagerBeat{NodeId: m2.Meta.Id, Leader: true, Epoch: 3}, time.Now())
	r.s.ix.Heard(&skepv1.ManagerBeat{NodeId: m3.Meta.Id, Leader: true, Epoch: 4}, time.Now())
	if up := r.s.ix.Reachable(); up[m2.Meta.Id] || up[m3.Meta.Id] {
		t.Errorf("reachable: %v", up)
	}
}

// A promotion is certified at once; a demotion when the group has let the node go.
func TestPromoteAndDemote(t *testing.T) {
	r := newManagers(t)
	m1, m2 := r.admit("m1", manager), r.admit("m2", worker)
	told := map[string]*nats.Subscription{}
	for _, n := range []*skepv1.Node{m1, m2} {
		sub, err := r.nc.SubscribeSync(subject.PushRole(n.Meta.Id))
		if err != nil {
			t.Fatal(err)
		}
		told[n.Meta.Id] = sub
	}
	if err := r.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	asks := func(n *skepv1.Node, role skepv1.NodeRole, addrs ...string) {
		t.Helper()
		got := must[*skepv1.NodeManagersReply](t)(call(r.rig, api.StateManagers.At(n.Meta.Id), &skepv1.Empty{}))
		if got.Role != role || !slices.Equal(got.Addrs, addrs) || got.Epoch != r.epoch {
			t.Errorf("%s is told %v", n.Description.Hostname, got)
		}
	}
	pushed := func(n *skepv1.Node) {
		t.Helper()
		if _, err := told[n.Meta.Id].NextMsg(deadline); err != nil {
			t.Errorf("%s is not told that its role changed: %v", n.Description.Hostname, err)
		}
	}
	r.epoch = 2
	r.group(m1)
	asks(m2, worker, "m1:2377")
	n := must[*skepv1.Node](t)(r.role("m2", manager))
	if n.Role != manager || n.Spec.Role != manager {
		t.Fatalf("promoted %v", n)
	}
	pushed(m2)
	asks(m2, manager, "m1:2377")
	r.group(m1, m2)
	r.beat(m1, m2)
	asks(m1, manager, "m1:2377", "m2:2377")

	n = must[*skepv1.Node](t)(r.role("m2", worker))
	if n.Role != manager || n.Spec.Role != worker || n.Manager.GetState() != "voter" {
		t.Fatalf("demoted %v", n)
	}
	asks(m2, manager, "m1:2377", "m2:2377")
	_, err := r.settle(m2)
	wantErr(t, err, "settle node "+m2.Meta.Id+": its server is in the group")
	_, err = r.settle(m1)
	wantErr(t, err, "settle node "+m1.Meta.Id+": it is to be a manager")
	r.group(m1)
	for range 2 { // again it is no error
		if n = must[*skepv1.Node](t)(r.settle(m2)); n.Role != worker || n.Manager != nil {
			t.Fatalf("settled %v", n)
		}
	}
	pushed(m2)
	asks(m2, worker, "m1:2377")
	if _, err := r.settle(&skepv1.Node{Meta: &skepv1.Meta{Id: id.New()}}); !fault.Is(err, fault.CodeNotFound) {
		t.Errorf("settle nobody: %v", err)
	}

	// Who never came into the group is let go at once.
	must[*skepv1.Node](t)(r.role("m2", manager))
	if n = must[*skepv1.Node](t)(r.role("m2", worker)); n.Role != worker {
		t.Errorf("demoted before it came in: %v", n)
	}
	// A node that is no part of the cluster is told so.
	if _, err := call(r.rig, api.StateManagers.At(id.New()), &skepv1.Empty{}); !fault.Is(err, fault.CodeNotFound) {
		t.Errorf("a stranger is told %v", err)
	}
	_, err = r.role("m1", worker)
	wantErr(t, err, lastManager)
}

// A repeated join does not undo what happened to the node since; with the managers' token it promotes it.
func TestJoinAgain(t *testing.T) {
	r := newManagers(t)
	r.admit("m1", manager)
	w := r.admit("w1", worker)
	again := func(role skepv1.NodeRole) *skepv1.Node {
		t.Helper()
		return must[*skepv1.NodeReply](t)(call(r.rig, api.NodeAdmit, &skepv1.AdmitNodeRequest{NodeId: w.Meta.Id, Role: role, Hostname: "w1"})).Node
	}
	if n := again(manager); n.Role != manager || n.Spec.Role != manager {
		t.Errorf("joined as a manager: %v", n)
	}
	if n := again(worker); n.Role != manager || n.Spec.Role != manager {
		t.Errorf("a late repetition made a worker of a manager: %v", n)
	}
}

// A manager is removed by force when it is gone, not while it is there or the others need it.
func TestRemoveManager(t *testing.T) {
	r := newManagers(t)
	m1, m2, m3 := r.admit("m1", manager), r.admit("m2", manager), r.admit("m3", manager)
	rm := func(n *skepv1.Node, force bool) error {
		_, err := call(r.rig, api.NodeRemove, &skepv1.RemoveNodeRequest{Ref: n.Meta.Id, Force: force})
		return err
	}
	r.group(m1, m2, m3)
	r.beat(m1, m2, m3)
	member := "node " + m3.Meta.Id + " is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal"
	wantErr(t, rm(m3, false), member)
	wantErr(t, rm(m3, true), "node "+m3.Meta.Id+" is a cluster manager and it is reachable. It must be demoted to worker before removal (skep node demote m3); --force removes a manager that is gone")
	r.silent(m3, m2)
	wantErr(t, rm(m3, false), member)
	wantErr(t, rm(m3, true), lossOfMost+": of the 2 managers that would stay, m2 cannot be reached; bring them back, or remove for good what does not come back with skep node rm --force")
	r.beat(m1, m2)
	if err := rm(m3, true); err != nil {
		t.Fatal(err)
	}
	if _, err := call(r.rig, api.NodeInspect, &skepv1.Ref{Ref: m3.Meta.Id}); !fault.Is(err, fault.CodeNotFound) {
		t.Errorf("it is still there: %v", err)
	}
	if n := r.admit("w4", worker); n.Number != 3 {
		t.Errorf("its number is not free: %d", n.Number)
	}
	// It is in the group until the bus has removed its server: of what stays nothing is counted twice.
	r.silent(m2)
	if err := rm(m2, true); err != nil {
		t.Fatal(err)
	}
	wantErr(t, rm(m1, true), "node "+m1.Meta.Id+" is a cluster manager and it is reachable. It must be demoted to worker before removal (skep node demote m1); --force removes a manager that is gone")
}

// Managers that are demoted in several places at once, and promoted in between, end with one at least, and each in one state.
func TestRacedRoles(t *testing.T) {
	r := newManagers(t)
	other, _ := r.start()
	var all []*skepv1.Node
	for i := range 3 {
		all = append(all, r.admit(fmt.Sprintf("m%d", i+1), manager))
	}
	r.group(all...)
	for round := range 8 {
		var wg sync.WaitGroup
		for i, n := range all {
			r.s.ix.Heard(&skepv1.ManagerBeat{NodeId: n.Meta.Id}, time.Now())
			other.ix.Heard(&skepv1.ManagerBeat{NodeId: n.Meta.Id}, time.Now())
			for _, role := range []skepv1.NodeRole{worker, manager, worker}[:1+2*(round%2)] {
				wg.Go(func() {
					if _, err := r.role(n.Meta.Id, role); err != nil && !fault.Is(err, fault.CodeInvalid) && !fault.Is(err, fault.CodeUnavailable) {
						t.Errorf("round %d, m%d: %v", round, i+1, err)
					}
				})
			}
		}
		wg.Wait()
		r.caughtUp()
		desired := r.s.ix.Desired()
		if len(desired) == 0 {
			t.Fatalf("round %d: no manager is left", round)
		}
		for _, n := range all {
			now := r.node(n.Meta.Id)
			is := now.Spec.Role == manager
			if slices.Contains(desired, n.Meta.Id) != is || now.Role != manager {
				t.Errorf("round %d: %v", round, now)
			}
			if !is {
				must[*skepv1.Node](t)(r.role(n.Meta.Id, manager))
			}
		}
	}
}
