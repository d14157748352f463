package state

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"skep.dev/libs/api"
	"skep.dev/libs/id"
	"skep.dev/libs/kvtest"
	skepv1 "skep.dev/proto/skep/v1"
)

const (
	running  = skepv1.TaskState_TASK_STATE_RUNNING
	shutdown = skepv1.TaskState_TASK_STATE_SHUTDOWN
	failed   = skepv1.TaskState_TASK_STATE_FAILED
)

func record(svc *skepv1.Service, slot uint64, desired skepv1.TaskState) *skepv1.TaskRecord {
	return &skepv1.TaskRecord{Id: id.New(), ServiceId: svc.Meta.Id, Slot: slot, Revision: 1, Desired: desired, CreatedUnixMs: 1000}
}

func TestTasks(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	n1, n2 := r.admit("w1", worker), r.admit("w2", worker)
	web, db := r.mustCreate("web", 3), r.mustCreate("db", 1)
	a, b, c := record(web, 1, running), record(web, 2, running), record(web, 3, running)
	old := record(web, 1, shutdown)
	old.Verdict, old.Err = failed, "boom"
	c.Verdict, c.Err = skepv1.TaskState_TASK_STATE_PENDING, "no suitable node"
	r.putTasks(n1.Meta.Id, a, old)
	r.putTasks(n2.Meta.Id, b, record(db, 1, running))
	r.putTasks("_."+web.Meta.Id+".0", c)
	gen := r.s.ix.Generation(n1.Meta.Id)
	st := must[*skepv1.StatusReply](t)(r.report(n1.Meta.Id, &skepv1.NodeStatus{Session: "s", Report: 1, Tasks: []*skepv1.TaskStatus{{TaskId: a.Id, State: running, SinceUnixMs: 5}}}))
	if st.Generation != gen {
		t.Fatalf("generation %d, want %d", st.Generation, gen)
	}

	list := func(page *skepv1.Page, f ...*skepv1.Filter) *skepv1.ListTasksReply {
		t.Helper()
		return must[*skepv1.ListTasksReply](t)(call(r, api.TaskList, &skepv1.ListTasksRequest{Filters: f, Page: page}))
	}
	names := func(l *skepv1.ListTasksReply) map[string]skepv1.TaskState {
		out := map[string]skepv1.TaskState{}
		for _, x := range l.Tasks {
			out[x.Meta.Id] = x.Status.State
		}
		return out
	}
	got := names(list(nil, &skepv1.Filter{Key: "service", Values: []string{"web"}}))
	want := map[string]skepv1.TaskState{a.Id: running, old.Id: failed, b.Id: skepv1.TaskState_TASK_STATE_ASSIGNED, c.Id: skepv1.TaskState_TASK_STATE_PENDING}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("states %v, want %v", got, want)
	}
	if l := list(nil, &skepv1.Filter{Key: "node", Values: []string{"w1"}}, &skepv1.Filter{Key: "desired-state", Values: []string{"running"}}); len(l.Tasks) != 1 || l.Tasks[0].Name != "web.1" || l.Tasks[0].Image != "httpd:latest" || l.Tasks[0].NodeHostname != "w1" {
		t.Fatalf("node's tasks %v", l.Tasks)
	}
	// One at a time: everything once, nothing missed.
	seen := map[string]bool{}
	for after, n := "", 0; ; n++ {
		l := list(&skepv1.Page{Size: 1, After: after})
		for _, x := range l.Tasks {
			seen[x.Meta.Id] = true
		}
		if after = l.Next; after == "" {
			break
		}
		if n > 10 {
			t.Fatal("the pages do not end")
		}
	}
	if len(seen) != 5 {
		t.Fatalf("%d of 5 tasks seen", len(seen))
	}

	for ref, want := range map[string]string{a.Id: a.Id, a.Id[:20]: a.Id, "web.1": a.Id, "WEB.3": c.Id, "web.1." + old.Id: old.Id} {
		x, err := call(r, api.TaskInspect, &skepv1.Ref{Ref: ref})
		if err != nil || x.Task.Meta.Id != want || x.Task.Spec.GetContainer() == nil {
			t.Fatalf("inspect %s: %v %v", ref, x, err)
		}
	}
	_, err := call(r, api.TaskInspect, &skepv1.Ref{Ref: "web.9"})
	wantErr(t, err, "no such task: web.9: see skep service ps web")

	if s, _ := r.inspect("web"); s.Status.Running != 1 || s.Status.Desired != 3 {
		t.Fatalf("counts %v", s.Status)
	}
	// A report replaces the one before; counts follow.
	must[*skepv1.StatusReply](t)(r.report(n1.Meta.Id, &skepv1.NodeStatus{Session: "s", Report: 2, Tasks: []*skepv1.TaskStatus{{TaskId: a.Id, State: failed, Err: "exit 1"}}}))
	if s, _ := r.inspect("web"); s.Status.Running != 0 {
		t.Fatalf("counts %v", s.Status)
	}
}

