package wait

import (
	"fmt"
	"sort"
	"strings"

	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/render"
)

// Slot is one task the service should have, and how far it is.
type Slot struct {
	Label  string // 1/3, or the node of a global service
	Name   string // web.1
	Node   string
	State  skepv1.TaskState
	Reason string // why it is not further
	Done   bool
	// GaveUp: it does not run and its restart policy lets nothing replace it.
	GaveUp bool
	// Old: it runs an older revision and waits for its turn in the update.
	Old   bool
	order int
}

// Progress is how far a service is from what was asked for.
type Progress struct {
	Slots   []Slot
	Want    int
	Done    int
	Surplus int // tasks that run and should not
	Status  *skepv1.UpdateStatus
	Global  bool
	Job     bool
}

// Converged: everything that should run does, and nothing else.
func (p *Progress) Converged() bool { return p.Done >= p.Want && p.Surplus == 0 }

// GaveUp returns the slots nothing will replace.
func (p *Progress) GaveUp() []Slot {
	var out []Slot
	for _, s := range p.Slots {
		if s.GaveUp {
			out = append(out, s)
		}
	}
	return out
}

// Reasons are what holds tasks up, the most frequent first.
func (p *Progress) Reasons() []string {
	n := map[string]int{}
	for _, s := range p.Slots {
		if !s.Done && s.Reason != "" {
			n[strings.TrimPrefix(s.Reason, again)]++
		}
	}
	var out []string
	for r := range n {
		out = append(out, r)
	}
	sort.Slice(out, func(i, j int) bool {
		if n[out[i]] != n[out[j]] {
			return n[out[i]] > n[out[j]]
		}
		return out[i] < out[j]
	})
	return out
}

// again leads the reason of a task that replaces one that ended.
const again = "restarting after: "

func terminal(s skepv1.TaskState) bool { return s >= skepv1.TaskState_TASK_STATE_COMPLETE }

func live(t *skepv1.Task) bool {
	return t.Desired <= skepv1.TaskState_TASK_STATE_COMPLETE && !terminal(t.GetStatus().GetState())
}

// current tells which revisions' tasks need no replacement: those that differ from the newest in nothing a task sees.
// A change of placement alone replaces only tasks that no longer fit, so it does not count.
func current(s *skepv1.Service, revs []*skepv1.Revision) map[uint64]bool {
	ok := map[uint64]bool{s.Revision: true}
	seen := func(spec *skepv1.ServiceSpec) proto.Message {
		c := &skepv1.ServiceSpec{Task: proto.Clone(spec.GetTask()).(*skepv1.TaskSpec)}
		if c.Task != nil {
			c.Task.Placement = nil
			if c.Task.Container != nil {
				c.Task.Container.RegistryAuth = nil
			}
		}
		if p := spec.GetEndpoint().GetPorts(); len(p) > 0 {
			c.Endpoint = &skepv1.EndpointSpec{Ports: p}
		}
		return c
	}
	want := seen(s.Spec)
	for _, r := range revs {
		if proto.Equal(want, seen(r.Spec)) {
			ok[r.Number] = true
		}
	}
	return ok
}

// assess compares a service's tasks with what it asks for.
func assess(s *skepv1.Service, tasks []*skepv1.Task, upToDate map[uint64]bool) *Progress {
	p := &Progress{Status: s.UpdateStatus}
	mode := s.GetSpec().GetMode()
	if mode.GetReplicatedJob() != nil || mode.GetGlobalJob() != nil {
		return assessJob(s, tasks)
	}
	p.Global = mode.GetGlobal() != nil
	replicas := mode.GetReplicated().GetReplicas()

	bySlot := map[string][]*skepv1.Task{}
	for _, t := range tasks {
		k := t.NodeId
		if !p.Global {
			k = fmt.Sprint(t.Slot)
		}
		bySlot[k] = append(bySlot[k], t)
	}
	seen := map[uint64]bool{}
	for k, ts := range bySlot {
		sort.SliceStable(ts, func(i, j int) bool {
			return ts[i].GetMeta().GetCreatedAt().AsTime().After(ts[j].GetMeta().GetCreatedAt().AsTime())
		})
		alive := 0
		for _, t := range ts {
			if live(t) {
				alive++
			}
		}
		slot := judge(s, ts, upToDate)
		switch {
		case p.Global && alive == 0 && !slot.GaveUp:
			continue // a node the service left, or one whose task is being replaced this moment
		case !p.Global && (ts[0].Slot == 0 || ts[0].Slot > replicas):
			p.Surplus += alive
			continue
		}
		slot.Label = fmt.Sprintf("%d/%d", ts[0].Slot, replicas)
		slot.order = int(ts[0].Slot)
		if p.Global {
			slot.Label = ts[0].NodeHostname
			if slot.Label == "" {
				slot.Label = render.ShortID(k)
			}
		}
		if !p.Global {
			seen[ts[0].Slot] = true
		}
		p.Slots = append(p.Slots, slot)
	}
	if !p.Global {
		// Slots without any task yet; past the first few they only count.
		for n := uint64(1); n <= replicas && len(p.Slots) < maxBars+1; n++ {
			if !seen[n] {
				p.Slots = append(p.Slots, Slot{Label: fmt.Sprintf("%d/%d", n, replicas), Name: fmt.Sprintf("%s.%d", s.GetSpec().GetName(), n), order: int(n)})
			}
		}
		p.Want = int(replicas)
	} else {
		p.Want = len(p.Slots)
	}
	sort.Slice(p.Slots, func(i, j int) bool {
		if p.Slots[i].order != p.Slots[j].order {
			return p.Slots[i].order < p.Slots[j].order
		}
		return render.NaturalLess(p.Slots[i].Label, p.Slots[j].Label)
	})
	for _, s := range p.Slots {
		if s.Done {
			p.Done++
		}
	}
	return p
}

