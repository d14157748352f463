package bus

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

// world is a group as the planner's steps make it: what is stored, and what is really there.
type world struct {
	now      time.Time
	set      *skepv1.ManagerSet
	desired  map[string]bool
	servers  map[string]*fakeServer // of the JetStream group, by name, witnesses too
	replicas uint32                 // that streams have
	settled  bool
	removed  map[string]bool // names that left the group
}

type fakeServer struct {
	node    string
	witness bool
	up      bool // its process runs
	missed  bool // if it does not, nats-server has not noticed
	data    bool // streams count on it
	current bool
}

func newWorld(desired ...string) *world {
	w := &world{now: time.Unix(1e9, 0), desired: map[string]bool{}, servers: map[string]*fakeServer{}, replicas: 1, settled: true, removed: map[string]bool{}}
	for _, n := range desired {
		w.desired[n] = true
	}
	w.set = &skepv1.ManagerSet{
		Managers: []*skepv1.Manager{{NodeId: "a", Server: "a-1", Witness: "a-w1", State: voter, Addr: "a:1", Route: "a:2"}},
		Replicas: 1, Used: map[string]uint32{"a": 1}, Epoch: 1,
	}
	w.servers["a-1"] = &fakeServer{node: "a", up: true, data: true, current: true}
	w.servers["a-w1"] = &fakeServer{node: "a", witness: true, up: true, current: true}
	return w
}

// led reports whether a majority of the group is there.
func (w *world) led() bool {
	up := 0
	for _, s := range w.servers {
		if s.up && s.current {
			up++
		}
	}
	return up >= len(w.servers)/2+1
}

func (w *world) view() *view {
	v := &view{now: w.now, set: w.set, desired: w.desired, heard: map[string]bool{}, missing: map[string]time.Time{}, beats: map[string]*skepv1.ManagerBeat{}}
	st := &streamsView{on: map[string][]string{}}
	if w.led() {
		for _, name := range slices.Sorted(maps.Keys(w.servers)) {
			s := w.servers[name]
			v.members = append(v.members, Member{Name: name, Current: s.current, Offline: !s.up && !s.missed})
			if !s.up {
				v.missing[name] = w.now.Add(-time.Hour)
			}
			if s.data {
				st.on[name] = []string{"KV_spec"}
			}
		}
	}
	holders := 0
	for name, s := range w.servers {
		if s.up && !s.witness {
			v.heard[name] = true
			if v.me == "" || name < v.me {
				v.me = name
			}
		}
		if s.data && s.up {
			holders++
		}
	}
	if holders == 0 {
		st.leadless = []string{"KV_spec"}
	}
	if w.replicas != w.set.GetReplicas() {
		st.differ = []string{"KV_spec"}
	}
	if !w.settled {
		st.unsettle = []string{"KV_spec"}
	}
	v.streams = st
	return v
}

// enlist has a node ask to be let in.
func (w *world) enlist(node string) {
	v := w.view()
	next, name, err := admit(w.set, node, &skepv1.EnlistRequest{Addr: node + ":1", Route: node + ":2", Bare: node == "f"}, v.heard, v.members, w.now)
	if err != nil {
		return
	}
	if next != nil {
		w.set = next
	}
	if name == "" {
		return // it asks again when the server that it was has left
	}
	if w.removed[name] {
		panic("the name " + name + " is used again")
	}
	w.servers[name] = &fakeServer{node: node, up: true, current: true}
}

// do carries a step out; half: the crash comes in the middle of it.
func (w *world) do(t *rapid.T, p plan, half bool) {
	switch p.do {
	case actScale:
		if half {
			w.settled = false
			return
		}
		w.replicas, w.settled = w.set.GetReplicas(), true
		n := uint32(0)
		for _, name := range slices.Sorted(maps.Keys(w.servers)) {
			s := w.servers[name]
			s.data = s.data && n < w.replicas
			if s.data {
				n++
			}
		}
		for _, name := range slices.Sorted(maps.Keys(w.servers)) {
			s := w.servers[name]
			if !s.witness && s.up && !s.data && n < w.replicas {
				s.data = true
				n++
			}
		}
	case actEvacuate:
		if half {
			return
		}
		from := w.servers[p.server]
		if from == nil {
			return
		}
		from.data = false
		for _, name := range slices.Sorted(maps.Keys(w.servers)) {
			if s := w.servers[name]; name != p.server && !s.witness && s.up && !s.data {
				s.data = true
				break
			}
		}
	case actRetire:
		if s := w.servers[p.server]; s != nil {
			if s.data {
				t.Fatalf("%s retires with streams that count on it", p.server)
			}
			s.up = false
		}
	case actStopWitness, actRemove:
		if s := w.servers[p.server]; s != nil {
			if s.up && p.do == actRemove {
				t.Fatalf("%s is removed while it runs", p.server)
			}
			s.up = false
			if half {
				return
			}
			if !w.led() {
				return // nobody carries it out
			}
		}
		if !half {
			delete(w.servers, p.server)
			w.removed[p.server] = true
		}
	case actStartWitness:
		if w.removed[p.server] {
			t.Fatalf("the name %s is used again", p.server)
		}
		if !half && w.servers[p.server] == nil {
			w.servers[p.server] = &fakeServer{node: p.node, witness: true, up: true, current: true}
		}
	default:
		t.Fatalf("unknown step %q", p.do)
	}
}

