package cli

import (
	"slices"

	"github.com/spf13/cobra"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/render"
)

func (a *app) stackRollback() *cobra.Command {
	var f deployFlags
	var to uint64
	cmd := &cobra.Command{Use: "rollback [OPTIONS] STACK", Short: "Go back to an earlier revision of a stack, all of it at once", Args: ofStack, ValidArgsFunction: completeFirst(a.completeStacks),
		Long: "Go back to the previous revision of a stack, or with --to to any that `skep stack history` lists: services, networks, and the versions of secrets and configs that it had.\n" +
			"It becomes a new revision.",
		Example: "  skep stack history shop\n  skep stack rollback --to 3 shop",
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			if cmd.Flags().Changed("to") && to == 0 {
				return Usagef("--to: revisions are numbered from 1; `skep stack history %s` lists them", args[0])
			}
			before, err := a.stack(ctx, args[0])
			if err != nil {
				return err
			}
			_, was, err := a.stackBefore(ctx, before.GetName())
			if err != nil {
				return err
			}
			req := &skepv1.RollbackStackRequest{Ref: before.GetMeta().GetId(), Revision: to, ExpectRevision: before.GetRevision(), DryRun: f.dry}
			r, err := call(ctx, a, api.StackRollback, req)
			if err != nil {
				return a.overtaken(ctx, before.GetName(), before, err)
			}
			a.warnings(r.Warnings)
			if !f.dry {
				now, err := a.stack(ctx, before.GetMeta().GetId())
				if err != nil {
					return err
				}
				r.Stack.Spec = now.GetSpec()
			}
			return a.followStack(ctx, r, was, &stackFollow{wait: &f.waitFlags, dry: f.dry, json: f.json, rollback: true})
		}}
	f.waitFlags.add(cmd)
	fl := cmd.Flags()
	fl.Uint64Var(&to, "to", 0, "Number of the revision to go back to (default: the previous one)")
	fl.BoolVar(&f.dry, "dry-run", false, "Show what would change, change nothing")
	fl.BoolVar(&f.json, "json", false, "Print the stack and the changes as one JSON document (a stable form)")
	return cmd
}

func (a *app) stackRemove() *cobra.Command {
	var w waitFlags
	cmd := &cobra.Command{Use: "rm [OPTIONS] STACK [STACK...]", Aliases: []string{"remove", "down"}, Short: "Remove stacks and wait until nothing is left of them", Args: func(cmd *cobra.Command, args []string) error {
		if err := minArgs(1)(cmd, args); err != nil {
			return err
		}
		return stackNames(args)
	}, ValidArgsFunction: a.completeStacks,
		Long: "Remove stacks: their services, networks, secrets and configs, and nothing that a deploy of the stack did not make. Volumes stay.\n\n" +
			"It returns when all of it is gone. A deploy under way ends where it is. Ctrl-C stops the waiting, not the removal.",
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			return a.each(ctx, args, func(ref string) error {
				r, err := call(ctx, a, api.StackRemove, &skepv1.RemoveStackRequest{Ref: ref})
				if err != nil {
					return err
				}
				a.printf("%s\n", r.Stack.GetName())
				if !w.quiet {
					for _, m := range r.Stack.GetMembers() {
						a.tellf("Removing %s %s\n", m.GetKind(), m.GetName())
					}
				}
				if w.detach {
					return nil
				}
				return a.stackGone(ctx, r.Stack, &w)
			})
		}}
	w.add(cmd)
	return cmd
}

func (a *app) stackDiff() *cobra.Command {
	var f fileFlags
	var from, to uint64
	var prune bool
	cmd := &cobra.Command{Use: "diff [OPTIONS] STACK", Short: "Say what differs between two revisions of a stack, or what a file would change", Args: ofStack, ValidArgsFunction: completeFirst(a.completeStacks),
		Long: "Say what differs between two revisions of a stack: the previous and the newest one, or those of --from and --to.\n" +
			"With -c: what a deploy of that file would change. Values of environment variables, secrets and configs are not shown.",
		Example: "  skep stack diff shop\n  skep stack diff --from 2 --to 5 shop\n  skep stack diff -c compose.yaml shop",
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			revisions := cmd.Flags().Changed("from") || cmd.Flags().Changed("to")
			if len(f.files) > 0 {
				if revisions {
					return Usagef("-c compares a file with the newest revision: drop --from and --to")
				}
				p, err := a.planStack(ctx, args[0], &f, &skepv1.DeployStackRequest{Prune: prune, Spec: &skepv1.StackSpec{ResolveImage: "always"}}, nil)
				if err != nil {
					return err
				}
				p.values.wipe()
				a.warnings(p.reply.Warnings)
				if changes := slices.DeleteFunc(p.reply.Changes, func(c *skepv1.StackChange) bool { return c.GetVerb() == skepv1.StackChange_VERB_KEEP }); len(changes) > 0 {
					render.StackPlan(a.Out, changes, false)
				}
				return nil
			}
			list, err := a.stackRevisions(ctx, args[0], false)
			if err != nil {
				return err
			}
			if len(list) == 0 {
				return fault.Invalid("no revision of stack %s is kept", args[0])
			}
			if to == 0 {
				to = list[0].GetNumber()
			}
			if from == 0 {
				for _, r := range list {
					if r.GetNumber() < to {
						from = r.GetNumber()
						break
					}
				}
			}
			if from == 0 {
				return fault.Invalid("stack %s has no revision before %d: there is nothing to compare it with", args[0], to)
			}
			var specs [2]*skepv1.StackSpec
			for i, n := range []uint64{from, to} {
				at := slices.IndexFunc(list, func(r *skepv1.StackRevision) bool { return r.GetNumber() == n })
				if at < 0 {
					return fault.NotFound("stack %s has no revision %d; `skep stack history %s` lists those that are kept", args[0], n, args[0])
				}
				specs[i] = list[at].GetSpec()
			}
			render.StackDiff(a.Out, specs[0], specs[1])
			return nil
		}}
	f.add(cmd)
	fl := cmd.Flags()
	fl.Uint64Var(&from, "from", 0, "Number of the older revision (default: the one before)")
	fl.Uint64Var(&to, "to", 0, "Number of the newer revision (default: the newest)")
	fl.BoolVar(&prune, "prune", false, "With -c: as a deploy with --prune")
	return cmd
}
