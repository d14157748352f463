package scheduler

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/kvtest"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

func TestExplainAndDryRun(t *testing.T) {
	f := newFake(t, kvtest.Server(t), 3)
	s, _ := f.start("a", nil)
	spec := service("web", 2, "v1")
	spec.Task.Placement = &skepv1.Placement{Constraints: []string{"node.hostname==node1", "node.labels.x==y"}}
	f.putService("svc1", 1, spec)
	f.await("two pending", func() error {
		n := 0
		for _, r := range f.records("svc1") {
			if r.node == "" && strings.Contains(r.Err, "scheduling constraints not satisfied on 3 nodes") {
				n++
			}
		}
		if n != 2 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var x skepv1.ExplainReply
	if err := rpc.Call(ctx, s.cfg.NC, subject.API("service", "explain"), &skepv1.ExplainRequest{Ref: "web"}, &x); err != nil {
		t.Fatal(err)
	}
	if x.Service.GetSpec().GetName() != "web" || len(x.Waiting) != 2 || x.Placing.Summary != "no suitable node (scheduling constraints not satisfied on 3 nodes)" ||
		x.Placing.Filters[3].Filter != "constraints" || len(x.Placing.Filters[3].Removed) != 3 {
		t.Fatalf("%v", &x)
	}
	err := rpc.Call(ctx, s.cfg.NC, subject.API("service", "explain"), &skepv1.ExplainRequest{Ref: "nope"}, &x)
	if err == nil || err.Error() != "service nope not found" {
		t.Fatal(err)
	}
	spec = proto.CloneOf(spec)
	spec.Task.Placement = nil
	var p skepv1.PlanReply
	req := &skepv1.PlanRequest{Service: &skepv1.Service{Meta: &skepv1.Meta{Id: "svc1"}, Spec: spec, Revision: 2}}
	if err := rpc.Call(ctx, s.cfg.NC, subject.API("plan", "service"), req, &p); err != nil {
		t.Fatal(err)
	}
	places := 0
	for _, o := range p.Operations {
		if o.Verb == "place" && o.NodeId != "" {
			places++
		}
	}
	if places != 2 || p.Placing.Summary != "3 of 3 nodes suit" {
		t.Fatalf("%v", &p)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.records("svc1")) != 2 {
		t.Fatal("a dry run wrote something")
	}
}

func TestCrashIsRestartedAfterItsDelay(t *testing.T) {
	f := newFake(t, kvtest.Server(t), 2)
	f.start("a", nil)
	spec := service("web", 3, "v1")
	spec.Task.Restart = &skepv1.RestartPolicy{Condition: skepv1.RestartCondition_RESTART_CONDITION_ANY, Delay: dur(300 * time.Millisecond)}
	f.putService("svc1", 1, spec)
	f.awaitRunning("svc1", 3)
	f.mu.Lock()
	victim := f.running("svc1")[0]
	f.mu.Unlock()
	begin := time.Now()
	f.crash(victim.node, victim.Id)
	f.await("the replacement runs", func() error {
		for _, r := range f.running("svc1") {
			if r.Replaces == victim.Id {
				return nil
			}
		}
		return fmt.Errorf("no replacement of %s", victim.Id)
	})
	if d := time.Since(begin); d < 300*time.Millisecond {
		t.Fatalf("restarted after %v", d)
	}
	f.awaitRunning("svc1", 3)
}

// A crash, not a clean stop: the leader's connection is gone and its lease must run out.
func TestStandbyTakesOverFromACrash(t *testing.T) {
	f := newFake(t, kvtest.Server(t), 3)
	a, _ := f.start("a", nil)
	f.awaitLeader("a")
	f.putService("svc1", 1, service("web", 5, "v1"))
	f.awaitRunning("svc1", 5)
	f.start("b", nil)
	a.cfg.NC.Close()
	f.live("node1", skepv1.NodeState_NODE_STATE_DOWN)
	f.awaitRunning("svc1", 5)
	f.awaitLeader("b")
}

// An update tells where it stands, and a service may be removed in the middle of one.
func TestRollingUpdateReportsItself(t *testing.T) {
	f := newFake(t, kvtest.Server(t), 3)
	f.start("a", nil)
	f.putService("svc1", 1, service("web", 6, "v1"))
	f.awaitRunning("svc1", 6)
	spec := service("web", 6, "v2")
	spec.Update = &skepv1.UpdateConfig{Parallelism: 2, Delay: dur(20 * time.Millisecond)}
	f.putService("svc1", 2, spec)
	f.await("the update completes", func() error {
		if st := f.rollouts["svc1"].GetStatus(); st.GetState() != "completed" || st.GetMessage() != "update completed" {
			return fmt.Errorf("%v", st)
		}
		for _, r := range f.running("svc1") {
			if r.Revision != 2 {
				return fmt.Errorf("%s is of revision %d", r.Id, r.Revision)
			}
		}
		return f.duplicates("svc1")
	})
	f.awaitRunning("svc1", 6)
	// Away in the middle of the next one, removed at once.
	f.putService("svc1", 3, service("web", 6, "v3"))
	f.removeService("svc1")
	f.await("nothing left", func() error {
		if n := len(f.records("svc1")); n != 0 {
			return fmt.Errorf("%d records", n)
		}
		return nil
	})
}
