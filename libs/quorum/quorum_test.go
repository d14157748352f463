package quorum

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/patience"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// three managers, of which the last ones are missing.
func three(present uint32, led bool) *skepv1.ListManagersReply {
	r := &skepv1.ListManagersReply{Set: &skepv1.ManagerSet{}, Led: led, Voters: 3, Present: present}
	for i, name := range []string{"m1", "m2", "m3"} {
		r.Set.Managers = append(r.Set.Managers, &skepv1.Manager{NodeId: "id" + name, Hostname: name, Addr: "10.0.0." + name[1:] + ":2377", State: skepv1.ManagerState_MANAGER_STATE_VOTER})
		r.Views = append(r.Views, &skepv1.ManagerView{NodeId: "id" + name, Reachable: uint32(i) < present})
	}
	r.Views[1].Heard = timestamppb.New(time.Date(2026, 5, 1, 12, 3, 4, 0, time.Local))
	return r
}

func TestText(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 5, 0, 0, time.Local)
	const want = `the managers have lost their majority: 1 of 3 votes is there, 2 are needed. Nothing can be changed until then; containers, names and published ports go on
Missing: m2 (10.0.0.2:2377) since 12:03:04, m3 (10.0.0.3:2377) not heard of yet
Start them: systemctl start skep (without systemd: skep node run)
If they never come back, on one manager that is left, and on no other: skep init --force-new-cluster`
	if got := Text(three(1, false), now); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	if got := Text(three(1, false), now.Add(48*time.Hour)); !strings.Contains(got, "since 2026-05-01 12:03,") {
		t.Error(got)
	}
}

func TestWhatIsLost(t *testing.T) {
	for _, c := range []struct {
		voters, present uint32
		led, lost       bool
	}{
		{3, 3, true, false}, {3, 2, false, false}, {3, 1, false, true}, {3, 0, false, true}, {3, 1, true, false},
		{2, 1, false, true}, {4, 2, false, true}, {5, 3, false, false}, {5, 2, false, true}, {0, 0, false, false},
	} {
		if got := Lost(&skepv1.ListManagersReply{Voters: c.voters, Present: c.present, Led: c.led}); got != c.lost {
			t.Errorf("%+v: %v", c, got)
		}
	}
	if Lost(nil) {
		t.Error("lost although nobody said so")
	}
}

// Time and beats alone decide what is marked.
func TestStale(t *testing.T) {
	now := time.Now()
	g := &Group{now: func() time.Time { return now }}
	expect := func(what string, want bool, since time.Time) {
		t.Helper()
		if got, stale := g.Stale(); stale != want || want && !got.Equal(since) {
			t.Errorf("%s: %v of %v", what, stale, got)
		}
	}
	pass := func(d time.Duration) { now = now.Add(d) }
	expect("before any beat", false, now)
	g.beat(&skepv1.ManagerBeat{Led: true})
	led := now
	pass(3 * time.Second)
	expect("a few beats late", false, now)
	g.beat(&skepv1.ManagerBeat{})
	expect("no leader", true, led)
	g.beat(&skepv1.ManagerBeat{Led: true}) // of another manager, which has one
	expect("led again", false, now)
	led = now
	pass(time.Second)
	g.beat(&skepv1.ManagerBeat{})
	expect("for a moment", false, now)
	pass(1500 * time.Millisecond)
	expect("for longer", true, led)
	g.beat(&skepv1.ManagerBeat{Led: true})
	led = now
	pass(11 * time.Second)
	expect("nothing is heard", true, led)
}

// rig is a service under a quorum, with brokers that say what they are told to.
type rig struct {
	t     *testing.T
	nc    *nats.Conn
	group *Group
	view  atomic.Pointer[skepv1.ListManagersReply]
	wrote atomic.Int32
}

