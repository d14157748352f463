package cli

import (
	"context"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"skep.dev/libs/api"
	"skep.dev/libs/compose"
	"skep.dev/libs/fault"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/plain"
	"skep.dev/services/skep/cli/render"
	"skep.dev/services/skep/cli/wait"
)

// resolveWords are what --resolve-image may be.
var resolveWords = []string{"always", "changed", "never"}

type deployFlags struct {
	fileFlags
	waitFlags
	prune, auth, dry, json bool
	resolve                string
}

func (a *app) stackDeploy() *cobra.Command {
	var f deployFlags
	cmd := &cobra.Command{Use: "deploy [OPTIONS] STACK", Aliases: []string{"up"}, Short: "Make the cluster follow a compose file, and wait until it does", Args: ofStack, ValidArgsFunction: completeFirst(a.completeStacks),
		Long: "Make the cluster follow a compose file: create the stack, or change what differs. It prints what it does, then waits until every service runs.\n\n" +
			"Everything is read and checked before anything is changed; the same file again changes nothing. A secret or config with another value becomes a new version, " +
			"and the services that use it, no others, are updated.\n\n" +
			"The deploy is the cluster's affair once it has begun: Ctrl-C, or a connection that breaks, ends the waiting and not the deploy. " +
			"Exit status 3 means that the update of a service was rolled back, 1 that one failed or paused, 4 that --timeout is over.",
		Example: "  skep stack deploy -c compose.yaml shop\n  skep stack deploy -c compose.yaml -c production.yaml --prune shop\n" +
			"  skep stack deploy -c compose.yaml --dry-run shop          # show what would change\n  docker compose config | skep stack deploy -c - shop",
		RunE: func(cmd *cobra.Command, args []string) error {
			if !slices.Contains(resolveWords, f.resolve) {
				return Usagef("invalid option %s for flag --resolve-image: use always, changed or never", f.resolve)
			}
			return a.deployStack(cmd.Context(), args[0], &f)
		}}
	f.fileFlags.add(cmd)
	f.waitFlags.add(cmd)
	fl := cmd.Flags()
	fl.BoolVar(&f.prune, "prune", false, "Remove what the stack has and the file does not")
	fl.StringVar(&f.resolve, "resolve-image", "always", "Ask the registry which image a tag is now: always, changed (only where the file names another one) or never")
	fl.BoolVar(&f.auth, "with-registry-auth", false, "Give the cluster this user's credentials for the images of services that are made or changed")
	fl.BoolVar(&f.dry, "dry-run", false, "Show what would change, change nothing")
	fl.BoolVar(&f.json, "json", false, "Print the stack and the changes as one JSON document (a stable form)")
	completeWords(cmd, "resolve-image", resolveWords...)
	return cmd
}

// stackPlan is a deploy that is ready to be asked for.
type stackPlan struct {
	want     *compose.Stack
	values   *stackValues
	before   *skepv1.Stack // nil = there is none
	services map[string]*skepv1.Service
	reply    *skepv1.DeployStackReply // of the dry run
}

// planStack reads, checks and asks, and changes nothing. With w it waits for a stack of that name to go that is being removed.
func (a *app) planStack(ctx context.Context, name string, f *fileFlags, req *skepv1.DeployStackRequest, w *waitFlags) (*stackPlan, error) {
	want, err := f.load(ctx, a, name)
	if err != nil {
		return nil, err
	}
	want.Spec.ResolveImage = req.GetSpec().GetResolveImage()
	req.Spec = want.Spec
	p := &stackPlan{want: want}
	if p.before, p.services, err = a.stackBefore(ctx, name); err != nil {
		return nil, err
	}
	if w != nil && p.before.GetState() == skepv1.StackState_STACK_STATE_REMOVING {
		a.tellf("Stack %s is being removed: waiting until it is gone.\n", name)
		if err := a.stackGone(ctx, p.before, w); err != nil {
			return nil, err
		}
		p.before, p.services = nil, nil
	}
	req.ExpectRevision = p.before.GetRevision()
	if err := a.externals(ctx, want); err != nil {
		return nil, err
	}
	if p.values, err = a.stackValues(ctx, want); err != nil {
		return nil, err
	}
	if err := p.values.look(ctx); err != nil {
		return nil, err
	}
	req.DryRun = true
	if p.reply, err = call(ctx, a, api.StackDeploy, req); err != nil {
		return nil, a.overtaken(ctx, name, p.before, err)
	}
	return p, nil
}

// stackBefore is what there is of a stack before it changes; nil when there is none of that name.
func (a *app) stackBefore(ctx context.Context, name string) (*skepv1.Stack, map[string]*skepv1.Service, error) {
	st, err := a.stack(ctx, name)
	if err != nil && !fault.Is(err, fault.CodeNotFound) {
		return nil, nil, err
	}
	if err != nil || st.GetName() != name {
		return nil, nil, nil
	}
	list, err := a.servicesOf(ctx, name)
	services := map[string]*skepv1.Service{}
	for _, s := range list {
		services[s.GetSpec().GetName()] = s
	}
	return st, services, err
}

