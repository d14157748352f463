package cli

import (
	"github.com/spf13/cobra"

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
			f, err := parseFilters(l.filters)
			if err != nil {
				return err
			}
			tasks, err := a.tasks(cmd.Context(), f...)
			if err != nil {
				return err
			}
			return printList(a, &l, tasks, render.Tasks(tasks, render.TaskOptions{Now: a.Now(), NoTrunc: l.noTrunc, NoResolve: noResolve}))
		}}
	l.add(cmd, "the ids", taskFilters...)
	cmd.Flags().BoolVar(&noResolve, "no-resolve", false, "Show ids instead of names")
	return cmd
}
