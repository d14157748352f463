package agent

import (
	"testing"
)

func TestRunAndShutDown(t *testing.T) {
	n := up(t)
	ids := n.put(1, n.spec("sh", "-c", "trap 'exit 0' TERM; echo hello; while :; do sleep 0.1; done"))
	st := n.state(running, ids...)
	if st.Pid == 0 || st.ContainerId != ids[0] || len(st.Addresses) != 1 {
		t.Errorf("status of a running task: %v", st)
	}
	n.want(shutdown, ids...)
	st = n.state(shutdown, ids...)
	if st.GetExitCode() != 0 || st.ExitCode == nil {
		t.Errorf("exit code: %v", st)
	}
}
