package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Several tasks start at once: the content is copied once, and none goes on before all of it is there.
func TestFilledOnce(t *testing.T) {
	for _, opts := range []map[string]string{nil, tmpfs} {
		s := open(t, Config{})
		var copies atomic.Int32
		fill := func(to string) error {
			copies.Add(1)
			for i := range 20 {
				if err := os.WriteFile(filepath.Join(to, fmt.Sprint(i)), nil, 0o600); err != nil {
					return err
				}
			}
			return nil
		}
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				ctx := context.Background()
				dir, err := s.Attach(ctx, fmt.Sprint("t", i), Wanted{Name: "v", Options: opts})
				if err == nil {
					err = s.Fill(ctx, "", "v", dir, fill)
				}
				if entries, _ := os.ReadDir(dir); err != nil || len(entries) != 20 {
					t.Errorf("a task began with %d of 20 files: %v", len(entries), err)
				}
			}()
		}
		wg.Wait()
		if n := copies.Load(); n != 1 {
			t.Errorf("copied %d times", n)
		}
		for i := range 8 {
			if err := s.Release(context.Background(), fmt.Sprint("t", i)); err != nil {
				t.Error(err)
			}
		}
	}
}

const killedFill = "SKEP_TEST_FILL"

// tenFolders is the content of an image.
func tenFolders(to string) error {
	for i := range 10 {
		sub := filepath.Join(to, fmt.Sprint("d", i))
		if err := errors.Join(os.Mkdir(sub, 0o755), os.WriteFile(filepath.Join(sub, "f"), []byte("whole"), 0o600)); err != nil {
			return err
		}
		between()
	}
	return errors.Join(os.Chmod(to, 0o750), os.Chown(to, 33, 33))
}

// fillUntilKilled is a process that is killed at a step of a fill: the n-th of dir:n. It ends well when there are fewer.
func fillUntilKilled(what string) {
	dir, at, _ := strings.Cut(what, ":")
	left, err := strconv.Atoi(at)
	between = func() {
		if left--; left == 0 {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
	if err == nil {
		err = fillFrom(dir+"/", filepath.Join(dir, "_data"), tenFolders)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// A fill is killed at every step: who looks on sees whole folders or none, and the next fill makes it whole.
func TestFillKilledAtEveryStep(t *testing.T) {
	killed := 0
	for step := 1; ; step++ {
		dir := t.TempDir()
		data := filepath.Join(dir, "_data")
		if err := os.Mkdir(data, 0o755); err != nil {
			t.Fatal(err)
		}
		c := exec.Command("/proc/self/exe")
		c.Env = append(os.Environ(), fmt.Sprintf("%s=%s:%d", killedFill, dir, step))
		out, err := c.CombinedOutput()
		if st, ok := c.ProcessState.Sys().(syscall.WaitStatus); err != nil && (!ok || st.Signal() != syscall.SIGKILL) {
			t.Fatalf("step %d: %v: %s", step, err, out)
		}
		for _, e := range strings.Fields(names(t, data)) {
			if b, err := os.ReadFile(filepath.Join(data, e, "f")); err != nil || string(b) != "whole" {
				t.Fatalf("step %d: the volume holds half of %s: %v", step, e, err)
			}
		}
		if err := fillFrom(dir+"/", data, tenFolders); err != nil {
			t.Fatalf("step %d: %v", step, err)
		}
		if got := names(t, data); got != "d0 d1 d2 d3 d4 d5 d6 d7 d8 d9" {
			t.Fatalf("step %d: the volume holds %q", step, got)
		}
		if got := names(t, dir); got != "_data" {
			t.Fatalf("step %d: beside it: %q", step, got)
		}
		st, serr := os.Stat(data)
		if serr != nil || st.Mode().Perm() != 0o750 || st.Sys().(*syscall.Stat_t).Uid != 33 {
			t.Fatalf("step %d: the volume has mode %v, owner %v", step, st.Mode(), st.Sys().(*syscall.Stat_t).Uid)
		}
		if err == nil {
			break // it made fewer steps
		}
		killed++
	}
	if killed < 25 {
		t.Errorf("killed at %d steps only", killed)
	}
}

// A file system without owners: one clear error, and nothing half is left.
func TestChownRefused(t *testing.T) {
	s := open(t, Config{})
	dir := attach(t, s, "t", "v", tmpfs)
	err := s.Fill(context.Background(), "", "v", dir, func(to string) error {
		if err := os.WriteFile(filepath.Join(to, "f"), nil, 0o600); err != nil {
			return err
		}
		return &os.PathError{Op: "chown", Path: filepath.Join(to, "f"), Err: unix.EPERM} // as vfat, cifs or NFS with squashed root answers
	})
	if err == nil || !strings.Contains(err.Error(), "its file system refuses owners") || !strings.Contains(err.Error(), "volume-nocopy") {
		t.Error(err)
	}
	if got := names(t, dir); got != "" {
		t.Errorf("half of it is there: %q", got)
	}
	if err := s.Release(context.Background(), "t"); err != nil {
		t.Error(err)
	}
}

// The copy hangs: its task is told, the volume stays locked for others until it ends, and nothing else waits.
func TestFillHangs(t *testing.T) {
	s := open(t, Config{Limit: 200 * time.Millisecond})
	dir := attach(t, s, "t", "v", nil)
	let := make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	began := make(chan struct{})
	go func() {
		ended <- s.Fill(ctx, "", "v", dir, func(string) error { close(began); <-let; return errors.New("the server is gone") })
	}()
	<-began
	if err := s.SetLabels(context.Background(), "", "v", nil); err == nil || !strings.Contains(err.Error(), "has not ended within 200ms") {
		t.Errorf("a volume that hangs is worked on: %v", err)
	}
	attach(t, s, "t", "other", nil)
	cancel()
	close(let)
	if err := <-ended; err == nil {
		t.Error("no error")
	}
	if err := s.SetLabels(context.Background(), "", "v", map[string]string{"a": "b"}); err != nil {
		t.Errorf("after it ended: %v", err)
	}
}
