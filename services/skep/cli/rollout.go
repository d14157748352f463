package cli

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// rolloutFlags are those of `service update` that speak of its rollout rather than of the service.
type rolloutFlags struct {
	pause, resume bool
	canary        uint64
}

func (r *rolloutFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&r.pause, "pause", false, "Pause the update under way: replace no further task")
	f.BoolVar(&r.resume, "resume", false, "Go on with a paused update")
	f.Uint64Var(&r.canary, "canary", 0, "Replace this many tasks, then wait until the service is promoted or aborted")
	f.Lookup("canary").DefValue = ""
}

// action is what --pause or --resume asks for. They stand alone: an update of the service is a word to go on already.
func (r *rolloutFlags) action(cmd *cobra.Command) (skepv1.RolloutRequest_Action, bool, error) {
	if cmd.Flags().Changed("canary") && r.canary == 0 {
		return 0, false, Usagef("--canary: at least one task; without it all are replaced")
	}
	if !r.pause && !r.resume {
		return 0, false, nil
	}
	if r.pause && r.resume {
		return 0, false, Usagef("--pause and --resume exclude each other")
	}
	action, name := skepv1.RolloutRequest_ACTION_PAUSE, "pause"
	if r.resume {
		action, name = skepv1.RolloutRequest_ACTION_RESUME, "resume"
	}
	var others []string
	cmd.Flags().Visit(func(f *pflag.Flag) {
		switch f.Name {
		case name, "detach", "quiet", "timeout", "context", "run-dir":
		default:
			others = append(others, "--"+f.Name)
		}
	})
	if len(others) > 0 {
		return 0, false, Usagef("--%s changes nothing else of the service: drop %s", name, strings.Join(others, ", "))
	}
	return action, true, nil
}

// steerRollout says the word and, unless it was to pause, waits for what comes of it.
func (a *app) steerRollout(ctx context.Context, ref string, action skepv1.RolloutRequest_Action, w *waitFlags) error {
	before, err := a.service(ctx, ref)
	if err != nil {
		return err
	}
	r, err := call(ctx, a, api.ServiceRollout, &skepv1.RolloutRequest{Ref: before.GetMeta().GetId(), Action: action})
	if err != nil {
		return err
	}
	a.printf("%s\n", ref)
	if action == skepv1.RolloutRequest_ACTION_PAUSE {
		return nil
	}
	o := a.waitOptions(r.Service, w)
	o.Before = before.UpdateStatus
	o.Rollback = action == skepv1.RolloutRequest_ACTION_ABORT || r.Service.RollbackTo != 0
	o.Hold = defaultMonitor
	u := r.Service.GetSpec().GetUpdate()
	if r.Service.RollbackTo != 0 {
		u = r.Service.GetSpec().GetRollback()
	}
	if m := u.GetMonitor(); m != nil && m.AsDuration() > 0 {
		o.Hold = m.AsDuration()
	}
	return a.converge(ctx, w, o)
}

func (a *app) rolloutCommand(use, short, long string, action skepv1.RolloutRequest_Action) *cobra.Command {
	var w waitFlags
	cmd := &cobra.Command{Use: use + " [OPTIONS] SERVICE", Short: short, Long: long, Args: exactArgs(1), ValidArgsFunction: a.completeServices,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.steerRollout(cmd.Context(), args[0], action, &w)
		}}
	w.add(cmd)
	return cmd
}

func (a *app) servicePromote() *cobra.Command {
	return a.rolloutCommand("promote", "Let a canary's other tasks follow",
		"Go on with an update that was begun with --canary: its first tasks are good, the others follow.", skepv1.RolloutRequest_ACTION_PROMOTE)
}

func (a *app) serviceAbort() *cobra.Command {
	return a.rolloutCommand("abort", "Roll back an update that is under way",
		"Roll back an update that is under way, paused or waiting as a canary, to the revision that was rolled out to its end before.", skepv1.RolloutRequest_ACTION_ABORT)
}

