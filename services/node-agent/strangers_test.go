package agent

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/node-agent/internal/inroot/inroottest"
)

// over is an image with one more layer: headers whose files hold as many zeros as they have bytes.
func over(t *testing.T, img v1.Image, headers ...*tar.Header) v1.Image {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(make([]byte, h.Size)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil }, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		t.Fatal(err)
	}
	if img, err = mutate.AppendLayers(img, layer); err != nil {
		t.Fatal(err)
	}
	return img
}

// Images whose account files are no account files: their tasks are refused with a sentence, go when they are to go, and
// cost the agent nothing; the agent does not wait for them.
func TestAccountFilesOfStrangers(t *testing.T) {
	n := up(t)
	for name, c := range map[string]struct {
		h    *tar.Header
		want string
	}{
		"big":    {&tar.Header{Name: "etc/passwd", Mode: 0o644, Size: 64 << 20}, "/etc/passwd has 67108864 bytes: skep reads at most 1048576"},
		"groups": {&tar.Header{Name: "etc/group", Mode: 0o644, Size: 1<<20 + 1}, "/etc/group has 1048577 bytes"},
		"fifo":   {&tar.Header{Name: "etc/passwd", Mode: 0o644, Typeflag: tar.TypeFifo}, "/etc/passwd is no regular file"},
		"device": {&tar.Header{Name: "etc/passwd", Mode: 0o644, Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 5}, "/etc/passwd is no regular file"},
	} {
		image := "skep.test/" + name + ":1"
		n.load(archive(t, image, over(t, busybox(t, nil, nil), c.h)))
		s := n.spec("sleep", "1000")
		s.Task.Container.Image = image
		ids := n.put(1, s)
		if st := n.state(rejected, ids...); !strings.Contains(st.Err, c.want) {
			t.Errorf("%s: want %q, got %q", name, c.want, st.Err)
		}
		n.drop(ids...)
		n.await("the task to be forgotten", func(m map[string]*skepv1.TaskStatus) bool { return m[ids[0]] == nil })
	}
	// Links lead nowhere but into the image.
	n.load(archive(t, "skep.test/link:1", over(t, busybox(t, nil, nil), &tar.Header{Name: "etc/passwd", Typeflag: tar.TypeSymlink, Linkname: "/../../../../../../proc/kmsg"})))
	s := n.spec("sleep", "1000")
	s.Task.Container.Image = "skep.test/link:1"
	ids := n.put(1, s)
	n.state(running, ids...)

	// A container that runs puts a pipe where an exec by name looks.
	if out, code := n.exec(ids[0], "sh", "-c", "rm /etc/passwd && busybox mkfifo /etc/passwd"); code != 0 {
		t.Fatal(out)
	}
	if _, _, err := n.tryExec(&skepv1.ExecRequest{TaskId: ids[0], Args: []string{"id"}, User: "app"}, ""); err == nil || !strings.Contains(err.Error(), "no regular file") {
		t.Errorf("exec by name with a pipe for an account file: %v", err)
	}
}

// An image of more layers than the kernel stacks, or that declares more volumes than anyone needs, is refused by name.
func TestImagesWithoutMeasure(t *testing.T) {
	n := up(t)
	n.load(archive(t, "skep.test/volumes:1", busybox(t, nil, func(c *v1.ConfigFile) {
		c.Config.Volumes = map[string]struct{}{}
		for i := range 1000 {
			c.Config.Volumes[fmt.Sprintf("/v%d", i)] = struct{}{}
		}
	})))
	s := n.spec("sleep", "1000")
	s.Task.Container.Image = "skep.test/volumes:1"
	if st := n.state(rejected, n.put(1, s)...); !strings.Contains(st.Err, "declares 1000 volumes") {
		t.Errorf("%q", st.Err)
	}
}