// overtaken says who was quicker, when that is why a stack could not be changed.
func (a *app) overtaken(ctx context.Context, name string, before *skepv1.Stack, err error) error {
	if !isConflict(err) {
		return err
	}
	now, ierr := a.stack(ctx, name)
	if ierr != nil || now.GetRevision() == before.GetRevision() {
		return err
	}
	return plain.Errorf("stack %s is at revision %d meanwhile: %s deployed it %s, and this deploy was made over revision %d\nNothing of it was done. See what they changed with `skep stack diff %s`, then run the command again",
		name, now.GetRevision(), wait.Who(now.GetAuthor(), now.GetAuthorAddress()), render.Ago(now.GetMeta().GetUpdatedAt().AsTime(), a.Now()), before.GetRevision(), name)
}

func (a *app) deployStack(ctx context.Context, name string, f *deployFlags) error {
	req := &skepv1.DeployStackRequest{Spec: &skepv1.StackSpec{ResolveImage: f.resolve}, Prune: f.prune}
	var patience *waitFlags
	if !f.dry && !f.detach {
		patience = &f.waitFlags
	}
	p, err := a.planStack(ctx, name, &f.fileFlags, req, patience)
	if err != nil {
		return err
	}
	defer p.values.wipe()
	if f.auth {
		if err := a.stackAuth(ctx, p, f.dry); err != nil {
			return err
		}
	}
	r := p.reply
	if !f.dry {
		if err := p.values.store(ctx); err != nil {
			return err
		}
		req.DryRun = false
		if r, err = call(ctx, a, api.StackDeploy, req); err != nil {
			if !fault.Is(err, fault.CodeUnavailable) {
				p.values.undo(context.WithoutCancel(ctx))
			}
			return a.overtaken(ctx, name, p.before, err)
		}
	}
	a.warnings(r.Warnings)
	r.Stack.Spec = p.want.Spec
	return a.followStack(ctx, r, p.services, &stackFollow{wait: &f.waitFlags, dry: f.dry, json: f.json})
}

// stackAuth seals the user's credentials to the vault for every service that the plan makes or changes. The others keep
// what they have, so that the same deploy again changes nothing.
func (a *app) stackAuth(ctx context.Context, p *stackPlan, dry bool) error {
	touched := changedServices(p.reply.Changes)
	without := map[string]bool{}
	for _, s := range p.want.Spec.Services {
		c := s.GetTask().GetContainer()
		host, err := spec.RegistryOf(c.GetImage())
		if err != nil {
			return &Failure{ExitUsage, err}
		}
		if !touched[s.Name] || without[host] {
			continue
		}
		id, _, err := a.sendCredentials(ctx, c.GetImage(), dry)
		if err != nil {
			return err
		}
		if id == "" {
			without[host] = true
			continue
		}
		c.RegistryAuth = id
	}
	return nil
}

// changedServices are the names of the services that a plan makes or changes.
func changedServices(changes []*skepv1.StackChange) map[string]bool {
	out := map[string]bool{}
	for _, c := range changes {
		if c.GetKind() == "service" && (c.GetVerb() == skepv1.StackChange_VERB_CREATE || c.GetVerb() == skepv1.StackChange_VERB_CHANGE) {
			out[c.GetName()] = true
		}
	}
	return out
}

// stackFollow is how a change of a stack is shown and waited for.
type stackFollow struct {
	wait      *waitFlags
	dry, json bool
	rollback  bool
}

// followStack prints what a change of a stack does, and waits until it is done.
func (a *app) followStack(ctx context.Context, r *skepv1.DeployStackReply, was map[string]*skepv1.Service, f *stackFollow) error {
	name := r.GetStack().GetName()
	unchanged := !slices.ContainsFunc(r.Changes, func(c *skepv1.StackChange) bool {
		return c.GetVerb() != skepv1.StackChange_VERB_KEEP && c.GetVerb() != skepv1.StackChange_VERB_LEAVE
	})
	switch {
	case f.json:
	case f.wait.quiet && !f.dry:
	case unchanged && !f.dry:
		render.StackPlan(a.Out, r.Changes, false)
		a.printf("Stack %s is unchanged.\n", name)
	default:
		if f.dry {
			a.printf("Plan for stack %s (nothing was changed):\n", name)
		}
		render.StackPlan(a.Out, r.Changes, f.dry)
	}
	var err error
	if !f.dry && !f.wait.detach {
		err = a.convergeStack(ctx, r, was, f)
	}
	if f.json {
		if now, ierr := a.stack(ctx, r.GetStack().GetMeta().GetId()); ierr == nil && !f.dry {
			r.Stack = now
		}
		if jerr := render.JSONObject(a.Out, r); jerr != nil {
			return fmt.Errorf("print the stack: %w", jerr)
		}
	}
	return err
}