// tend is what each manager does by itself: its witness follows the set.
func (w *world) tend(t *rapid.T) {
	for _, m := range w.set.GetManagers() {
		host, s := w.servers[m.GetServer()], w.set.GetStep()
		if host == nil || !host.up || m.GetState() != voter || s.GetNodeId() == m.GetNodeId() && (s.GetAction() == actStartWitness || s.GetAction() == actStopWitness) {
			continue
		}
		if name := m.GetWitness(); name != "" && (w.servers[name] == nil || !w.servers[name].up) {
			if w.removed[name] {
				t.Fatalf("witness %s starts again under a name that was removed: %s", name, w.describe())
			}
			w.servers[name] = &fakeServer{node: m.GetNodeId(), witness: true, up: true, current: true}
		}
		for name, s := range w.servers {
			if s.witness && s.node == m.GetNodeId() && name != m.GetWitness() && s.up {
				t.Fatalf("witness %s runs and is in no set: %s", name, w.describe())
			}
		}
	}
}

// check holds the group to what must be so at every moment.
func (w *world) check(t *rapid.T, was *skepv1.ManagerSet, planned plan) {
	changing := 0
	for _, m := range w.set.GetManagers() {
		// The dead go beside another change: a store that was lost when its node has a new one, what is missing for a majority.
		if s := w.servers[m.GetServer()]; m.GetState() == joining || m.GetState() == leaving && s != nil && s.up {
			changing++
		}
	}
	if changing > 1 {
		t.Fatalf("two changes at once: %v", w.set)
	}
	if !w.led() {
		t.Fatalf("no majority after %v: %v", planned, w.describe())
	}
	if w.lost() {
		t.Fatalf("the data is gone after %v: %s", planned, w.describe())
	}
}

func (w *world) describe() string {
	var out []string
	for _, n := range slices.Sorted(maps.Keys(w.servers)) {
		out = append(out, fmt.Sprintf("%s%+v", n, *w.servers[n]))
	}
	return strings.Join(out, " ") + fmt.Sprintf(" set %v", w.set)
}

// Whatever nodes are to be managers, and wherever the leader of the group dies, the group becomes that: one change at a time,
// a majority at every moment, no name twice.
func TestPlanConverges(t *testing.T) {
	nodes := []string{"a", "b", "c", "d", "e", "f"}
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld("a")
		for round := range rapid.IntRange(1, 4).Draw(t, "rounds") {
			w.desired = map[string]bool{}
			for _, n := range rapid.SliceOfNDistinct(rapid.SampledFrom(nodes), 1, 5, rapid.ID[string]).Draw(t, "desired") {
				w.desired[n] = true
			}
			if len(w.desired) == 1 && w.desired["f"] {
				w.desired["a"] = true // f is a witness, and state keeps a manager beside it
			}
			// Once one of them may die, for good when it is not wanted.
			dead, dies := "", rapid.IntRange(0, 60).Draw(t, "one dies")
			crashes := rapid.IntRange(0, 6).Draw(t, "crashes")
			for step := 0; ; step++ {
				if step > 600 {
					t.Fatalf("round %d does not end; wanted %v; next %v; %s", round, w.desired, planGroup(w.view()), w.describe())
				}
				w.now = w.now.Add(time.Second)
				if up := w.voters(); step == dies && len(up) > 1 {
					dead = rapid.SampledFrom(up).Draw(t, "dead")
					if w.power(dead, false); !w.led() || w.lost() {
						w.power(dead, true)
						dead = ""
					}
				}
				for _, n := range slices.Sorted(maps.Keys(w.desired)) {
					if !w.runs(n) && (dead == "" || w.servers[dead] == nil || w.servers[dead].node != n) {
						w.enlist(n)
					}
				}
				was := proto.CloneOf(w.set)
				p := planGroup(w.view())
				crash := crashes > 0 && rapid.IntRange(0, 9).Draw(t, "crash") == 0
				if crash {
					crashes--
				}
				switch {
				case p.write != nil && !crash:
					w.set = p.write
				case p.do != "":
					w.do(t, p, crash)
				}
				w.tend(t)
				w.check(t, was, p)
				w.settled = w.replicas == w.set.GetReplicas() && rapid.IntRange(0, 4).Draw(t, "settled") > 0
				if dead != "" && step > dies+60 {
					if s := w.servers[dead]; s != nil && w.desired[s.node] {
						w.power(dead, true) // it is back
					}
					dead = ""
				}
				if dead == "" && p.write == nil && p.do == "" && p.waits == "" && w.done() {
					break
				}
			}
			w.final(t)
		}
	})
}

