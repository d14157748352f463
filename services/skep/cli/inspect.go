package cli

import (
	"context"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/render"
)

type inspectFlags struct {
	format string
	pretty bool
	json   bool
}

func (i *inspectFlags) add(cmd *cobra.Command, pretty bool) {
	f := cmd.Flags()
	f.StringVarP(&i.format, "format", "f", "", `A Go template over Docker's form of the object, or "json"`)
	f.BoolVar(&i.json, "json", false, "Print skep's own objects, as one JSON document (a stable form)")
	if pretty {
		f.BoolVar(&i.pretty, "pretty", false, "Print it for people")
	}
}

// inspect prints objects: Docker's form unless asked otherwise.
func inspect[M proto.Message](a *app, i *inspectFlags, objs []M, docker func(M) any, pretty func(M)) error {
	switch {
	case i.pretty && i.format != "":
		return Usagef("--format is incompatible with human friendly format")
	case i.pretty:
		for n, o := range objs {
			if n > 0 {
				a.printf("\n")
			}
			pretty(o)
		}
		return nil
	case i.json:
		return render.JSON(a.Out, objs)
	}
	var list []any
	for _, o := range objs {
		list = append(list, docker(o))
	}
	return render.Inspect(a.Out, list, i.format)
}

// gather inspects every reference and goes on after those that fail.
func gather[M any](a *app, ctx context.Context, refs []string, get func(ref string) (M, error)) ([]M, error) {
	var out []M
	err := a.each(ctx, refs, func(ref string) error {
		o, err := get(ref)
		if err == nil {
			out = append(out, o)
		}
		return err
	})
	return out, err
}

func (a *app) serviceInspect() *cobra.Command {
	var i inspectFlags
	cmd := &cobra.Command{Use: "inspect [OPTIONS] SERVICE [SERVICE...]", Short: "Show services in full", Args: minArgs(1), ValidArgsFunction: a.completeServices,
		RunE: func(cmd *cobra.Command, args []string) error {
			list, err := gather(a, cmd.Context(), args, func(ref string) (*skepv1.Service, error) { return a.service(cmd.Context(), ref) })
			if i.pretty {
				a.nameNetworks(cmd.Context(), list)
				a.nameDependencies(cmd.Context(), list)
			}
			if a.nc != nil {
				if perr := inspect(a, &i, list, render.DockerService, func(s *skepv1.Service) { render.PrettyService(a.Out, s, a.Now()) }); perr != nil {
					return perr
				}
			}
			return err
		}}
	i.add(cmd, true)
	return cmd
}

// nameNetworks puts names where services have the ids of their networks. An id nobody knows any more stays.
func (a *app) nameNetworks(ctx context.Context, services []*skepv1.Service) {
	names := map[string]string{}
	for _, s := range services {
		for _, n := range s.GetSpec().GetTask().GetNetworks() {
			if _, known := names[n.Target]; !known {
				names[n.Target] = n.Target
				if o, err := a.network(ctx, n.Target); err == nil {
					names[n.Target] = o.GetSpec().GetName()
				}
			}
			n.Target = names[n.Target]
		}
	}
}

func (a *app) nodeInspect() *cobra.Command {
	var i inspectFlags
	cmd := &cobra.Command{Use: "inspect [OPTIONS] [self|NODE...]", Short: "Show nodes in full (default: this one)", ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				args = []string{"self"}
			}
			list, err := gather(a, cmd.Context(), args, func(ref string) (*skepv1.Node, error) {
				ref, err := a.node(cmd.Context(), ref)
				if err != nil {
					return nil, err
				}
				return a.inspectNode(cmd.Context(), ref)
			})
			if a.nc != nil {
				if perr := inspect(a, &i, list, render.DockerNode, func(n *skepv1.Node) { render.PrettyNode(a.Out, n) }); perr != nil {
					return perr
				}
			}
			return err
		}}
	i.add(cmd, true)
	return cmd
}

func (a *app) taskInspect() *cobra.Command {
	var i inspectFlags
	cmd := &cobra.Command{Use: "inspect [OPTIONS] TASK [TASK...]", Short: "Show tasks in full", Args: minArgs(1), ValidArgsFunction: a.completeTasks,
		RunE: func(cmd *cobra.Command, args []string) error {
			list, err := gather(a, cmd.Context(), args, func(ref string) (*skepv1.Task, error) { return a.findTask(cmd.Context(), ref) })
			if a.nc != nil {
				if perr := inspect(a, &i, list, render.DockerTask, nil); perr != nil {
					return perr
				}
			}
			return err
		}}
	i.add(cmd, false)
	return cmd
}
