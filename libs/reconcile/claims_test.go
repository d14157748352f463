package reconcile

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"skep.dev/libs/keys"
	skepv1 "skep.dev/proto/skep/v1"
)

// mounting makes a service whose tasks mount what an image of storeMounts says.
func (m *store) mounting(id, image string, change func(*skepv1.ServiceSpec)) {
	m.fatal.Helper()
	m.service(id, func(s *skepv1.ServiceSpec) {
		s.Task.Container.Image, s.Task.Container.Mounts = image, storeMounts[image]
		if change != nil {
			change(s)
		}
	})
}

// rounds lets everybody work for a while.
func (m *store) rounds(n int) {
	m.fatal.Helper()
	for range n {
		for _, id := range slices.Sorted(maps.Keys(m.hosts)) {
			m.take(id)
			for which := range 12 {
				m.work(id, which)
				m.oneWriter()
			}
			m.tell(id)
			for len(m.hosts[id].reports) > 0 && m.nodes[id] != nil && !m.hosts[id].cut {
				m.deliver(id)
			}
		}
		m.plan(1<<30, false)
		m.now = m.now.Add(100 * time.Millisecond)
	}
}

// runsOn are the nodes where tasks of a service run, as agents have it.
func (m *store) runsOn(id string) []string {
	var out []string
	for _, t := range m.s.services[id].tasks {
		if n := t.Node(); n != nil && t.wanted() && m.hosts[n.ID].tasks[t.ID] != nil && m.hosts[n.ID].tasks[t.ID].state == Running {
			out = append(out, n.ID)
		}
	}
	slices.Sort(out)
	return out
}

func (m *store) waiting(id string) string {
	for _, t := range m.s.services[id].tasks {
		if t.Node() == nil && t.wanted() {
			return t.more().Err
		}
	}
	return ""
}

func (m *store) traced(text string) bool {
	return slices.ContainsFunc(m.trace, func(s string) bool { return strings.Contains(s, text) })
}

func others(ids []string, not string) bool {
	return len(ids) > 0 && !slices.Contains(ids, not)
}

func TestClaimFollowsTheTask(t *testing.T) {
	m := newStore(t)
	m.mounting("db", "one", func(s *skepv1.ServiceSpec) {
		setReplicas(s, 3)
		s.Task.Restart.Delay.Seconds = 0
		s.Update.Order = startFirst
	})
	m.rounds(6)
	on := m.runsOn("db")
	if len(on) != 3 || on[0] != on[2] {
		t.Fatalf("replicas that share a volume run on %v", on)
	}
	home := on[0]
	c := m.s.Claims()
	if len(c) != 1 || c[0].NodeId != home || c[0].State != ClaimInUse || len(c[0].TaskIds) != 3 || c[0].Driver != "rexray" || c[0].Name != "data" {
		t.Fatalf("claims %v", c)
	}

	// An update goes stop-first whatever is asked for, and says so.
	m.service("db", func(s *skepv1.ServiceSpec) { s.Task.Container.Env = []string{"A=1"} })
	m.rounds(30)
	if on := m.runsOn("db"); len(on) != 3 || on[0] != home || !m.traced("update to revision 2, stop-first: volume rexray/data has one writer") {
		t.Fatalf("updated on %v; %v", on, m.trace)
	}
	for _, x := range m.s.services["db"].tasks {
		if x.wanted() && x.Revision != 2 {
			t.Fatalf("%s is of revision %d", x.ID, x.Revision)
		}
	}

	// A drain stops them first too; they go together to another node.
	m.nodes[home].obj.Spec.Availability = skepv1.Availability_AVAILABILITY_DRAIN
	m.putNode(home)
	m.plan(1<<30, false)
	if !m.traced("its node is drained, and volume rexray/data has one writer: it stops before another starts") {
		t.Fatalf("drained: %v", m.trace[len(m.trace)-5:])
	}
	m.rounds(12)
	if on := m.runsOn("db"); len(on) != 3 || !others(on, home) {
		t.Fatalf("after the drain they run on %v: %s", on, m.waiting("db"))
	}
	m.removeService("db")
	m.rounds(10)
	if c := m.s.Claims(); len(c) > 0 {
		t.Fatalf("claims without tasks: %v", c)
	}
}

