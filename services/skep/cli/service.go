package cli

import (
	"context"
	"slices"

	"github.com/spf13/cobra"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/render"
)

func (a *app) serviceCommand() *cobra.Command {
	return group("service", "Manage services",
		a.serviceCreate(), a.serviceUpdate(), a.serviceList(), a.servicePs(), a.serviceInspect(), a.serviceScale(),
		a.serviceRollback(), a.serviceRemove(), a.serviceHistory(), a.serviceDiff(), a.servicePromote(), a.serviceAbort(), a.serviceExplain(),
		a.serviceRun(), a.serviceRuns(), a.logsCommand())
}

func (a *app) serviceList() *cobra.Command {
	var l listFlags
	cmd := &cobra.Command{Use: "ls [OPTIONS]", Aliases: []string{"list"}, Short: "List services", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := l.filters.parse()
			if err != nil {
				return err
			}
			list, err := a.services(cmd.Context(), f...)
			if err != nil {
				return err
			}
			return printList(a, &l, list, render.Services(list, l.noTrunc, a.Now()))
		}}
	l.add(cmd, "the ids", "id", "name", "label", "mode=replicated|global|replicated-job|global-job")
	return cmd
}

func (a *app) servicePs() *cobra.Command {
	var l listFlags
	var noResolve bool
	cmd := &cobra.Command{Use: "ps [OPTIONS] [SERVICE...]", Short: "List the tasks of services (of all, when none is named)",
		ValidArgsFunction: a.completeServices,
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := l.filters.parse()
			if err != nil {
				return err
			}
			tasks, missing, err := a.serviceTasks(cmd.Context(), args, f)
			if err != nil {
				return err
			}
			if len(args) == 0 || len(missing) < len(args) {
				if err := a.printTasks(cmd.Context(), &l, tasks, noResolve); err != nil {
					return err
				}
			}
			return joined(missing)
		}}
	l.add(cmd, "the task ids", taskFilters...)
	cmd.Flags().BoolVar(&noResolve, "no-resolve", false, "Show ids instead of names")
	return cmd
}

// serviceTasks lists the tasks of the named services; a name nobody has is an error of its own.
func (a *app) serviceTasks(ctx context.Context, refs []string, f []*skepv1.Filter) (tasks []*skepv1.Task, missing []error, err error) {
	if len(refs) > 0 {
		var ids []string
		for _, ref := range refs {
			s, err := a.service(ctx, ref)
			if fault.Is(err, fault.CodeNotFound) || fault.Is(err, fault.CodeInvalid) || fault.Is(err, fault.CodeConflict) {
				missing = append(missing, err)
				continue
			}
			if err != nil {
				return nil, nil, err
			}
			ids = append(ids, s.GetMeta().GetId())
		}
		if len(ids) == 0 {
			return nil, missing, nil
		}
		f = append(slices.Clone(f), filter("service", ids...))
	}
	tasks, err = a.tasks(ctx, f...)
	return tasks, missing, err
}

func (a *app) serviceHistory() *cobra.Command {
	var l listFlags
	cmd := &cobra.Command{Use: "history [OPTIONS] SERVICE", Short: "List the revisions of a service",
		Long: "List the revisions of a service, newest first; * marks the one in force.\nGo back to any of them with `skep service rollback --to REVISION SERVICE`.",
		Args: exactArgs(1), ValidArgsFunction: a.completeServices,
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.service(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			list, err := a.revisions(cmd.Context(), s.GetMeta().GetId())
			if err != nil {
				return err
			}
			return printList(a, &l, list, render.Revisions(list, s.Revision, a.Now()))
		}}
	l.add(cmd, "the revision numbers")
	return cmd
}

func (a *app) serviceRemove() *cobra.Command {
	var w waitFlags
	var dry bool
	cmd := &cobra.Command{Use: "rm [OPTIONS] SERVICE [SERVICE...]", Aliases: []string{"remove"}, Short: "Remove services and wait until their tasks are gone",
		Args: minArgs(1), ValidArgsFunction: a.completeServices,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			return a.each(ctx, args, func(ref string) error {
				// By its id: should the answer be lost, nothing else that has the name by then is removed.
				s, err := a.service(ctx, ref)
				if err != nil {
					return err
				}
				r, err := call(ctx, a, api.ServiceRemove, &skepv1.RemoveServiceRequest{Ref: s.GetMeta().GetId(), DryRun: dry})
				if err != nil {
					return err
				}
				if dry {
					return a.printPlan(ctx, r.Service, true)
				}
				a.warnings(r.Warnings)
				a.printf("%s\n", ref)
				return a.waitRemoved(ctx, s, &w)
			})
		}}
	w.add(cmd)
	cmd.Flags().BoolVar(&dry, "dry-run", false, "Show what would happen, change nothing")
	return cmd
}
