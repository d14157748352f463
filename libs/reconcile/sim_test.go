package reconcile

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"skep.dev/libs/job"
	"skep.dev/libs/place"
	skepv1 "skep.dev/proto/skep/v1"
)

// sim is a cluster around a State: it stores what plans write, plays agents and health, and checks what must always
// hold. Failures are reported through fatal.
type sim struct {
	fatal interface {
		Helper()
		Fatalf(string, ...any)
		Logf(string, ...any)
	}
	s      *State
	bare   bool   // a benchmark: nothing is checked and there is no shadow
	shadow *State // fed with the written bytes only, as a standby is
	now    time.Time
	rev    uint64
	ids    *IDs

	nodes map[string]*simNode
	specs map[string]*skepv1.Service
	trace []string

	images    map[string]map[uint64]string // by service and revision
	rollbacks []Rollback                   // asked of state
	canary    uint64                       // of the next update
	ill       map[string]string            // tasks that are unhealthy, and what their probes say
	down      map[string]map[string]bool   // service → units that were ended for their health and have not served since
}

type simNode struct {
	obj    *skepv1.NodeObject
	desc   *skepv1.NodeDescription
	live   skepv1.NodeState
	silent bool
	seen   map[string]*skepv1.TaskStatus
	fail   bool // tasks started here fail
	hangs  bool // nothing can be begun or stopped here: its containerd does not answer
	lacks  bool // what tasks need is not here: they are rejected

	stops time.Duration        // how long a running task takes to stop, 0 = no time
	told  map[string]time.Time // when each was told to
}

// An image says how its tasks fare: "nowhere" is rejected, "bad" ends at once, "late" ends 3 s after it began to run, "mute" never serves.
func (m *sim) image(t *Task) string {
	if v := m.images[t.Service.ID]; v != nil {
		return v[t.Revision]
	}
	return ""
}

type fataler interface {
	Helper()
	Fatalf(string, ...any)
	Logf(string, ...any)
}

func newSim(t fataler) *sim {
	m := &sim{
		fatal: t, s: NewState(), shadow: NewState(), now: time.UnixMilli(1_700_000_000_000), ids: NewIDs([32]byte{7}),
		nodes: map[string]*simNode{}, specs: map[string]*skepv1.Service{}, images: map[string]map[uint64]string{},
		ill: map[string]string{}, down: map[string]map[string]bool{},
	}
	m.both(func(s *State) error {
		return s.PutSpec("cluster", enc(&skepv1.Cluster{Spec: &skepv1.ClusterSpec{TaskHistoryLimit: 3}}))
	})
	return m
}

func enc(m proto.Message) []byte {
	b, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	if b == nil {
		b = []byte{}
	}
	return b
}

func (m *sim) both(f func(*State) error) {
	m.fatal.Helper()
	for _, s := range []*State{m.s, m.shadow} {
		if m.bare && s == m.shadow {
			continue
		}
		if err := f(s); err != nil {
			m.fatal.Fatalf("%v", err)
		}
	}
}

func (m *sim) node(id string) *simNode {
	n := m.nodes[id]
	if n == nil {
		n = &simNode{
			obj: &skepv1.NodeObject{Meta: &skepv1.Meta{Id: id}, Spec: &skepv1.NodeSpec{}},
			desc: &skepv1.NodeDescription{Hostname: id, Platform: &skepv1.Platform{Os: "linux", Arch: "amd64"}, Resources: &skepv1.Resources{
				NanoCpus: 4e9, MemoryBytes: 8 << 30, Generic: []*skepv1.GenericResource{{Kind: "gpu", Named: []string{"g1", "g2", "g3"}}, {Kind: "ssd", Value: 4}},
			}},
			live: skepv1.NodeState_NODE_STATE_READY, seen: map[string]*skepv1.TaskStatus{},
		}
		m.nodes[id] = n
		m.putNode(id)
	}
	return n
}

func (m *sim) putNode(id string) {
	n := m.nodes[id]
	m.both(func(s *State) error { return s.PutSpec("node."+id, enc(n.obj)) })
	m.both(func(s *State) error { return s.PutNodeBucket("desc."+id, enc(n.desc)) })
	m.live(id, n.live)
}

