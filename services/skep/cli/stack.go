package cli

import (
	"context"
	"fmt"
	"strings"
	"unicode"

	"github.com/spf13/cobra"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/render"
)

// stackLabel is the label that everything of a stack has: its name.
const stackLabel = "com.docker.stack.namespace"

func (a *app) stackCommand() *cobra.Command {
	return group("stack", "Manage stacks: the services, networks, secrets and configs of one compose file",
		a.stackDeploy(), a.stackConfig(), a.stackList(), a.stackPs(), a.stackServices(), a.stackLogs(), a.stackHistory(), a.stackDiff(), a.stackRollback(), a.stackRemove())
}

// stackNames refuses, before anything is asked or changed, what is no name: a script's empty variable above all.
func stackNames(names []string) error {
	for _, name := range names {
		if strings.TrimFunc(name, func(r rune) bool { return unicode.IsSpace(r) || r == '"' || r == '\'' }) == "" {
			return Usagef("invalid stack name %q: it is empty", name)
		}
	}
	return nil
}

// ofStack are the arguments of a command about one stack.
func ofStack(cmd *cobra.Command, args []string) error {
	if err := exactArgs(1)(cmd, args); err != nil {
		return err
	}
	return stackNames(args)
}

// stack is one, with the spec of its newest revision.
func (a *app) stack(ctx context.Context, ref string) (*skepv1.Stack, error) {
	r, err := call(ctx, a, api.StackInspect, &skepv1.Ref{Ref: ref})
	return r.GetStack(), err
}

func (a *app) stacks(ctx context.Context, f ...*skepv1.Filter) ([]*skepv1.Stack, error) {
	return pages(func(p *skepv1.Page) ([]*skepv1.Stack, string, error) {
		r, err := call(ctx, a, api.StackList, &skepv1.ListStacksRequest{Filters: f, Page: p})
		return r.GetStacks(), r.GetNext(), err
	})
}

func (a *app) stackRevisions(ctx context.Context, ref string, brief bool) ([]*skepv1.StackRevision, error) {
	return pages(func(p *skepv1.Page) ([]*skepv1.StackRevision, string, error) {
		r, err := call(ctx, a, api.StackRevisions, &skepv1.ListStackRevisionsRequest{Ref: ref, Page: p, Brief: brief})
		return r.GetRevisions(), r.GetNext(), err
	})
}

// servicesOf are the services a stack has now.
func (a *app) servicesOf(ctx context.Context, name string, f ...*skepv1.Filter) ([]*skepv1.Service, error) {
	return a.services(ctx, append(f, filter("label", stackLabel+"="+name))...)
}

func (a *app) completeStacks(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.completion(func(ctx context.Context) ([]string, error) {
		list, err := a.stacks(ctx)
		var out []string
		for _, s := range list {
			out = append(out, s.GetName()+"\t"+render.StackState(s.GetState()))
		}
		return out, err
	}, args)
}

func (a *app) stackList() *cobra.Command {
	var l listFlags
	cmd := &cobra.Command{Use: "ls [OPTIONS]", Aliases: []string{"list"}, Short: "List stacks", Args: noArgs,
		Long: "List stacks, those without services too. STATE is shown while one of them is not, or not yet, as its newest revision asks.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := l.filters.parse()
			if err != nil {
				return err
			}
			list, err := a.stacks(cmd.Context(), f...)
			if err != nil {
				return err
			}
			return printList(a, &l, list, render.Stacks(list, a.Now()))
		}}
	l.add(cmd, "the names", "id", "name")
	return cmd
}

func (a *app) stackServices() *cobra.Command {
	var l listFlags
	cmd := &cobra.Command{Use: "services [OPTIONS] STACK", Short: "List the services of a stack", Args: ofStack, ValidArgsFunction: completeFirst(a.completeStacks),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := l.filters.parse()
			if err != nil {
				return err
			}
			s, err := a.stack(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			list, err := a.servicesOf(cmd.Context(), s.GetName(), f...)
			if err != nil {
				return err
			}
			return printList(a, &l, list, render.Services(list, l.noTrunc, a.Now()))
		}}
	l.add(cmd, "the ids", "id", "name", "label", "mode=replicated|global|replicated-job|global-job")
	return cmd
}

