package wait

import (
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/record"
	"skep.dev/libs/restart"
	specs "skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/plain"
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
	Old bool
	// Failures are how many of its tasks failed in a row before the one that waits to be started again, at Again.
	Failures uint32
	Again    time.Time
	// Rejected: its node could not even prepare the one before.
	Rejected bool
	order    int
}

// Progress is how far a service is from what was asked for.
type Progress struct {
	Slots   []Slot
	Want    int
	Done    int
	Surplus int // tasks that run and should not
	// Away are the nodes of a global service where nothing will come of what was asked until somebody does something, and why.
	Away   []Away
	Status *skepv1.UpdateStatus
	Global bool
	Job    bool
}

// Away is a node that does not take what a global service wants there.
type Away struct{ Node, Why string }

// away tells whether a task's node can get what is not there yet.
func away(t *skepv1.Task) (Away, bool) {
	switch {
	case t.GetNodeState() == skepv1.NodeState_NODE_STATE_DOWN:
		return Away{t.NodeHostname, "is down"}, true
	case t.GetNodeAvailability() == skepv1.Availability_AVAILABILITY_PAUSE:
		return Away{t.NodeHostname, "is paused"}, true
	}
	return Away{}, false
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
	want := specs.Core(s.Spec)
	for _, r := range revs {
		if proto.Equal(want, specs.Core(r.Spec)) {
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
		return assessJob(s, tasks, s.JobIteration)
	}
	p.Global = mode.GetGlobal() != nil
	replicas := mode.GetReplicated().GetReplicas()

	bySlot := map[string][]*skepv1.Task{}
	for _, t := range tasks {
		k := fmt.Sprint(t.Slot)
		if p.Global {
			k = nodeOf(t)
		}
		bySlot[k] = append(bySlot[k], t)
	}
	seen := map[uint64]bool{}
	alive := map[uint64]int{}
	for k, ts := range bySlot {
		sort.SliceStable(ts, func(i, j int) bool {
			return ts[i].GetMeta().GetCreatedAt().AsTime().After(ts[j].GetMeta().GetCreatedAt().AsTime())
		})
		n := 0
		for _, t := range ts {
			if live(t) {
				n++
			}
		}
		slot := judge(s, ts, upToDate)
		if p.Global && n == 0 && !slot.GaveUp {
			continue // a node the service left, or one whose task is being replaced this moment
		}
		if a, is := away(ts[0]); p.Global && is {
			if !slot.Done {
				p.Away = append(p.Away, a)
				continue
			}
			if a.Why == "is down" {
				continue // it is as asked, as far as is known
			}
		}
		slot.Label = fmt.Sprintf("%d/%d", ts[0].Slot, replicas)
		slot.order = int(ts[0].Slot)
		if p.Global {
			slot.Label = hostOf(ts)
			if slot.Label == "" {
				slot.Label = render.ShortID(k)
			}
		} else {
			seen[ts[0].Slot], alive[ts[0].Slot] = true, n
		}
		p.Slots = append(p.Slots, slot)
	}
	if !p.Global {
		p.keep(replicas, alive)
		// Slots without any task yet; past the first few they only count.
		for n := uint64(1); len(p.Slots) < int(replicas) && len(p.Slots) < maxBars+1; n++ {
			if !seen[n] {
				p.Slots = append(p.Slots, Slot{Label: fmt.Sprintf("%d/%d", n, replicas), Name: fmt.Sprintf("%s.%d", s.GetSpec().GetName(), n), order: int(n)})
			}
		}
		p.Want = int(replicas)
	} else {
		p.Want = len(p.Slots)
	}
	slices.SortFunc(p.Away, func(a, b Away) int { return strings.Compare(a.Node, b.Node) })
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

// keep leaves as many slots as there are replicas. Which ones is the scheduler's choice, by where their tasks run, so
// their numbers need not follow one another; while there are too many, those with the highest numbers are the surplus.
func (p *Progress) keep(replicas uint64, alive map[uint64]int) {
	sort.Slice(p.Slots, func(i, j int) bool {
		a, b := p.Slots[i], p.Slots[j]
		if x, y := a.Done || alive[uint64(a.order)] > 0, b.Done || alive[uint64(b.order)] > 0; x != y {
			return x
		}
		return a.order < b.order
	})
	for len(p.Slots) > int(replicas) {
		last := p.Slots[len(p.Slots)-1]
		p.Surplus += alive[uint64(last.order)]
		p.Slots = p.Slots[:len(p.Slots)-1]
	}
}

// nodeOf is the node a global service's task is for: one that waits has none yet, and is called by it.
func nodeOf(t *skepv1.Task) string {
	return orElse(t.NodeId, t.Name[strings.LastIndexByte(t.Name, '.')+1:])
}

// hostOf is the name of the newest task's node that has one, for a unit whose newest waits for its place.
func hostOf(ts []*skepv1.Task) string {
	for _, t := range ts {
		if t.NodeHostname != "" {
			return t.NodeHostname
		}
	}
	return ""
}

// retries notes that a slot's task waits to be started again.
func (s *Slot) retries(pick *skepv1.Task, before *skepv1.Task) {
	if pick.Failures == 0 || pick.NotBeforeUnixMs == 0 {
		return
	}
	s.Failures, s.Again = pick.Failures, time.UnixMilli(pick.NotBeforeUnixMs)
	s.Rejected = before.GetStatus().GetState() == skepv1.TaskState_TASK_STATE_REJECTED
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
		out.Done = fresh && st.GetState() == skepv1.TaskState_TASK_STATE_RUNNING && !record.ConditionOf(st).Begins() && pick.Desired == skepv1.TaskState_TASK_STATE_RUNNING
		if !out.Done && st.GetState() < skepv1.TaskState_TASK_STATE_RUNNING {
			for _, t := range ts {
				if t != pick && t.Revision == pick.Revision && terminal(t.GetStatus().GetState()) {
					if w := why(t.GetStatus()); w != "" && out.Reason == "" {
						out.Reason = again + w
					}
					out.retries(pick, t)
					break
				}
			}
		}
		if !fresh {
			out.Old, out.Reason = true, "waiting for its turn in the update"
		}
	case fresh && terminal(st.GetState()):
		oldestFirst := slices.Clone(ts)
		slices.Reverse(oldestFirst)
		done := st.GetState() == skepv1.TaskState_TASK_STATE_COMPLETE
		switch c := s.GetSpec().GetTask().GetRestart().GetCondition(); {
		case done && (c == skepv1.RestartCondition_RESTART_CONDITION_NONE || c == skepv1.RestartCondition_RESTART_CONDITION_ON_FAILURE):
			out.Done = true
		case restart.GivenUp(s.GetSpec(), oldestFirst):
			out.GaveUp = true
		}
	}
	return out
}

func why(st *skepv1.TaskStatus) string {
	if e := strings.TrimSpace(st.GetErr()); e != "" {
		return e
	}
	if !record.ConditionOf(st).Begins() {
		return ""
	}
	waits := "waiting until it is ready"
	switch st.GetHealth() {
	case skepv1.HealthState_HEALTH_STATE_STARTING:
		waits = "waiting for its health check"
	case skepv1.HealthState_HEALTH_STATE_UNHEALTHY:
		waits = "unhealthy"
	}
	if out := strings.Join(strings.Fields(st.GetHealthOutput()), " "); out != "" {
		waits += ": " + plain.Cut(out, 200)
	}
	return waits
}