func (m *sim) live(id string, st skepv1.NodeState) {
	n := m.nodes[id]
	n.live = st
	n.silent = st == skepv1.NodeState_NODE_STATE_DOWN
	m.both(func(s *State) error {
		return s.PutNodeBucket("live."+id, enc(&skepv1.NodeLive{State: st, SinceUnixMs: m.now.UnixMilli()}))
	})
}

func (m *sim) removeNode(id string) {
	delete(m.nodes, id)
	m.both(func(s *State) error { return s.PutSpec("node."+id, nil) })
}

func (m *sim) service(id string, change func(*skepv1.ServiceSpec)) {
	v := m.specs[id]
	if v == nil {
		v = &skepv1.Service{Meta: &skepv1.Meta{Id: id}, Revision: 1, Spec: &skepv1.ServiceSpec{
			Name: id, Task: &skepv1.TaskSpec{Container: &skepv1.ContainerSpec{Image: "v1"}, Placement: &skepv1.Placement{}, Resources: &skepv1.ResourceRequirements{Reservations: &skepv1.Resources{}}},
			Update: &skepv1.UpdateConfig{Parallelism: 1}, Endpoint: &skepv1.EndpointSpec{},
		}}
		v.Spec.Task.Restart = &skepv1.RestartPolicy{Condition: skepv1.RestartCondition_RESTART_CONDITION_ANY, Delay: durationpb.New(5 * time.Second)}
		setReplicas(v.Spec, 1)
		change(v.Spec)
		job.Revise(nil, v, m.now, m.views(id))
	} else {
		v = proto.CloneOf(v)
		was := proto.CloneOf(v.Spec.Task)
		ports := proto.CloneOf(v.Spec.Endpoint)
		change(v.Spec)
		if !proto.Equal(was, v.Spec.Task) || !proto.Equal(ports, v.Spec.Endpoint) {
			v.PreviousRevision = v.Revision
			v.Revision++
			v.RollbackTo, v.RollbackReason = 0, ""
			v.Control = &skepv1.RolloutControl{Resume: v.Control.GetResume() + 1, Canary: m.canary}
			job.Revise(m.specs[id], v, m.now, m.views(id))
		}
	}
	m.put(id, v)
}

func (m *sim) put(id string, v *skepv1.Service) {
	m.fatal.Helper()
	m.specs[id] = v
	if m.images[id] == nil {
		m.images[id] = map[uint64]string{}
	}
	m.images[id][v.Revision] = v.Spec.Task.Container.Image
	m.both(func(s *State) error {
		return s.PutRevision(fmt.Sprintf("service.%s.%d", id, v.Revision), enc(&skepv1.Revision{ServiceId: id, Number: v.Revision, Spec: v.Spec}))
	})
	m.both(func(s *State) error { return s.PutSpec("service."+id, enc(v)) })
}

func setReplicas(s *skepv1.ServiceSpec, n uint64) {
	s.Mode = &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_Replicated{Replicated: &skepv1.ReplicatedMode{Replicas: n}}}
}

func setGlobal(s *skepv1.ServiceSpec) {
	s.Mode = &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_Global{Global: &skepv1.GlobalMode{}}}
}

func (m *sim) removeService(id string) {
	delete(m.specs, id)
	m.both(func(s *State) error { return s.PutSpec("service."+id, nil) })
}

// control is a word of a user about a rollout.
func (m *sim) control(id string, change func(*skepv1.RolloutControl)) {
	m.fatal.Helper()
	v := proto.CloneOf(m.specs[id])
	if v.Control == nil {
		v.Control = &skepv1.RolloutControl{}
	}
	change(v.Control)
	m.put(id, v)
}

// rollback is what state makes of a plan's request, or of a user's.
func (m *sim) rollback(r Rollback) {
	m.fatal.Helper()
	id := r.Service.ID
	v := proto.CloneOf(m.specs[id])
	if v.Revision != r.From {
		return
	}
	v.Spec.Task.Container.Image = m.images[id][r.To]
	v.PreviousRevision, v.RollbackTo, v.RollbackReason = v.Revision, r.To, r.Reason
	v.Revision++
	v.Control = &skepv1.RolloutControl{Resume: v.Control.GetResume() + 1}
	m.put(id, v)
}