// judge looks at one slot's tasks, newest first.
func judge(s *skepv1.Service, ts []*skepv1.Task, upToDate map[uint64]bool) Slot {
	pick := ts[0]
	for _, t := range ts {
		// The newest live task of the wanted revision, else the newest live one, else the newest.
		if live(t) && (!live(pick) || upToDate[t.Revision] && !upToDate[pick.Revision]) {
			pick = t
		}
	}
	st := pick.GetStatus()
	out := Slot{Name: pick.Name, Node: pick.NodeHostname, State: st.GetState(), Reason: why(st)}
	fresh := upToDate[pick.Revision]
	switch {
	case live(pick):
		out.Done = fresh && st.GetState() == skepv1.TaskState_TASK_STATE_RUNNING && pick.Desired == skepv1.TaskState_TASK_STATE_RUNNING
		if !out.Done && out.Reason == "" && st.GetState() < skepv1.TaskState_TASK_STATE_RUNNING {
			for _, t := range ts {
				if t != pick && t.Revision == pick.Revision && terminal(t.GetStatus().GetState()) {
					if w := why(t.GetStatus()); w != "" {
						out.Reason = again + w
					}
					break
				}
			}
		}
		if !fresh {
			out.Old, out.Reason = true, "waiting for its turn in the update"
		}
	case fresh && terminal(st.GetState()):
		r := s.GetSpec().GetTask().GetRestart()
		done := st.GetState() == skepv1.TaskState_TASK_STATE_COMPLETE
		switch c := r.GetCondition(); {
		case done && (c == skepv1.RestartCondition_RESTART_CONDITION_NONE || c == skepv1.RestartCondition_RESTART_CONDITION_ON_FAILURE):
			out.Done = true
		case c == skepv1.RestartCondition_RESTART_CONDITION_NONE, r.GetMaxAttempts() > 0:
			out.GaveUp = true
		}
	}
	return out
}

func why(st *skepv1.TaskStatus) string {
	if e := strings.TrimSpace(st.GetErr()); e != "" {
		return e
	}
	if st.GetHealth() == skepv1.HealthState_HEALTH_STATE_STARTING && st.GetState() == skepv1.TaskState_TASK_STATE_STARTING {
		return "waiting for its health check"
	}
	return ""
}

func assessJob(s *skepv1.Service, tasks []*skepv1.Task) *Progress {
	p := &Progress{Job: true, Status: s.UpdateStatus}
	for _, t := range tasks {
		if t.JobIteration != s.JobIteration || t.Desired > skepv1.TaskState_TASK_STATE_COMPLETE && t.GetStatus().GetState() != skepv1.TaskState_TASK_STATE_COMPLETE {
			continue
		}
		st := t.GetStatus()
		p.Slots = append(p.Slots, Slot{Label: t.Name, Name: t.Name, Node: t.NodeHostname, State: st.GetState(), Reason: why(st),
			Done: st.GetState() == skepv1.TaskState_TASK_STATE_COMPLETE, order: int(t.Slot)})
	}
	sort.SliceStable(p.Slots, func(i, j int) bool { return p.Slots[i].order < p.Slots[j].order })
	for _, s := range p.Slots {
		if s.Done {
			p.Done++
		}
	}
	p.Want = len(p.Slots)
	if m := s.GetSpec().GetMode().GetReplicatedJob(); m != nil {
		p.Want = int(m.TotalCompletions)
	}
	return p
}
