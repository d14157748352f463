package volume

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"skep.dev/libs/leaktest"
)

const within = "SKEP_TEST_MOUNTS"

// TestMain runs the tests in a mount namespace of their own: what they mount goes away with it.
func TestMain(m *testing.M) {
	if dir := os.Getenv(killedFill); dir != "" {
		fillUntilKilled(dir)
	}
	if os.Getenv(within) != "" {
		if err := syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
			fmt.Fprintln(os.Stderr, "make a mount namespace of the tests' own:", err)
			os.Exit(1)
		}
		leaktest.Main(m)
	}
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests mount: run them as root")
		os.Exit(1)
	}
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Env = append(os.Environ(), within+"=1")
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // Pdeathsig is about this thread
	if err := c.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}
