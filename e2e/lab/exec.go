package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// enter is a shell that joins the host's cgroups, then its namespaces, and becomes the command:
// enter PROCS-FILE... -- PID COMMAND...
const enter = `while [ "$1" != -- ]; do echo $$ >"$1" || exit 125; shift; done; pid=$2; shift 2
exec nsenter -t "$pid" -m -u -i -n -p -C -W"$PWD" -- "$@"`

// Command prepares a command on a host: its namespaces, its cgroups, skep and the tools on the PATH, the caller's
// working directory. Cancelling the context kills the command and what it started in the foreground.
func (l *Lab) Command(ctx context.Context, host string, argv ...string) (*exec.Cmd, error) {
	args, env, err := l.command(host, argv)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = env
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second // a daemon left behind may hold the output open
	return cmd, nil
}

// Become replaces this process by the command on the host: terminal, signals and exit status are the command's own.
func (l *Lab) Become(host string, argv ...string) error {
	args, env, err := l.command(host, argv)
	if err != nil {
		return err
	}
	return unix.Exec(args[0], args, env)
}

func (l *Lab) command(host string, argv []string) (args, env []string, err error) {
	h, err := l.Host(host)
	if err != nil {
		return nil, nil, err
	}
	if len(argv) == 0 {
		return nil, nil, errors.New("no command given: exec HOST -- CMD [ARG...]")
	}
	if !h.Running() {
		return nil, nil, fmt.Errorf("host %s is off: `skep-lab start %s` first", host, host)
	}
	procs, err := makeCgroups(l.Name, h.Name)
	if err != nil {
		return nil, nil, err
	}
	args = append([]string{"/bin/sh", "-c", enter, "skep-lab"}, procs...)
	args = append(args, "--", fmt.Sprint(h.PID))
	return append(args, argv...), l.environ(), nil
}

// environ is what commands on a host see: the lab's programs first, a home of the host's own, and nothing that would lead
// a program on the host to the caller's settings.
func (l *Lab) environ() []string {
	env := []string{
		"PATH=" + strings.Join([]string{l.Skep, l.Bin, filepath.Join(l.Bin, "tools"), "/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}, ":"),
		"HOME=/srv/root", "SKEP_TOOLS=" + filepath.Join(l.Bin, "tools"),
	}
	for _, k := range []string{"TERM", "LANG", "LC_ALL", "COLUMNS", "LINES", "NO_COLOR"} {
		if v, ok := os.LookupEnv(k); ok {
			env = append(env, k+"="+v)
		}
	}
	return append(env, l.Env...)
}

// Result is how a command ended.
type Result struct {
	Stdout, Stderr string
	Code           int
	Took           time.Duration
}

// Run runs a command on a host to its end. The error is about running it; a command that ran and failed is a Result with a Code.
func (l *Lab) Run(ctx context.Context, host string, argv ...string) (Result, error) {
	return l.RunInput(ctx, host, "", argv...)
}

// RunInput is Run with something to read on standard input.
func (l *Lab) RunInput(ctx context.Context, host, input string, argv ...string) (Result, error) {
	cmd, err := l.Command(ctx, host, argv...)
	if err != nil {
		return Result{}, err
	}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if input != "" {
		cmd.Stdin = strings.NewReader(input)
	}
	began := time.Now()
	err = cmd.Run()
	r := Result{Stdout: out.String(), Stderr: errs.String(), Took: time.Since(began)}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return r, fmt.Errorf("%s: %s: %w; so far: %s%s", host, strings.Join(argv, " "), ctx.Err(), r.Stdout, r.Stderr)
	case errors.As(err, &exit):
		r.Code = exit.ExitCode()
	case err != nil && !errors.Is(err, exec.ErrWaitDelay):
		return r, fmt.Errorf("%s: %s: %w", host, strings.Join(argv, " "), err)
	}
	return r, nil
}

// must is Run for the lab's own steps: anything but success is an error with the command's last words.
func (l *Lab) must(ctx context.Context, host string, argv ...string) (string, error) {
	r, err := l.Run(ctx, host, argv...)
	if err != nil {
		return "", err
	}
	if r.Code != 0 {
		return "", fmt.Errorf("on %s: %s: exit status %d: %s%s", host, strings.Join(argv, " "), r.Code, r.Stdout, r.Stderr)
	}
	return r.Stdout, nil
}
