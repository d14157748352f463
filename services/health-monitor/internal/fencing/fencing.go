// Package fencing runs the program that cuts a node off: with the node's name, without a shell, in an environment of its own,
// for a bounded time, and with all that it started when it is ended.
package fencing

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"skep.dev/libs/printable"
)

const (
	// Timeout is how long a program may take.
	Timeout = 30 * time.Second
	// outputLimit is how much of what it prints is kept: the end.
	outputLimit = 1 << 10
)

// Command is one run for one node.
type Command struct {
	Path   string // absolute
	Name   string // the node's host name: the only argument
	NodeID string
	Addr   string
	// Timeout is the constant of the same name when it is 0.
	Timeout time.Duration
}

// Run returns the end of what the program printed, fit to be shown, and an error unless it ended with status 0 in time.
func (c Command) Run(ctx context.Context) (string, error) {
	if !filepath.IsAbs(c.Path) {
		return "", fmt.Errorf("run %q: it is no absolute path", c.Path)
	}
	// A name is what a node calls itself: as an argument it must be no option.
	if c.Name == "" || strings.HasPrefix(c.Name, "-") {
		return "", fmt.Errorf("run %s: the node's name %q cannot be an argument", c.Path, c.Name)
	}
	limit := c.Timeout
	if limit == 0 {
		limit = Timeout
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	runtime.LockOSThread() // the child would be killed with the thread that made it
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, c.Path, c.Name)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "SKEP_NODE_ID=" + c.NodeID, "SKEP_NODE_ADDR=" + c.Addr}
	cmd.Dir = "/"
	// A group of its own, so that what it started ends with it; and with this process, which may be killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	var out tail
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if cmd.Process != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // what it left behind in its group; none is no error
	}
	text := printable.Cut(strings.ToValidUTF8(strings.TrimSpace(string(out.buf)), ""), outputLimit)
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
		// The second: it ended well and left something behind that held its output.
		return text, nil
	case ctx.Err() == context.DeadlineExceeded:
		return text, fmt.Errorf("it did not end within %s", limit)
	case ctx.Err() != nil:
		return text, errors.New("it was stopped: the node is back, or another manager leads")
	case errors.Is(err, os.ErrNotExist):
		return text, errors.New("there is no such program on this manager")
	case errors.Is(err, os.ErrPermission):
		return text, errors.New("it may not be run on this manager: is it executable?")
	}
	return text, err
}

// tail keeps the end of what is written. (Embedded, the buffer would read all of it by itself.)
type tail struct{ buf []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - outputLimit; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(p), nil
}
