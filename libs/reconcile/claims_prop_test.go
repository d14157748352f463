package reconcile

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"skep.dev/libs/keys"
	skepv1 "skep.dev/proto/skep/v1"
)

// Whatever happens, and in whatever order it is told: no two nodes have a volume with a single writer mounted at once, and
// of one that a single task may have, no two tasks run. Nodes crash, are cut off and fenced, their agents act on old task
// sets and their reports arrive late; plans are cut short, and another leads.
func TestNeverTwoNodesWithAWriter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newStore(t)
		t.Repeat(m.trouble())
		m.calm()
	})
}

// store is a sim whose agents have volumes.
type store struct {
	*sim
	hosts map[string]*host
}

// host is a machine: what its agent knows, runs and has mounted.
type host struct {
	off     bool // it has no power
	cut     bool // it hears and is heard of nobody
	forgets bool // it was fenced: it starts nothing before it has taken a new task set
	gen     uint64
	tasks   map[string]*order
	mounted map[string]map[string]bool // volume → tasks; an empty set is mounted still
	reports [][]byte
}

// order is a task as an agent has it.
type order struct {
	desired TaskState
	state   TaskState
	volumes map[string]bool // to whether only one task may have it
}

func newStore(t fataler) *store {
	m := &store{sim: newSim(t), hosts: map[string]*host{}}
	for i := range 3 {
		id := fmt.Sprint("n", i)
		m.node(id)
		m.nodes[id].desc.Plugins = []*skepv1.Plugin{{Type: "Volume", Name: "rexray:latest", Scope: "global"}, {Type: "Volume", Name: "local"}}
		m.nodes[id].desc.Resources = &skepv1.Resources{}
		m.putNode(id)
		m.hosts[id] = &host{tasks: map[string]*order{}, mounted: map[string]map[string]bool{}}
	}
	return m
}

// volumesOf are the volumes of a task on a node by the test's own reading of the spec.
func (m *store) volumesOf(t *Task, node string) map[string]bool {
	out := map[string]bool{}
	for _, mt := range m.mountsOf(t) {
		name := mt.Source
		switch name {
		case "slot-{{.Task.Slot}}":
			name = fmt.Sprint("slot-", t.Slot)
			if t.Slot == 0 {
				name = "slot-" + node
			}
		case "host-{{.Node.Hostname}}":
			name = "host-" + node
		}
		out[mt.VolumeDriver+"/"+name] = mt.VolumeSharing == "none"
	}
	return out
}

// mountsOf: a service's mounts are by its image, so that old revisions are known by it too.
func (m *store) mountsOf(t *Task) []*skepv1.Mount { return storeMounts[m.image(t)] }

func volumeMount(driver, name, sharing string) *skepv1.Mount {
	return &skepv1.Mount{Type: skepv1.Mount_TYPE_VOLUME, VolumeDriver: driver, Source: name, Target: "/" + driver + "." + name, VolumeSharing: sharing}
}

var storeMounts = map[string][]*skepv1.Mount{
	"one":  {volumeMount("rexray", "data", "")},
	"none": {volumeMount("rexray", "data", "none")},
	"slot": {volumeMount("rexray", "slot-{{.Task.Slot}}", "")},
	"two":  {volumeMount("rexray", "data", ""), volumeMount("rexray", "more", "onewriter")},
	"more": {volumeMount("rexray", "more", "")},
	"host": {volumeMount("rexray", "host-{{.Node.Hostname}}", "none")},
	"free": nil,
}

func (m *store) change(t *rapid.T, id string) {
	m.service(id, func(s *skepv1.ServiceSpec) {
		if m.specs[id] == nil {
			s.Task.Restart.Delay.Seconds = 0
			s.Update.Order = skepv1.UpdateOrder(rapid.IntRange(1, 2).Draw(t, "order"))
			if rapid.IntRange(0, 4).Draw(t, "global") == 0 {
				setGlobal(s)
			}
		}
		if s.Mode.GetGlobal() == nil {
			setReplicas(s, uint64(rapid.IntRange(0, 2).Draw(t, "replicas")))
		}
		image := rapid.SampledFrom([]string{"one", "none", "slot", "two", "more", "host", "free"}).Draw(t, "image")
		s.Task.Container.Image, s.Task.Container.Mounts = image, storeMounts[image]
		s.Task.Placement.Constraints = nil
		if rapid.IntRange(0, 4).Draw(t, "constrained") == 0 {
			s.Task.Placement.Constraints = []string{"node.hostname==" + rapid.SampledFrom([]string{"n0", "n1"}).Draw(t, "to")}
		}
	})
}

