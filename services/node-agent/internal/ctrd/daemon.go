package ctrd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"skep.dev/libs/containerdconf"
	"skep.dev/libs/logfile"
)

// DaemonConfig says where a private containerd lives.
type DaemonConfig struct {
	Dir    string // <data-dir>/containerd: root, config.toml, containerd.log
	RunDir string // containerd.sock, containerd.pid, state
	BinDir string // looked at before PATH and /usr/lib/skep/bin
	Log    *zap.Logger
}

// Daemon is a containerd of our own. It outlives the agent: it has its own session, and a new agent finds it by
// its pid file. While the agent lives, it is started again as soon as it dies.
type Daemon struct {
	cfg  DaemonConfig
	ears *shimEars
	path string // PATH containerd finds its shim and runc with: absolute folders only
	bin  string

	mu      sync.Mutex
	pid     int
	stopped bool
	done    chan struct{}
}

// NewDaemon finds the programs. Nothing is started yet.
func NewDaemon(cfg DaemonConfig) (*Daemon, error) {
	for _, p := range []*string{&cfg.Dir, &cfg.RunDir} {
		abs, err := filepath.Abs(*p) // a relative socket address is taken for a host name
		if err != nil {
			return nil, fmt.Errorf("containerd's folder %s: %w", *p, err)
		}
		*p = abs
	}
	if n := len(filepath.Join(cfg.RunDir, "containerd.sock.ttrpc")); n > 100 {
		return nil, fmt.Errorf("run directory %s is too long for a unix socket: choose one of at most %d characters", cfg.RunDir, 100-len("/containerd.sock.ttrpc"))
	}
	d := &Daemon{cfg: cfg, path: SearchPath(cfg.BinDir), ears: newShimEars(cfg.RunDir, cfg.Log)}
	for _, name := range []string{"containerd", "containerd-shim-runc-v2", "runc"} {
		p, err := Find(name, d.path)
		if err != nil {
			return nil, err
		}
		if name == "containerd" {
			d.bin = p
		}
	}
	return d, nil
}

// SearchPath is the list of absolute folders programs are looked for in.
func SearchPath(binDir string) string {
	var dirs []string
	all := append([]string{binDir, os.Getenv("SKEP_TOOLS"), "/usr/lib/skep/bin"}, filepath.SplitList(os.Getenv("PATH"))...)
	for _, d := range append(all, "/usr/sbin", "/usr/bin", "/sbin", "/bin") {
		if filepath.IsAbs(d) && !slices.Contains(dirs, d) {
			dirs = append(dirs, d)
		}
	}
	return strings.Join(dirs, ":")
}

// Find is exec.LookPath in a given search path.
func Find(name, path string) (string, error) {
	for _, dir := range filepath.SplitList(path) {
		p := filepath.Join(dir, name)
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s is not installed (looked in %s): install containerd 2.x with its shim and runc", name, path)
}

// Address is the socket of its API.
func (d *Daemon) Address() string { return filepath.Join(d.cfg.RunDir, "containerd.sock") }

// Start takes over a containerd that runs already, or starts one, and keeps one running until ctx ends.
func (d *Daemon) Start(ctx context.Context) error {
	for _, dir := range []string{d.cfg.Dir, d.cfg.RunDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make containerd's folder: %w", err)
		}
	}
	config := "# Written by the skep agent at every start; changes are lost.\n" + containerdconf.Text(d.cfg.Dir, d.cfg.RunDir)
	if err := os.WriteFile(d.configFile(), []byte(config), 0o600); err != nil {
		return fmt.Errorf("write containerd's configuration: %w", err)
	}
	pid := d.running()
	if pid == 0 {
		d.ears.listen(ctx)
		var err error
		if pid, err = d.spawn(); err != nil {
			return err
		}
	}
	d.pid, d.done = pid, make(chan struct{})
	go d.supervise(ctx, pid)
	go d.boundLogs(ctx)
	return d.await(ctx, 20*time.Second)
}

func (d *Daemon) configFile() string { return filepath.Join(d.cfg.Dir, "config.toml") }
func (d *Daemon) pidFile() string    { return filepath.Join(d.cfg.RunDir, "containerd.pid") }

// running is the pid of a live containerd with our configuration, 0 if there is none.
func (d *Daemon) running() int {
	b, err := os.ReadFile(d.pidFile())
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 1 {
		return 0
	}
	// The number may be anybody's by now.
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !strings.Contains(string(cmdline), d.configFile()) {
		return 0
	}
	if st, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err != nil || strings.Contains(string(st), ") Z ") {
		return 0
	}
	return pid
}

func (d *Daemon) spawn() (int, error) {
	logFile, err := d.openLog()
	if err != nil {
		return 0, err
	}
	defer logFile.Close()
	cmd := exec.Command(d.bin, "--config", d.configFile())
	cmd.Env = append(withoutPath(os.Environ()), "PATH="+d.path)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("start containerd: %w", err)
	}
	pid := cmd.Process.Pid
	go cmd.Wait() // reaps it; how it ended is seen by supervise
	if err := os.WriteFile(d.pidFile(), []byte(strconv.Itoa(pid)+"\n"), 0o600); err != nil {
		_ = cmd.Process.Kill() // one we could not find again must not live
		return 0, fmt.Errorf("write containerd's pid file: %w", err)
	}
	return pid, nil
}

