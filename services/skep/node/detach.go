package node

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"skep.dev/libs/member"
	"skep.dev/services/skep/cli/plain"
)

// unit is the systemd unit deploy/install.sh puts in place.
const unit = "skep.service"

// launch starts the node's daemon and returns once it is ready: by systemd when it runs this machine and knows our
// unit, else detached, with its log and pid file in the data directory.
func launch(ctx context.Context, p Paths, log string) error {
	return (&placement{paths: p, logLevel: log}).launch(ctx)
}

func (pl *placement) launch(ctx context.Context) error {
	p := pl.paths
	if underSystemd(p) {
		out, err := exec.CommandContext(ctx, "systemctl", "enable", "--now", unit).CombinedOutput()
		if err != nil {
			return plain.Errorf("start %s: %w\n%w", unit, err, lines(strings.Split(strings.TrimSpace(string(out)), "\n")))
		}
		return awaitReady(ctx, p, nil)
	}
	self := pl.program
	if self == "" {
		var err error
		if self, err = os.Executable(); err != nil {
			return fmt.Errorf("find our own program: %w", err)
		}
	}
	f, err := os.OpenFile(p.Log(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open the daemon's log: %w", err)
	}
	defer f.Close()
	args := pl.daemonArgs
	if len(args) == 0 {
		args = []string{"node", "run", "--data-dir", p.Data, "--run-dir", p.Run}
		if pl.logLevel != "" {
			args = append(args, "--log-level", pl.logLevel)
		}
	}
	cmd := exec.Command(self, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", f, f
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the daemon: %w", err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	return awaitReady(ctx, p, exited)
}

func underSystemd(p Paths) bool {
	if p != DefaultPaths {
		return false // the unit serves the default paths
	}
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return false
	}
	return exec.Command("systemctl", "cat", unit).Run() == nil
}

// undo takes back a membership of which nothing was started: the daemon ends by itself, or systemd is told not to try again.
func undo(ctx context.Context, p Paths) error {
	if underSystemd(p) {
		if out, err := exec.CommandContext(ctx, "systemctl", "disable", "--now", unit).CombinedOutput(); err != nil {
			return fmt.Errorf("stop %s: %w: %s", unit, err, strings.TrimSpace(string(out)))
		}
	}
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	if err := awaitEnd(ctx, p); err != nil {
		return err
	}
	if err := forget(p); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(p.Data, "lock"))
}

// awaitReady waits until the daemon says it serves, or why it does not.
func awaitReady(ctx context.Context, p Paths, exited <-chan error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		info, err := ask(ctx, p, "GET", "/ready")
		if err == nil {
			switch {
			case info.State == "ready":
				return nil
			case info.State == "failed":
				return startError{info.Error, info.Refused}
			}
		}
		select {
		case err := <-exited:
			return plain.Errorf("the daemon ended (%v); the last it said:\n%w", err, tail(p.Log(), 10))
		case <-ctx.Done():
			return fmt.Errorf("the daemon is not ready yet: %w; it goes on in the background, its log is %s", ctx.Err(), p.Log())
		case <-tick.C:
		}
	}
}

// startError is why a daemon did not come up, in its own words.
type startError struct {
	text    string
	refused bool
}

func (e startError) Error() string { return e.text }

// lines is an error of several lines.
func lines(text []string) error {
	var all []any
	for _, l := range text {
		all = append(all, l)
	}
	return plain.Errorf(strings.TrimSuffix(strings.Repeat("%s\n", len(all)), "\n"), all...)
}

// tail is the last n lines of a file, or why there are none.
func tail(path string, n int) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Size() > 1<<16 {
		if _, err := f.Seek(-1<<16, io.SeekEnd); err != nil {
			return err
		}
	}
	b, err := io.ReadAll(f)
	if err != nil {
		return err
	}
	all := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return lines(all[max(0, len(all)-n):])
}

// holdPID takes the node for this process and says so in the pid file. The lock ends with the process however it ends.
func holdPID(p Paths) (release func(), err error) {
	unlock, err := member.HoldNode(p)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(p.PID(), []byte(strconv.Itoa(os.Getpid())+"\n"), 0o600); err != nil {
		unlock()
		return nil, fmt.Errorf("write the pid file: %w", err)
	}
	return func() { os.Remove(p.PID()); unlock() }, nil
}