func (m *store) trouble() map[string]func(*rapid.T) {
	node := func(t *rapid.T) string { return fmt.Sprint("n", rapid.IntRange(0, 2).Draw(t, "node")) }
	plan := func(t *rapid.T) {
		m.plan(rapid.SampledFrom([]int{1, 2, 1 << 30}).Draw(t, "most"), rapid.Bool().Draw(t, "feed"))
	}
	work := func(t *rapid.T) {
		for range rapid.IntRange(1, 6).Draw(t, "steps") {
			id := node(t)
			switch rapid.IntRange(0, 3).Draw(t, "step") {
			case 0:
				m.take(id)
			case 1:
				m.tell(id)
			case 2:
				m.deliver(id)
			default:
				m.work(id, rapid.IntRange(0, 7).Draw(t, "which"))
			}
		}
	}
	return map[string]func(*rapid.T){
		"": func(*rapid.T) { m.oneWriter() },
		"service": func(t *rapid.T) {
			id := fmt.Sprint("s", rapid.IntRange(0, 2).Draw(t, "svc"))
			if m.specs[id] == nil && m.s.services[id] != nil {
				return
			}
			m.change(t, id)
		},
		"remove": func(t *rapid.T) { m.removeService(fmt.Sprint("s", rapid.IntRange(0, 2).Draw(t, "svc"))) },
		"plan":   plan, "plan again": plan, "and again": plan,
		"work": work, "more work": work, "much work": work,
		"leader": func(*rapid.T) { m.s, m.shadow = m.shadow, m.s },
		"time": func(t *rapid.T) {
			m.now = m.now.Add(time.Duration(rapid.IntRange(1, 70_000).Draw(t, "ms")) * time.Millisecond)
		},
		"trouble": func(t *rapid.T) {
			id := node(t)
			h, n := m.hosts[id], m.nodes[id]
			if n == nil {
				return
			}
			switch rapid.IntRange(0, 9).Draw(t, "what") {
			case 0:
				h.cut = true
			case 1:
				m.powerOff(id)
			case 2:
				m.live(id, skepv1.NodeState_NODE_STATE_DOWN) // rightly or not
			case 3:
				m.live(id, skepv1.NodeState_NODE_STATE_UNKNOWN)
			case 4, 5:
				m.back(id)
			case 6:
				m.fenceNode(id)
			case 7:
				n.obj.Spec.Availability = skepv1.Availability(rapid.IntRange(1, 3).Draw(t, "availability"))
				m.putNode(id)
			case 8:
				m.release(t, id)
			default:
				if rapid.IntRange(0, 9).Draw(t, "remove") == 0 {
					m.removeNode(id)
				}
			}
		},
	}
}

func (m *store) powerOff(id string) {
	h := m.hosts[id]
	h.off, h.mounted, h.reports = true, map[string]map[string]bool{}, nil
	for _, o := range h.tasks {
		if o.state >= Ready && o.state <= Running {
			o.state = Failed
		}
	}
}

// fenceNode cuts a node off from its storage, as a person or the command does: only one that is not there.
func (m *store) fenceNode(id string) {
	n := m.nodes[id]
	if n.live == skepv1.NodeState_NODE_STATE_READY || n.obj.Fence != nil {
		return
	}
	m.powerOff(id)
	m.hosts[id].forgets = true
	n.obj.Fence = &skepv1.NodeFence{}
	m.putNode(id)
}

func (m *store) back(id string) {
	m.hosts[id].off, m.hosts[id].cut = false, false
	m.live(id, skepv1.NodeState_NODE_STATE_READY)
}

