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

// printPlan asks the scheduler what it would do about a service as the state service would store it.
func (a *app) printPlan(ctx context.Context, s *skepv1.Service, removed bool) error {
	r, err := call(ctx, a, api.PlanService, &skepv1.PlanRequest{Service: s, Removed: removed})
	if err != nil {
		return err
	}
	render.Plan(a.Out, s.GetSpec().GetName(), r)
	return nil
}

func (a *app) serviceExplain() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{Use: "explain [OPTIONS] SERVICE", Short: "Say why a service's tasks run where they do, or why they do not", Args: exactArgs(1), ValidArgsFunction: a.completeServices,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := call(cmd.Context(), a, api.ServiceExplain, &skepv1.ExplainRequest{Ref: args[0]})
			if err != nil {
				if fault.Is(err, fault.CodeNotFound) {
					// The state service knows which name was probably meant.
					if _, serr := a.service(cmd.Context(), args[0]); serr != nil {
						return serr
					}
				}
				return err
			}
			if r.GetService().GetStatus() == nil {
				// Counting tasks is the state service's affair, not the scheduler's.
				s, err := a.service(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				r.Service = s
			}
			a.sayWhyFailed(cmd.Context(), r)
			if asJSON {
				return render.JSONObject(a.Out, r)
			}
			render.Explain(a.Out, r, a.Now())
			return nil
		}}
	cmd.Flags().BoolVar(&asJSON, "json", false, "Print the answer as JSON (a stable form)")
	return cmd
}

// sayWhyFailed gives the tasks that wait to be started again the error of the one before each, where the scheduler, which
// keeps no reports, has none.
func (a *app) sayWhyFailed(ctx context.Context, r *skepv1.ExplainReply) {
	lacks := func(t *skepv1.Task) bool { return t.Failures > 0 && t.Replaces != "" && t.GetStatus().GetErr() == "" }
	if !slices.ContainsFunc(r.Waiting, lacks) {
		return
	}
	list, err := a.tasks(ctx, filter("service", r.GetService().GetMeta().GetId()))
	if err != nil {
		return // all else is told
	}
	ended := make(map[string]string, len(list))
	for _, t := range list {
		ended[t.GetMeta().GetId()] = t.GetStatus().GetErr()
	}
	for _, t := range r.Waiting {
		if lacks(t) && t.Status != nil {
			t.Status.Err = ended[t.Replaces]
		}
	}
}
