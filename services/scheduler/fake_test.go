package scheduler

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"skep.dev/libs/kv"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

const patience = 60 * time.Second

// fake is a cluster without a scheduler: what state, health-monitor and the agents would write.
type fake struct {
	t      testing.TB
	n      *kvtest.NATS
	ctx    context.Context
	spec   *kv.Bucket
	rev    *kv.Bucket
	node   *kv.Bucket
	status *kv.Bucket
	task   *kv.Bucket

	mu       sync.Mutex
	pages    map[string]*skepv1.NodeTasks
	revs     map[string]uint64
	rollouts map[string]*skepv1.Rollout
	dead     map[string]bool // nodes whose agent is silent
	fails    func(node string, t *skepv1.TaskRecord) bool
	ill      string                                   // what every task's probe says, "" = they are well
	seen     map[string]map[string]*skepv1.TaskStatus // node → task
	reports  uint64
	changed  chan struct{}
	everID   map[string]bool
	violated error
	holder   string // of the fence
	claims   map[string]*skepv1.VolumeClaim
	volumes  map[string]string          // plug-in volumes that the tasks of a service mount, by its id
	stuck    map[string]bool            // nodes that cannot unmount
	held     map[string]map[string]bool // node → volumes it has mounted
	watch    func()                     // called after every step of the scheduler's and of an agent, under mu
}

func newFake(t testing.TB, n *kvtest.NATS, nodes int) *fake {
	js := n.JS(t)
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	f := &fake{
		t: t, n: n, ctx: ctx, spec: kv.Open(js, subject.Spec), rev: kv.Open(js, subject.Rev), node: kv.Open(js, subject.NodeB),
		status: kv.Open(js, subject.Status), task: kv.Open(js, subject.Task),
		pages: map[string]*skepv1.NodeTasks{}, revs: map[string]uint64{}, rollouts: map[string]*skepv1.Rollout{},
		claims: map[string]*skepv1.VolumeClaim{}, volumes: map[string]string{}, stuck: map[string]bool{}, held: map[string]map[string]bool{},
		dead: map[string]bool{}, seen: map[string]map[string]*skepv1.TaskStatus{}, changed: make(chan struct{}, 1), everID: map[string]bool{},
	}
	f.put(f.spec, "cluster", &skepv1.Cluster{Spec: &skepv1.ClusterSpec{TaskHistoryLimit: 5}})
	for i := range nodes {
		f.addNode(fmt.Sprintf("node%d", i+1))
	}
	feed := kv.Follow(ctx, js, subject.Task, f.tasks)
	t.Cleanup(feed.Close)
	go f.agents()
	return f
}

func (f *fake) put(b *kv.Bucket, key string, m proto.Message) {
	f.t.Helper()
	val, err := proto.Marshal(m)
	if err == nil {
		_, err = b.Put(f.ctx, key, val)
	}
	if err != nil {
		f.t.Fatalf("put %s: %v", key, err)
	}
}

func (f *fake) addNode(id string) {
	f.put(f.node, "desc."+id, &skepv1.NodeDescription{
		Hostname: id, Platform: &skepv1.Platform{Os: "linux", Arch: "amd64"},
		Resources: &skepv1.Resources{NanoCpus: 8e9, MemoryBytes: 16 << 30},
	})
	f.setNode(id, skepv1.Availability_AVAILABILITY_ACTIVE)
	f.live(id, skepv1.NodeState_NODE_STATE_READY)
}

func (f *fake) setNode(id string, a skepv1.Availability) {
	f.put(f.spec, "node."+id, &skepv1.NodeObject{Meta: &skepv1.Meta{Id: id}, Spec: &skepv1.NodeSpec{Availability: a}})
}

func (f *fake) live(id string, s skepv1.NodeState) {
	f.mu.Lock()
	f.dead[id] = s != skepv1.NodeState_NODE_STATE_READY
	f.mu.Unlock()
	f.put(f.node, "live."+id, &skepv1.NodeLive{State: s, SinceUnixMs: time.Now().UnixMilli()})
	f.kick()
}

func service(name string, replicas uint64, image string) *skepv1.ServiceSpec {
	return &skepv1.ServiceSpec{
		Name: name, Task: &skepv1.TaskSpec{Container: &skepv1.ContainerSpec{Image: image}},
		Mode: &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_Replicated{Replicated: &skepv1.ReplicatedMode{Replicas: replicas}}},
	}
}

func (f *fake) putService(id string, rev uint64, spec *skepv1.ServiceSpec) {
	f.put(f.rev, fmt.Sprintf("service.%s.%d", id, rev), &skepv1.Revision{ServiceId: id, Number: rev, Spec: spec})
	f.put(f.spec, "service."+id, &skepv1.Service{Meta: &skepv1.Meta{Id: id}, Spec: spec, Revision: rev})
}

func (f *fake) removeService(id string) {
	if err := f.spec.Delete(f.ctx, "service."+id, 0); err != nil {
		f.t.Fatal(err)
	}
}

