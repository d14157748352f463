package cli

import (
	"cmp"
	"context"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"skep.dev/libs/spec"
	"skep.dev/services/skep/cli/plain"
	"skep.dev/services/skep/cli/render"
)

const completeTimeout = time.Second

type completer = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

// completion offers the names list returns, without those given already; any failure offers nothing.
func (a *app) completion(list func(ctx context.Context) ([]string, error), args []string) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(context.Background(), cmp.Or(a.CompleteTimeout, completeTimeout))
	defer cancel()
	names, err := list(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []string
	for _, n := range names {
		word, about, has := strings.Cut(n, "\t")
		if !typable.MatchString(word) || slices.Contains(args, word) {
			continue
		}
		if has {
			word += "\t" + plain.Cell(about)
		}
		out = append(out, word)
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// typable are the names a shell may put into a command line as they are: a node chooses its host name, and what Tab
// typed must not run as a command of its own.
var typable = regexp.MustCompile(`^[\pL\pN_.:/@+][\pL\pN_.:/@+-]*$`)

func (a *app) completeServices(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.completion(a.serviceNames, args)
}

func (a *app) serviceNames(ctx context.Context) ([]string, error) {
	list, err := a.services(ctx)
	var out []string
	for _, s := range list {
		out = append(out, s.GetSpec().GetName()+"\t"+render.Image(s.GetSpec().GetTask().GetContainer().GetImage()))
	}
	return out, err
}

func (a *app) completeNodes(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.completion(func(ctx context.Context) ([]string, error) {
		list, err := a.nodes(ctx)
		out := []string{"self"}
		for _, n := range list {
			out = append(out, render.Hostname(n))
		}
		return out, err
	}, args)
}

func (a *app) completeNetworks(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.completion(a.networkNames, args)
}

func (a *app) networkNames(ctx context.Context) ([]string, error) {
	list, err := a.networks(ctx)
	var out []string
	for _, n := range list {
		out = append(out, n.GetSpec().GetName()+"\t"+n.GetSpec().GetDriver())
	}
	return out, err
}

func (a *app) taskNames(ctx context.Context) ([]string, error) {
	list, err := a.tasks(ctx, filter("desired-state", "running"))
	var out []string
	for _, t := range list {
		out = append(out, t.Name+"\t"+render.StateWord(t.GetStatus().GetState())+" on "+t.NodeHostname)
	}
	return out, err
}

func (a *app) completeTasks(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.completion(a.taskNames, args)
}

// completeFirst completes the first argument only.
func completeFirst(c completer) completer {
	return func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return c(cmd, args, word)
	}
}

func completeWords(cmd *cobra.Command, flag string, words ...string) {
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
}

// completeSpecFlags offers the words of flags that take one of a few.
func (a *app) completeSpecFlags(cmd *cobra.Command) {
	for flag, words := range map[string][]string{
		"mode": {"replicated", "global", "replicated-job", "global-job"}, "restart-condition": {"none", "on-failure", "any"},
		"update-failure-action": {"pause", "continue", "rollback"}, "rollback-failure-action": {"pause", "continue"},
		"update-order": {"start-first", "stop-first"}, "rollback-order": {"start-first", "stop-first"},
		"endpoint-mode": {"vip", "dnsrr"}, "on-partition": {"keep", "stop"},
	} {
		if cmd.Flags().Lookup(flag) != nil {
			completeWords(cmd, flag, words...)
		}
	}
	for _, flag := range []string{"network", "network-add", "network-rm"} {
		if cmd.Flags().Lookup(flag) == nil {
			continue
		}
		_ = cmd.RegisterFlagCompletionFunc(flag, func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return a.completion(a.networkNames, []string{spec.NetworkIngress})
		})
	}
}
