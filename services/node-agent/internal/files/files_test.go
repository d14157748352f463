package files

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const taskID = "tasktasktasktasktasktask1"

// root tells who runs this: making file systems takes it.
func root(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: it mounts file systems")
	}
}

func open(t testing.TB) *Store {
	t.Helper()
	root(t)
	s, err := Open(filepath.Join(t.TempDir(), "files"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Sweep(func(string) bool { return false }); err != nil {
			t.Error(err)
		}
	})
	return s
}

func (s *Store) mustPut(t testing.TB, task string, files ...File) []Placed {
	t.Helper()
	placed, err := s.Put(task, files)
	if err != nil {
		t.Fatal(err)
	}
	return placed
}

func (s *Store) mustKeep(t testing.TB, task string, placed []Placed) {
	t.Helper()
	if err := s.Keep(task, placed); err != nil {
		t.Fatal(err)
	}
}

// names are what stands in a task's file system.
func (s *Store) names(t testing.TB, task string) string {
	t.Helper()
	entries, err := os.ReadDir(s.dir(task))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return strings.Join(out, " ")
}

func file(path, value string) File {
	return File{Path: path, ID: "id-" + path, Version: 1, Mode: 0o444, Value: []byte(value)}
}

func TestFilesAsTheyWereAskedFor(t *testing.T) { kernels(t, filesAsTheyWereAskedFor) }

func filesAsTheyWereAskedFor(t *testing.T) {
	s := open(t)
	for _, umask := range []int{0, 0o777} {
		old := syscall.Umask(umask)
		task := fmt.Sprintf("umask%d", umask)
		placed := s.mustPut(t, task,
			File{Path: "/a", UID: 0, GID: 0, Mode: 0o444, Value: []byte("a\x00\r\n\ufeff")},
			File{Path: "/b", UID: 65534, GID: 1000, Mode: 0o400, Value: bytes.Repeat([]byte{0xff}, 500<<10)},
			File{Path: "/c", UID: 4294967294, GID: 4294967294, Mode: 0o777 | os.ModeSetuid | os.ModeSetgid | os.ModeSticky, Value: []byte("c")},
			File{Path: "/d", Mode: 0, Value: []byte("nobody reads it")})
		syscall.Umask(old)
		s.mustKeep(t, task, placed)
		for i, want := range []struct {
			uid, gid, mode uint32
			size           int64
		}{{0, 0, 0o444, 7}, {65534, 1000, 0o400, 500 << 10}, {4294967294, 4294967294, 0o7777, 1}, {0, 0, 0, 15}} {
			var st unix.Stat_t
			if err := unix.Lstat(placed[i].Source, &st); err != nil {
				t.Fatal(err)
			}
			if st.Uid != want.uid || st.Gid != want.gid || st.Mode&0o7777 != want.mode || st.Size != want.size {
				t.Errorf("%s: %d:%d %o, %d bytes; want %v", placed[i].Path, st.Uid, st.Gid, st.Mode, st.Size, want)
			}
		}
		if b, err := os.ReadFile(placed[0].Source); err != nil || string(b) != "a\x00\r\n\ufeff" {
			t.Errorf("%q %v", b, err)
		}
	}
}

// What is swapped out is on a disk; what others may list tells that it is there.
func TestMemoryAloneAndRootAlone(t *testing.T) { kernels(t, memoryAloneAndRootAlone) }

func memoryAloneAndRootAlone(t *testing.T) {
	s := open(t)
	s.mustKeep(t, taskID, s.mustPut(t, taskID, file("/a", "v")))
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var line string
	for _, l := range strings.Split(string(mounts), "\n") {
		if strings.Contains(l, s.dir(taskID)+" ") {
			line = l
		}
	}
	memory := strings.Contains(line, " ramfs ") || strings.Contains(line, " tmpfs ") && strings.Contains(line, "noswap")
	if !memory || !strings.Contains(line, "nosuid,nodev,noexec") || strings.Contains(line, "shared:") {
		t.Errorf("mounted as %q", line)
	}
	for _, dir := range []string{s.root, s.dir(taskID)} {
		if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v %v", dir, st.Mode(), err)
		}
	}
	if st, err := os.Stat(filepath.Join(s.dir(taskID), listName)); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the list: %v %v", st.Mode(), err)
	}
	// A folder that was open to others before is not any more.
	if err := os.Chmod(s.root, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(s.root); err != nil {
		t.Fatal(err)
	}
	if st, _ := os.Stat(s.root); st.Mode().Perm() != 0o700 {
		t.Errorf("opened again it is %v", st.Mode())
	}
}