// A revision that may not run where the volume is has the old task stopped, or it would wait for ever.
func TestUpdateMovesAVolume(t *testing.T) {
	m := newStore(t)
	to := func(n string) func(*skepv1.ServiceSpec) {
		return func(s *skepv1.ServiceSpec) {
			s.Task.Placement.Constraints = []string{"node.hostname==" + n}
			s.Task.Container.Env = []string{n}
			s.Task.Restart.Delay.Seconds = 0
		}
	}
	m.mounting("db", "none", to("n0"))
	m.rounds(6)
	m.service("db", to("n1"))
	m.rounds(20)
	if on := m.runsOn("db"); len(on) != 1 || on[0] != "n1" {
		t.Fatalf("it runs on %v: %s; %v", on, m.waiting("db"), m.trace)
	}
	// No node suits: the old one runs on.
	m.service("db", to("nowhere"))
	m.rounds(20)
	if on := m.runsOn("db"); len(on) != 1 || on[0] != "n1" {
		// The constraint reaches the old task's revision only when it is of that one.
		t.Fatalf("it runs on %v: %s", on, m.waiting("db"))
	}
}

func TestNoneIsForOneTask(t *testing.T) {
	m := newStore(t)
	m.mounting("a", "none", nil)
	m.rounds(5)
	m.mounting("b", "one", nil)
	m.rounds(5)
	on := m.runsOn("a")
	if want := fmt.Sprintf("volume rexray/data is in use by a.1 on node %s, and with volume-sharing=none one task may have it", on[0]); m.waiting("b") != want {
		t.Fatalf("b: %q, want %q", m.waiting("b"), want)
	}
	m.removeService("a")
	m.rounds(10)
	if on := m.runsOn("b"); len(on) != 1 {
		t.Fatalf("b runs on %v: %s", on, m.waiting("b"))
	}
	m.mounting("slots", "slot", func(s *skepv1.ServiceSpec) { setReplicas(s, 3) })
	m.rounds(6)
	if on := m.runsOn("slots"); len(slices.Compact(on)) != 3 {
		t.Fatalf("tasks with a volume each run on %v", on)
	}
}

// The plug-in's scope becomes known while tasks run, as when agents are upgraded: what runs goes on, and nothing new is placed
// beside two writers.
func TestScopeIsToldLate(t *testing.T) {
	m := newStore(t)
	tell := func(scope string) {
		for id, n := range m.nodes {
			n.desc.Plugins[0].Scope = scope
			m.putNode(id)
		}
	}
	tell("")
	m.mounting("db", "one", func(s *skepv1.ServiceSpec) { setReplicas(s, 2) })
	m.fatal = ignore{m.fatal} // two writers are what a plug-in without a scope asks for
	m.rounds(5)
	if on := m.runsOn("db"); len(slices.Compact(on)) != 2 || len(m.s.Claims()) != 0 {
		t.Fatalf("they run on %v, with claims %v", on, m.s.Claims())
	}
	tell("global")
	m.service("db", func(s *skepv1.ServiceSpec) { setReplicas(s, 3) })
	m.rounds(5)
	c := m.s.Claims()
	if on := m.runsOn("db"); len(on) != 2 || len(c) != 1 || !strings.Contains(m.waiting("db"), "has it too: scale one of them to 0") {
		t.Fatalf("they run on %v, with claims %v: %s", on, c, m.waiting("db"))
	}
	m.service("db", func(s *skepv1.ServiceSpec) { setReplicas(s, 0) })
	m.rounds(10)
	m.service("db", func(s *skepv1.ServiceSpec) { setReplicas(s, 3) })
	m.rounds(10)
	if on := m.runsOn("db"); len(on) != 3 || on[0] != on[2] {
		t.Fatalf("they run on %v: %s", on, m.waiting("db"))
	}
}

type ignore struct{ fataler }

func (ignore) Fatalf(string, ...any) {}

