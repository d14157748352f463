package cli

import (
	"context"
	"slices"

	"github.com/spf13/cobra"

	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/render"
)

func (a *app) taskCommand() *cobra.Command {
	return group("task", "Look at tasks", a.taskList(), a.taskInspect())
}

func (a *app) taskList() *cobra.Command {
	var l listFlags
	var noResolve bool
	cmd := &cobra.Command{Use: "ls [OPTIONS]", Aliases: []string{"list"}, Short: "List tasks of all services", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := l.filters.parse()
			if err != nil {
				return err
			}
			tasks, err := a.tasks(cmd.Context(), f...)
			if err != nil {
				return err
			}
			return a.printTasks(cmd.Context(), &l, tasks, noResolve)
		}}
	l.add(cmd, "the ids", taskFilters...)
	cmd.Flags().BoolVar(&noResolve, "no-resolve", false, "Show ids instead of names")
	return cmd
}

// printTasks prints a list of tasks. Those that wait after a failure are shown with it, also where a filter left the failed one out.
func (a *app) printTasks(ctx context.Context, l *listFlags, tasks []*skepv1.Task, noResolve bool) error {
	o := render.TaskOptions{Now: a.Now(), NoTrunc: l.noTrunc || l.quiet, NoResolve: noResolve}
	if !l.json && !l.quiet {
		o.Before = a.failedBefore(ctx, tasks)
	}
	return printList(a, l, tasks, render.Tasks(tasks, o))
}

// failedBefore are the tasks of the services of which one waits for what is not in the list.
func (a *app) failedBefore(ctx context.Context, tasks []*skepv1.Task) []*skepv1.Task {
	listed := map[string]bool{}
	for _, t := range tasks {
		listed[t.GetMeta().GetId()] = true
	}
	var services []string
	for _, t := range tasks {
		if render.Waits(t, a.Now()) && t.Replaces != "" && !listed[t.Replaces] && !slices.Contains(services, t.ServiceId) {
			services = append(services, t.ServiceId)
		}
	}
	if len(services) == 0 {
		return nil
	}
	before, err := a.tasks(impatient(ctx), filter("service", services...))
	if err != nil {
		a.warnf("why tasks wait is not known: %v", err)
	}
	return before
}
