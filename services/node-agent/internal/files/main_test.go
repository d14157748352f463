package files

import (
	"fmt"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"skep.dev/libs/leaktest"
)

// Mounts of these tests are in a mount namespace of their own: whatever they leave goes with the process.
func TestMain(m *testing.M) {
	if os.Getenv(containerEnv) != "" {
		os.Exit(containerMain())
	}
	if os.Getuid() == 0 && os.Getenv("SKEP_FILES_TEST") == "" {
		os.Exit(again())
	}
	leaktest.Main(m)
}

// again runs the test binary once more in its own mount namespace: the threads of a Go process share theirs.
func again() int {
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		fmt.Fprintln(os.Stderr, "unshare:", err)
		return 1
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		fmt.Fprintln(os.Stderr, "make mounts private:", err)
		return 1
	}
	if err := unix.Setenv("SKEP_FILES_TEST", "1"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	// The thread is in it, and exec makes it the process' only one.
	err := unix.Exec("/proc/self/exe", os.Args, os.Environ())
	fmt.Fprintln(os.Stderr, "exec:", err)
	return 1
}