// A leader that comes new does not know what left a node before: only what the node reports of the newest task set counts.
func TestReportsOfOldTaskSetsReleaseNothing(t *testing.T) {
	s := NewState()
	put := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	now := time.UnixMilli(1_700_000_000_000)
	put(s.PutSpec("cluster", enc(&skepv1.Cluster{Spec: &skepv1.ClusterSpec{}})))
	put(s.PutSpec("node.n1", enc(&skepv1.NodeObject{Meta: &skepv1.Meta{Id: "n1"}, Spec: &skepv1.NodeSpec{}})))
	put(s.PutNodeBucket("live.n1", enc(&skepv1.NodeLive{State: skepv1.NodeState_NODE_STATE_READY})))
	key := keys.ClaimKey("rexray", "data")
	put(s.PutTask(key, enc(&skepv1.VolumeClaim{Driver: "rexray", Name: "data", NodeId: "n1", Generation: 10}), 12))
	put(s.PutTask("n1", enc(&skepv1.NodeTasks{}), 44))
	ended := func() bool { return len(s.Plan(now, NewIDs([32]byte{1}), []string{}).Claims) == 1 }
	report := func(applied uint64, volumes ...*skepv1.HeldVolume) {
		put(s.PutStatus("n1", enc(&skepv1.NodeStatus{NodeId: "n1", AppliedGeneration: applied, Volumes: volumes}), now))
	}
	if ended() {
		t.Fatal("without a report")
	}
	for _, old := range []uint64{0, 10, 41} {
		if report(old); ended() {
			t.Fatalf("by a report on task set %d", old)
		}
	}
	if report(44, &skepv1.HeldVolume{Driver: "rexray:latest", Name: "data"}); ended() {
		t.Fatal("although the node holds it")
	}
	put(s.PutSpec("node.n1", nil))
	if report(44); ended() {
		t.Fatal("although the node was removed")
	}
	put(s.PutSpec("node.n1", enc(&skepv1.NodeObject{Meta: &skepv1.Meta{Id: "n1"}, Spec: &skepv1.NodeSpec{}})))
	put(s.PutNodeBucket("live.n1", enc(&skepv1.NodeLive{State: skepv1.NodeState_NODE_STATE_DOWN})))
	if !ended() {
		t.Fatal("it said so, then it went down: nobody has the volume")
	}
	if s.ClaimsTouched(); s.ClaimsTouched() {
		t.Fatal("touched twice")
	}
}

func TestBoundsOfVolumes(t *testing.T) {
	m := newStore(t)
	m.service("many", func(s *skepv1.ServiceSpec) {
		for i := range maxVolumes + 1 {
			s.Task.Container.Mounts = append(s.Task.Container.Mounts, volumeMount("rexray", fmt.Sprint("v", i), ""))
		}
	})
	m.service("bad", func(s *skepv1.ServiceSpec) {
		s.Task.Container.Mounts = []*skepv1.Mount{volumeMount("rexray", "{{range .Service.Labels}}x{{end}}", "")}
	})
	m.plan(1<<30, false)
	for id, want := range map[string]string{"many": "it mounts 33 volumes with one writer, and a task may mount 32", "bad": "only fields ({{.Task.Slot}})"} {
		if !strings.Contains(m.waiting(id), want) {
			t.Errorf("%s: %q", id, m.waiting(id))
		}
	}
	if len(m.s.Claims()) > 0 {
		t.Error(m.s.Claims())
	}
}

