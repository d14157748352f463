package cli

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/specflag"
)

func (a *app) lookupEnv(k string) (string, bool) {
	if v := a.Getenv(k); v != "" {
		return v, true
	}
	return os.LookupEnv(k)
}

// check refuses early what the state service would refuse: the same rules, before anything is sent.
func check(s *skepv1.ServiceSpec) error {
	if err := spec.Validate(s); err != nil {
		return &Failure{ExitUsage, err}
	}
	return nil
}

func (a *app) serviceCreate() *cobra.Command {
	var (
		w     waitFlags
		dry   bool
		flags *specflag.Flags
	)
	cmd := &cobra.Command{Use: "create [OPTIONS] IMAGE [COMMAND] [ARG...]", Short: "Create a service and wait until it runs",
		Long: "Create a service and wait until its tasks run.\n\nIt returns once every task has run for a second (or for --update-monitor, when that is given).\n" +
			"Ctrl-C stops the waiting, not the service. Options come before IMAGE; what follows it is the command.",
		Args: minArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			flags.LookupEnv = a.lookupEnv
			s, err := flags.Spec(args[0], args[1:])
			if err != nil {
				return err
			}
			if len(args) > 1 && namesFlag(cmd, args[1]) {
				a.warnf("%s stands after the image, so it is part of the containers' command: options come before IMAGE", args[1])
			}
			if s.Name == "" {
				s.Name = spec.RandomName()
			}
			if err := check(s); err != nil {
				return err
			}
			if err := a.registryAuth(ctx, flags, s, nil, dry); err != nil {
				return err
			}
			req := &skepv1.CreateServiceRequest{Spec: s, DryRun: dry, NoResolveImage: flags.NoResolve()}
			r, err := call(ctx, a, api.ServiceCreate, req)
			if err != nil {
				return err
			}
			a.warnings(r.Warnings)
			if dry {
				return a.printPlan(ctx, r.Service, false)
			}
			a.printf("%s\n", r.Service.GetMeta().GetId())
			if a.tellSchedule(r.Service, &w) {
				return nil
			}
			o := a.waitOptions(r.Service, &w)
			if m, set := flags.Monitor(); set {
				o.Hold = m
			}
			return a.converge(ctx, &w, o)
		}}
	cmd.Flags().SetInterspersed(false)
	flags = specflag.Create(cmd.Flags())
	w.add(cmd)
	cmd.Flags().BoolVar(&dry, "dry-run", false, "Show what would happen, change nothing")
	a.completeSpecFlags(cmd)
	return cmd
}

// namesFlag: the word is one of the command's own options.
func namesFlag(cmd *cobra.Command, word string) bool {
	name, is := strings.CutPrefix(word, "--")
	name, _, _ = strings.Cut(name, "=")
	return is && cmd.Flags().Lookup(name) != nil
}

