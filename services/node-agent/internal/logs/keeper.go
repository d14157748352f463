// Package logs keeps what containers write. The shim appends stdout and stderr to two raw files, so neither the agent's nor
// containerd's death stops or loses output; the agent reads them, stamps every line with the time, and writes rotated log
// files. What was taken over is freed in the raw files by punching holes: cutting a file while the shim writes to it would
// lose lines.
//
// It refuses drivers that send elsewhere. Failure story: the position in the raw files is not stored beside the log but
// follows from it (each file begins with a position, every record adds its length), so after a crash no line is
// lost and none is written twice. A full disk stops the taking over, not the container; it goes on when there is space.
package logs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// Keeper takes over the output of every task of the node.
type Keeper struct {
	log     *zap.Logger
	inotify *os.File

	mu      sync.Mutex
	tasks   map[string]*follower
	watches map[int32]*follower
	closed  bool
	wg      sync.WaitGroup
}

// Open starts listening for writes.
func Open(log *zap.Logger) (*Keeper, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch container output: %w", err)
	}
	k := &Keeper{log: log, inotify: os.NewFile(uintptr(fd), "inotify"), tasks: map[string]*follower{}, watches: map[int32]*follower{}}
	go k.listen()
	return k, nil
}

// Close stops taking over. The raw files keep what comes; the next Keeper goes on there.
func (k *Keeper) Close() error {
	k.mu.Lock()
	if k.closed {
		k.mu.Unlock()
		return nil
	}
	k.closed = true
	for _, f := range k.tasks {
		f.halt()
	}
	k.mu.Unlock()
	k.wg.Wait()
	return k.inotify.Close()
}

// Check tells whether a driver and its options can be used here.
func (k *Keeper) Check(d *skepv1.LogDriver) error {
	_, err := spec.ReadLog(d)
	return err
}

func raw(dir string) (string, string) {
	return filepath.Join(dir, "out.raw"), filepath.Join(dir, "err.raw")
}

func folder(dir string) string { return filepath.Join(dir, "logs") }

// Prepare makes the files the shim will append to.
func (k *Keeper) Prepare(id, dir string, d *skepv1.LogDriver) error {
	o, err := spec.ReadLog(d)
	if err != nil || o.None {
		return err
	}
	if err := os.MkdirAll(folder(dir), 0o700); err != nil {
		return fmt.Errorf("make log directory: %w", err)
	}
	out, errs := raw(dir)
	for _, name := range []string{out, errs} {
		f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return fmt.Errorf("make output file: %w", err)
		}
		if err := f.Close(); err != nil {
			return fmt.Errorf("make output file: %w", err)
		}
	}
	k.entry(id, dir, o)
	return nil
}

func (k *Keeper) entry(id, dir string, o spec.LogOptions) *follower {
	k.mu.Lock()
	defer k.mu.Unlock()
	f := k.tasks[id]
	if f == nil {
		f = newFollower(k, dir, o)
		k.tasks[id] = f
	}
	return f
}

// Holds tells whether a task's output is still being taken over, or about to be.
func (k *Keeper) Holds(id string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.tasks[id] != nil
}

// Raw is where the shim writes; empty with driver none.
func (k *Keeper) Raw(_, dir string, d *skepv1.LogDriver) (stdout, stderr string) {
	if o, err := spec.ReadLog(d); err != nil || o.None {
		return "", ""
	}
	return raw(dir)
}

// Follow begins to take over a started task's output.
func (k *Keeper) Follow(id, dir string, d *skepv1.LogDriver) {
	o, err := spec.ReadLog(d)
	if err != nil || o.None {
		return
	}
	f := k.entry(id, dir, o)
	k.mu.Lock()
	defer k.mu.Unlock()
	if f.started || k.closed {
		return
	}
	f.started = true
	out, errs := raw(dir)
	for _, name := range []string{out, errs} {
		rc, err := k.inotify.SyscallConn()
		if err != nil {
			continue
		}
		_ = rc.Control(func(fd uintptr) {
			wd, werr := unix.InotifyAddWatch(int(fd), name, unix.IN_MODIFY)
			if werr != nil {
				// Out of watches: the follower looks by itself every second.
				k.log.Warn("watch container output", zap.String("task", id), zap.Error(werr))
				f.poll = true
				return
			}
			k.watches[int32(wd)] = f
			f.wds = append(f.wds, int32(wd))
		})
	}
	k.wg.Add(1)
	go func() {
		defer k.wg.Done()
		f.run()
	}()
}

// Finish takes over the last of a task's output and removes the raw files. The shim must be gone.
func (k *Keeper) Finish(id string) error {
	k.mu.Lock()
	f := k.tasks[id]
	delete(k.tasks, id)
	if f == nil {
		k.mu.Unlock()
		return nil
	}
	started := f.started
	for _, wd := range f.wds {
		delete(k.watches, wd)
	}
	k.mu.Unlock()
	if rc, err := k.inotify.SyscallConn(); err == nil {
		_ = rc.Control(func(fd uintptr) {
			for _, wd := range f.wds {
				_, _ = unix.InotifyRmWatch(int(fd), uint32(wd)) // the file may be gone, and the watch with it
			}
		})
	}
	if started {
		close(f.finish)
		<-f.done
		if f.err != nil {
			// The raw files still hold it: the next Finish tries again.
			f.end()
			k.mu.Lock()
			again := newFollower(k, f.dir, f.opt)
			again.started, again.poll = true, true
			k.tasks[id] = again
			k.wg.Add(1)
			k.mu.Unlock()
			go func() {
				defer k.wg.Done()
				again.run()
			}()
			return f.err
		}
	}
	f.end()
	out, errs := raw(f.dir)
	for _, name := range []string{out, errs} {
		if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove output file: %w", err)
		}
	}
	return nil
}

func (k *Keeper) listen() {
	buf := make([]byte, 64<<10)
	for {
		n, err := k.inotify.Read(buf)
		if err != nil {
			return
		}
		k.mu.Lock()
		for at := 0; at+unix.SizeofInotifyEvent <= n; {
			wd := int32(le32(buf[at:]))
			mask := le32(buf[at+4:])
			if mask&unix.IN_Q_OVERFLOW != 0 {
				for _, f := range k.tasks {
					f.kick()
				}
			}
			if f := k.watches[wd]; f != nil {
				f.kick()
			}
			at += unix.SizeofInotifyEvent + int(le32(buf[at+12:]))
		}
		k.mu.Unlock()
	}
}

func le32(b []byte) uint32 {
	return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
}
