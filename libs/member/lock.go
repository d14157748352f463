package member

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"skep.dev/libs/atomicfile"
)

// maxInstances bounds how many instances of one service run on one node.
const maxInstances = 16

// HoldNode takes the whole node for the process that runs all its services.
func HoldNode(p Paths) (release func(), err error) {
	release, err = lock(p.lock("node"), syscall.LOCK_NB)
	var busy busyError
	if !errors.As(err, &busy) {
		return release, err
	}
	if busy.pid != "" {
		return nil, fmt.Errorf("a skep daemon (pid %s) runs on %s already", busy.pid, p.Data)
	}
	return nil, fmt.Errorf("services of this node run as processes of their own on %s (%s): stop them first", p.Data, strings.Join(Holders(p), ", "))
}

// HoldSetup takes the making of a membership for this process: two at once on one machine would mix their keys.
func HoldSetup(p Paths) (release func(), err error) {
	release, err = lock(p.lock("setup"), syscall.LOCK_NB)
	var busy busyError
	if errors.As(err, &busy) {
		return nil, fmt.Errorf("another skep init or join (pid %s) is at work on %s: wait for it to end", busy.pid, p.Data)
	}
	return release, err
}

// HoldUpgrade takes the replacing of the node's program for this process.
func HoldUpgrade(p Paths) (release func(), err error) {
	release, err = lock(p.lock("upgrade"), syscall.LOCK_NB)
	var busy busyError
	if errors.As(err, &busy) {
		return nil, fmt.Errorf("an upgrade of this node is under way already (process %s): wait for it to end", busy.pid)
	}
	return release, err
}

// HoldPart takes a service's place on the node for its own process: the only one, or the first free of several. The
// number, from 1, is the same again after a restart. No part runs while one process runs the whole node.
func HoldPart(p Paths, name string, single bool) (instance int, release func(), err error) {
	node, err := lock(p.lock("node"), syscall.LOCK_NB|syscall.LOCK_SH)
	var busy busyError
	if errors.As(err, &busy) {
		return 0, nil, fmt.Errorf("a skep daemon (pid %s) runs all services of %s in one process: stop it first, or leave %s to it", busy.pid, p.Data, name)
	}
	if err != nil {
		return 0, nil, err
	}
	most := maxInstances
	if single {
		most = 1
	}
	for i := 1; i <= most; i++ {
		part, err := lock(p.lock(fmt.Sprintf("%s.%d", name, i)), syscall.LOCK_NB)
		if err == nil {
			return i, func() { part(); node() }, nil
		}
		if errors.As(err, &busy) && !single {
			continue
		}
		node()
		if errors.As(err, &busy) {
			err = fmt.Errorf("%s (pid %s) runs on %s already: a node has one", name, busy.pid, p.Data)
		}
		return 0, nil, err
	}
	node()
	return 0, nil, fmt.Errorf("%d instances of %s run on %s already", most, name, p.Data)
}

// Holders names the services that run as processes of their own, with their process ids.
func Holders(p Paths) []string {
	files, _ := filepath.Glob(p.lock("skep-*")) // the pattern is well formed
	var out []string
	for _, f := range files {
		release, err := lock(f, syscall.LOCK_NB)
		var busy busyError
		if err == nil {
			release()
		} else if errors.As(err, &busy) {
			name := filepath.Base(f)
			out = append(out, name[:strings.LastIndex(name, ".")]+" pid "+busy.pid)
		}
	}
	return out
}

// busyError: another process has the lock.
type busyError struct{ path, pid string }

func (e busyError) Error() string { return fmt.Sprintf("%s is held by process %s", e.path, e.pid) }

// lock takes a file's lock, exclusively unless how says LOCK_SH, and writes who has it into the file. The file stays:
// removing it would let two processes lock two files of one name.
func lock(path string, how int) (release func(), err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make the lock directory: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock: %w", err)
	}
	// The parts of a node may run as several users: who has the folder has its locks.
	if err := atomicfile.Inherit(f, filepath.Dir(path)); err != nil {
		f.Close()
		return nil, fmt.Errorf("open the lock: %w", err)
	}
	shared := how&syscall.LOCK_SH != 0
	if !shared {
		how |= syscall.LOCK_EX
	}
	for err = syscall.EINTR; errors.Is(err, syscall.EINTR); {
		err = syscall.Flock(int(f.Fd()), how)
	}
	if err != nil {
		b, _ := io.ReadAll(io.LimitReader(f, 32)) // who it is only helps the reader of the error
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, busyError{path, strings.TrimSpace(string(b))}
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	who := strconv.Itoa(os.Getpid()) + "\n"
	if shared {
		who = ""
	}
	if err := f.Truncate(0); err == nil {
		_, err = f.WriteAt([]byte(who), 0)
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("write the lock: %w", err)
		}
	}
	return func() { f.Close() }, nil
}