func (a *app) serviceUpdate() *cobra.Command {
	var (
		w     waitFlags
		dry   bool
		flags *specflag.Flags
		roll  rolloutFlags
	)
	cmd := &cobra.Command{Use: "update [OPTIONS] SERVICE", Short: "Change a service and wait until the change is rolled out", Args: exactArgs(1), ValidArgsFunction: a.completeServices,
		Long: "Change a service; its tasks are replaced as --update-parallelism, --update-delay and --update-order say.\n\n" +
			"It returns once the new tasks have run for the update's monitor period (5s by default). Exit status 3 means that the update failed and was rolled back.\n\n" +
			"With --canary only so many tasks are replaced at first; `skep service promote` lets the others follow, `skep service abort` goes back.",
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			if action, given, err := roll.action(cmd); err != nil || given {
				if err != nil {
					return err
				}
				return a.steerRollout(ctx, args[0], action, &w)
			}
			if flags.Rollback() {
				if err := flags.RollbackAlone("detach", "quiet", "timeout", "dry-run", "context", "run-dir"); err != nil {
					return err
				}
				return a.rollBack(ctx, args[0], 0, dry, &w)
			}
			flags.LookupEnv = a.lookupEnv
			flags.NetworkID = func(ref string) (string, error) {
				n, err := a.network(ctx, ref)
				return n.GetMeta().GetId(), err
			}
			flags.ServiceID = func(ref string) (string, error) {
				v, err := a.service(ctx, ref)
				return v.GetMeta().GetId(), err
			}
			r, before, err := a.update(ctx, args[0], func(cur *skepv1.Service) (*skepv1.UpdateServiceRequest, error) {
				was, s := cur.GetSpec(), proto.CloneOf(cur.GetSpec())
				flags.Assigned = cur.GetEndpoint().GetPorts()
				if err := flags.Apply(s); err != nil {
					return nil, err
				}
				if err := check(s); err != nil {
					return nil, err
				}
				if err := a.registryAuth(ctx, flags, s, was, dry); err != nil {
					return nil, err
				}
				return &skepv1.UpdateServiceRequest{Spec: s, DryRun: dry, NoResolveImage: flags.NoResolve(), ResolveImage: flags.ImageNamed(), Canary: roll.canary}, nil
			})
			if err != nil {
				return err
			}
			a.warnings(slices.Concat(flags.Absent(), r.Warnings))
			if dry {
				return a.printPlan(ctx, r.Service, false)
			}
			a.printf("%s\n", args[0])
			if a.tellSchedule(r.Service, &w) {
				return nil
			}
			o := a.waitOptions(r.Service, &w)
			o.Before = before.UpdateStatus
			o.Hold = updateHold(before.GetSpec(), r.Service.GetSpec())
			if m, set := flags.Monitor(); set {
				o.Hold = m
			}
			return a.converge(ctx, &w, o)
		}}
	flags = specflag.Update(cmd.Flags())
	roll.add(cmd)
	w.add(cmd)
	cmd.Flags().BoolVar(&dry, "dry-run", false, "Show what would happen, change nothing")
	a.completeSpecFlags(cmd)
	return cmd
}

// updateHold is how long to watch after a change: the update's monitor period when tasks are replaced, else as after a scale.
func updateHold(before, after *skepv1.ServiceSpec) time.Duration {
	if proto.Equal(before.GetTask(), after.GetTask()) && proto.Equal(before.GetEndpoint(), after.GetEndpoint()) {
		return stableFor
	}
	if m := after.GetUpdate().GetMonitor(); m != nil && m.AsDuration() > 0 {
		return m.AsDuration()
	}
	return defaultMonitor
}

// update reads the service, asks change what it is to become, and sends that with what it was made from: what others changed
// meanwhile stays. A manager of an older version refuses it when it was not the last to look; then it starts over.
func (a *app) update(ctx context.Context, ref string, change func(*skepv1.Service) (*skepv1.UpdateServiceRequest, error)) (*skepv1.ServiceReply, *skepv1.Service, error) {
	for try := 0; ; try++ {
		s, err := a.service(ctx, ref)
		if err != nil {
			return nil, nil, err
		}
		req, err := change(s)
		if err != nil {
			return nil, nil, err
		}
		req.Ref, req.Version, req.Base = s.GetMeta().GetId(), s.GetMeta().GetVersion(), s.GetSpec()
		r, err := call(ctx, a, api.ServiceUpdate, req)
		if fault.Is(err, fault.CodeSequence) && try < 5 {
			continue
		}
		return r, s, err
	}
}

func (a *app) serviceRollback() *cobra.Command {
	var (
		w   waitFlags
		dry bool
		to  uint64
	)
	cmd := &cobra.Command{Use: "rollback [OPTIONS] SERVICE", Short: "Go back to an earlier revision of a service", Args: exactArgs(1), ValidArgsFunction: a.completeServices,
		Long: "Go back to the previous revision of a service, or with --to to any that `skep service history` lists.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("to") && to == 0 {
				return Usagef("--to: revisions are numbered from 1; `skep service history %s` lists them", args[0])
			}
			return a.rollBack(cmd.Context(), args[0], to, dry, &w)
		}}
	w.add(cmd)
	cmd.Flags().Uint64Var(&to, "to", 0, "Number of the revision to go back to (default: the previous one)")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "Show what would happen, change nothing")
	return cmd
}