// plan makes one plan of everything and applies up to `most` batches of it; small batches, to have many.
func (m *sim) plan(most int, byFeed bool) *Plan {
	m.fatal.Helper()
	p := m.s.Plan(m.now, m.ids, nil)
	m.checkPlan(p)
	m.rollbacks = append(m.rollbacks, p.Rollbacks...)
	m.checkHealthBudget(p)
	m.apply(p, most, byFeed)
	return p
}

func (m *sim) apply(p *Plan, most int, byFeed bool) {
	m.fatal.Helper()
	bs := m.s.Batches(p)
	for k := 0; k < most; k++ {
		b := bs.Next(4, 1<<20)
		if b == nil {
			break
		}
		revs := make([]uint64, len(b.Writes))
		for i := range b.Writes {
			m.rev++
			revs[i] = m.rev
		}
		for i := range b.Changes {
			m.trace = append(m.trace, b.Changes[i].String())
			m.noteHealth(&b.Changes[i])
		}
		feed := func(s *State) {
			for i, w := range b.Writes {
				v := w.Value
				if w.Delete {
					v = nil
				} else if v == nil {
					v = []byte{}
				}
				if err := s.PutTask(w.Key, v, revs[i]); err != nil {
					m.fatal.Fatalf("read back %s: %v", w.Key, err)
				}
			}
		}
		if m.bare {
			m.s.Applied(b, revs)
			continue
		}
		feed(m.shadow)
		if byFeed {
			feed(m.s)
		} else {
			m.s.Applied(b, revs)
			feed(m.s) // late, must be ignored
		}
		m.forgetUnits()
		m.checkState()
	}
}

// agent lets a node do what it is told, as far as it listens.
func (m *sim) agent(id string) {
	n := m.nodes[id]
	if n == nil || n.silent {
		return
	}
	page := m.s.nodes[id].page
	st := &skepv1.NodeStatus{NodeId: id}
	next := map[string]*skepv1.TaskStatus{}
	if page != nil {
		st.AppliedGeneration = page.Revision
		for _, t := range page.Tasks {
			s := n.seen[t.ID]
			want := Running
			if n.hangs && t.Desired != Remove {
				if s == nil {
					s = &skepv1.TaskStatus{TaskId: t.ID, State: skepv1.TaskState_TASK_STATE_PREPARING, SinceUnixMs: m.now.UnixMilli()}
				}
				next[t.ID] = s
				continue
			}
			switch {
			case t.Desired > Complete && n.lingers(s, m.now):
				next[t.ID] = s
				continue
			case t.Desired == Remove:
				continue
			case t.Desired == Shutdown:
				want = Shutdown
			case t.Desired == Ready:
				want = Ready
			case n.fail:
				want = Failed
			}
			image := m.image(t)
			if (n.lacks || image == "nowhere") && want <= Running && TaskState(s.GetState()) < Ready {
				next[t.ID] = &skepv1.TaskStatus{TaskId: t.ID, State: skepv1.TaskState(Rejected), SinceUnixMs: m.now.UnixMilli(), Err: "no such image:\n " + image}
				continue
			}
			if image == "bad" && want == Running {
				want = Failed
			}
			if s == nil || TaskState(s.State) < want && TaskState(s.State) <= Running {
				began := s.GetStartedUnixMs()
				if want == Running {
					began = m.now.UnixMilli()
				}
				s = &skepv1.TaskStatus{TaskId: t.ID, State: skepv1.TaskState(want), SinceUnixMs: m.now.UnixMilli(), StartedUnixMs: began}
				if image == "mute" {
					s.Health = skepv1.HealthState_HEALTH_STATE_STARTING
				}
			}
			if image == "late" && TaskState(s.State) == Running && m.now.UnixMilli() >= s.StartedUnixMs+3000 {
				s = proto.CloneOf(s)
				s.State, s.SinceUnixMs = skepv1.TaskState(Failed), m.now.UnixMilli()
			}
			next[t.ID] = s
		}
	}
	n.seen = next
	m.report(id, st)
}

