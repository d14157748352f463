package cli

import (
	"strings"

	"github.com/spf13/cobra"

	"skep.dev/libs/api"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/doctor"
	"skep.dev/services/skep/cli/render"
	"skep.dev/services/skep/cli/specflag"
)

func (a *app) nodeCommand() *cobra.Command {
	return group("node", "Manage nodes", a.nodeList(), a.nodePs(), a.nodeInspect(), a.nodeUpdate(),
		a.nodeRole("promote", "Make nodes managers", manager), a.nodeRole("demote", "Make managers workers", worker),
		a.nodeFence(), a.nodeRemove(), a.nodePrune())
}

func (a *app) nodeList() *cobra.Command {
	var l listFlags
	cmd := &cobra.Command{Use: "ls [OPTIONS]", Aliases: []string{"list"}, Short: "List nodes", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := l.filters.parse()
			if err != nil {
				return err
			}
			list, err := a.nodes(cmd.Context(), f...)
			if err != nil {
				return err
			}
			self := ""
			if !l.json && !l.quiet {
				self = a.info(cmd.Context()).NodeID
			}
			t := render.Nodes(list, self)
			if !l.json && !l.quiet {
				a.markLocked(cmd.Context(), t)
			}
			if !l.json && !l.quiet && (l.format == "json" || strings.Contains(l.format, "TLSStatus")) {
				a.markTLS(cmd.Context(), list, t)
			}
			if l.json {
				return render.JSONNodes(a.Out, list)
			}
			if err := printList(a, &l, list, t); err != nil || l.quiet {
				return err
			}
			for _, n := range list {
				if n.GetDuplicate() != nil {
					a.warnf("node %s: %s", render.Hostname(n), doctor.DuplicateText(n.Duplicate))
				}
			}
			a.tellStep(cmd.Context(), list)
			return nil
		}}
	l.add(cmd, "the ids", "id", "name", "role=manager|worker", "membership=accepted|pending", "label", "node.label", "status=ready|sick|down|unknown|disconnected", "availability=active|pause|drain")
	return cmd
}

func (a *app) nodePs() *cobra.Command {
	var l listFlags
	var noResolve bool
	cmd := &cobra.Command{Use: "ps [OPTIONS] [NODE...]", Short: "List the tasks on nodes (default: this one)", ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			f, err := l.filters.parse()
			if err != nil {
				return err
			}
			if len(args) == 0 {
				args = []string{"self"}
			}
			var ids []string
			if err := a.each(ctx, args, func(ref string) error {
				ref, err := a.node(ctx, ref)
				if err != nil {
					return err
				}
				n, err := a.inspectNode(ctx, ref)
				if err != nil {
					return err
				}
				ids = append(ids, n.GetMeta().GetId())
				return nil
			}); err != nil {
				return err
			}
			tasks, err := a.tasks(ctx, append(f, filter("node", ids...))...)
			if err != nil {
				return err
			}
			return a.printTasks(ctx, &l, tasks, noResolve)
		}}
	l.add(cmd, "the task ids", taskFilters...)
	cmd.Flags().BoolVar(&noResolve, "no-resolve", false, "Show ids instead of names")
	return cmd
}

func (a *app) nodeUpdate() *cobra.Command {
	var availability, role string
	var labelAdd, labelRm []string
	cmd := &cobra.Command{Use: "update [OPTIONS] NODE", Short: "Change a node's availability, role or labels", Args: exactArgs(1), ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			req := &skepv1.UpdateNodeRequest{LabelAdd: map[string]string{}, LabelRm: labelRm}
			if cmd.Flags().Changed("availability") {
				v, err := parseAvailability(availability)
				if err != nil {
					return err
				}
				req.Availability = &v
			}
			if cmd.Flags().Changed("role") {
				v, err := parseRole(role)
				if err != nil {
					return err
				}
				req.Role = &v
			}
			for _, l := range labelAdd {
				l, err := specflag.ParseLabel(l)
				if err != nil {
					return err
				}
				k, v, _ := strings.Cut(l, "=")
				req.LabelAdd[k] = v
			}
			if req.Availability == nil && req.Role == nil && len(labelAdd)+len(labelRm) == 0 {
				return &usageError{cmd, "nothing to change: give --availability, --role, --label-add or --label-rm"}
			}
			ref, err := a.node(ctx, args[0])
			if err != nil {
				return err
			}
			req.Ref = ref
			if _, err := call(ctx, a, api.NodeUpdate, req); err != nil {
				return err
			}
			a.printf("%s\n", args[0])
			return nil
		}}
	f := cmd.Flags()
	f.StringVar(&availability, "availability", "", `Whether the node takes tasks: "active", "pause" or "drain"`)
	f.StringVar(&role, "role", "", `What the node is: "worker" or "manager"`)
	f.StringArrayVar(&labelAdd, "label-add", nil, "Add or change a label: key=value")
	f.StringArrayVar(&labelRm, "label-rm", nil, "Remove a label by its key")
	completeWords(cmd, "availability", "active", "pause", "drain")
	completeWords(cmd, "role", "worker", "manager")
	return cmd
}

func parseAvailability(s string) (skepv1.Availability, error) {
	switch strings.ToLower(s) {
	case "active":
		return skepv1.Availability_AVAILABILITY_ACTIVE, nil
	case "pause":
		return skepv1.Availability_AVAILABILITY_PAUSE, nil
	case "drain":
		return skepv1.Availability_AVAILABILITY_DRAIN, nil
	}
	return 0, Usagef("invalid availability %q, only active, pause and drain are supported", s)
}

func parseRole(s string) (skepv1.NodeRole, error) {
	switch strings.ToLower(s) {
	case "worker":
		return skepv1.NodeRole_NODE_ROLE_WORKER, nil
	case "manager":
		return skepv1.NodeRole_NODE_ROLE_MANAGER, nil
	}
	return 0, Usagef("invalid role %q, only worker and manager are supported", s)
}

func (a *app) nodeRemove() *cobra.Command {
	var force bool
	cmd := &cobra.Command{Use: "rm [OPTIONS] NODE [NODE...]", Aliases: []string{"remove"}, Short: "Remove nodes that are down from the cluster", Args: minArgs(1), ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.each(cmd.Context(), args, func(ref string) error {
				if _, err := call(cmd.Context(), a, api.NodeRemove, &skepv1.RemoveNodeRequest{Ref: ref, Force: force}); err != nil {
					return err
				}
				a.printf("%s\n", ref)
				return nil
			})
		}}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "Remove it although it is not down, or a manager that is gone for good")
	return cmd
}
