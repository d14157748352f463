package files

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const containerEnv = "SKEP_TEST_CONTAINER"

// container is a process in a mount namespace and a root of its own, with files mounted as a container's are. It does
// what it is told, line by line.
type container struct {
	t    testing.TB
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
	root string
}

func newContainer(t testing.TB, placed []Placed) *container {
	t.Helper()
	c := &container{t: t, root: t.TempDir()}
	args := []string{c.root}
	for _, p := range placed {
		args = append(args, p.Source, p.Path)
	}
	c.cmd = exec.Command("/proc/self/exe", args...)
	c.cmd.Env = append(os.Environ(), containerEnv+"=1")
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	c.cmd.Stderr = os.Stderr
	var err error
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.out = bufio.NewReader(out)
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.in.Close()
		_ = c.cmd.Wait()
	})
	if got := c.tell("ready"); got != "ready" {
		t.Fatalf("the container says %q", got)
	}
	return c
}

// tell has the container do something and returns what it says.
func (c *container) tell(format string, a ...any) string {
	c.t.Helper()
	if _, err := fmt.Fprintf(c.in, format+"\n", a...); err != nil {
		c.t.Fatal(err)
	}
	line, err := c.out.ReadString('\n')
	if err != nil {
		c.t.Fatalf("%s: %v", format, err)
	}
	return strings.TrimSuffix(line, "\n")
}

// containerMain is what runs in the container.
func containerMain() int {
	root := os.Args[1]
	die := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, "container:", err)
			os.Exit(1)
		}
	}
	die(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	die(unix.Mount(root, root, "", unix.MS_BIND, ""))
	for i := 2; i+1 < len(os.Args); i += 2 {
		at := filepath.Join(root, os.Args[i+1])
		die(os.MkdirAll(filepath.Dir(at), 0o755))
		die(os.WriteFile(at, nil, 0o644))
		die(unix.Mount(os.Args[i], at, "", unix.MS_BIND, ""))
		die(unix.Mount("", at, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""))
	}
	// A file of the container that is a mount too, as /etc/hosts is, and as masks of /proc are.
	die(os.WriteFile(filepath.Join(root, "masked"), []byte("mask"), 0o644))
	die(unix.Mount(filepath.Join(root, "masked"), filepath.Join(root, "masked"), "", unix.MS_BIND, ""))
	die(os.Mkdir(filepath.Join(root, "old"), 0o700))
	die(unix.Chdir(root))
	die(unix.PivotRoot(".", "old"))
	die(unix.Unmount("/old", unix.MNT_DETACH))
	die(unix.Chdir("/"))
	var open *os.File
	stop := make(chan struct{})
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		word := strings.Fields(in.Text())
		say := func(v any, err error) {
			if err != nil {
				v = "error: " + err.Error()
			}
			fmt.Println(v)
		}
		switch word[0] {
		case "ready":
			say("ready", nil)
		case "cat":
			b, err := os.ReadFile(word[1])
			say(string(b), err)
		case "open":
			var err error
			open, err = os.Open(word[1])
			say("open", err)
		case "read":
			b, err := io.ReadAll(open)
			say(string(b), err)
		case "write":
			say("written", os.WriteFile(word[1], []byte("x"), 0o644))
		case "mv":
			say("moved", os.Rename(word[1], word[2]))
		case "ln":
			say("linked", os.Symlink(word[1], word[2]))
		case "mounts":
			n := 0
			if err := countMounts(word[1], &n); err != nil {
				say(nil, err)
			} else {
				say(n, nil)
			}
		case "watch": // reads until it is told otherwise, and says what was neither of two
			go func() {
				seen := map[string]int{}
				for {
					select {
					case <-stop:
						fmt.Println(seen["torn"], seen["a"] > 0, seen["b"] > 0)
						return
					default:
					}
					b, err := os.ReadFile(word[1])
					switch {
					case err == nil && len(b) == size && bytes.Count(b, []byte("a")) == size:
						seen["a"]++
					case err == nil && len(b) == size && bytes.Count(b, []byte("b")) == size:
						seen["b"]++
					default:
						seen["torn"]++
					}
				}
			}()
			say("watching", nil)
		case "flip": // moves what a path leads to to and fro
			go func() {
				for n := 0; ; n++ {
					select {
					case <-stop:
						fmt.Println("flipped")
						return
					default:
					}
					_ = os.Rename(word[1], word[1]+".real")
					_ = os.Symlink(word[2], word[1])
					_ = os.Remove(word[1])
					_ = os.Rename(word[1]+".real", word[1])
				}
			}()
			say("flipping", nil)
		case "stop":
			close(stop)
		}
	}
	return 0
}

