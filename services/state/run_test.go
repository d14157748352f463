package state

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

const complete = skepv1.TaskState_TASK_STATE_COMPLETE

func jobSpec(name string, total uint64, schedule string) *skepv1.ServiceSpec {
	s := webSpec(name, 1)
	s.Mode = &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_ReplicatedJob{ReplicatedJob: &skepv1.ReplicatedJobMode{MaxConcurrent: 1, TotalCompletions: total}}}
	if schedule != "" {
		s.Schedule = &skepv1.Schedule{Cron: schedule}
	}
	return s
}

func (r *rig) run(ref string, d *skepv1.RunDecision) (*skepv1.Service, error) {
	reply, err := call(r, api.ServiceRun, &skepv1.RunServiceRequest{Ref: ref, Decision: d})
	return reply.GetService(), err
}

func TestJobRuns(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	n := r.admit("w1", worker).Meta.Id
	j := must[*skepv1.ServiceReply](t)(r.create(jobSpec("j", 2, ""))).Service
	if j.JobIteration != 1 || j.Run == nil || j.ScheduleDecided != nil {
		t.Fatalf("created %v", j)
	}
	_, err := r.run("j", nil)
	wantErr(t, err, "run 1 of job j still goes: wait for it (skep service ps j), or stop it and begin anew with skep service update --force j")

	task := func(slot, run uint64) *skepv1.TaskRecord {
		rec := record(j, slot, complete)
		rec.JobIteration = run
		return rec
	}
	a, b := task(1, 1), task(2, 1)
	r.putTasks(n, a, b)
	say := func(report uint64, states ...*skepv1.TaskStatus) {
		t.Helper()
		must[*skepv1.StatusReply](t)(r.report(n, &skepv1.NodeStatus{Session: "s", Report: report, Tasks: states}))
	}
	say(1, &skepv1.TaskStatus{TaskId: a.Id, State: complete}, &skepv1.TaskStatus{TaskId: b.Id, State: running})
	if s := must[*skepv1.Service](t)(r.inspect("j")).Status; s.Running != 1 || s.Completed != 1 || s.Desired != 1 {
		t.Fatalf("status %v", s)
	}
	// An update runs it again and stops what goes.
	next := must[*skepv1.Service](t)(r.update("j", func() *skepv1.ServiceSpec { s := proto.CloneOf(j.Spec); s.Task.ForceUpdate++; return s }()))
	if next.JobIteration != 2 || len(next.Runs) != 1 || next.Runs[0].Iteration != 1 || !next.Runs[0].Stopped {
		t.Fatalf("updated %v", next)
	}
	if next.Status.Completed != 0 {
		t.Fatalf("the completions of the run before count: %v", next.Status)
	}
	// Scaling a job is no run.
	scaled := must[*skepv1.ServiceReply](t)(call(r, api.ServiceScale, &skepv1.ScaleServiceRequest{Ref: "j", Replicas: 1})).Service
	if scaled.JobIteration != 2 {
		t.Fatalf("scaled %v", scaled)
	}
	c := task(1, 2)
	r.putTasks(n, a, b, c)
	say(2, &skepv1.TaskStatus{TaskId: a.Id, State: complete}, &skepv1.TaskStatus{TaskId: b.Id, State: shutdown}, &skepv1.TaskStatus{TaskId: c.Id, State: complete})
	await(t, "a run that is over can be followed by another", func() bool {
		s, err := r.run("j", nil)
		return err == nil && s.JobIteration == 3 && len(s.Runs) == 2 && !s.Runs[1].Stopped && s.Run.Due == nil
	})
	_, err = r.run("web", nil)
	wantErr(t, err, "no such service: web")
	r.mustCreate("web", 1)
	_, err = r.run("web", nil)
	wantErr(t, err, "service web is not a job: only services of mode replicated-job or global-job have runs")
}

