package inroot

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"skep.dev/services/node-agent/internal/inroot/inroottest"
)

func must(t testing.TB, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// What an image or a container may put where the agent reads a file.
func TestRead(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "secret")
	must(t, os.WriteFile(outside, []byte("the host's"), 0o600))
	for _, c := range []struct {
		name, want, fault string
		make              func(path string) error
	}{
		{"a file", "root:x:0:0\n", "", func(p string) error { return os.WriteFile(p, []byte("root:x:0:0\n"), 0o600) }},
		{"nothing", "", "", func(string) error { return nil }},
		{"a file of the limit", strings.Repeat("x", Limit), "", func(p string) error { return os.WriteFile(p, []byte(strings.Repeat("x", Limit)), 0o600) }},
		{"1.5 GB of zeros", "", "bytes", func(p string) error {
			f, err := os.Create(p)
			if err != nil {
				return err
			}
			defer f.Close()
			return f.Truncate(1500 << 20)
		}},
		{"a pipe", "", "no regular file", func(p string) error { return unix.Mkfifo(p, 0o600) }},
		{"a device", "", "no regular file", func(p string) error { return unix.Mknod(p, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))) }},
		{"a directory", "", "no regular file", func(p string) error { return os.Mkdir(p, 0o700) }},
		{"an absolute link out", "", "", func(p string) error { return os.Symlink(outside, p) }},
		{"a relative link out", "", "", func(p string) error { return os.Symlink("../../../../../../../../.."+outside, p) }},
		{"a link to itself", "", "too many", func(p string) error { return os.Symlink("passwd", p) }},
		{"a link inside", "here", "", func(p string) error {
			return os.Symlink("/other", p)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			must(t, os.Mkdir(filepath.Join(root, "etc"), 0o755), os.WriteFile(filepath.Join(root, "other"), []byte("here"), 0o600),
				c.make(filepath.Join(root, "etc/passwd")))
			done := make(chan struct{})
			go func() {
				defer close(done)
				b, err := Read(root, "/etc/passwd")
				if string(b) != c.want {
					t.Errorf("read %d bytes, want %d", len(b), len(c.want))
				}
				if (err == nil) != (c.fault == "") || err != nil && !strings.Contains(err.Error(), c.fault) {
					t.Errorf("error %v, want %q", err, c.fault)
				}
			}()
			select {
			case <-done:
			case <-time.After(20 * time.Second):
				t.Fatal("it waits for a stranger's file")
			}
		})
	}
}

// /proc inside a container is a file system like any other, and some of its files never end.
func TestReadProc(t *testing.T) {
	root := t.TempDir()
	must(t, os.Mkdir(filepath.Join(root, "proc"), 0o755), unix.Mount("proc", filepath.Join(root, "proc"), "proc", 0, ""))
	t.Cleanup(func() { must(t, unix.Unmount(filepath.Join(root, "proc"), unix.MNT_DETACH)) })
	for target, fault := range map[string]string{"/proc/kmsg": "", "/proc/self/environ": "", "/proc/self/root/etc/passwd": "too many"} {
		link := filepath.Join(root, "passwd")
		must(t, os.RemoveAll(link), os.Symlink(target, link))
		b, err := Read(root, "passwd")
		if len(b) > 0 || (err == nil) != (fault == "") || err != nil && !strings.Contains(err.Error(), fault) {
			t.Errorf("%s: %d bytes, %v", target, len(b), err)
		}
	}
}

// A neighbour swaps a directory and a link to the host's root as fast as it can: what is bound is always of the volume.
func TestBindUnderSwaps(t *testing.T) {
	base := t.TempDir()
	vol, host := filepath.Join(base, "vol"), filepath.Join(base, "host")
	must(t, os.MkdirAll(filepath.Join(vol, "a"), 0o755), os.Mkdir(host, 0o755),
		os.WriteFile(filepath.Join(host, "secret"), nil, 0o600), os.Symlink(host, filepath.Join(vol, "b")))
	inroottest.Swap(t, filepath.Join(vol, "a"), filepath.Join(vol, "b"))
	target := filepath.Join(base, "mounts/0")
	t.Cleanup(func() { must(t, Unbind(target)) })
	bound := 0
	for range 300 {
		if err := Bind(vol, "a", target); err != nil {
			if !os.IsNotExist(err) { // the link means nothing in the volume
				t.Fatal(err)
			}
			continue
		}
		bound++
		if _, err := os.Stat(filepath.Join(target, "secret")); err == nil {
			t.Fatal("the host's directory is bound")
		}
	}
	t.Logf("bound %d of 300", bound)
}

func TestBind(t *testing.T) {
	base := t.TempDir()
	vol, target := filepath.Join(base, "vol"), filepath.Join(base, "mounts/0")
	must(t, os.MkdirAll(filepath.Join(vol, "d"), 0o755), os.WriteFile(filepath.Join(vol, "d/f"), []byte("x"), 0o600),
		os.Symlink("/d", filepath.Join(vol, "l")), unix.Mkfifo(filepath.Join(vol, "p"), 0o600))
	t.Cleanup(func() { must(t, Unbind(target)) })
	for _, name := range []string{"d", "l", "d/f", "d"} { // a try after a try, a file after a directory
		must(t, Bind(vol, name, target))
		if ok, err := Bound(target); err != nil || !ok {
			t.Fatalf("%s: %v %v", name, ok, err)
		}
	}
	must(t, os.Rename(filepath.Join(vol, "d"), filepath.Join(vol, "e")))
	if b, err := os.ReadFile(filepath.Join(target, "f")); err != nil || string(b) != "x" {
		t.Errorf("%q %v", b, err)
	}
	for _, bad := range []string{"none", "p"} {
		if err := Bind(vol, bad, filepath.Join(base, "mounts/1")); err == nil {
			t.Errorf("%s is bound", bad)
		}
	}
	must(t, Unbind(target), Unbind(target))
	if _, err := os.Stat(filepath.Join(vol, "e/f")); err != nil {
		t.Errorf("the user's data went with the mount: %v", err)
	}
}

func FuzzOpen(f *testing.F) {
	for _, s := range []string{"a", "/", "..", "../../etc/passwd", "l/../..", "a/./b", "\x00", strings.Repeat("a/", 5000)} {
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, link, name string) {
		base := t.TempDir()
		root := filepath.Join(base, "root")
		must(t, os.MkdirAll(filepath.Join(root, "a"), 0o755), os.WriteFile(filepath.Join(base, "secret"), nil, 0o600))
		_ = os.Symlink(link, filepath.Join(root, "l"))
		for _, n := range []string{name, "l", "l/" + name} {
			at, err := Open(root, n)
			if err != nil {
				continue
			}
			p, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(at.Fd())))
			_ = at.Close()
			if err != nil || p != root && !strings.HasPrefix(p, root+"/") {
				t.Errorf("%q with a link to %q is %s, outside of the root (%v)", n, link, p, err)
			}
		}
	})
}