// An agent that starts finds what the one before had finished, and nothing that it had not.
func TestAnotherAgentFindsThem(t *testing.T) {
	s := open(t)
	placed := s.mustPut(t, taskID, file("/a", "one"), File{Path: "/b", ID: "b", Version: 7, Mode: 0o400, Value: []byte("two"), Template: true})
	next, err := Open(s.root)
	if err != nil {
		t.Fatal(err)
	}
	if got := next.Placed(taskID); got != nil {
		t.Errorf("not finished: %v", got)
	}
	s.mustKeep(t, taskID, placed)
	got := next.Placed(taskID)
	if fmt.Sprint(got) != fmt.Sprint(placed) {
		t.Errorf("found %v, want %v", got, placed)
	}
	for _, broken := range []string{"", "{", `[{"path":1}]`} {
		if err := os.WriteFile(filepath.Join(s.dir(taskID), listName), []byte(broken), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := next.Placed(taskID); got != nil {
			t.Errorf("a list that reads %q: %v", broken, got)
		}
	}
	// A folder that is no file system of its own is of a machine that has started since.
	if err := os.MkdirAll(s.dir("reboot"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.dir("reboot"), listName), []byte(`[{"path":"/a","name":"0"}]`), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := next.Placed("reboot"); got != nil {
		t.Errorf("on a disk: %v", got)
	}
	if err := os.Remove(filepath.Join(s.dir("reboot"), listName)); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"", ".", "..", "../x", "a/b"} {
		if _, err := s.Put(bad, []File{file("/a", "v")}); err == nil {
			t.Errorf("task %q is written", bad)
		}
		if got := s.Placed(bad); got != nil {
			t.Errorf("task %q: %v", bad, got)
		}
		if err := s.Remove(bad); err != nil {
			t.Errorf("task %q: %v", bad, err)
		}
	}
}

// As many and as long as a service may have, and then again newer ones beside them.
func TestTheMostThatFits(t *testing.T) {
	s := open(t)
	const most = 500 // spec.MaxFiles
	many := make([]File, most)
	for i := range many {
		many[i] = file(fmt.Sprintf("/%d%s", i, strings.Repeat("/"+strings.Repeat("<", 200), 5)), "v")
	}
	many[0].Value = bytes.Repeat([]byte("x"), 1000<<10-1)
	placed := s.mustPut(t, taskID, many...)
	s.mustKeep(t, taskID, placed)
	for range 3 {
		placed = s.mustPut(t, taskID, many...)
		s.mustKeep(t, taskID, placed)
	}
	if n := len(strings.Fields(s.names(t, taskID))); n != most+1 {
		t.Errorf("%d names are left", n)
	}
	if b, err := os.ReadFile(placed[0].Source); err != nil || len(b) != 1000<<10-1 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

func TestFullIsSaid(t *testing.T) {
	s := open(t)
	placed := s.mustPut(t, taskID, file("/a", "v"))
	s.mustKeep(t, taskID, placed)
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir(taskID), &st); err != nil {
		t.Fatal(err)
	}
	if st.Type != unix.TMPFS_MAGIC {
		t.Skip("this kernel has no tmpfs without swap, and ramfs has no bound")
	}
	// Somebody else fills it between room was made and the file is written: the bound holds, and says what it is about.
	if err := unix.Mount("tmpfs", s.dir(taskID), "tmpfs", mountFlags|unix.MS_REMOUNT, "size=64k"); err != nil {
		t.Fatal(err)
	}
	err := write(filepath.Join(s.dir(taskID), "9"), File{Value: bytes.Repeat([]byte("x"), 1<<20), Mode: 0o444})
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "no space left on device") {
		t.Errorf("full: %v", err)
	}
	if err := s.Keep(taskID, placed); !errors.Is(err, unix.ENOSPC) || s.Placed(taskID) == nil {
		t.Errorf("full: %v, and what stood is %v", err, s.Placed(taskID))
	}
	// Room is made by the next try, and what was half written goes with its list.
	placed = append(placed, s.mustPut(t, taskID, file("/b", "w"))...)
	s.mustKeep(t, taskID, placed)
	if got := s.names(t, taskID); got != "0 10 list.json" {
		t.Errorf("left: %s", got)
	}
}

func TestRemoveAndSweep(t *testing.T) { kernels(t, removeAndSweep) }

func removeAndSweep(t *testing.T) {
	s := open(t)
	if err := s.Remove("none"); err != nil {
		t.Error(err)
	}
	placed := s.mustPut(t, taskID, file("/a", "v"))
	// Nothing was finished: an agent was killed between delivery and start.
	held, err := os.Open(placed[0].Source)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if err := s.Remove(taskID); err != nil {
		t.Errorf("one is open: %v", err)
	}
	if _, err := os.Lstat(s.dir(taskID)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its folder is there: %v", err)
	}
	for _, id := range []string{"known", "strange"} {
		s.mustPut(t, id, file("/a", "v"))
	}
	// Mounted twice, as by an agent that did not see what stood.
	if err := unix.Mount("tmpfs", s.dir("strange"), "tmpfs", mountFlags, "size=64k"); err != nil {
		t.Fatal(err)
	}
	if err := s.Sweep(func(task string) bool { return task == "known" }); err != nil {
		t.Error(err)
	}
	entries, err := os.ReadDir(s.root)
	if err != nil || len(entries) != 1 || entries[0].Name() != "known" {
		t.Errorf("left: %v %v", entries, err)
	}
}