func (d *Daemon) logName() string { return filepath.Join(d.cfg.Dir, "containerd.log") }

// openLog is where containerd and its shims write; they keep it open longer than we live, so it is bounded in place.
func (d *Daemon) openLog() (*os.File, error) {
	f, err := os.OpenFile(d.logName(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open containerd's log: %w", err)
	}
	return f, nil
}

const (
	maxDaemonLog = 10 << 20
	// maxRuntimeLog bounds what runc says of one task: a line for each command that cannot be run in it, such as a health
	// check. The files are in memory, and nobody else empties them before the task goes.
	maxRuntimeLog = 1 << 20
)

// boundLogs keeps the logs of containerd and of its runtime small until ctx ends: twice the limits at most.
func (d *Daemon) boundLogs(ctx context.Context) {
	tick := time.NewTicker(10 * time.Second)
	defer tick.Stop()
	for {
		if err := d.shortenLogs(); err != nil {
			d.cfg.Log.Warn("containerd's logs are not kept small", zap.Error(err))
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (d *Daemon) shortenLogs() error {
	err := logfile.Empty(d.logName(), maxDaemonLog)
	ofTasks, gerr := filepath.Glob(filepath.Join(d.cfg.RunDir, "containerd", "io.containerd.runtime.v2.task", "*", "*", "log.json"))
	err = errors.Join(err, gerr)
	for _, name := range ofTasks {
		err = errors.Join(err, logfile.Empty(name, maxRuntimeLog))
	}
	return err
}

func withoutPath(env []string) []string {
	out := env[:0:0]
	for _, kv := range env {
		// Secrets a service manager may have given the agent are none of containerd's business.
		if k, _, _ := strings.Cut(kv, "="); k != "PATH" && k != "NOTIFY_SOCKET" && !strings.HasPrefix(k, "SKEP_") {
			out = append(out, kv)
		}
	}
	return out
}

// await blocks until the socket answers.
func (d *Daemon) await(ctx context.Context, limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for {
		c, err := net.DialTimeout("unix", d.Address(), time.Second)
		if err == nil {
			return c.Close()
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("containerd does not answer on %s after %s: see %s", d.Address(), limit, d.logName())
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// supervise waits for the process, a child of ours or not, and starts it again.
func (d *Daemon) supervise(ctx context.Context, pid int) {
	defer close(d.done)
	quick := 0
	for {
		began := time.Now()
		if !awaitExit(ctx, pid) {
			return
		}
		d.mu.Lock()
		stopped := d.stopped
		d.mu.Unlock()
		if stopped || ctx.Err() != nil {
			return
		}
		d.cfg.Log.Warn("containerd ended, starting it again", zap.Int("pid", pid))
		if time.Since(began) > 5*time.Second {
			quick = 0
		}
		d.ears.listen(ctx)
		for {
			if quick > 0 {
				select {
				case <-ctx.Done():
					return
				case <-time.After(min(100*time.Millisecond<<min(quick, 6), 5*time.Second)):
				}
			}
			quick++
			d.mu.Lock()
			if d.stopped {
				d.mu.Unlock()
				return
			}
			p, err := d.spawn()
			if err == nil {
				pid, d.pid = p, p
				d.mu.Unlock()
				break
			}
			d.mu.Unlock()
			d.cfg.Log.Error("containerd does not start", zap.Error(err))
		}
	}
}

// awaitExit reports false when ctx ended first.
func awaitExit(ctx context.Context, pid int) bool {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return ctx.Err() == nil
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	defer f.Close()
	conn, err := f.SyscallConn()
	if err != nil {
		return ctx.Err() == nil
	}
	stop := context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Now()) })
	defer stop()
	// A pidfd is readable once its process has ended.
	err = conn.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n > 0 || err != nil && !errors.Is(err, unix.EINTR)
	})
	return err == nil && ctx.Err() == nil
}

// Stop ends containerd, for a node that leaves. Its containers must be gone already.
func (d *Daemon) Stop(ctx context.Context) error {
	d.mu.Lock()
	d.stopped = true
	pid := d.pid
	d.mu.Unlock()
	if pid == 0 || d.running() != pid {
		return nil
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("stop containerd (pid %d): %w", pid, err)
	}
	wait, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if !awaitExit(wait, pid) {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("kill containerd (pid %d): %w", pid, err)
		}
	}
	for _, f := range []string{d.pidFile(), d.Address(), d.Address() + ".ttrpc"} {
		if err := os.Remove(f); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove containerd's files: %w", err)
		}
	}
	return nil
}

// Pid is the process's number, for tests and `skep info`.
func (d *Daemon) Pid() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.pid
}