// lingers: the task was told to stop and takes its time.
func (n *simNode) lingers(s *skepv1.TaskStatus, now time.Time) bool {
	if n.stops == 0 || TaskState(s.GetState()) != Running {
		return false
	}
	if n.told == nil {
		n.told = map[string]time.Time{}
	}
	if n.told[s.TaskId].IsZero() {
		n.told[s.TaskId] = now
	}
	return now.Sub(n.told[s.TaskId]) < n.stops
}

func (m *sim) report(id string, st *skepv1.NodeStatus) {
	n := m.nodes[id]
	for _, k := range slices.Sorted(maps.Keys(n.seen)) {
		st.Tasks = append(st.Tasks, m.probed(n.seen[k]))
	}
	m.both(func(s *State) error { return s.PutStatus(id, enc(st), m.now) })
	m.serves(st)
}

// crash ends one running task of a node.
func (m *sim) crash(id string, state TaskState) {
	n := m.nodes[id]
	if n == nil || n.silent {
		return
	}
	for _, k := range slices.Sorted(maps.Keys(n.seen)) {
		if TaskState(n.seen[k].State) == Running {
			n.seen[k] = &skepv1.TaskStatus{TaskId: k, State: skepv1.TaskState(state), SinceUnixMs: m.now.UnixMilli()}
			st := &skepv1.NodeStatus{NodeId: id}
			if p := m.s.nodes[id].page; p != nil {
				st.AppliedGeneration = p.Revision
			}
			m.report(id, st)
			return
		}
	}
}

// converge lets everybody work until nothing is left to do; time passes when something waits.
func (m *sim) converge() {
	m.fatal.Helper()
	for round := 0; ; round++ {
		for _, id := range slices.Sorted(maps.Keys(m.nodes)) {
			m.agent(id)
		}
		p := m.plan(1<<30, round%2 == 0)
		if p.Empty() {
			w := p.NextWake()
			if w.IsZero() || w.Sub(m.now) > time.Hour {
				break
			}
			m.now = w
		}
		if round > 2000 {
			m.dump()
			m.fatal.Fatalf("does not converge; last plan %v, rollouts %v, wakes %v, now %d", p.Changes, p.Rollouts, p.Wakes, m.now.UnixMilli())
		}
		m.now = m.now.Add(time.Millisecond)
	}
	m.same()
}

func (m *sim) dump() {
	for _, key := range slices.Sorted(maps.Keys(m.s.pages)) {
		for _, t := range m.s.pages[key].Tasks {
			m.fatal.Logf("%s: %s slot %d rev %d desired %v state %v(seen %v) nb %d more %+v", key, t.ID, t.Slot, t.Revision, t.Desired, t.State(), t.Seen, t.NotBefore, *t.more())
		}
	}
	for _, x := range m.trace[max(0, len(m.trace)-40):] {
		m.fatal.Logf("%s", x)
	}
}

// same: the state that applied its own batches holds what one that read the bytes holds.
func (m *sim) same() {
	m.fatal.Helper()
	if len(m.s.tasks) != len(m.shadow.tasks) {
		m.fatal.Fatalf("%d tasks, %d by feed", len(m.s.tasks), len(m.shadow.tasks))
	}
	for id, t := range m.s.tasks {
		o := m.shadow.tasks[id]
		if o == nil {
			m.fatal.Fatalf("task %s is missing by feed", id)
		}
		a, b := appendTask(nil, t, t.Service.ID), appendTask(nil, o, o.Service.ID)
		if string(a) != string(b) || t.Page.Key != o.Page.Key || t.Seen != o.Seen || t.DesiredAt != o.DesiredAt || m.s.sick[t] != m.shadow.sick[o] || m.s.refused[t] != m.shadow.refused[o] || t.ran != o.ran || t.served != o.served {
			m.fatal.Fatalf("task %s differs: %+v and by feed %+v", id, t, o)
		}
	}
	for v, n := range m.s.unplaced {
		if o := m.shadow.services[v.ID]; o == nil || m.shadow.unplaced[o] != n {
			m.fatal.Fatalf("%s: %d unplaced, by feed %d", v.ID, n, m.shadow.unplaced[o])
		}
	}
}

