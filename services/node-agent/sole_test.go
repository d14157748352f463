package agent

import (
	"testing"
	"time"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

// A machine that the managers refuse, since another one is the node, begins nothing that is pushed and says nothing in the
// node's name. It asks again, and is the node as soon as they say so.
func TestAMachineThatIsNotTheNode(t *testing.T) {
	n := newNode(t)
	n.refuse = fault.Conflict("another machine runs as this node")
	ids := n.put(1, n.spec("sleep", "1000"))
	n.start()
	n.load(archive(t, testImage, busybox(t, nil, nil)))
	self, err := api.Call(t.Context(), n.nc, api.NodeSelf.At(n.id), &skepv1.Empty{})
	if err != nil || self.Session != n.svc.session || self.Hostname != "host1" {
		t.Errorf("%v %v", self, err)
	}
	asks := func(more int) {
		t.Helper()
		n.mu.Lock()
		from := n.asked
		n.mu.Unlock()
		for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
			n.mu.Lock()
			have := n.asked
			n.mu.Unlock()
			if have >= from+more {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("asked %d times more, not %d", have-from, more)
			}
		}
	}
	asks(1)
	n.push() // it asks once for what is pushed, too
	asks(2)
	n.mu.Lock()
	beats := len(n.beats)
	n.mu.Unlock()
	n.push()
	asks(2)
	if j, _ := n.svc.set.Job(ids[0]); j != nil {
		t.Error("the pushed task is taken on")
	}
	n.mu.Lock()
	if more := len(n.beats) - beats; more > 0 {
		t.Errorf("%d heartbeats in the name of the node", more)
	}
	n.refuse = nil
	n.mu.Unlock()
	n.state(running, ids...)
}