func (a *app) serviceDiff() *cobra.Command {
	return &cobra.Command{Use: "diff SERVICE [REVISION [REVISION]]", Short: "Say what differs between two revisions of a service",
		Long: "Say what differs between two revisions of a service: the previous and the one in force, one that is named and the one in force, or two.\n" +
			"Values of environment variables are not shown.",
		Args: func(cmd *cobra.Command, args []string) error {
			if err := minArgs(1)(cmd, args); err != nil {
				return err
			}
			return maxArgs(3)(cmd, args)
		}, ValidArgsFunction: a.completeServices,
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.service(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			numbers := []uint64{s.PreviousRevision, s.Revision}
			for i, arg := range args[1:] {
				if numbers[i], err = strconv.ParseUint(arg, 10, 64); err != nil || numbers[i] == 0 {
					return Usagef("%q is no revision: they are numbered from 1; `skep service history %s` lists them", arg, args[0])
				}
			}
			if numbers[0] == 0 {
				return fault.Invalid("service %s has one revision: there is nothing to compare it with", args[0])
			}
			list, err := a.revisions(cmd.Context(), s.GetMeta().GetId())
			if err != nil {
				return err
			}
			found := map[uint64]*skepv1.Revision{}
			for _, r := range list {
				found[r.Number] = r
			}
			var specs [2]*skepv1.ServiceSpec
			for i, n := range numbers {
				if found[n] == nil {
					return fault.NotFound("service %s has no revision %d; `skep service history %s` lists those that are kept", args[0], n, args[0])
				}
				specs[i] = found[n].Spec
			}
			for _, line := range spec.Changes(specs[0], specs[1]) {
				a.printf("%s\n", line)
			}
			return nil
		}}
}

// lastLines is how much of a failed task's log is worth showing unasked.
const lastLines = 10

// postMortem shows why a change of a service failed: how the newest of its tasks that failed ended, and the end of that
// one's log. What cannot be had is left out; the failure itself is told anyway.
func (a *app) postMortem(ctx context.Context, s *skepv1.Service) {
	tasks, err := a.tasks(impatient(ctx), filter("service", s.GetMeta().GetId()))
	if err != nil {
		return
	}
	var worst *skepv1.Task
	for _, t := range tasks {
		switch st := t.GetStatus().GetState(); {
		case t.Revision != s.Revision || st != skepv1.TaskState_TASK_STATE_FAILED && st != skepv1.TaskState_TASK_STATE_REJECTED && st != skepv1.TaskState_TASK_STATE_COMPLETE:
		case worst == nil || t.GetMeta().GetCreatedAt().AsTime().After(worst.GetMeta().GetCreatedAt().AsTime()):
			worst = t
		}
	}
	if worst == nil {
		return
	}
	why := worst.GetStatus().GetErr()
	if why == "" {
		why = "its command ended with exit status 0"
	}
	where := worst.NodeHostname
	if where == "" {
		where = worst.NodeId
	}
	a.tellf("%s on %s: %s\n", worst.Name, where, why)
	if worst.NodeId == "" || s.GetSpec().GetTask().GetContainer().GetTty() {
		return
	}
	r := &logRun{a: a, l: &logsFlags{}, partial: map[string]bool{}}
	r.req.Tail = lastLines
	session, err := r.open(impatient(ctx), worst, false)
	if err != nil || session == nil {
		return
	}
	var lines []string
	err = entries(session, func(e *skepv1.LogEntry) bool {
		lines = append(lines, strings.TrimRight(string(e.Line), "\n"))
		return true
	})
	if err != nil && !errors.Is(err, context.Canceled) {
		lines = append(lines, fmt.Sprintf("(the rest of its log could not be read: %v)", err))
	}
	for _, line := range lines {
		a.tellf("  | %s\n", line)
	}
}
