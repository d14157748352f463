package reconcile

import (
	"hash/fnv"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"skep.dev/libs/constraint"
	"skep.dev/libs/place"
	specs "skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

type mode uint8

const (
	replicated mode = iota
	global
	replicatedJob
	globalJob
)

// Service is what planning needs of a service. It outlives the object while tasks of it are left.
type Service struct {
	ID     string
	Name   string
	Exists bool

	mode       mode
	replicas   uint64 // or the completions of a job
	parallel   uint64 // tasks of a job at once
	iteration  uint64
	jobs       jobControl
	depends    []dependency
	revision   uint64
	current    *revision
	revs       map[uint64]*revision
	limits     []constraint.Constraint // the current constraints, compiled
	never      bool                    // a constraint does not parse: no node suits
	restart    restartPolicy
	budget     uint64 // units that may be down for their health, 0 = the default
	update     updatePolicy
	control    control
	previous   uint64 // the revision before the newest
	back       bool   // the newest revision came of a rollback
	backReason string // of one that began by itself
	refused    refusal

	tasks   []*Task
	spare   []*Page // pages of unplaced tasks
	rollout *Rollout
	fails   []failure
}

// Rollout is the record of an update in progress and the revision of its key.
type Rollout struct {
	*skepv1.Rollout
	key uint64
}

type restartPolicy struct {
	condition     skepv1.RestartCondition
	delay, window int64 // ms
	maxDelay      int64 // ms, 0 = the delay does not grow
	attempts      int
}

type updatePolicy struct {
	parallelism             int
	delay, monitor, timeout int64 // ms
	action                  skepv1.FailureAction
	ratio                   float64
	startFirst              bool
}

// control is what users want of the rollout, see RolloutControl.
type control struct {
	paused         bool
	resume, canary uint64
}

// revision is a task spec boiled down: what it needs of a node, and hashes to tell whether two differ.
type revision struct {
	request     *place.Request
	core, place uint64
	networks    []string // that are not everywhere, by id
	storage
	stops bool  // a node that has lost its managers ends its task by itself
	grace int64 // ms its task has between the signal to stop and the kill
	alone bool  // its task has what only one can have, an address of its own: it gets that when the one before has ended
	gone  bool  // it is not kept any more; tasks of it are left
}

type failure struct {
	node *Node
	at   int64
	rev  uint64
	n    int32 // it counts as so many
}

// failureWindow is how long a failure counts against a node.
const failureWindow = 5 * 60 * 1000

func (v *Service) perNode() bool { return v.Exists && (v.mode == global || v.mode == globalJob) }
func (v *Service) job() bool     { return v.mode == replicatedJob || v.mode == globalJob }

func (s *State) service(id string) *Service {
	v := s.services[id]
	if v == nil {
		v = &Service{ID: id, revs: map[uint64]*revision{}}
		s.services[id] = v
	}
	return v
}

func ms(d *durationpb.Duration) int64 { return d.AsDuration().Milliseconds() }

func (s *State) putService(id string, o *skepv1.Service) {
	v := s.service(id)
	s.mark(v)
	if o == nil {
		v.Exists = false
		s.forget(v)
		return
	}
	spec := o.GetSpec()
	v.Exists, v.Name, v.revision, v.iteration = true, spec.GetName(), o.GetRevision(), o.GetJobIteration()
	switch m := spec.GetMode().GetMode().(type) {
	case *skepv1.ServiceMode_Global:
		v.mode = global
	case *skepv1.ServiceMode_ReplicatedJob:
		v.mode, v.replicas, v.parallel = replicatedJob, m.ReplicatedJob.GetTotalCompletions(), m.ReplicatedJob.GetMaxConcurrent()
		if v.parallel == 0 {
			v.parallel = v.replicas
		}
	case *skepv1.ServiceMode_GlobalJob:
		v.mode = globalJob
	default:
		v.mode, v.replicas = replicated, spec.GetMode().GetReplicated().GetReplicas()
	}
	v.jobs = newJobControl(o)
	s.depend(v, newDependencies(spec))
	was := v.current
	v.current = newRevision(spec, was)
	fresh := v.revs[v.revision] == nil
	if fresh {
		v.revs[v.revision] = v.current
	}
	if fresh || v.current != was {
		v.touchNodes(v.revision)
		s.storageChanged(v, v.current)
	}
	v.limits, v.never = nil, false
	if cs, err := constraint.Parse(spec.GetTask().GetPlacement().GetConstraints()); err != nil {
		v.never = true
	} else {
		v.limits = cs
	}
	r := spec.GetTask().GetRestart()
	v.restart = restartPolicy{condition: r.GetCondition(), delay: 5000, window: ms(r.GetWindow()), attempts: int(r.GetMaxAttempts())}
	if r.GetDelay() != nil {
		v.restart.delay = ms(r.GetDelay())
	}
	v.restart.maxDelay, v.budget = ms(r.GetMaxDelay()), spec.GetHealthBudget()
	u := spec.GetUpdate()
	if v.back = o.GetRollbackTo() != 0; v.back {
		u = spec.GetRollback()
	}
	v.backReason, v.previous = o.GetRollbackReason(), o.GetPreviousRevision()
	v.control = control{paused: o.GetControl().GetPaused(), resume: o.GetControl().GetResume(), canary: o.GetControl().GetCanary()}
	v.update = updatePolicy{
		parallelism: int(u.GetParallelism()), delay: ms(u.GetDelay()), monitor: ms(u.GetMonitor()), timeout: ms(u.GetTimeout()),
		action: u.GetFailureAction(), ratio: u.GetMaxFailureRatio(), startFirst: u.GetOrder() == skepv1.UpdateOrder_UPDATE_ORDER_START_FIRST,
	}
	if u == nil {
		v.update.parallelism = 1
	}
}

// newRevision boils a spec down; it shares like's request when nothing in it differs.
func newRevision(spec *skepv1.ServiceSpec, like *revision) *revision {
	req := place.FromSpec(spec)
	r := &revision{request: &req, networks: specs.Overlays(spec), storage: newStorage(spec), alone: len(specs.Fixed(spec)) > 0, grace: specs.DefaultStopGrace.Milliseconds(),
		stops: spec.GetOnPartition() == skepv1.PartitionPolicy_PARTITION_POLICY_STOP}
	if d := spec.GetTask().GetContainer().GetStopGracePeriod(); d != nil {
		r.grace = ms(d)
	}
	r.place, r.core = sum(spec.GetTask().GetPlacement()), sum(specs.Core(spec))
	if like != nil && like.core == r.core && like.place == r.place && like.stops == r.stops && proto.Equal(like.names, r.names) {
		return like
	}
	return r
}

func sum(m proto.Message) uint64 {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return 0 // only invalid UTF-8 can do that, and it could not have been stored
	}
	h := fnv.New64a()
	h.Write(b) //nolint:errcheck // a hash takes everything
	return h.Sum64()
}