// unfence does what state does: the node is back, no claim names it and it has taken its newest task set.
func (m *store) unfence(id string) {
	n, x := m.nodes[id], m.s.nodes[id]
	if n == nil || n.obj.Fence == nil || n.live != skepv1.NodeState_NODE_STATE_READY || x.claims > 0 || !x.hasStatus || x.page != nil && x.applied < x.page.Revision || len(m.hosts[id].reports) > 0 {
		return
	}
	for v := range x.holds {
		if c := m.s.claims[keys.ClaimKey(v.driver, v.name)]; c != nil && c.VolumeClaim != nil {
			return
		}
	}
	n.obj.Fence = nil
	m.putNode(id)
}

// release is a person's word that nobody writes a volume: true ones only.
func (m *store) release(t *rapid.T, id string) {
	for _, key := range slices.Sorted(maps.Keys(m.s.claims)) {
		c := m.s.claims[key]
		if c.VolumeClaim == nil || c.GetNodeId() != id || !m.hosts[id].off || m.s.nodes[id].State == skepv1.NodeState_NODE_STATE_READY {
			continue
		}
		if slices.ContainsFunc(m.s.users()[c.id()], func(t user) bool { return t.Node().ID == id && t.wanted() }) {
			continue // refused: it would only come back
		}
		m.hosts[id].forgets = true
		m.rev++
		rev := m.rev
		m.both(func(s *State) error { return s.PutTask(key, nil, rev) })
		return
	}
}

// take has the agent take its newest task set.
func (m *store) take(id string) {
	h := m.hosts[id]
	x := m.s.nodes[id]
	if h.off || h.cut || m.nodes[id] == nil || x.page == nil || x.page.Revision == h.gen {
		return
	}
	h.gen, h.forgets = x.page.Revision, false
	next := map[string]*order{}
	for _, t := range x.page.Tasks {
		o := h.tasks[t.ID]
		if o == nil {
			o = &order{state: Assigned, volumes: m.volumesOf(t, id)}
		}
		o.desired = t.Desired
		next[t.ID] = o
	}
	for k, o := range h.tasks {
		if next[k] == nil && (o.state == Running || m.has(h, k)) {
			o.desired = Remove
			next[k] = o
		}
	}
	h.tasks = next
}

func (m *store) has(h *host, task string) bool {
	for _, ts := range h.mounted {
		if ts[task] {
			return true
		}
	}
	return false
}

// work is one step of an agent: a mount, a start, a stop or an unmount.
func (m *store) work(id string, which int) {
	h := m.hosts[id]
	if h.off {
		return
	}
	for _, v := range slices.Sorted(maps.Keys(h.mounted)) {
		if len(h.mounted[v]) == 0 && which%2 == 0 {
			delete(h.mounted, v)
			return
		}
	}
	all := slices.Sorted(maps.Keys(h.tasks))
	if len(all) == 0 {
		return
	}
	k := all[which%len(all)]
	o := h.tasks[k]
	if o.desired > Complete || o.state > Running {
		if o.state <= Running {
			o.state = Shutdown
			return
		}
		for _, v := range slices.Sorted(maps.Keys(h.mounted)) {
			if h.mounted[v][k] {
				delete(h.mounted[v], k) // the volume itself is unmounted later
				return
			}
		}
		if o.desired == Remove {
			delete(h.tasks, k)
		}
		return
	}
	if h.forgets {
		return
	}
	for _, v := range slices.Sorted(maps.Keys(o.volumes)) {
		if !h.mounted[v][k] {
			if h.mounted[v] == nil {
				h.mounted[v] = map[string]bool{}
			}
			h.mounted[v][k] = true
			return
		}
	}
	if o.state < Ready {
		o.state = Ready
	} else if o.desired != Ready {
		o.state = Running
	}
}

