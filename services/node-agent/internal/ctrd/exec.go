package ctrd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"sync"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/signal"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"skep.dev/libs/fault"
	"skep.dev/libs/id"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/node-agent/internal/inroot"
	"skep.dev/services/node-agent/internal/ocispec"
)

// ExecIO is the client's side of an exec.
type ExecIO struct {
	Stdin          io.Reader // nil = none
	Stdout, Stderr io.Writer
	// Control carries resizes and signals; closed or not, it ends with ctx.
	Control <-chan *skepv1.StreamControl
}

// Exec runs a command in a task's container until it ends. When ctx ends first, the command is killed.
func (r *Runtime) Exec(ctx context.Context, req *skepv1.ExecRequest, streams ExecIO) (code int32, err error) {
	ctx = r.ns(ctx)
	t, proc, err := r.execIn(ctx, req)
	if err != nil {
		return 0, err
	}
	execID := id.New()
	stdinEnded := make(chan struct{})
	if streams.Stdin != nil {
		streams.Stdin = &endReader{Reader: streams.Stdin, ended: stdinEnded}
	}
	opts := []cio.Opt{cio.WithFIFODir(r.execDir()), cio.WithStreams(streams.Stdin, streams.Stdout, streams.Stderr)}
	if req.Tty {
		opts = append(opts, cio.WithTerminal)
	}
	p, err := t.Exec(ctx, execID, proc, cio.NewCreator(opts...))
	if err != nil {
		return 0, execFault(req, err)
	}
	clean := context.WithoutCancel(ctx)
	defer func() {
		dctx, cancel := context.WithTimeout(clean, 15*time.Second)
		defer cancel()
		if _, derr := p.Delete(dctx, containerd.WithProcessKill); derr != nil && !errdefs.IsNotFound(derr) && err == nil {
			err = fmt.Errorf("clear up exec in %s: %w", req.TaskId, derr)
		}
	}()
	exited, err := p.Wait(clean)
	if err != nil {
		return 0, execFault(req, err)
	}
	if err := p.Start(ctx); err != nil {
		if text := startError(err).Error(); strings.Contains(text, "executable file not found") || strings.Contains(text, "no such file") {
			return 127, fault.Invalid("exec in task %s: %s", req.TaskId, strings.TrimPrefix(text, "starting container failed: "))
		} else if strings.Contains(text, "permission denied") {
			return 126, fault.Invalid("exec in task %s: %s", req.TaskId, strings.TrimPrefix(text, "starting container failed: "))
		}
		return 126, execFault(req, err)
	}
	control := streams.Control
	for {
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case st := <-exited:
			code, _, err := st.Result()
			if err != nil {
				return 0, execFault(req, err)
			}
			p.IO().Wait() // the last of the output
			return int32(code), nil
		case <-stdinEnded:
			stdinEnded = nil
			// The shim holds the pipe open until it is told. The command may just have ended.
			_ = p.CloseIO(ctx, containerd.WithStdinCloser)
		case m, ok := <-control:
			if !ok {
				control = nil
				continue
			}
			switch v := m.GetControl().(type) {
			case *skepv1.StreamControl_Resize:
				_ = p.Resize(ctx, v.Resize.GetWidth(), v.Resize.GetHeight()) // it may just have ended
			case *skepv1.StreamControl_Signal:
				if sig, err := signal.ParseSignal(v.Signal); err == nil {
					_ = p.Kill(ctx, sig) // likewise
				}
			}
		}
	}
}

// endReader tells when its reader has come to the end.
type endReader struct {
	io.Reader
	ended chan struct{}
	once  sync.Once
}

func (e *endReader) Read(p []byte) (int, error) {
	n, err := e.Reader.Read(p)
	if err != nil {
		e.once.Do(func() { close(e.ended) })
	}
	return n, err
}

// execIn finds the running task a command is for, and makes the process it will be.
func (r *Runtime) execIn(ctx context.Context, req *skepv1.ExecRequest) (containerd.Task, *specs.Process, error) {
	c, err := r.client.LoadContainer(ctx, req.TaskId)
	if err != nil {
		return nil, nil, execFault(req, err)
	}
	t, err := c.Task(ctx, nil)
	if err != nil {
		return nil, nil, execFault(req, err)
	}
	proc, err := execProcess(ctx, c, t, req)
	return t, proc, err
}

// execProcess is the container's own process with what the request changes.
func execProcess(ctx context.Context, c containerd.Container, t containerd.Task, req *skepv1.ExecRequest) (*specs.Process, error) {
	if len(req.Args) == 0 || req.Args[0] == "" {
		return nil, fault.Invalid("exec needs a command")
	}
	spec, err := c.Spec(ctx)
	if err != nil {
		return nil, execFault(req, err)
	}
	p := *spec.Process
	p.Args, p.Terminal = req.Args, req.Tty
	p.Env = append([]string(nil), p.Env...)
	if req.Tty && req.Width > 0 && req.Height > 0 {
		p.ConsoleSize = &specs.Box{Width: uint(req.Width), Height: uint(req.Height)}
	}
	if req.Tty {
		p.Env = ocispec.SetEnv(p.Env, "TERM=xterm")
	}
	if req.Dir != "" {
		if !filepath.IsAbs(req.Dir) {
			return nil, fault.Invalid("the working directory %q is not an absolute path", req.Dir)
		}
		p.Cwd = req.Dir
	}
	if req.User != "" {
		// The container's files as they are now, not the image's: a user may have been added since.
		root := fmt.Sprintf("/proc/%d/root", t.Pid())
		passwd, err := inroot.Read(root, "/etc/passwd")
		if err != nil {
			return nil, fault.Invalid("exec in task %s: %v", req.TaskId, err)
		}
		group, err := inroot.Read(root, "/etc/group")
		if err != nil {
			return nil, fault.Invalid("exec in task %s: %v", req.TaskId, err)
		}
		u, home, err := ocispec.LookupUser(req.User, nil, passwd, group)
		if err != nil {
			return nil, fault.Invalid("exec in task %s: %v", req.TaskId, err)
		}
		p.User = u
		ocispec.SetHome(spec, &p, home)
		ocispec.SetUserCaps(&p)
	}
	for _, kv := range req.Env {
		p.Env = ocispec.SetEnv(p.Env, kv)
	}
	return &p, nil
}

func execFault(req *skepv1.ExecRequest, err error) error {
	if errdefs.IsNotFound(err) || strings.Contains(err.Error(), "process already finished") || strings.Contains(err.Error(), "not running") {
		return fault.Conflict("task %s is not running", req.TaskId)
	}
	var f *fault.Error
	if errors.As(err, &f) {
		return err
	}
	return fault.Unavailable("exec in task %s: %v", req.TaskId, err)
}