// upToDate: its revision asks for the same container, and where only the placement differs its node satisfies it.
func (t *Task) upToDate() bool {
	v := t.Service
	if t.Revision == v.revision {
		return true
	}
	r := v.revs[t.Revision]
	if r == nil || r.core != v.current.core {
		return false
	}
	if r.place == v.current.place {
		return true
	}
	n := t.Node()
	return n != nil && !v.never && constraint.MatchAll(v.limits, &n.attrs)
}

// sameCore: it runs what the newest revision runs, wherever that is.
func (t *Task) sameCore() bool {
	return t.runs(t.Service.revision)
}

var nothing place.Request

// alone reports whether a task of a revision waits, before it is prepared, for the one before it to end.
func (v *Service) alone(number uint64) bool {
	r := v.revs[number]
	return r != nil && r.alone
}

// request is what the task reserves, by its own revision.
func (t *Task) request() *place.Request {
	if r := t.Service.revs[t.Revision]; r != nil {
		return r.request
	}
	if t.Service.current != nil {
		return t.Service.current.request
	}
	return &nothing
}

// touchNodes: what tasks of that revision reserve, and those whose revision is not known, may be something else now.
func (v *Service) touchNodes(revision uint64) {
	for _, t := range v.tasks {
		if t.Revision != revision && v.revs[t.Revision] != nil {
			continue
		}
		if n := t.Node(); n != nil {
			n.stale = true
		}
	}
}

func (s *State) putRollout(id string, val []byte, rev uint64) error {
	v := s.service(id)
	if v.rollout != nil && rev <= v.rollout.key {
		return nil
	}
	s.mark(v)
	if val == nil {
		v.rollout = nil
		s.forget(v)
		return nil
	}
	r := &skepv1.Rollout{}
	if err := proto.Unmarshal(val, r); err != nil {
		return err
	}
	v.rollout = &Rollout{Rollout: r, key: rev}
	return nil
}

// forget drops a service of which nothing is left.
func (s *State) forget(v *Service) {
	if v.Exists || len(v.tasks) > 0 || v.rollout != nil {
		return
	}
	for _, p := range v.spare {
		if p.exists {
			return
		}
	}
	for _, p := range v.spare {
		delete(s.pages, p.Key)
	}
	s.depend(v, nil)
	delete(s.services, v.ID)
	delete(s.unplaced, v)
	delete(s.claimants, v)
	delete(s.dirty, v)
}

// failuresOn counts recent failures of a revision per node.
func (v *Service) failuresOn(now int64, revision uint64) []place.Count {
	var out []place.Count
	for _, f := range v.fails {
		if f.at <= now-failureWindow || f.rev != revision || f.node.index < 0 {
			continue
		}
		if i := slices.IndexFunc(out, func(c place.Count) bool { return c.Node == f.node.index }); i >= 0 {
			out[i].N += f.n
		} else {
			out = append(out, place.Count{Node: f.node.index, N: f.n})
		}
	}
	return out
}

// failed notes a failure on a node, which counts as many.
func (v *Service) failed(n *Node, rev uint64, at int64, as int32) {
	v.fails = slices.DeleteFunc(v.fails, func(f failure) bool { return f.at <= at-failureWindow })
	if len(v.fails) < 1000 {
		v.fails = append(v.fails, failure{node: n, at: at, rev: rev, n: as})
	}
}
