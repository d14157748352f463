package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/stream"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/render"
)

func (a *app) execCommand() *cobra.Command {
	var stdin, tty bool
	req := &skepv1.ExecRequest{}
	cmd := &cobra.Command{Use: "exec [OPTIONS] TASK COMMAND [ARG...]", Short: "Run a command in a task's container, on whichever node it is", Args: minArgs(2),
		Long:              "Run a command in a task's container, on whichever node it is.\n\nTASK is an id, the beginning of one, or a name such as web.1. The exit status is the command's.",
		ValidArgsFunction: completeFirst(a.completeTasks),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Args, req.Stdin, req.Tty = args[1:], stdin, tty
			return a.exec(cmd.Context(), args[0], req)
		}}
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.BoolVarP(&stdin, "interactive", "i", false, "Pass this command's input on")
	f.BoolVarP(&tty, "tty", "t", false, "Give the command a terminal")
	f.StringArrayVarP(&req.Env, "env", "e", nil, "Set an environment variable: KEY=value")
	f.StringVarP(&req.User, "user", "u", "", "User to run as: name or uid, with an optional :group")
	f.StringVarP(&req.Dir, "workdir", "w", "", "Directory to run in")
	return cmd
}

// taskOfService is the error of a command about one task that was given a service instead, or err.
func (a *app) taskOfService(ctx context.Context, ref string, err error) error {
	s, serr := a.service(impatient(ctx), ref)
	if serr != nil {
		return err
	}
	tasks, serr := a.tasks(impatient(ctx), filter("service", s.GetMeta().GetId()), filter("desired-state", "running"))
	if serr != nil || len(tasks) == 0 {
		return fault.Conflict("%s is a service without a task that runs: skep service explain %s says why", ref, ref)
	}
	render.SortTasks(tasks)
	return fault.Usage("%s is a service: name one of its tasks, such as %s (skep service ps %s)", ref, tasks[0].Name, ref)
}

func (a *app) exec(ctx context.Context, ref string, req *skepv1.ExecRequest) error {
	inFD, inTerminal := terminalOf(a.In)
	outFD, outTerminal := terminalOf(a.Out)
	if req.Tty && req.Stdin && !inTerminal {
		return errors.New("the input device is not a TTY: leave out -t")
	}
	t, err := a.findTask(ctx, ref)
	if fault.Is(err, fault.CodeNotFound) {
		return a.taskOfService(ctx, ref, err)
	}
	if err != nil {
		return err
	}
	if t.NodeId == "" || t.GetStatus().GetState() != skepv1.TaskState_TASK_STATE_RUNNING && t.GetStatus().GetState() != skepv1.TaskState_TASK_STATE_STARTING {
		return fault.Conflict("task %s does not run: it is %s", ref, stateText(t))
	}
	req.TaskId = t.GetMeta().GetId()
	if req.Tty && outTerminal {
		if w, h, err := term.GetSize(outFD); err == nil {
			req.Width, req.Height = uint32(w), uint32(h)
		}
	}
	nc, err := a.conn(ctx)
	if err != nil {
		return err
	}
	// Signals are the command's, not ours: they do not end the session.
	sctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	s, err := dial(sctx, a, nc, api.ExecOpen.At(t.NodeId), req)
	if err != nil {
		return err
	}
	defer s.Close()
	go drain(s)

	if req.Tty && inTerminal {
		old, err := term.MakeRaw(inFD)
		if err != nil {
			return fmt.Errorf("switch the terminal to raw mode: %w", err)
		}
		defer func() { _ = term.Restore(inFD, old) }() // nothing left to do about a terminal that is gone
	}
	stop := forwardSignals(s, req.Tty && outTerminal, outFD)
	defer stop()
	if req.Stdin && a.In != nil {
		go func() {
			in := s.Writer(stream.In)
			_, _ = io.Copy(in, a.In) // either end may close first; Wait tells how it ended
			_ = in.Close()
		}()
	}
	var copies sync.WaitGroup
	copies.Add(2)
	go func() { defer copies.Done(); _, _ = io.Copy(a.Out.Raw(), s.Reader(stream.Out)) }()
	go func() { defer copies.Done(); _, _ = io.Copy(a.Err.Raw(), s.Reader(stream.Err)) }()
	exit, err := s.Wait()
	copies.Wait()
	if err != nil {
		return fmt.Errorf("exec in task %s: %w", ref, err)
	}
	if exit.GetErr() != "" {
		code := int(exit.Code)
		if code == 0 {
			code = ExitError
		}
		return &Failure{code, errors.New(exit.Err)}
	}
	if exit.GetCode() != 0 {
		return &Failure{Code: int(exit.Code)}
	}
	return nil
}

func stateText(t *skepv1.Task) string {
	s := stateWord(t)
	if e := t.GetStatus().GetErr(); e != "" {
		s += " (" + e + ")"
	}
	return s
}

// forwardSignals sends the signals this process gets, and its terminal's size, to the command.
func forwardSignals(s *stream.Session, resize bool, fd int) (stop func()) {
	c := make(chan os.Signal, 8)
	signal.Notify(c, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH)
	done := make(chan struct{})
	go func() {
		asked := 0
		for {
			select {
			case <-done:
				return
			case sig := <-c:
				n, _ := sig.(syscall.Signal)
				if n == syscall.SIGWINCH {
					if w, h, err := term.GetSize(fd); resize && err == nil {
						// A session that is over has no use for it.
						_ = s.SendControl(&skepv1.StreamControl{Control: &skepv1.StreamControl_Resize{Resize: &skepv1.Resize{Width: uint32(w), Height: uint32(h)}}})
					}
					continue
				}
				_ = s.SendControl(&skepv1.StreamControl{Control: &skepv1.StreamControl_Signal{Signal: unix.SignalName(n)}})
				// A command that ignores us must not hold the terminal for ever.
				if asked++; asked >= 3 && (n == syscall.SIGINT || n == syscall.SIGTERM) {
					_ = s.Close()
				}
			}
		}
	}()
	return func() { signal.Stop(c); close(done) }
}