func newRig(t *testing.T) *rig {
	n := kvtest.Server(t)
	r := &rig{t: t, nc: n.As(t, "user-anna")}
	service := n.As(t, "state-m1")
	r.group = Follow(service, zap.NewNop())
	srv, err := rpc.NewServer(service, rpc.Config{Name: "skep-state", Quorum: r.group})
	if err != nil {
		t.Fatal(err)
	}
	bus, err := rpc.NewServer(n.As(t, "bus-m1"), rpc.Config{Name: "skep-bus"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = srv.Close(), bus.Close() })
	for _, err := range []error{
		api.Handle(bus, api.ManagerList, func(context.Context, *skepv1.Empty) (*skepv1.ListManagersReply, error) { return r.view.Load(), nil }),
		api.Handle(srv, api.NodeList, func(ctx context.Context, _ *skepv1.ListNodesRequest) (*skepv1.ListNodesReply, error) {
			if patience.IsAsIs(ctx) {
				return &skepv1.ListNodesReply{Next: "as it is"}, nil
			}
			return &skepv1.ListNodesReply{}, nil
		}),
		api.Handle(srv, api.NodeRemove, func(context.Context, *skepv1.RemoveNodeRequest) (*skepv1.Empty, error) {
			r.wrote.Add(1)
			return &skepv1.Empty{}, nil
		}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// say publishes a beat and waits until the service knows it.
func (r *rig) say(led bool, view *skepv1.ListManagersReply) {
	r.t.Helper()
	r.view.Store(view)
	body, err := proto.Marshal(&skepv1.ManagerBeat{NodeId: "m1", Led: led})
	if err == nil {
		err = r.nc.Publish(subject.ManagerBeat("m1"), body)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		r.group.mu.Lock()
		knows := !r.group.first.IsZero() && r.group.unled.After(r.group.led) != led
		r.group.mu.Unlock()
		if knows {
			return
		}
		if time.Now().After(end) {
			r.t.Fatal("the beat is not heard")
		}
	}
}

func TestWithoutAMajority(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var asOf time.Time
	read := func() (*skepv1.ListNodesReply, error) {
		asOf = time.Time{}
		return api.Call(rpc.OnStale(ctx, func(at time.Time) { asOf = at }), r.nc, api.NodeList, &skepv1.ListNodesRequest{})
	}
	if _, err := read(); err != nil || !asOf.IsZero() {
		t.Errorf("without beats: %v %v", err, asOf)
	}
	r.say(true, three(3, true))
	if _, err := api.Call(ctx, r.nc, api.NodeRemove, &skepv1.RemoveNodeRequest{}); err != nil || r.wrote.Load() != 1 {
		t.Fatalf("with a leader: %v", err)
	}
	r.group.mu.Lock()
	r.group.led = r.group.led.Add(-time.Minute) // a while ago
	led := r.group.led
	r.group.mu.Unlock()

	r.say(false, three(1, false))
	began := time.Now()
	_, err := api.Call(ctx, r.nc, api.NodeRemove, &skepv1.RemoveNodeRequest{})
	if !fault.Is(err, fault.CodeUnavailable) || !strings.Contains(err.Error(), "Missing: m2 (10.0.0.2:2377)") || time.Since(began) > 2*time.Second || r.wrote.Load() != 1 {
		t.Errorf("a change was answered after %v: %v", time.Since(began), err)
	}
	got, err := read()
	if err != nil || asOf.UnixMilli() != led.UnixMilli() || got.Next != "as it is" {
		t.Errorf("a read: %v %v %v", got, err, asOf)
	}
}

// A change that comes during an election is made after it.
func TestAnElectionIsWaitedFor(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	r.say(true, three(3, true))
	r.say(false, three(2, false))
	done := make(chan error, 1)
	go func() {
		_, err := api.Call(ctx, r.nc, api.NodeRemove, &skepv1.RemoveNodeRequest{})
		done <- err
	}()
	select {
	case err := <-done:
		t.Fatalf("it was not waited for: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	if r.wrote.Load() != 0 {
		t.Error("written without a leader")
	}
	r.say(true, three(2, true))
	if err := <-done; err != nil || r.wrote.Load() != 1 {
		t.Errorf("after the election: %v", err)
	}
	// Those without patience are told at once.
	r.say(false, three(2, false))
	if err := r.group.MayWrite(ctx); !fault.Is(err, fault.CodeUnavailable) {
		t.Errorf("without patience: %v", err)
	}
}