func TestScheduleIsChecked(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	_, err := r.create(jobSpec("j", 1, "0 0 30 2 *"))
	wantErr(t, err, `the schedule "0 0 30 2 *" never comes: no day within five years fits it`)
	web := webSpec("web", 1)
	web.Schedule = &skepv1.Schedule{Cron: "@daily"}
	_, err = r.create(web)
	wantErr(t, err, "a schedule can only be used with replicated-job or global-job mode")
	j := must[*skepv1.ServiceReply](t)(r.create(jobSpec("j", 1, "@daily"))).Service
	if j.JobIteration != 0 || j.Run != nil || j.ScheduleDecided == nil {
		t.Fatalf("it ran when it was made: %v", j)
	}
	if s := j.Spec.Schedule; s.Concurrency != skepv1.Concurrency_CONCURRENCY_FORBID || s.GetKeepCompleted() != 3 || s.GetKeepFailed() != 1 || s.CatchUp.AsDuration() != time.Minute {
		t.Fatalf("defaults %v", s)
	}
	// A change of anything else leaves the schedule where it was; of its times, begins it anew.
	sp := proto.CloneOf(j.Spec)
	sp.Task.ForceUpdate++
	if v := must[*skepv1.Service](t)(r.update("j", sp)); v.JobIteration != 0 || !proto.Equal(v.ScheduleDecided, j.ScheduleDecided) {
		t.Fatalf("updated %v", v)
	}
	sp.Schedule.TimeZone = "Europe/Zurich"
	if v := must[*skepv1.Service](t)(r.update("j", sp)); v.JobIteration != 0 || proto.Equal(v.ScheduleDecided, j.ScheduleDecided) {
		t.Fatalf("updated %v", v)
	}
	// Without a schedule it is a job like any other.
	sp.Schedule = nil
	if v := must[*skepv1.Service](t)(r.update("j", sp)); v.JobIteration != 1 || v.ScheduleDecided != nil {
		t.Fatalf("updated %v", v)
	}
}

// Two leaders and their repetitions, over two instances of the service: each due time makes one run.
func TestDecisionsAreDoneOnce(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.start()
	j := must[*skepv1.ServiceReply](t)(r.create(jobSpec("j", 1, "@every 1s"))).Service
	var skipped atomic.Int64
	if _, err := r.nc.Subscribe(subject.Event("service", j.Meta.Id, "run-skipped"), func(*nats.Msg) { skipped.Add(1) }); err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		due := timestamppb.New(j.ScheduleDecided.AsTime().Truncate(time.Second).Add(time.Second))
		d := &skepv1.RunDecision{Iteration: j.JobIteration, Decided: j.ScheduleDecided, Due: due, Skip: i%3 == 2, Reason: "it still goes"}
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if _, err := r.run(j.Meta.Id, d); err != nil {
					t.Errorf("decision %d: %v", i, err)
				}
			})
		}
		wg.Wait()
		was := j
		j = must[*skepv1.Service](t)(r.inspect("j"))
		switch {
		case !proto.Equal(j.ScheduleDecided, due):
			t.Fatalf("decision %d: %v, want %v", i, j.ScheduleDecided.AsTime(), due.AsTime())
		case d.Skip && (j.JobIteration != was.JobIteration || j.Run.Skipped != was.Run.Skipped+1):
			t.Fatalf("decision %d: skipped to %v", i, j.Run)
		case !d.Skip && (j.JobIteration != was.JobIteration+1 || !proto.Equal(j.Run.Due, due)):
			t.Fatalf("decision %d: run %d for %v", i, j.JobIteration, j.Run)
		}
	}
	await(t, "an event for every time that was skipped", func() bool { return skipped.Load() >= 3 })
	// One made from an older picture changes nothing.
	_, err := r.run("j", &skepv1.RunDecision{Iteration: j.JobIteration - 1, Decided: j.ScheduleDecided, Due: timestamppb.Now()})
	if fault.Of(err) != fault.CodeConflict || !strings.Contains(err.Error(), "has changed since its run was decided") {
		t.Fatalf("an old decision: %v", err)
	}
	// Runs that are not kept are forgotten, at once and once.
	d := &skepv1.RunDecision{Iteration: j.JobIteration, Decided: j.ScheduleDecided, Forget: []uint64{1, 2}}
	for range 2 {
		v := must[*skepv1.Service](t)(r.run("j", d))
		if fmt.Sprint(len(v.Runs)) != fmt.Sprint(len(j.Runs)-2) || v.Runs[0].Iteration != 3 {
			t.Fatalf("kept %v", v.Runs)
		}
	}
}

// What `service ls` shows of a global job: 1/1 (1/2 completed) while one of two nodes is done.
func TestGlobalJobCounts(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	g := webSpec("g", 1)
	g.Mode = &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_GlobalJob{GlobalJob: &skepv1.GlobalJobMode{}}}
	svc := must[*skepv1.ServiceReply](t)(r.create(g)).Service
	for i, state := range []skepv1.TaskState{complete, running} {
		n := r.admit(fmt.Sprint("w", i), worker).Meta.Id
		rec := record(svc, 0, complete)
		rec.JobIteration = 1
		r.putTasks(n, rec)
		must[*skepv1.StatusReply](t)(r.report(n, &skepv1.NodeStatus{Session: "s", Report: 1, Tasks: []*skepv1.TaskStatus{{TaskId: rec.Id, State: state}}}))
	}
	await(t, "both are counted", func() bool {
		s := must[*skepv1.Service](t)(r.inspect("g")).Status
		return s.Running == 1 && s.Desired == 1 && s.Completed == 1
	})
}