func TestLateAndRepeatedReports(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	n := r.admit("w1", worker).Meta.Id
	send := func(session string, number uint64, st skepv1.TaskState) uint64 {
		t.Helper()
		must[*skepv1.StatusReply](t)(r.report(n, &skepv1.NodeStatus{Session: session, Report: number, Tasks: []*skepv1.TaskStatus{{TaskId: "t", State: st}}}))
		return r.s.ix.Report(n).Revision
	}
	first := send("a", 5, running)
	if send("a", 4, failed) != first || send("a", 5, failed) != first {
		t.Fatal("a late report was stored")
	}
	if send("a", 6, running) != first {
		t.Fatal("a repetition was stored")
	}
	second := send("b", 1, running)
	if second == first {
		t.Fatal("a new session was ignored")
	}
	if send("a", 7, failed) != second {
		t.Fatal("a report of the session before was stored")
	}
}

func TestStatusStorm(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	second, _ := r.start()
	r.init()
	await(t, "both instances to know the cluster", func() bool { return second.ix.Cluster() != nil && r.s.ix.Cluster() != nil })
	const nodes, rounds = 60, 10
	var ids []string
	for i := range nodes {
		ids = append(ids, r.admit(fmt.Sprintf("w%d", i), worker).Meta.Id)
	}
	await(t, "both instances to know the nodes", func() bool { return len(second.ix.NodeIDs()) == nodes })
	var wg sync.WaitGroup
	for _, n := range ids {
		wg.Go(func() {
			for i := range rounds {
				st := &skepv1.NodeStatus{Session: "s", Report: uint64(i + 1)}
				for k := range 20 {
					st.Tasks = append(st.Tasks, &skepv1.TaskStatus{TaskId: fmt.Sprintf("%s-%d", n, k), State: running, SinceUnixMs: int64(i)})
				}
				if _, err := r.report(n, st); err != nil {
					t.Errorf("report %d of %s: %v", i, n, err)
				}
			}
		})
	}
	wg.Wait()
	for _, s := range []*Service{r.s, second} {
		await(t, "the newest reports", func() bool {
			for _, n := range ids {
				if s.ix.Report(n).Number != rounds {
					return false
				}
			}
			return true
		})
	}
	commits := r.s.reports.commits.Load() + second.reports.commits.Load()
	t.Logf("%d reports of %d nodes in %d commits", nodes*rounds, nodes, commits)
	if commits > nodes*rounds/2 {
		t.Errorf("%d commits for %d reports: they do not share them", commits, nodes*rounds)
	}
}

func TestTaskEvents(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	n := r.admit("w1", worker).Meta.Id
	web := r.mustCreate("web", 1)
	const many = 100
	var recs []*skepv1.TaskRecord
	st := &skepv1.NodeStatus{Session: "s", Report: 1}
	for i := range many {
		recs = append(recs, record(web, uint64(i+1), running))
		st.Tasks = append(st.Tasks, &skepv1.TaskStatus{TaskId: recs[i].Id, State: running})
	}
	r.putTasks(n, recs...)
	must[*skepv1.StatusReply](t)(r.report(n, st))
	events := func(f ...*skepv1.Filter) []*skepv1.Event {
		t.Helper()
		return must[*skepv1.ListEventsReply](t)(call(r, api.EventList, &skepv1.ListEventsRequest{Filters: f})).Events
	}
	kind := func(v string) *skepv1.Filter { return &skepv1.Filter{Key: "type", Values: []string{v}} }
	await(t, "the events", func() bool { return len(events(kind("task"))) == eventsPerReport+1 })
	var more *skepv1.Event
	for _, e := range events(kind("task"), &skepv1.Filter{Key: "service", Values: []string{"web"}}) {
		if e.Verb != "running" || e.Attributes["node"] != "w1" {
			t.Fatalf("event %v", e)
		}
		if e.Attributes["tasks"] != "" {
			more = e
		}
	}
	if more == nil || more.Attributes["tasks"] != fmt.Sprint(many-eventsPerReport) {
		t.Fatalf("the rest is not told together: %v", more)
	}
	must[*skepv1.ServiceReply](t)(call(r, api.ServiceScale, &skepv1.ScaleServiceRequest{Ref: "web", Replicas: 4}))
	await(t, "the update event", func() bool {
		e := events(kind("service"), &skepv1.Filter{Key: "event", Values: []string{"update"}})
		return len(e) == 1 && e[0].Attributes["replicas.old"] == "1" && e[0].Attributes["replicas.new"] == "4"
	})
	if l := must[*skepv1.ListEventsReply](t)(call(r, api.EventList, &skepv1.ListEventsRequest{Page: &skepv1.Page{Size: 10}})); len(l.Events) != 10 || l.Next == "" {
		t.Fatalf("a page of %d, next %q", len(l.Events), l.Next)
	} else {
		total := len(l.Events)
		for l.Next != "" {
			l = must[*skepv1.ListEventsReply](t)(call(r, api.EventList, &skepv1.ListEventsRequest{Page: &skepv1.Page{Size: 10, After: l.Next}}))
			total += len(l.Events)
		}
		if total != len(events()) {
			t.Fatalf("paged %d of %d events", total, len(events()))
		}
	}
}