func (a *app) stackPs() *cobra.Command {
	var l listFlags
	var noResolve bool
	cmd := &cobra.Command{Use: "ps [OPTIONS] STACK", Short: "List the tasks of a stack, and what it lacks", Args: ofStack, ValidArgsFunction: completeFirst(a.completeStacks),
		Long: "List the tasks of a stack.\n\nWhat its newest revision asks for and is not there, and what keeps it from being made, is told beside the list, on standard error.",
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			f, err := l.filters.parse()
			if err != nil {
				return err
			}
			s, err := a.stack(ctx, args[0])
			if err != nil {
				return err
			}
			services, err := a.servicesOf(ctx, s.GetName())
			if err != nil {
				return err
			}
			var tasks []*skepv1.Task
			if ids := idsOf(services); len(ids) > 0 {
				if tasks, err = a.tasks(ctx, append(f, filter("service", ids...))...); err != nil {
					return err
				}
			}
			if err := a.printTasks(ctx, &l, tasks, noResolve); err != nil {
				return err
			}
			for _, line := range lacks(s, services) {
				a.tellf("%s\n", line)
			}
			return nil
		}}
	l.add(cmd, "the task ids", "id", "name", "label", "node", taskFilters[len(taskFilters)-1])
	cmd.Flags().BoolVar(&noResolve, "no-resolve", false, "Show ids instead of names")
	return cmd
}

func idsOf(services []*skepv1.Service) []string {
	var ids []string
	for _, s := range services {
		ids = append(ids, s.GetMeta().GetId())
	}
	return ids
}

// lacks says what a stack's newest revision asks for and is not so.
func lacks(s *skepv1.Stack, services []*skepv1.Service) []string {
	there := map[string]bool{}
	for _, v := range services {
		there[v.GetSpec().GetName()] = true
	}
	var out []string
	switch s.GetState() {
	case skepv1.StackState_STACK_STATE_REMOVING:
		out = append(out, fmt.Sprintf("Stack %s is being removed: %d of its objects are still there.", s.GetName(), len(s.GetMembers())))
	default:
		for _, v := range s.GetSpec().GetServices() {
			if !there[v.Name] {
				out = append(out, fmt.Sprintf("Missing: service %s of revision %d is not there yet.", v.Name, s.GetRevision()))
			}
		}
		if s.GetState() == skepv1.StackState_STACK_STATE_DEPLOYING && len(s.GetProblems()) == 0 {
			out = append(out, fmt.Sprintf("Revision %d of stack %s is being carried out.", s.GetRevision(), s.GetName()))
		}
	}
	for _, p := range s.GetProblems() {
		out = append(out, fmt.Sprintf("Problem: %s %s: %s", p.GetKind(), p.GetName(), p.GetText()))
	}
	return out
}

func (a *app) stackLogs() *cobra.Command {
	var l logsFlags
	cmd := &cobra.Command{Use: "logs [OPTIONS] STACK", Short: "Show the output of all services of a stack", Args: ofStack, ValidArgsFunction: completeFirst(a.completeStacks),
		Example: "  skep stack logs --follow --tail 10 shop",
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			r, err := a.newLogRun(&l)
			if err != nil {
				return err
			}
			s, err := a.stack(ctx, args[0])
			if err != nil {
				return err
			}
			return r.services(ctx, func(ctx context.Context) ([]*skepv1.Service, error) {
				list, err := a.servicesOf(ctx, s.GetName())
				if err == nil && len(list) == 0 {
					_, err = a.stack(ctx, s.GetMeta().GetId())
				}
				return list, err
			})
		}}
	l.add(cmd)
	return cmd
}

func (a *app) stackHistory() *cobra.Command {
	var l listFlags
	cmd := &cobra.Command{Use: "history [OPTIONS] STACK", Short: "List the revisions of a stack", Args: ofStack, ValidArgsFunction: completeFirst(a.completeStacks),
		Long: "List the revisions of a stack, newest first; * marks the one in force.\nGo back to any of them with `skep stack rollback --to REVISION STACK`.",
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.stack(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			list, err := a.stackRevisions(cmd.Context(), s.GetMeta().GetId(), !l.json)
			if err != nil {
				return err
			}
			return printList(a, &l, list, render.StackRevisions(list, s.GetRevision(), a.Now()))
		}}
	l.add(cmd, "the revision numbers")
	return cmd
}

// isConflict: somebody else changed it meanwhile.
func isConflict(err error) bool {
	return fault.Is(err, fault.CodeSequence) || fault.Is(err, fault.CodeConflict)
}