// A container of the host's network has its sysfs and its own cgroups, read-only, as every container: nothing of the
// host's cgroups can be written, and no mount below a read-only bind.
func TestHostNetworkWritesNothingOfTheHost(t *testing.T) {
	n := up(t)
	below := filepath.Join(n.dir, "host")
	for _, d := range []string{below, filepath.Join(below, "sub")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount("tmpfs", filepath.Join(below, "sub"), "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(filepath.Join(below, "sub"), unix.MNT_DETACH) })
	s := n.spec("sleep", "1000")
	s.Task.Networks = []*skepv1.NetworkAttachment{{Target: "host"}}
	for i, prop := range []string{"", "rslave", "rshared"} {
		s.Task.Container.Mounts = append(s.Task.Container.Mounts, &skepv1.Mount{Type: skepv1.Mount_TYPE_BIND, Source: below,
			Target: fmt.Sprintf("/ro%d", i), ReadOnly: true, BindPropagation: prop})
	}
	s.Task.Container.Mounts = append(s.Task.Container.Mounts,
		&skepv1.Mount{Type: skepv1.Mount_TYPE_BIND, Source: "/sys", Target: "/hostsys", ReadOnly: true},
		&skepv1.Mount{Type: skepv1.Mount_TYPE_BIND, Source: below, Target: "/rw", ReadOnly: true, BindRecursive: "writable"})
	ids := n.put(1, s)
	n.state(running, ids...)
	const try = `for f in $(busybox find /sys /hostsys -name cgroup.procs 2>/dev/null | head -100) /sys/kernel/mm/ksm/run /sys/fs/cgroup/x; do
		( echo $$ > $f ) 2>/dev/null && echo "written: $f"; done
		for f in /ro0 /ro1 /ro2 /ro0/sub /ro1/sub /ro2/sub; do ( echo > $f/f ) 2>/dev/null && echo "written: $f"; done
		mkdir /sys/fs/cgroup/evil /sys/fs/cgroup/*/evil 2>/dev/null && echo "a group was made"
		ls /sys/class/net /sys/fs/cgroup >/dev/null || echo "sysfs is not there"
		( echo 1 > /proc/sys/vm/panic_on_oom ) 2>/dev/null && echo "written: /proc/sys"; echo done`
	if out, _ := n.exec(ids[0], "sh", "-c", try); out != "done\n" {
		t.Errorf("%s", out)
	}
	if out, _ := n.exec(ids[0], "sh", "-c", "echo > /rw/sub/f && echo written"); out != "written\n" {
		t.Errorf("bind-recursive=writable: %s", out)
	}
}

// A neighbour of a volume swaps a directory and a link to the host's root while tasks with a subpath start.
func TestSubpathUnderSwaps(t *testing.T) {
	n := up(t)
	s := n.spec("sleep", "1000")
	s.Task.Container.Mounts = []*skepv1.Mount{{Type: skepv1.Mount_TYPE_VOLUME, Source: "v", Target: "/v"}}
	neighbour := n.put(1, s)
	n.state(running, neighbour...)
	if out, code := n.exec(neighbour[0], "sh", "-c", "mkdir -p /v/a/in && busybox ln -s / /v/b && echo mine > /v/a/f"); code != 0 {
		t.Fatal(out)
	}
	data := filepath.Join(n.cfg.DataDir, "agent/volumes/v/_data")
	s = n.spec("sleep", "1000")
	s.Task.Container.Mounts = []*skepv1.Mount{{Type: skepv1.Mount_TYPE_VOLUME, Source: "v", Target: "/s", VolumeSubpath: "a"},
		{Type: skepv1.Mount_TYPE_VOLUME, Source: "v", Target: "/r", VolumeSubpath: "a/in", ReadOnly: true}}
	still := n.put(1, s)
	n.state(running, still...)
	if out, _ := n.exec(still[0], "sh", "-c", "cat /s/f; echo > /r/x || echo denied"); !strings.Contains(out, "mine\n") || !strings.Contains(out, "denied\n") {
		t.Errorf("what a subpath shows: %s", out)
	}
	stop := inroottest.Swap(t, data+"/a", data+"/b")
	s.Task.Container.Mounts = s.Task.Container.Mounts[:1]
	ids := n.put(12, s)
	n.await("all tasks to run", func(m map[string]*skepv1.TaskStatus) bool {
		for _, id := range ids {
			if m[id].GetState() < running {
				return false
			}
		}
		return true
	})
	stop()
	for _, id := range ids {
		if out, _ := n.exec(id, "ls", "/s"); out != "f\nin\n" && out != "a\nb\n" { // the link's "/" is the volume's own
			t.Errorf("a task was given the host's root: %s", out)
		}
	}
	// They go with their tasks, those of a killed agent too.
	n.halt()
	n.start()
	all := append(append(neighbour, still...), ids...)
	n.drop(all...)
	n.await("the tasks to be forgotten", func(m map[string]*skepv1.TaskStatus) bool { return len(m) == 0 })
	if left, _ := filepath.Glob(filepath.Join(n.cfg.RunDir, "subpaths/*")); len(left) > 0 {
		t.Errorf("mounts of tasks that are gone: %v", left)
	}
	if b, err := os.ReadFile(data + "/a/f"); err != nil || string(b) != "mine\n" {
		if b, err = os.ReadFile(data + "/b/f"); err != nil || string(b) != "mine\n" {
			t.Errorf("the volume's data: %q %v", b, err)
		}
	}
}