// tasks follows what the scheduler writes, and checks what must hold at every single revision.
func (f *fake) tasks(d kv.Delta) {
	f.mu.Lock()
	for _, e := range d.Entries {
		switch {
		case e.Key == "fence":
			var fence skepv1.Fence
			_ = proto.Unmarshal(e.Value, &fence)
			f.holder = fence.Holder
			continue
		case strings.HasPrefix(e.Key, "claim."):
			delete(f.claims, e.Key)
			if c := (&skepv1.VolumeClaim{}); !e.Deleted && proto.Unmarshal(e.Value, c) == nil {
				f.claims[e.Key] = c
			}
			continue
		case len(e.Key) > 8 && e.Key[:8] == "rollout.":
			r := &skepv1.Rollout{}
			_ = proto.Unmarshal(e.Value, r)
			f.rollouts[e.Key[8:]] = r
			continue
		}
		p := &skepv1.NodeTasks{}
		if !e.Deleted {
			if err := proto.Unmarshal(e.Value, p); err != nil {
				f.violated = err
			}
		}
		f.pages[e.Key], f.revs[e.Key] = p, e.Revision
		for _, t := range p.Tasks {
			f.everID[t.Id] = true
		}
	}
	f.observe()
	f.mu.Unlock()
	f.kick()
}

func (f *fake) observe() {
	if f.watch != nil {
		f.watch()
	}
}

func (f *fake) kick() {
	select {
	case f.changed <- struct{}{}:
	default:
	}
}

// agents do at once what they are told.
func (f *fake) agents() {
	for {
		select {
		case <-f.changed:
		case <-f.ctx.Done():
			return
		}
		type report struct {
			node string
			st   *skepv1.NodeStatus
		}
		var out []report
		f.mu.Lock()
		for _, node := range slices.Sorted(maps.Keys(f.pages)) {
			if node[0] == '_' || f.dead[node] {
				continue
			}
			if st, changed := f.react(node); changed {
				out = append(out, report{node, st})
			}
			f.observe()
		}
		f.mu.Unlock()
		for _, r := range out {
			val, err := proto.Marshal(r.st)
			if err == nil {
				_, err = f.status.Put(f.ctx, r.node, val)
			}
			if err != nil {
				if f.ctx.Err() == nil {
					f.t.Errorf("report of %s: %v", r.node, err)
				}
				return
			}
		}
	}
}

func (f *fake) react(node string) (*skepv1.NodeStatus, bool) {
	have := f.seen[node]
	next := map[string]*skepv1.TaskStatus{}
	changed := false
	for _, t := range f.pages[node].Tasks {
		s := have[t.Id]
		want := skepv1.TaskState_TASK_STATE_RUNNING
		switch {
		case t.Desired == skepv1.TaskState_TASK_STATE_REMOVE:
			if s != nil {
				changed = true
			}
			continue
		case t.Desired == skepv1.TaskState_TASK_STATE_SHUTDOWN:
			want = skepv1.TaskState_TASK_STATE_SHUTDOWN
		case t.Desired == skepv1.TaskState_TASK_STATE_READY:
			want = skepv1.TaskState_TASK_STATE_READY
		case f.fails != nil && f.fails(node, t):
			want = skepv1.TaskState_TASK_STATE_FAILED
		}
		if s == nil || s.State < want && s.State <= skepv1.TaskState_TASK_STATE_RUNNING {
			s = &skepv1.TaskStatus{TaskId: t.Id, State: want, SinceUnixMs: time.Now().UnixMilli()}
			changed = true
		}
		if h := f.health(s); h != s.Health {
			s = proto.CloneOf(s)
			s.Health, s.HealthOutput = h, f.ill
			changed = true
		}
		next[t.Id] = s
	}
	changed = changed || len(next) != len(have)
	f.seen[node] = next
	f.reports++
	st := &skepv1.NodeStatus{NodeId: node, Report: f.reports, Session: "s", AppliedGeneration: f.revs[node]}
	for _, id := range slices.Sorted(maps.Keys(next)) {
		st.Tasks = append(st.Tasks, next[id])
	}
	changed = f.mount(node, st) || changed
	return st, changed
}

// mount brings a node's volumes in line with its tasks, and its report with them.
func (f *fake) mount(node string, st *skepv1.NodeStatus) (changed bool) {
	if len(f.volumes) == 0 {
		return false
	}
	want := map[string]bool{}
	for _, t := range f.pages[node].Tasks {
		if v := f.volumes[t.ServiceId]; v != "" && t.Desired <= skepv1.TaskState_TASK_STATE_COMPLETE && f.seen[node][t.Id].GetState() <= skepv1.TaskState_TASK_STATE_RUNNING {
			want[v] = true
		}
	}
	if f.stuck[node] {
		maps.Copy(want, f.held[node])
	}
	changed = !maps.Equal(want, f.held[node])
	f.held[node] = want
	for _, v := range slices.Sorted(maps.Keys(want)) {
		st.Volumes = append(st.Volumes, &skepv1.HeldVolume{Driver: "rexray", Name: v})
	}
	return changed
}

