package scheduler

import (
	"fmt"
	"testing"

	"skep.dev/libs/kvtest"
	skepv1 "skep.dev/proto/skep/v1"
)

func TestCreateScaleRemove(t *testing.T) {
	f := newFake(t, kvtest.Server(t), 3)
	f.start("a", nil)
	f.putService("svc1", 1, service("web", 5, "busybox:1"))
	f.awaitRunning("svc1", 5)
	per := map[string]int{}
	for _, r := range f.running("svc1") {
		per[r.node]++
	}
	if len(per) != 3 {
		t.Fatalf("not spread: %v", per)
	}
	f.putService("svc1", 1, service("web", 2, "busybox:1"))
	f.awaitRunning("svc1", 2)
	f.await("two records", func() error {
		if n := len(f.records("svc1")); n != 2 {
			return fmt.Errorf("%d records", n)
		}
		return nil
	})
	f.putService("svc1", 1, service("web", 4, "busybox:1"))
	f.awaitRunning("svc1", 4)
	f.removeService("svc1")
	f.await("nothing left", func() error {
		if n := len(f.records("svc1")); n != 0 {
			return fmt.Errorf("%d records", n)
		}
		return nil
	})
}

func TestGlobalFollowsNodes(t *testing.T) {
	f := newFake(t, kvtest.Server(t), 2)
	f.start("a", nil)
	g := service("agent", 0, "busybox:1")
	g.Mode = &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_Global{Global: &skepv1.GlobalMode{}}}
	f.putService("glob", 1, g)
	f.awaitRunning("glob", 2)
	f.addNode("node3")
	f.awaitRunning("glob", 3)
	f.setNode("node1", skepv1.Availability_AVAILABILITY_DRAIN)
	f.awaitRunning("glob", 2)
	f.setNode("node1", skepv1.Availability_AVAILABILITY_ACTIVE)
	f.awaitRunning("glob", 3)
}

func TestNodeDownAndBack(t *testing.T) {
	f := newFake(t, kvtest.Server(t), 3)
	f.start("a", nil)
	f.putService("svc1", 1, service("web", 6, "busybox:1"))
	f.awaitRunning("svc1", 6)
	f.live("node2", skepv1.NodeState_NODE_STATE_DOWN)
	f.awaitRunning("svc1", 6)
	for _, r := range f.running("svc1") {
		if r.node == "node2" {
			t.Fatal("a dead node runs tasks")
		}
	}
	f.live("node2", skepv1.NodeState_NODE_STATE_READY)
	f.await("the old ones are stopped", func() error {
		for _, r := range f.records("svc1") {
			if r.node == "node2" && r.seen != skepv1.TaskState_TASK_STATE_SHUTDOWN {
				return fmt.Errorf("%s is %v", r.Id, r.seen)
			}
		}
		return f.duplicates("svc1")
	})
}