// `service rm` waits for the tasks of what it removed by the service's id.
func TestTasksOfARemovedService(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	n := r.admit("w1", skepv1.NodeRole_NODE_ROLE_WORKER)
	svc := r.mustCreate("web", 1)
	r.putTasks(n.Meta.Id, record(svc, 1, skepv1.TaskState_TASK_STATE_RUNNING))
	if _, err := call(r, api.ServiceRemove, &skepv1.RemoveServiceRequest{Ref: "web"}); err != nil {
		t.Fatal(err)
	}
	ask := &skepv1.ListTasksRequest{Filters: []*skepv1.Filter{{Key: "service", Values: []string{svc.Meta.Id}}}}
	l, err := call(r, api.TaskList, ask)
	if err != nil || len(l.Tasks) != 1 {
		t.Fatalf("a task that still stops must be listed: %v %v", l, err)
	}
	r.putTasks(n.Meta.Id)
	await(t, "no task left", func() bool {
		l, err := call(r, api.TaskList, ask)
		return err == nil && len(l.Tasks) == 0
	})
}

// What users see of a task that waits after failures, and of one that is unhealthy and goes on.
func TestStatusOfWaitingAndUnhealthyTasks(t *testing.T) {
	ill := &skepv1.TaskStatus{TaskId: "t", State: running, SinceUnixMs: 5, Health: skepv1.HealthState_HEALTH_STATE_UNHEALTHY, HealthOutput: "no"}
	rec := &skepv1.TaskRecord{Id: "t", Desired: running, Err: "unhealthy, not replaced: 1 of at most 1 replaced for health now"}
	if st := composeStatus(rec, ill, true); st.Err != rec.Err || st.State != running || st.HealthOutput != "no" || ill.Err != "" {
		t.Errorf("held: %v", st)
	}
	well := &skepv1.TaskStatus{TaskId: "t", State: running, SinceUnixMs: 5, Health: skepv1.HealthState_HEALTH_STATE_HEALTHY}
	if st := composeStatus(rec, well, true); st.Err != "" {
		t.Errorf("recovered: %v", st)
	}
	rec.Verdict, rec.VerdictUnixMs, rec.Err = failed, 9, "unhealthy container: no"
	if st := composeStatus(rec, &skepv1.TaskStatus{TaskId: "t", State: shutdown}, true); st.Err != rec.Err || st.State != failed || st.SinceUnixMs != 9 {
		t.Errorf("ended: %v", st)
	}

	r := newRig(t, kvtest.Server(t))
	r.init()
	n := r.admit("w1", worker)
	web := r.mustCreate("web", 1)
	if d := web.Spec.Task.Restart.MaxDelay.AsDuration(); d != 5*time.Minute {
		t.Errorf("the limit of the growing delay is %s", d)
	}
	wait := record(web, 1, skepv1.TaskState_TASK_STATE_READY)
	wait.Failures, wait.NotBeforeUnixMs = 7, 4102444800000
	r.putTasks(n.Meta.Id, wait)
	x := must[*skepv1.TaskReply](t)(call(r, api.TaskInspect, &skepv1.Ref{Ref: "web.1"}))
	if x.Task.Failures != 7 || x.Task.NotBeforeUnixMs != 4102444800000 {
		t.Errorf("task %v", x.Task)
	}
	if s, _ := r.inspect("web"); s.Status.CrashLooping != 1 || s.Status.Running != 0 || s.Status.Desired != 1 {
		t.Errorf("status %v", s.Status)
	}
}
