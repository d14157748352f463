package lab

import (
	"bufio"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// hang is an own disk on which nothing moves.
type hang struct {
	cmd   *exec.Cmd
	ended chan struct{}
}

// HangDisk has every write to a host's own disk wait, without an error, until ResumeDisk, or for as long as said: what waits for
// a disk cannot even be killed, so it ends by itself, also when this process is gone.
func (l *Lab) HangDisk(ctx context.Context, host string, lasts time.Duration) error {
	h, err := l.Host(host)
	if err != nil {
		return err
	}
	if h.OwnDisk == 0 {
		return fmt.Errorf("%s has no disk of its own: start the lab with Options.OwnDisk", host)
	}
	if l.hung[host] != nil {
		return fmt.Errorf("the disk of %s hangs already", host)
	}
	// In the host's mounts and outside of its processes: it outlives them.
	script := fmt.Sprintf("trap : TERM; fsfreeze -f %[1]s || exit 1; echo frozen; sleep %[2]d & wait $!; kill $! 2>/dev/null; fsfreeze -u %[1]s", ownMount, int(lasts.Seconds()))
	cmd := exec.CommandContext(context.WithoutCancel(ctx), "nsenter", "-t", fmt.Sprint(h.PID), "-m", "--", "/bin/sh", "-c", script)
	cmd.Env = l.environ()
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("have the disk of %s hang: %w", host, err)
	}
	var errs strings.Builder
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("have the disk of %s hang: %w", host, err)
	}
	word, rerr := bufio.NewReader(out).ReadString('\n')
	g := &hang{cmd, make(chan struct{})}
	go func() { defer close(g.ended); _ = cmd.Wait() }()
	if rerr != nil || word != "frozen\n" {
		<-g.ended
		return fmt.Errorf("have the disk of %s hang: %v %s", host, rerr, errs.String())
	}
	if l.hung == nil {
		l.hung = map[string]*hang{}
	}
	l.hung[host] = g
	return nil
}

// ResumeDisk has what waits for a host's disk go on.
func (l *Lab) ResumeDisk(host string) error {
	g := l.hung[host]
	if g == nil {
		return nil
	}
	delete(l.hung, host)
	_ = g.cmd.Process.Signal(unix.SIGTERM) // it may have ended by itself
	select {
	case <-g.ended:
		return nil
	case <-time.After(30 * time.Second):
		return fmt.Errorf("the disk of %s does not go on", host)
	}
}

func (l *Lab) resumeDisks() {
	for host := range l.hung {
		_ = l.ResumeDisk(host) // what does not go on is found as a leftover
	}
}