// health is what the probe of a task says, in a cluster where some probe ever said anything.
func (f *fake) health(s *skepv1.TaskStatus) skepv1.HealthState {
	switch {
	case s.State != skepv1.TaskState_TASK_STATE_RUNNING:
		return s.Health
	case f.ill != "":
		return skepv1.HealthState_HEALTH_STATE_UNHEALTHY
	case s.Health == skepv1.HealthState_HEALTH_STATE_UNHEALTHY:
		return skepv1.HealthState_HEALTH_STATE_HEALTHY
	}
	return s.Health
}

// probes makes every task's probe say that, "" = all is well.
func (f *fake) probes(say string) {
	f.mu.Lock()
	f.ill = say
	f.mu.Unlock()
	f.kick()
}

// crash makes a running task end by itself.
func (f *fake) crash(node, task string) {
	f.mu.Lock()
	f.seen[node][task] = &skepv1.TaskStatus{TaskId: task, State: skepv1.TaskState_TASK_STATE_FAILED, SinceUnixMs: time.Now().UnixMilli()}
	f.reports++
	st := &skepv1.NodeStatus{NodeId: node, Report: f.reports, Session: "s", AppliedGeneration: f.revs[node]}
	for _, s := range f.seen[node] {
		st.Tasks = append(st.Tasks, s)
	}
	f.mu.Unlock()
	f.put(f.status, node, st)
}

// record is a task with where it stands and what its agent says.
type record struct {
	*skepv1.TaskRecord
	node string // "" = unplaced
	seen skepv1.TaskState
}

func (f *fake) records(service string) []record {
	var out []record
	for _, key := range slices.Sorted(maps.Keys(f.pages)) {
		for _, t := range f.pages[key].Tasks {
			if t.ServiceId != service {
				continue
			}
			r := record{TaskRecord: t}
			if key[0] != '_' {
				r.node = key
				if s := f.seen[key][t.Id]; s != nil {
					r.seen = s.State
				}
			}
			out = append(out, r)
		}
	}
	return out
}

// awaitLeader waits until that scheduler holds the fence.
func (f *fake) awaitLeader(name string) {
	f.t.Helper()
	f.await(name+" leads", func() error {
		if f.holder != name {
			return fmt.Errorf("%q does", f.holder)
		}
		return nil
	})
}

// running are the records of tasks that run and are meant to.
func (f *fake) running(service string) []record {
	var out []record
	for _, r := range f.records(service) {
		if r.Desired == skepv1.TaskState_TASK_STATE_RUNNING && r.seen == skepv1.TaskState_TASK_STATE_RUNNING && !f.dead[r.node] {
			out = append(out, r)
		}
	}
	return out
}

// duplicates finds two tasks of one slot that are both meant to run.
func (f *fake) duplicates(service string) error {
	slot := map[uint64]string{}
	for _, r := range f.records(service) {
		if r.Desired != skepv1.TaskState_TASK_STATE_RUNNING || r.seen > skepv1.TaskState_TASK_STATE_RUNNING {
			continue
		}
		if other := slot[r.Slot]; other != "" && r.Slot != 0 {
			return fmt.Errorf("slot %d of %s has tasks %s and %s", r.Slot, service, other, r.Id)
		}
		slot[r.Slot] = r.Id
	}
	return nil
}

// await waits until ok is nil for a look at the records.
func (f *fake) await(what string, ok func() error) {
	f.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		f.mu.Lock()
		err := ok()
		f.mu.Unlock()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			f.mu.Lock()
			for key, p := range f.pages {
				for _, t := range p.Tasks {
					f.t.Logf("%s: %v", key, t)
				}
			}
			f.mu.Unlock()
			f.t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func (f *fake) awaitRunning(service string, n int) {
	f.t.Helper()
	f.await(fmt.Sprintf("%d running tasks of %s", n, service), func() error {
		if got := len(f.running(service)); got != n {
			return fmt.Errorf("%d run", got)
		}
		return f.duplicates(service)
	})
}

// start runs a scheduler until the test ends or the returned function is called.
func (f *fake) start(name string, failpoint func(string) error) (*Service, func()) {
	f.t.Helper()
	return f.startWith(Config{NodeID: name, failpoint: failpoint})
}

func (f *fake) startWith(cfg Config) (*Service, func()) {
	f.t.Helper()
	name := cfg.NodeID
	cfg.NC, cfg.LeaseTTL, cfg.batchWrites = f.n.Conn(f.t), time.Second, 3
	s, err := New(cfg)
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Run(ctx); err != nil {
			f.t.Errorf("scheduler %s: %v", name, err)
		}
	}()
	stop := sync.OnceFunc(func() { cancel(); <-done })
	f.t.Cleanup(stop)
	select {
	case <-s.Ready():
	case <-time.After(patience):
		f.t.Fatalf("scheduler %s is not ready", name)
	}
	return s, stop
}

func dur(d time.Duration) *durationpb.Duration { return durationpb.New(d) }
