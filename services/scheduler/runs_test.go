package scheduler

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/job"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/rpc"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// serveRuns plays the state service for one job: decisions are carried out by compare-and-set on its object. reply may
// lose the answer.
func (f *fake) serveRuns(id string, reply func() error) (due func() []time.Time) {
	f.t.Helper()
	srv, err := rpc.NewServer(f.n.Conn(f.t), rpc.Config{Name: "fake-state"})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = srv.Close() })
	var mu sync.Mutex
	var all []time.Time
	err = api.Handle(srv, api.ServiceRun, func(ctx context.Context, r *skepv1.RunServiceRequest) (*skepv1.ServiceReply, error) {
		for {
			e, err := f.spec.Get(ctx, keys.Service.Key(id))
			if err != nil {
				return nil, fault.Unavailable("read: %v", err)
			}
			v := &skepv1.Service{}
			if err := proto.Unmarshal(e.Value, v); err != nil {
				return nil, err
			}
			changed, err := job.Decide(v, r.Decision, time.Now(), func() []*skepv1.Task { return nil })
			if err != nil || !changed {
				return &skepv1.ServiceReply{}, err
			}
			body, err := proto.Marshal(v)
			if err != nil {
				return nil, err
			}
			_, err = f.spec.Update(ctx, "service."+id, body, e.Revision)
			if errors.Is(err, kv.ErrConflict) {
				continue
			}
			if err != nil {
				return nil, err
			}
			if r.Decision.Due != nil {
				mu.Lock()
				all = append(all, r.Decision.Due.AsTime())
				mu.Unlock()
			}
			return &skepv1.ServiceReply{}, reply()
		}
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return func() []time.Time {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(all)
	}
}

// putTick stores a job with a schedule.
func (f *fake) putTick(cron string) {
	f.t.Helper()
	s := &skepv1.ServiceSpec{Name: "tick", Task: &skepv1.TaskSpec{Container: &skepv1.ContainerSpec{Image: "v1"}}, Schedule: &skepv1.Schedule{Cron: cron, Concurrency: skepv1.Concurrency_CONCURRENCY_REPLACE}}
	s.Mode = &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_ReplicatedJob{ReplicatedJob: &skepv1.ReplicatedJobMode{MaxConcurrent: 1, TotalCompletions: 1}}}
	spec.Defaults(s)
	f.put(f.rev, "service.tick.1", &skepv1.Revision{ServiceId: "tick", Number: 1, Spec: s})
	f.put(f.spec, "service.tick", &skepv1.Service{Meta: &skepv1.Meta{Id: "tick"}, Spec: s, Revision: 1, ScheduleDecided: timestamppb.Now()})
}

// A job each second while leaders are stopped one after the other and answers are lost: every second is decided once, and
// nothing piles up.
func TestScheduleOverLeaderChanges(t *testing.T) {
	f := newFake(t, kvtest.Server(t), 2)
	var mu sync.Mutex
	asked := 0
	due := f.serveRuns("tick", func() error {
		mu.Lock()
		defer mu.Unlock()
		if asked++; asked%4 == 0 {
			return fault.Unavailable("the answer is lost")
		}
		return nil
	})
	f.putTick("@every 1s")
	for i := range 3 {
		name := fmt.Sprint("leader", i)
		_, stop := f.start(name, nil)
		f.awaitLeader(name)
		n := len(due())
		f.await("runs under "+name, func() error {
			if got := len(due()) - n; got < 3 {
				return fmt.Errorf("%d", got)
			}
			return nil
		})
		stop()
	}
	all := due()
	for i := 1; i < len(all); i++ {
		if gap := all[i].Sub(all[i-1]); gap < time.Second || gap%time.Second != 0 {
			t.Fatalf("decided at %v and then for %v", all[i-1], all[i])
		}
	}
	v := &skepv1.Service{}
	e, err := f.spec.Get(f.ctx, "service.tick")
	if err != nil {
		t.Fatal(err)
	}
	if err := proto.Unmarshal(e.Value, v); err != nil {
		t.Fatal(err)
	}
	if int(v.JobIteration) != len(all) {
		t.Errorf("%d runs of %d times", v.JobIteration, len(all))
	}
	if n := len(v.Runs); n > 6 {
		t.Errorf("%d runs are listed, want about 1 kept", n)
	}
	if n := len(f.records("tick")); n > 10 {
		t.Errorf("%d tasks are left", n)
	}
}

// While no state service takes a job's runs the log says so once, and once that they are taken again.
func TestOutageOfStateIsToldOnce(t *testing.T) {
	f := newFake(t, kvtest.Server(t), 1)
	var away atomic.Bool
	var asked atomic.Int32
	away.Store(true)
	due := f.serveRuns("tick", func() error {
		if asked.Add(1); away.Load() {
			return fault.Unavailable("nobody is there")
		}
		return nil
	})
	f.putTick("@every 1s")
	// What state refuses here it has carried out, as if its answer were lost, so that there is more to ask each second.
	core, logs := observer.New(zapcore.InfoLevel)
	f.startWith(Config{NodeID: "leader", Log: zap.New(core), firstPause: 10 * time.Millisecond})
	said := func(what string) []observer.LoggedEntry { return logs.FilterMessageSnippet(what).All() }
	for range 2 {
		away.Store(true)
		logs.TakeAll()
		asked.Store(0)
		f.await("three refusals", func() error {
			if n := asked.Load(); n < 3 {
				return fmt.Errorf("%d", n)
			}
			return nil
		})
		warned := said("run was not taken")
		if len(warned) != 1 || warned[0].Level != zap.WarnLevel || warned[0].ContextMap()["service"] != "tick" {
			t.Fatalf("warned %v", warned)
		}
		away.Store(false)
		taken := len(due())
		f.await("runs again", func() error {
			if len(due()) < taken+2 {
				return errors.New("none")
			}
			return nil
		})
		if back := said("taken again"); len(back) != 1 || back[0].ContextMap()["refused"].(int64) < 3 {
			t.Fatalf("back %v", back)
		}
		if warned := said("run was not taken"); len(warned) != 1 {
			t.Fatalf("warned again: %v", warned)
		}
	}
}

func TestPauseBetweenRefusals(t *testing.T) {
	pauses := func(left func(since time.Duration) time.Duration) (out []time.Duration, since time.Duration) {
		r := refusals{first: time.Second}
		for since < 100*time.Second {
			p, first := r.again("j", left(since))
			if first != (len(out) == 0) {
				t.Fatalf("the %dth is the first: %v", len(out), first)
			}
			out, since = append(out, p), since+p
		}
		return out, since
	}
	got, _ := pauses(func(time.Duration) time.Duration { return 0 })
	if s := fmt.Sprint(got); s != "[1s 2s 4s 8s 16s 30s 30s 30s]" {
		t.Error(s)
	}
	// A run that may be a minute late is asked for until that minute is over.
	late := 0
	got, _ = pauses(func(since time.Duration) time.Duration { return time.Minute - since })
	for since := time.Duration(0); since < 59*time.Second; late++ {
		since += got[late]
		if since > time.Minute {
			t.Errorf("it is not asked for in the last second: %v", got)
		}
	}
	if late > 12 {
		t.Errorf("asked %d times in a minute: %v", late, got)
	}
}
