package node

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"skep.dev/libs/leaktest"
)

const inside = "SKEP_NODE_TEST_INSIDE"

// TestMain runs the tests again as a child in network, mount and process namespaces of its own: a real node with its
// default ports, and nothing of it reaches the machine or outlives the child.
func TestMain(m *testing.M) {
	if os.Getenv(asDaemon) != "" {
		os.Exit(runDaemon(os.Args[1:]))
	}
	if os.Getenv(asCommand) != "" {
		os.Exit(runCommandLine(os.Args[1:]))
	}
	if os.Getenv(inside) != "" {
		if err := isolate(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		leaktest.Main(m)
	}
	os.Setenv("PATH", os.Getenv("SKEP_TOOLS")+":"+os.Getenv("PATH")+":/usr/sbin:/sbin")
	for _, tool := range []string{"iptables", "nft", "ip", "containerd", "runc", "nats"} {
		if _, err := exec.LookPath(tool); err != nil || os.Getuid() != 0 {
			fmt.Fprintln(os.Stderr, "these tests need root, the packages iptables, nftables and iproute2, and `make tools` with SKEP_TOOLS or PATH naming bin/tools; missing or not root:", tool)
			os.Exit(1)
		}
	}
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Env = append(os.Environ(), inside+"=1")
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // Pdeathsig is about this thread
	if err := c.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func isolate() error {
	if err := syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the mounts private: %w", err)
	}
	if err := syscall.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount the child's /proc: %w", err)
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("set lo up: %w: %s", err, out)
	}
	return nil
}

// home is a place for a node; sockets need a short path.
func home(t *testing.T) Paths {
	t.Helper()
	dir, err := os.MkdirTemp("", "skep")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return Paths{Data: filepath.Join(dir, "lib"), Run: filepath.Join(dir, "run")}
}
