package agent

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/durationpb"

	skepv1 "skep.dev/proto/skep/v1"
)

// disk mounts a file system of its own at a path, and takes it away with the test.
func disk(t *testing.T, at string) {
	t.Helper()
	if err := unix.Mount("tmpfs", at, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) }) // a test that ended early has done so
	if err := os.WriteFile(filepath.Join(at, "disk"), []byte("yes\n"), 0o644); err != nil {
		t.Fatal(err)
	}
}

// A task that waits for a disk waits until it is mounted: not for its folder, not until somebody is tired of it, and not
// so that others wait for it. One that is told to end while it waits ends.
func TestBindWait(t *testing.T) {
	n := up(t)
	at := filepath.Join(n.dir, "late")
	link := filepath.Join(n.dir, "link")
	s := n.spec("sleep", "1000")
	s.Task.Container.StopGracePeriod = durationpb.New(time.Millisecond)
	s.Task.Container.Mounts = []*skepv1.Mount{{Type: skepv1.Mount_TYPE_BIND, Source: at, Target: "/data", BindWait: true}}
	waits := func(id string) {
		t.Helper()
		n.await("the task says what it waits for", func(m map[string]*skepv1.TaskStatus) bool {
			st := m[id]
			return st.GetState() == skepv1.TaskState_TASK_STATE_PREPARING && strings.Contains(st.GetMessage(), "waiting until something is mounted at "+at)
		})
	}
	ids := n.put(1, s)
	waits(ids[0]) // it is not there at all
	if err := os.Mkdir(at, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(at, link); err != nil {
		t.Fatal(err)
	}
	others := n.put(20, n.spec("sleep", "1000")) // more than are prepared at once
	n.state(running, others...)
	waits(ids[0]) // it is an empty folder
	tired := n.put(1, s)
	waits(tired[0])
	n.want(shutdown, tired...)
	n.state(shutdown, tired...)
	disk(t, at)
	n.state(running, ids...)
	if out, _ := n.exec(ids[0], "cat", "/data/disk"); out != "yes\n" {
		t.Errorf("it has %q", out)
	}
	s.Task.Container.Mounts[0].Source = link
	n.state(running, n.put(1, s)...)
}

// What is mounted at a source later, a running container does not have: that is told, until the task is replaced.
func TestBindSourceThatChanged(t *testing.T) {
	n := up(t)
	at := filepath.Join(n.dir, "data")
	if err := os.MkdirAll(filepath.Join(at, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	s := n.spec("sleep", "1000")
	s.Task.Container.Mounts = []*skepv1.Mount{
		{Type: skepv1.Mount_TYPE_BIND, Source: at, Target: "/data"},
		{Type: skepv1.Mount_TYPE_BIND, Source: "/etc/hostname", Target: "/file"},
	}
	ids := n.put(1, s)
	n.state(running, ids...)
	look := func(want string) {
		t.Helper()
		n.svc.lookAtBinds(context.Background())
		n.await("the node says "+want, func(m map[string]*skepv1.TaskStatus) bool {
			return strings.Join(m[ids[0]].GetStaleBinds(), " ") == want
		})
	}
	look("")
	disk(t, at)
	look(at)
	if out, _ := n.exec(ids[0], "ls", "/data"); !strings.Contains(out, "sub") {
		t.Errorf("the container has %q", out)
	}
	if err := unix.Unmount(at, 0); err != nil {
		t.Fatal(err)
	}
	look("")
	if err := os.Rename(at, at+".old"); err != nil {
		t.Fatal(err)
	}
	look(at)
}

func TestStandardInput(t *testing.T) {
	n := up(t)
	s := n.spec("cat")
	if st := n.state(complete, n.put(1, s)...); st.GetExitCode() != 0 {
		t.Errorf("without an input: %v", st)
	}
	for _, tty := range []bool{false, true} {
		s := n.spec("sh", "-c", "echo up; cat; echo the input ended")
		s.Task.Container.OpenStdin, s.Task.Container.Tty = true, tty
		s.Task.Container.StopGracePeriod = durationpb.New(time.Millisecond)
		ids := n.put(1, s)
		n.state(running, ids...)
		n.awaitLogs(ids[0], 1)
		if out, code, err := n.tryExec(&skepv1.ExecRequest{TaskId: ids[0], Args: []string{"sh", "-c", "readlink /proc/1/fd/0"}}, ""); err != nil || code != 0 || strings.Contains(out, "/dev/null") {
			t.Errorf("tty %v: the input is %q (%d, %v)", tty, out, code, err)
		}
		n.want(shutdown, ids...)
		n.state(shutdown, ids...)
		if got := n.awaitLogs(ids[0], 1); strings.Contains(got[len(got)-1].String(), "ended") {
			t.Errorf("tty %v: %v", tty, got)
		}
	}
}