func (a *app) rollBack(ctx context.Context, ref string, to uint64, dry bool, w *waitFlags) error {
	before, err := a.service(ctx, ref)
	if err != nil {
		return err
	}
	req := &skepv1.UpdateServiceRequest{Ref: before.GetMeta().GetId(), Version: before.GetMeta().GetVersion(), ExpectRevision: before.GetRevision(), Rollback: true, RollbackRevision: to, DryRun: dry}
	r, err := call(ctx, a, api.ServiceUpdate, req)
	if err != nil {
		return err
	}
	a.warnings(r.Warnings)
	if dry {
		return a.printPlan(ctx, r.Service, false)
	}
	a.printf("%s\n", ref)
	o := a.waitOptions(r.Service, w)
	o.Before, o.Rollback = before.UpdateStatus, true
	o.Hold = defaultMonitor
	if m := r.Service.GetSpec().GetRollback().GetMonitor(); m != nil && m.AsDuration() > 0 {
		o.Hold = m.AsDuration()
	}
	return a.converge(ctx, w, o)
}

func (a *app) serviceScale() *cobra.Command {
	var (
		w   waitFlags
		dry bool
	)
	cmd := &cobra.Command{Use: "scale [OPTIONS] SERVICE=REPLICAS [SERVICE=REPLICAS...]", Short: "Change the number of tasks of services", Args: minArgs(1),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
			names, d := a.completeServices(cmd, args, word)
			for i, n := range names {
				names[i] = strings.SplitN(n, "\t", 2)[0] + "="
			}
			return names, d | cobra.ShellCompDirectiveNoSpace
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			want := map[string]uint64{}
			var order []string
			for _, arg := range args {
				ref, num, ok := strings.Cut(arg, "=")
				if !ok || ref == "" || num == "" {
					return Usagef("invalid scale specifier '%s'. See '%s --help'", arg, cmd.CommandPath())
				}
				n, err := strconv.ParseUint(num, 10, 64)
				if err != nil {
					return Usagef("%s: invalid replicas value %s: it must be a whole number of 0 or more", ref, num)
				}
				if !slices.Contains(order, ref) {
					order = append(order, ref)
				}
				want[ref] = n
			}
			// A mistyped name is found before anything is scaled.
			found := map[string]*skepv1.Service{}
			if err := a.each(ctx, order, func(ref string) (err error) {
				found[ref], err = a.service(ctx, ref)
				return err
			}); err != nil {
				return err
			}
			var changed []*skepv1.Service
			var before []*skepv1.UpdateStatus
			err := a.each(ctx, order, func(ref string) error {
				old := found[ref]
				req := &skepv1.ScaleServiceRequest{Ref: old.GetMeta().GetId(), Replicas: want[ref], DryRun: dry}
				r, err := call(ctx, a, api.ServiceScale, req)
				if err != nil {
					return fmt.Errorf("%s: %w", ref, err)
				}
				a.warnings(r.Warnings)
				if dry {
					return a.printPlan(ctx, r.Service, false)
				}
				a.printf("%s scaled to %d\n", ref, want[ref])
				changed, before = append(changed, r.Service), append(before, old.UpdateStatus)
				return nil
			})
			errs := []error{err}
			if err == nil {
				errs = nil
			}
			for i, s := range changed {
				o := a.waitOptions(s, &w)
				o.Before, o.AnyRevision = before[i], true
				if err := a.converge(ctx, &w, o); err != nil {
					errs = append(errs, err)
				}
			}
			return joined(errs)
		}}
	w.add(cmd)
	cmd.Flags().BoolVar(&dry, "dry-run", false, "Show what would happen, change nothing")
	return cmd
}