// With volume-pin a slot stays where its local volumes are: it waits for its node, visibly, and is free once that was removed.
func TestVolumePin(t *testing.T) {
	m := newStore(t)
	m.both(func(s *State) error {
		return s.PutSpec("cluster", enc(&skepv1.Cluster{Spec: &skepv1.ClusterSpec{TaskHistoryLimit: 0}}))
	})
	change := func(pin bool, env string) func(*skepv1.ServiceSpec) {
		return func(s *skepv1.ServiceSpec) {
			s.Task.Placement.VolumePin = pin
			s.Task.Container.Mounts = []*skepv1.Mount{volumeMount("", "data", "")}
			s.Task.Container.Env = []string{env}
			s.Task.Restart.Delay.Seconds = 0
		}
	}
	m.service("db", change(true, "1"))
	m.rounds(5)
	home := m.runsOn("db")[0]
	for i := range 3 {
		m.service("db", change(true, fmt.Sprint("update ", i)))
		m.rounds(15)
		if on := m.runsOn("db"); len(on) != 1 || on[0] != home {
			t.Fatalf("update %d runs on %v: %s", i, on, m.waiting("db"))
		}
	}
	stays := func(why string) {
		t.Helper()
		m.rounds(8)
		if on := m.runsOn("db"); len(on) > 0 && !m.hosts[home].off || m.waiting("db") != "volume-pin: its local volumes are on node "+home+", which is "+why {
			t.Fatalf("it runs on %v: %q", on, m.waiting("db"))
		}
		if x := m.s.Placing(m.s.services["db"], m.now); !strings.HasPrefix(x.Summary, "volume-pin: its local volumes are on node "+home+", which is "+why) || len(x.Candidates) > 0 {
			t.Fatalf("explained as %q, with candidates %v", x.Summary, x.Candidates)
		}
	}
	back := func() {
		t.Helper()
		m.back(home)
		m.nodes[home].obj.Spec.Availability = skepv1.Availability_AVAILABILITY_ACTIVE
		m.putNode(home)
		m.rounds(8)
		if on := m.runsOn("db"); len(on) != 1 || on[0] != home {
			t.Fatalf("it runs on %v: %s", on, m.waiting("db"))
		}
	}
	m.live(home, skepv1.NodeState_NODE_STATE_DOWN)
	m.powerOff(home)
	stays("down")
	back()
	m.nodes[home].obj.Spec.Availability = skepv1.Availability_AVAILABILITY_DRAIN
	m.putNode(home)
	stays("drained")
	back()
	m.live(home, skepv1.NodeState_NODE_STATE_DOWN)
	m.powerOff(home)
	m.rounds(3)
	m.removeNode(home)
	m.rounds(8)
	if on := m.runsOn("db"); len(on) != 1 || on[0] == home {
		t.Fatalf("its node was removed, and it runs on %v: %s", on, m.waiting("db"))
	}
	// Volumes that are the same everywhere pin nothing.
	for name, mount := range map[string]*skepv1.Mount{
		"nfs":    {Type: skepv1.Mount_TYPE_VOLUME, Source: "x", Target: "/x", VolumeOpts: map[string]string{"type": "nfs"}},
		"plugin": volumeMount("rexray", "x", "all"), "unnamed": {Type: skepv1.Mount_TYPE_VOLUME, Target: "/x"},
	} {
		m.service(name, func(s *skepv1.ServiceSpec) {
			s.Task.Placement.VolumePin, s.Task.Container.Mounts, s.Task.Restart.Delay.Seconds = true, []*skepv1.Mount{mount}, 0
		})
		m.rounds(5)
		on := m.runsOn(name)
		m.live(on[0], skepv1.NodeState_NODE_STATE_DOWN)
		m.rounds(8)
		if now := m.runsOn(name); !others(slices.DeleteFunc(now, func(n string) bool { return n == on[0] }), on[0]) {
			t.Errorf("%s stays on %v: %s", name, on, m.waiting(name))
		}
		m.back(on[0])
		m.rounds(5)
	}
}

// What explain says of a task that waits for a volume.
func TestVolumesAreExplained(t *testing.T) {
	m := newStore(t)
	m.mounting("db", "one", nil)
	m.rounds(5)
	home := m.runsOn("db")[0]
	x := m.s.Placing(m.s.services["db"], m.now)
	if x.Summary != "volume rexray/data is held by node "+home+"; 3 of 3 nodes suit" || len(x.Candidates) != 1 || x.Candidates[0].NodeId != home {
		t.Fatalf("%q, %v", x.Summary, x.Candidates)
	}
	f := x.Filters[len(x.Filters)-1]
	if f.Filter != "volumes" || len(f.Removed) != 2 {
		t.Fatalf("filters %v", x.Filters)
	}
	m.live(home, skepv1.NodeState_NODE_STATE_DOWN)
	m.powerOff(home)
	m.rounds(3)
	x = m.s.Placing(m.s.services["db"], m.now)
	if want := "volume rexray/data is held by node " + home + ", which is down: skep node fence " + home + " once it is certainly off, or give the cluster a fencing command"; !strings.HasPrefix(x.Summary, want) || m.waiting("db") != want {
		t.Fatalf("%q; the task says %q", x.Summary, m.waiting("db"))
	}
}
