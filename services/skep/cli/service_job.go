package cli

import (
	"context"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/api"
	"skep.dev/libs/cron"
	"skep.dev/libs/fault"
	"skep.dev/libs/job"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/render"
)

func (a *app) serviceRun() *cobra.Command {
	var w waitFlags
	cmd := &cobra.Command{Use: "run [OPTIONS] JOB", Short: "Run a job now and wait until it is complete", Args: exactArgs(1), ValidArgsFunction: a.completeServices,
		Long: "Run a job now, whatever its schedule, and wait until the run is complete. Prints the number of the run.\n\n" +
			"It is refused while another run goes, unless the job's --schedule-concurrency is allow, or replace, which stops that one.\n" +
			"Exit status 1 means that the run failed or was stopped. Ctrl-C stops the waiting, not the run.",
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			r, err := call(ctx, a, api.ServiceRun, &skepv1.RunServiceRequest{Ref: args[0]})
			if err != nil {
				return err
			}
			a.printf("%d\n", r.Service.GetJobIteration())
			o := a.waitOptions(r.Service, &w)
			o.Run = r.Service.GetJobIteration()
			return a.converge(ctx, &w, o)
		}}
	w.add(cmd)
	return cmd
}

func (a *app) serviceRuns() *cobra.Command {
	var l listFlags
	cmd := &cobra.Command{Use: "runs [OPTIONS] JOB", Short: "List the runs of a job that are kept, newest first", Args: exactArgs(1), ValidArgsFunction: a.completeServices,
		Long: "List the runs of a job whose tasks and logs are kept, newest first. DUE is the time of the schedule a run was for, - when somebody asked for it;\n" +
			"FAILED counts tasks that failed, those that were restarted too, and EXIT CODES are theirs.",
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			s, err := a.service(ctx, args[0])
			if err != nil {
				return err
			}
			if !spec.IsJob(s.GetSpec()) {
				return fault.Invalid("service %s is not a job: only services of mode replicated-job or global-job have runs", s.GetSpec().GetName())
			}
			tasks, err := a.tasks(ctx, filter("service", s.GetMeta().GetId()))
			if err != nil {
				return err
			}
			var list []*skepv1.JobRun
			for _, r := range job.Runs(s, tasks) {
				j := &skepv1.JobRun{Run: r.Control, State: string(r.State), Completed: r.Completed, Wanted: r.Wanted, Failed: r.Failed, ExitCodes: r.ExitCodes}
				if !r.Ended.IsZero() {
					j.Ended = timestamppb.New(r.Ended)
				}
				list = append(list, j)
			}
			return printList(a, &l, list, render.Runs(list, a.Now()))
		}}
	l.add(cmd, "the run numbers")
	return cmd
}

// tellSchedule says when a job with a schedule runs next; false when the service has none. There is nothing to wait for
// then: it runs at its times.
func (a *app) tellSchedule(s *skepv1.Service, w *waitFlags) bool {
	if s.GetSpec().GetSchedule() == nil {
		return false
	}
	if next := cron.NextOf(s, a.Now()); !next.IsZero() && !w.quiet {
		a.tellf("The job runs next %s. Run it now with `skep service run %s`.\n", render.Due(next, s.GetSpec().GetSchedule(), a.Now()), s.GetSpec().GetName())
	}
	return true
}

// nameDependencies puts names where services have the ids of those they depend on. An id nobody knows any more stays.
func (a *app) nameDependencies(ctx context.Context, services []*skepv1.Service) {
	for _, s := range services {
		for _, d := range s.GetSpec().GetDependsOn() {
			if o, err := a.service(ctx, d.Service); err == nil {
				d.Service = o.GetSpec().GetName()
			}
		}
	}
}