// A node whose store is lost, again and again and whenever it may be, never takes the majority from the others.
func TestPlanStoreLostAgain(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := threeManagers()
		last := rapid.IntRange(1, 60).Draw(t, "the last loss")
		for step := 0; ; step++ {
			if step > last+200 {
				t.Fatalf("it does not end; next %v; %s", planGroup(w.view()), w.describe())
			}
			w.now = w.now.Add(time.Second)
			if w.runs("c") && (step == last || step < last && rapid.IntRange(0, 3).Draw(t, "lost") == 0) {
				for _, s := range w.servers {
					if s.node == "c" {
						s.up = false
					}
				}
			}
			if !w.runs("c") {
				w.enlist("c")
			}
			if !w.led() {
				t.Fatalf("no majority: %s", w.describe())
			}
			was := proto.CloneOf(w.set)
			p := planGroup(w.view())
			if p.write != nil {
				w.set = p.write
			} else if p.do != "" {
				w.do(t, p, false)
			}
			w.tend(t)
			w.check(t, was, p)
			if p.do == actEvacuate {
				t.Fatalf("streams are moved off one that is gone: %s", w.describe())
			}
			if step > last && p.String() == "nothing" {
				break
			}
		}
		w.final(t)
	})
}

// power has a server's machine, with its witness, end or come back.
func (w *world) power(server string, on bool) {
	for _, s := range w.servers {
		if s.node == w.servers[server].node {
			s.up = on
		}
	}
}

// lost reports whether nobody that is there has the data.
func (w *world) lost() bool {
	for _, s := range w.servers {
		if s.data && s.up {
			return false
		}
	}
	return true
}

func (w *world) voters() (out []string) {
	for _, m := range w.set.GetManagers() {
		if m.GetState() == voter && w.servers[m.GetServer()] != nil && w.servers[m.GetServer()].up {
			out = append(out, m.GetServer())
		}
	}
	return out
}

func (w *world) runs(node string) bool {
	for _, s := range w.servers {
		if s.node == node && !s.witness && s.up {
			return true
		}
	}
	return false
}

func (w *world) done() bool {
	have := map[string]bool{}
	for _, m := range w.set.GetManagers() {
		have[m.GetNodeId()] = true
	}
	return maps.Equal(have, w.desired)
}

func (w *world) final(t *rapid.T) {
	n := len(w.desired)
	if w.set.GetReplicas() != replicasFor(n) || w.replicas != replicasFor(n) {
		t.Fatalf("%d managers have %d replicas: %s", n, w.replicas, w.describe())
	}
	witnesses := 0
	for _, s := range w.servers {
		if s.witness {
			witnesses++
		}
	}
	if want := map[bool]int{true: 1, false: 0}[n < 3]; witnesses != want || len(w.servers) != n+want {
		t.Fatalf("%d managers with %d witnesses: %s", n, witnesses, w.describe())
	}
}

// threeManagers are a group of three, as it should be.
func threeManagers() *world {
	w := newWorld("a", "b", "c")
	w.set = &skepv1.ManagerSet{Replicas: 3, Used: map[string]uint32{"a": 1, "b": 1, "c": 1}, Epoch: 1}
	w.servers = map[string]*fakeServer{}
	w.replicas = 3
	for _, n := range []string{"a", "b", "c"} {
		w.set.Managers = append(w.set.Managers, &skepv1.Manager{NodeId: n, Server: n + "-1", State: voter})
		w.servers[n+"-1"] = &fakeServer{node: n, up: true, data: true, current: true}
	}
	return w
}