// tell has the agent report; the report may take its time.
func (m *store) tell(id string) {
	h := m.hosts[id]
	if h.off {
		return
	}
	st := &skepv1.NodeStatus{NodeId: id, AppliedGeneration: h.gen}
	for _, k := range slices.Sorted(maps.Keys(h.tasks)) {
		st.Tasks = append(st.Tasks, &skepv1.TaskStatus{TaskId: k, State: skepv1.TaskState(h.tasks[k].state), SinceUnixMs: m.now.UnixMilli()})
	}
	for _, v := range slices.Sorted(maps.Keys(h.mounted)) {
		st.Volumes = append(st.Volumes, &skepv1.HeldVolume{Driver: "rexray", Name: v[len("rexray/"):]})
	}
	h.reports = append(h.reports, enc(st))
}

// deliver brings the oldest report.
func (m *store) deliver(id string) {
	h := m.hosts[id]
	if h.cut || len(h.reports) == 0 || m.nodes[id] == nil {
		return
	}
	r := h.reports[0]
	h.reports = h.reports[1:]
	m.both(func(s *State) error { return s.PutStatus(id, r, m.now) })
	m.unfence(id)
}

func (m *store) oneWriter() {
	m.fatal.Helper()
	at := map[string]string{}
	for _, id := range slices.Sorted(maps.Keys(m.hosts)) {
		h := m.hosts[id]
		for v := range h.mounted {
			if at[v] != "" {
				m.dump()
				m.fatal.Fatalf("%s is mounted on %s and on %s", v, at[v], id)
			}
			at[v] = id
		}
		runs := map[string]string{}
		for k, o := range h.tasks {
			if o.state != Running {
				continue
			}
			for v, alone := range o.volumes {
				if other := runs[v]; other != "" && (alone || h.tasks[other].volumes[v]) {
					m.dump()
					m.fatal.Fatalf("%s and %s run with %s", other, k, v)
				}
				runs[v] = k
			}
		}
	}
}

// calm: everything that is left comes back, and no claim is left that nobody needs.
func (m *store) calm() {
	m.fatal.Helper()
	for _, id := range slices.Sorted(maps.Keys(m.nodes)) {
		m.nodes[id].obj.Spec.Availability = skepv1.Availability_AVAILABILITY_ACTIVE
		m.putNode(id)
		m.back(id)
	}
	for round := 0; ; round++ {
		for _, id := range slices.Sorted(maps.Keys(m.hosts)) {
			m.take(id)
			for which := range 20 {
				m.work(id, which)
				m.oneWriter()
			}
			m.tell(id)
			for len(m.hosts[id].reports) > 0 && m.nodes[id] != nil {
				m.deliver(id)
			}
		}
		p := m.plan(1<<30, round%2 == 0)
		if p.Empty() && round > 10 {
			w := p.NextWake()
			if w.IsZero() || w.Sub(m.now) > time.Hour {
				break
			}
			m.now = w
		}
		if round > 500 {
			m.dump()
			m.fatal.Fatalf("does not come to rest: %v, claims %v", p.Changes, p.Claims)
		}
		m.now = m.now.Add(time.Millisecond)
	}
	for id := range m.nodes {
		if m.nodes[id].obj.Fence != nil {
			m.fatal.Fatalf("%s is back and fenced still", id)
		}
	}
	for _, c := range m.s.Claims() {
		if m.nodes[c.NodeId] != nil && len(c.TaskIds) == 0 {
			m.dump()
			m.fatal.Fatalf("nobody needs %v", c)
		}
	}
	m.sameClaims()
	for _, v := range m.s.services {
		for _, t := range v.tasks {
			if t.wanted() && t.Node() == nil && len(m.mountsOf(t)) == 0 && len(t.Service.limits) == 0 {
				m.dump()
				m.fatal.Fatalf("%s waits for no volume: %s", t.ID, t.more().Err)
			}
		}
	}
}

func (m *store) sameClaims() {
	m.fatal.Helper()
	a, b := m.s.Claims(), m.shadow.Claims()
	if !slices.EqualFunc(a, b, func(a, b *skepv1.VolumeClaim) bool { return proto.Equal(a, b) }) {
		m.fatal.Fatalf("claims %v, by feed %v", a, b)
	}
}
