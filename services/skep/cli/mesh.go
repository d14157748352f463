package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/render"
)

func (a *app) meshCommand() *cobra.Command {
	return group("mesh", "Look at networks and published ports as the nodes' kernels have them", a.meshList(), a.meshTrace())
}

func (a *app) meshList() *cobra.Command {
	var l listFlags
	var nodes []string
	cmd := &cobra.Command{Use: "ls [OPTIONS]", Aliases: []string{"list"}, Short: "List the published ports and networks that nodes have", Args: noArgs,
		Long: "List the published ports and networks that nodes have: what their kernels do, not what they should do.\n\n" +
			"CONNECTIONS are the new ones since the rule was made. --quiet and --format are about the ports alone, and so is --filter.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			f, err := l.filters.parse()
			if err != nil {
				return err
			}
			on, err := a.targets(ctx, nodes, a.here(ctx))
			if err != nil {
				return err
			}
			states, err := a.meshStates(ctx, on)
			if err != nil {
				return err
			}
			states, errs := answered(states)
			switch {
			case l.json:
				if err := render.JSONMeshStates(a.Out, states); err != nil {
					return err
				}
			case len(states) == 0 && len(errs) > 0: // there is nothing to list
			default:
				ports := render.MeshPorts(states, f, l.noTrunc)
				ports.Wide = l.noTrunc
				if err := ports.Print(a.Out, l.format, l.quiet); err != nil {
					return err
				}
				if l.format == "" && !l.quiet && len(f) == 0 {
					a.printf("\n")
					if err := render.MeshNetworks(states, l.noTrunc).Print(a.Out, "", false); err != nil {
						return err
					}
				}
			}
			return joined(errs)
		}}
	l.add(cmd, "the ports", "port", "service")
	a.nodeFlag(cmd, &nodes, "this one, or all when this machine is none")
	return cmd
}

// here is the local node where there is one, else every node.
func (a *app) here(ctx context.Context) string {
	if a.info(ctx).NodeID != "" {
		return "self"
	}
	return allNodes
}

// answered parts the nodes that answered from the errors of the others.
func answered(states []render.NodeMesh) (ok []render.NodeMesh, errs []error) {
	for _, s := range states {
		if s.Err != nil {
			errs = append(errs, fmt.Errorf("node %s: %w", render.Hostname(s.Node), s.Err))
			continue
		}
		ok = append(ok, s)
	}
	return ok, errs
}

func (a *app) meshTrace() *cobra.Command {
	var nodes []string
	var asJSON bool
	cmd := &cobra.Command{Use: "trace [OPTIONS] PORT[/PROTOCOL] | trace TASK TARGET", Short: "Follow a packet through a node's rules",
		Long: "Follow a packet through the rules of a node's kernel: which it meets and where it would go. Nothing is sent. Names stand in brackets behind ids and addresses.\n\n" +
			"With a PORT (8080, 53/udp): from outside to a published port of a node.\n" +
			"With a TASK (web.1, or its id) and a TARGET (a name, an address, or either with :port): from that task, on the node it runs on.",
		Args: func(cmd *cobra.Command, args []string) error {
			if err := minArgs(1)(cmd, args); err != nil {
				return err
			}
			return maxArgs(2)(cmd, args)
		},
		ValidArgsFunction: a.completeTrace,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			if len(args) == 2 {
				if len(nodes) > 0 {
					return Usagef("--node is for ports: a task is traced on the node it runs on")
				}
				return a.traceTask(ctx, args[0], args[1], asJSON)
			}
			target, err := tracePort(args[0])
			if err != nil {
				return err
			}
			on, err := a.targets(ctx, nodes, "self")
			if err != nil {
				return err
			}
			return a.trace(ctx, on, &skepv1.MeshTraceRequest{Target: target}, asJSON)
		}}
	cmd.Flags().BoolVar(&asJSON, "json", false, "Print it as one JSON document (a stable form)")
	a.nodeFlag(cmd, &nodes, "this one")
	return cmd
}