// What the planner does in single situations.
func TestPlan(t *testing.T) {
	three := func(change func(*world)) *world {
		w := threeManagers()
		change(w)
		return w
	}
	two := func(change func(*world)) *world {
		w := newWorld("a", "b")
		w.set.Managers = append(w.set.Managers, &skepv1.Manager{NodeId: "b", Server: "b-1", State: voter})
		w.set.Used["b"] = 1
		w.servers["b-1"] = &fakeServer{node: "b", up: true, current: true}
		change(w)
		return w
	}
	for name, c := range map[string]struct {
		w    *world
		want string
	}{
		"a group as it should be":           {three(func(*world) {}), "nothing"},
		"one of three is to go":             {three(func(w *world) { delete(w.desired, "b") }), "write step  evacuate b-1"},
		"the dead goes before the living":   {three(func(w *world) { w.desired = map[string]bool{"a": true}; w.servers["c-1"].up = false }), "write step  evacuate c-1"},
		"without it there is no majority":   {three(func(w *world) { delete(w.desired, "b"); w.servers["c-1"].up = false }), "wait: without b-1 no majority of the 3 servers is there: c-1 is missing"},
		"the last one stays":                {newWorld(), "wait: a-1 is the last manager: make another one first"},
		"the group has no leader":           {three(func(w *world) { w.servers["b-1"].up, w.servers["c-1"].up = false, false }), "wait: the group of managers has no leader"},
		"a witness comes before one leaves": {three(func(w *world) { delete(w.desired, "b"); w.set.Managers[1].State = leaving }), "write step  start-witness a-w2"},
		"three have no use for a witness": {three(func(w *world) {
			w.set.Managers[0].Witness = "a-w1"
			w.servers["a-w1"] = &fakeServer{node: "a", witness: true, up: true, current: true}
		}), "write step  stop-witness a-w1"},
		"the third brings two more copies": {three(func(w *world) { w.set.Replicas, w.replicas = 1, 1 }), "write step  scale "},
		"copies of one that came anew": {three(func(w *world) {
			w.set.Step, w.settled = &skepv1.ManagerStep{Action: actScale}, false
		}), "scale "},
		"copies, and one is away": {three(func(w *world) {
			w.set.Step, w.settled, w.servers["c-1"].up = &skepv1.ManagerStep{Action: actScale, WaitsFor: "x"}, false, false
		}), "wait: copies are being made of KV_spec"},
		"no copies while one is away": {three(func(w *world) { w.set.Replicas, w.replicas = 1, 1; w.servers["c-1"].up = false }), "wait: manager c-1 is not there"},
		"the only copy is on the dead": {two(func(w *world) {
			delete(w.desired, "b")
			w.set.Managers[1].State = leaving
			w.servers["a-1"].data, w.servers["b-1"].data, w.servers["b-1"].up = false, true, false
		}), "wait: it is not there, and without it KV_spec cannot be read: start it again, or restore a backup"},
		"a lost store, whose server nats-server takes for online": {three(func(w *world) {
			w.servers["a-w1"] = &fakeServer{node: "a", witness: true, up: true, current: true}
			w.set.Managers[0].Witness, w.set.Managers[2].State = "a-w1", leaving
			w.servers["c-1"].data, w.servers["c-1"].up, w.servers["c-1"].missed = true, false, true
		}), "write step  remove c-1"},
		"one that goes and is not heard, but online": {three(func(w *world) {
			delete(w.desired, "c")
			w.servers["a-w1"] = &fakeServer{node: "a", witness: true, up: true, current: true}
			w.set.Managers[0].Witness, w.set.Managers[2].State = "a-w1", leaving
			w.servers["c-1"].data, w.servers["c-1"].up, w.servers["c-1"].missed = true, false, true
		}), "write step  evacuate c-1"},
		"a witness that lost its store gets another name": {two(func(w *world) { w.servers["a-w1"].up = false }), "write step  stop-witness a-w1"},
		"a name that left is not waited for": {two(func(w *world) {
			w.set.Managers[1].State = leaving
			delete(w.servers, "b-1")
			delete(w.desired, "b")
		}), "write step left  "},
	} {
		if got := planGroup(c.w.view()).String(); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// A server that is there and does not become current is noticed, once in a while; one that is away is not.
func TestBehind(t *testing.T) {
	now := time.Unix(1e9, 0)
	v := &view{now: now, heard: map[string]bool{"a-1": true, "b-1": true}, missing: map[string]time.Time{"b-1": now.Add(-behindFor)},
		members: []Member{{Name: "a-1", Leader: true, Current: true}, {Name: "b-1"}}}
	if got := v.behind(time.Time{}); got != "b-1" {
		t.Errorf("behind is %q", got)
	}
	if got := v.behind(now.Add(-time.Second)); got != "" {
		t.Errorf("a second after a push %q is behind", got)
	}
	v.missing["b-1"] = now.Add(-time.Second)
	if got := v.behind(time.Time{}); got != "" {
		t.Errorf("%q has just begun to be behind", got)
	}
	v.missing["b-1"], v.members[1].Offline = now.Add(-time.Hour), true
	if got := v.behind(time.Time{}); got != "" {
		t.Errorf("%q is offline", got)
	}
	v.members[1].Offline, v.heard["b-1"] = false, false
	if got := v.behind(time.Time{}); got != "" {
		t.Errorf("%q is not heard of", got)
	}
}

// Who is let in, and who waits or is turned away.
func TestAdmit(t *testing.T) {
	now := time.Unix(1e9, 0)
	base := func() *skepv1.ManagerSet {
		return &skepv1.ManagerSet{Managers: []*skepv1.Manager{
			{NodeId: "a", Server: "a-1", State: voter, Hostname: "alpha", Addr: "10.0.0.1:2377"}, {NodeId: "b", Server: "b-1", State: voter, Addr: "10.0.0.2:2377"},
		}, Used: map[string]uint32{"a": 1, "b": 4}, Epoch: 3}
	}
	members := []Member{{Name: "a-1", Leader: true, Current: true}, {Name: "b-1", Current: true}}
	q := &skepv1.EnlistRequest{Addr: "10.0.0.9:2377", Route: "10.0.0.9:2378"}
	step := func(s *skepv1.ManagerSet) { s.Step = &skepv1.ManagerStep{Action: actScale}; s.Replicas = 3 }
	for name, c := range map[string]struct {
		node  string
		heard map[string]bool
		set   func(*skepv1.ManagerSet)
		q     *skepv1.EnlistRequest
		name  string
		later string // the name that is kept for it until it asks again
		code  fault.Code
		text  string
	}{
		"a new one":                                             {node: "c", name: "c-1"},
		"one whose store is gone":                               {node: "b", later: "b-5"},
		"while another change goes on":                          {node: "c", set: step, code: fault.CodeUnavailable, text: "all streams are given 3 replicas; node c is let in after it"},
		"a copy of a machine":                                   {node: "b", heard: map[string]bool{"b-1": true}, code: fault.CodeUnavailable, text: "server b-1 at 10.0.0.2:2377: the one at 10.0.0.9:2377 waits"},
		"one whose store is gone, when copies wait for it":      {node: "b", set: step, later: "b-5"},
		"one whose store is gone, while another change goes on": {node: "b", set: func(s *skepv1.ManagerSet) { s.Step = &skepv1.ManagerStep{Action: actStopWitness} }, code: fault.CodeUnavailable, text: "let in after it"},
		"one that still leaves":                                 {node: "b", set: func(s *skepv1.ManagerSet) { s.Managers[1].State = leaving }, code: fault.CodeUnavailable, text: "still leaves"},
		"while another joins":                                   {node: "c", set: func(s *skepv1.ManagerSet) { s.Managers[1].State = joining }, code: fault.CodeUnavailable, text: "let in after it"},
		"one that asks again": {node: "d", set: func(s *skepv1.ManagerSet) {
			s.Managers = append(s.Managers, &skepv1.Manager{NodeId: "d", Server: "d-7", State: joining})
		}, name: "d-7"},
		"one that only asks for the rest": {node: "a", q: &skepv1.EnlistRequest{Server: "a-1"}, name: "a-1"},
		"one that was taken out":          {node: "a", q: &skepv1.EnlistRequest{Server: "a-0"}, code: fault.CodeConflict, text: "not in the group"},
	} {
		set := base()
		if c.set != nil {
			c.set(set)
		}
		if c.q == nil {
			c.q = q
		}
		next, got, err := admit(set, c.node, c.q, c.heard, members, now)
		switch {
		case c.code != "":
			if !fault.Is(err, c.code) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("%s: %v", name, err)
			}
		case err != nil || got != c.name:
			t.Errorf("%s: %q, %v", name, got, err)
		case next != nil:
			if m := memberOf(next, cmp.Or(got, c.later)); m.GetState() != joining || m.GetAddr() != q.GetAddr() || next.GetStep().GetAction() != actJoin || next.GetStep().GetServer() != cmp.Or(got, c.later) {
				t.Errorf("%s: %v", name, next)
			}
		}
	}
	if _, _, err := admit(base(), "c", q, nil, nil, now); !fault.Is(err, fault.CodeUnavailable) {
		t.Errorf("without a leader: %v", err)
	}
}