// checkPlan: what a plan may never ask for.
func (m *sim) checkPlan(p *Plan) {
	m.fatal.Helper()
	type made struct {
		v        *Service
		revision uint64
	}
	placed := map[*Node]map[made]int{}
	for i := range p.Changes {
		c := &p.Changes[i]
		if c.Node == nil || c.Verb != Create && c.Verb != Place {
			continue
		}
		if !c.Node.accepts() {
			m.fatal.Fatalf("%v: node is %v, %v, exists %v", c, c.Node.State, c.Node.Availability, c.Node.Exists)
		}
		m.checkRunIsAlone(c)
		if placed[c.Node] == nil {
			placed[c.Node] = map[made]int{}
		}
		placed[c.Node][made{c.New.Service, c.New.Revision}]++
	}
	for n, by := range placed {
		for x, k := range by {
			v := x.v
			if most := v.request(x.revision).MaxPerNode; most > 0 {
				for _, t := range v.tasks {
					if t.Node() == n && t.wanted() && t.Revision == x.revision && !p.touches(t) {
						k++
					}
				}
				if k > most {
					m.fatal.Fatalf("%d tasks of %s on %s, at most %d", k, v.ID, n.ID, most)
				}
			}
		}
	}
}

// checkRunIsAlone: a run that others may not go beside begins when their tasks are gone.
func (m *sim) checkRunIsAlone(c *Change) {
	m.fatal.Helper()
	v := c.New.Service
	if !v.job() || v.jobs.overlap == skepv1.Concurrency_CONCURRENCY_ALLOW || c.New.more().Replaces != "" {
		return
	}
	for _, t := range v.tasks {
		if n := t.Node(); t.more().Iteration != c.New.more().Iteration && n != nil && !n.lost() && !t.quiet() {
			m.dump()
			m.fatal.Fatalf("%v: %s of run %d is on %s still", c, t.ID, t.more().Iteration, n.ID)
		}
	}
}

func (p *Plan) touches(t *Task) bool {
	return slices.ContainsFunc(p.Changes, func(c Change) bool { return c.Old == t })
}

// checkState: what the records may never say.
func (m *sim) checkState() {
	m.fatal.Helper()
	type key struct {
		v    *Service
		slot uint64
	}
	slots := map[key]int{}
	for _, n := range m.s.nodes {
		if n.page == nil {
			continue
		}
		ports := map[place.Port]*Task{}
		for _, t := range n.page.Tasks {
			if t.Service.Exists && t.Desired == Running && t.wanted() && t.Slot > 0 {
				slots[key{t.Service, t.Slot}]++
			}
			if !t.held() || t.Desired == Ready || t.Desired > Complete && t.Seen <= Ready && t.more().Replaces != "" {
				continue // only prepared
			}
			for _, p := range t.request().Ports {
				for held, o := range ports {
					if held.Meets(p) && (o.Desired == Running || t.Desired == Running) {
						m.dump()
						m.fatal.Fatalf("%s and %s hold port %v on %s", o.ID, t.ID, p, n.ID)
					}
				}
				ports[p] = t
			}
		}
		m.checkUsage(n)
		// A replacement that was only prepared, and now is stopped together with the task it was for, is on the books until
		// its agent says so; that errs on the safe side and is not what this is about.
		u := *m.s.usage(n)
		for _, t := range n.page.Tasks {
			if t.held() && t.Desired > Complete && t.Seen <= Ready {
				u.cpu -= t.request().CPU
			}
		}
		if sn := m.nodes[n.ID]; sn != nil && n.Exists && sn.desc.Resources.NanoCpus == 4e9 && u.cpu > n.cpu {
			m.dump()
			m.fatal.Fatalf("%s holds %d of %d cpu", n.ID, u.cpu, n.cpu)
		}
	}
	for k, n := range slots {
		if n > 2 {
			m.dump()
			m.fatal.Fatalf("%d tasks run in slot %d of %s", n, k.slot, k.v.ID)
		}
	}
}
