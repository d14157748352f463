package daemon

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// In a process of its own, which would keep neither limit nor flag to itself otherwise.
func TestNoCores(t *testing.T) {
	const inside = "SKEP_TEST_NO_CORES"
	if os.Getenv(inside) == "" {
		for _, how := range []string{"with", "without"} {
			cmd := exec.Command(os.Args[0], "-test.run=^TestNoCores$", "-test.v")
			cmd.Env = append(os.Environ(), inside+"="+how)
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.Contains(string(out), "--- PASS: TestNoCores") {
				t.Errorf("%s the limit: %v\n%s", how, err, out)
			}
		}
		return
	}
	var before, after unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &before); err != nil {
		t.Fatal(err)
	}
	limit := os.Getenv(inside) == "with"
	NoCores(zap.NewNop(), limit)
	if n, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err != nil || n != 0 {
		t.Errorf("dumpable %d, %v", n, err)
	}
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &after); err != nil {
		t.Fatal(err)
	}
	if want := map[bool]unix.Rlimit{true: {}, false: before}[limit]; after != want {
		t.Errorf("the limit is %v, want %v", after, want)
	}
	// What a daemon reads of itself, and what it starts, works as before.
	if _, err := os.ReadFile("/proc/self/cgroup"); err != nil {
		t.Error(err)
	}
	if _, err := os.ReadDir("/proc/self/fd"); err != nil {
		t.Error(err)
	}
	if out, err := exec.Command("/proc/self/exe", "-test.list=^TestNoCores$").CombinedOutput(); err != nil || !strings.Contains(string(out), "TestNoCores") {
		t.Errorf("start a program: %v %s", err, out)
	}
	if out, err := exec.Command("sh", "-c", "ulimit -c").Output(); limit && (err != nil || strings.TrimSpace(string(out)) != "0") {
		t.Errorf("a program's limit: %s, %v", out, err)
	}
}