const size = 200_000

// countMounts counts what is mounted at a path, one upon another, by taking it away in a copy of the mounts.
func countMounts(path string, n *int) error {
	return lostThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			return err
		}
		for unix.Unmount(path, unix.MNT_DETACH) == nil {
			*n++
		}
		return nil
	})
}

// kernels runs a test as on this kernel, and as on one that can neither mount beneath nor keep a tmpfs from being swapped.
func kernels(t *testing.T, f func(t *testing.T)) {
	root(t)
	t.Run("beneath", f)
	t.Run("on top and in ramfs, before Linux 6.4", func(t *testing.T) {
		beneath, noswap = false, false
		defer func() { beneath, noswap = true, true }()
		f(t)
	})
}

// swap puts a new version in place as the runtime does.
func (s *Store) swap(t testing.TB, c *container, was []Placed, files ...File) []Placed {
	t.Helper()
	fresh, err := Swap(c.cmd.Process.Pid, s.mustPut(t, taskID, files...), was)
	if err != nil {
		t.Fatal(err)
	}
	s.mustKeep(t, taskID, fresh)
	return fresh
}

// The process' first thread is what /proc/self shows, and does not end: it must not be left in a container.
func TestSwapLeavesTheFirstThreadAlone(t *testing.T) {
	for range 200 {
		if err := lostThread(func() error {
			if unix.Gettid() == unix.Getpid() {
				return errors.New("on the first thread")
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSwap(t *testing.T) {
	kernels(t, func(t *testing.T) {
		s := open(t)
		placed := s.mustPut(t, taskID, file("/run/secrets/a", "one"), file("/b", "uno"))
		s.mustKeep(t, taskID, placed)
		c := newContainer(t, placed)
		if got := c.tell("cat /run/secrets/a"); got != "one" {
			t.Fatalf("reads %q", got)
		}
		// Who has the old one open reads it to its end.
		c.tell("open /run/secrets/a")
		for i, v := range []string{"two", "three", "four"} {
			placed = s.swap(t, c, placed, file("/run/secrets/a", v), file("/b", strings.ToUpper(v)))
			if a, b := c.tell("cat /run/secrets/a"), c.tell("cat /b"); a != v || b != strings.ToUpper(v) {
				t.Errorf("reads %q and %q, want %s", a, b, v)
			}
			if want := 1; beneath && c.tell("mounts /b") != fmt.Sprint(want) {
				t.Errorf("mounts after %d swaps: %s", i+1, c.tell("mounts /b"))
			}
		}
		if got := c.tell("read"); got != "one" {
			t.Errorf("the old one reads %q", got)
		}
		if got := c.tell("write /run/secrets/a"); !strings.Contains(got, "read-only") {
			t.Errorf("writing: %s", got)
		}
		// An agent that starts knows what there is as well.
		if got := s.Placed(taskID); fmt.Sprint(got) != fmt.Sprint(placed) {
			t.Errorf("placed %v, want %v", got, placed)
		}
		s.swap(t, c, s.Placed(taskID), file("/run/secrets/a", "five"), file("/b", "cinco"))
		if a, b := c.tell("cat /run/secrets/a"), c.tell("cat /b"); a != "five" || b != "cinco" {
			t.Errorf("reads %q and %q", a, b)
		}
		if n := len(strings.Fields(s.names(t, taskID))); beneath && n != 3 || !beneath && n != 3+2*4 {
			t.Errorf("stands: %s", s.names(t, taskID))
		}
	})
}

// A process that reads without pause sees one version or the other, and neither half of one nor none.
func TestSwapIsNeverHalf(t *testing.T) {
	kernels(t, func(t *testing.T) {
		s := open(t)
		versions := []string{strings.Repeat("a", size), strings.Repeat("b", size)}
		placed := s.mustPut(t, taskID, file("/s", versions[0]))
		s.mustKeep(t, taskID, placed)
		c := newContainer(t, placed)
		c.tell("watch /s")
		for i := range 60 {
			placed = s.swap(t, c, placed, file("/s", versions[(i+1)%2]))
		}
		if got := c.tell("stop"); got != "0 true true" {
			t.Errorf("torn reads, saw a, saw b: %s", got)
		}
	})
}

// Who runs in the container may lead its paths anywhere. Nothing but the task's own files is ever replaced or taken away.
func TestSwapOfPathsThatLeadElsewhere(t *testing.T) {
	kernels(t, func(t *testing.T) {
		s := open(t)
		placed := s.mustPut(t, taskID, file("/run/secrets/a", "one"), file("/b", "uno"))
		s.mustKeep(t, taskID, placed)
		c := newContainer(t, placed)
		for _, to := range []string{"/masked", "/", "/none", "/run", "a"} {
			c.tell("mv /run/secrets /run/real")
			c.tell("ln %s /run/secrets", to)
			fresh := s.mustPut(t, taskID, file("/b", "dos"), file("/run/secrets/a", "two"))
			if _, err := Swap(c.cmd.Process.Pid, fresh, placed); !errors.Is(err, errMoved) {
				t.Errorf("by %s: %v", to, err)
			}
			s.mustKeep(t, taskID, placed)
			if got := c.tell("cat /b") + c.tell("cat /masked") + c.tell("cat /run/real/a"); got != "unomaskone" {
				t.Errorf("by %s: it reads %s", to, got)
			}
			c.tell("mv /run/secrets /run/gone%d", len(to))
			c.tell("mv /run/real /run/secrets")
		}
		if got := s.names(t, taskID); got != "0 1 list.json" {
			t.Errorf("what was not put in place is left: %s", got)
		}
		s.swap(t, c, placed, file("/b", "dos"), file("/run/secrets/a", "two"))
		if got := c.tell("cat /b") + c.tell("cat /run/secrets/a"); got != "dostwo" {
			t.Errorf("back where it was: %s", got)
		}
	})
}

// The path leads now here and now there while it is used: between the look and the mount, and between that and taking the
// old one away.
func TestSwapWhilePathsChange(t *testing.T) {
	kernels(t, func(t *testing.T) {
		s := open(t)
		placed := s.mustPut(t, taskID, file("/d/masked", "0"))
		s.mustKeep(t, taskID, placed)
		c := newContainer(t, placed)
		c.tell("flip /d /") // /d/masked is the container's own mount then
		swapped, moved := 0, 0
		for i := range 300 {
			put := s.mustPut(t, taskID, file("/d/masked", fmt.Sprint(i)))
			fresh, err := Swap(c.cmd.Process.Pid, put, placed)
			switch {
			case err == nil:
				swapped++
				placed = fresh
			case errors.Is(err, errMoved):
				moved++
			default:
				t.Fatal(err)
			}
			s.mustKeep(t, taskID, placed)
		}
		c.tell("stop")
		t.Logf("swapped %d times, led elsewhere %d times", swapped, moved)
		if got := c.tell("cat /masked"); got != "mask" {
			t.Errorf("the container's own mount reads %q", got)
		}
		if got := c.tell("mounts /masked"); got != "1" {
			t.Errorf("mounts there: %s", got)
		}
	})
}