// tracePort checks a port and gives it its protocol.
func tracePort(s string) (string, error) {
	port, proto, has := strings.Cut(s, "/")
	if !has {
		proto = "tcp"
	}
	proto = strings.ToLower(proto)
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || !slices.Contains([]string{"tcp", "udp", "sctp"}, proto) {
		return "", Usagef("%q is not a published port: write 8080 or 53/udp; to follow a packet from a task, give the task and its target", s)
	}
	return port + "/" + proto, nil
}

func (a *app) traceTask(ctx context.Context, ref, target string, asJSON bool) error {
	t, err := a.findTask(ctx, ref)
	if err != nil {
		return err
	}
	if t.NodeId == "" || t.GetStatus().GetState() != skepv1.TaskState_TASK_STATE_RUNNING && t.GetStatus().GetState() != skepv1.TaskState_TASK_STATE_STARTING {
		return fault.Conflict("task %s does not run, so it has no network: it is %s", ref, stateText(t))
	}
	n, err := a.inspectNode(ctx, t.NodeId)
	if err != nil {
		return err
	}
	return a.trace(ctx, []*skepv1.Node{n}, &skepv1.MeshTraceRequest{TaskId: t.GetMeta().GetId(), Target: target}, asJSON)
}

// trace asks nodes and prints their answers in the order of the nodes.
func (a *app) trace(ctx context.Context, nodes []*skepv1.Node, req *skepv1.MeshTraceRequest, asJSON bool) error {
	var mu sync.Mutex
	got := map[string]*skepv1.MeshTraceReply{}
	ferr := a.onNodes(ctx, nodes, func(n *skepv1.Node) error {
		ctx, cancel := context.WithTimeout(ctx, a.NodeTimeout)
		defer cancel()
		r, err := call(ctx, a, api.MeshTrace.At(n.GetMeta().GetId()), req)
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		got[n.GetMeta().GetId()] = r
		return nil
	})
	var traces []render.NodeTrace
	for _, n := range nodes {
		if r := got[n.GetMeta().GetId()]; r != nil {
			traces = append(traces, render.NodeTrace{Node: n, Hops: r})
		}
	}
	if asJSON {
		if err := render.JSONTraces(a.Out, traces); err != nil {
			return err
		}
		return ferr
	}
	names := a.namesOf(ctx)
	for i, t := range traces {
		if i > 0 {
			a.printf("\n")
		}
		if len(nodes) > 1 {
			a.printf("%s:\n", render.Hostname(t.Node))
		}
		if err := render.Trace(t.Hops, names).Print(a.Out, "", false); err != nil {
			return err
		}
	}
	return ferr
}

// namesOf are the names of what nodes know by ids and addresses. The answer is of use without them too.
func (a *app) namesOf(ctx context.Context) render.Names {
	ctx = impatient(ctx)
	nodes, err := a.nodes(ctx)
	services, serr := a.services(ctx)
	tasks, terr := a.tasks(ctx)
	if err := errors.Join(err, serr, terr); err != nil {
		a.warnf("names are left out where they are not known: %v", err)
	}
	return render.NamesOf(nodes, services, tasks)
}

// completeTrace offers ports and tasks first, then, behind a task, the names it may know.
func (a *app) completeTrace(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 1 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	if len(args) == 1 {
		return a.completion(a.serviceNames, nil)
	}
	return a.completion(func(ctx context.Context) ([]string, error) {
		list, err := a.services(ctx)
		if err != nil {
			return nil, err
		}
		var out []string
		for _, s := range list {
			for _, p := range s.GetEndpoint().GetPorts() {
				if p.PublishedPort != 0 {
					out = append(out, fmt.Sprintf("%d/%s\t%s", p.PublishedPort, render.Protocol(p), s.GetSpec().GetName()))
				}
			}
		}
		tasks, err := a.taskNames(ctx)
		return append(out, tasks...), err
	}, nil)
}
