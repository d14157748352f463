package agent

import (
	"slices"
	"testing"

	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

// A task that ends while no manager stores what its node tells begins anew: the same task with the same address, in a root
// file system that knows nothing of the first. Once they are back they take it as it is.
func TestRestartsWithoutManagers(t *testing.T) {
	n := up(t)
	id := n.put(1, n.spec("sh", "-c", "echo begins; while ! test -e /die; do sleep 0.05; done; exit 3"))[0]
	before := n.state(running, id)
	hear := func(err error) {
		n.mu.Lock()
		n.deaf = err
		n.mu.Unlock()
	}
	hear(fault.Unavailable("the managers have no leader"))
	n.exec(id, "touch", "/die")
	n.state(failed, id)
	var after *skepv1.TaskStatus
	n.await("the task to run again", func(m map[string]*skepv1.TaskStatus) bool {
		after = m[id]
		return after.GetState() == running && after.GetRestarts() == 1
	})
	if after.Pid == before.Pid || !slices.Equal(after.Addresses, before.Addresses) || after.ExitCode != nil {
		t.Errorf("before: %v\nafter: %v", before, after)
	}
	n.awaitLogs(id, 2)
	n.exec(id, "true")
	hear(nil)
	n.svc.report.changed()
	n.state(running, id)
	// What ends now is theirs to replace.
	n.exec(id, "touch", "/die")
	n.state(failed, id)
	n.awaitReleased(id)
}
