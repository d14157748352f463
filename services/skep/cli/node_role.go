package cli

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/member"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/plain"
	"skep.dev/services/skep/cli/render"
)

const (
	worker  = skepv1.NodeRole_NODE_ROLE_WORKER
	manager = skepv1.NodeRole_NODE_ROLE_MANAGER
)

// lookAtRole is how often a change of the managers is looked at.
const lookAtRole = 500 * time.Millisecond

func (a *app) nodeRole(verb, short string, role skepv1.NodeRole) *cobra.Command {
	var w waitFlags
	long := "Make nodes managers. A promoted node restarts its services in their new role; its containers go on.\n\n" +
		"The command waits until the node keeps a copy of the cluster's state. An odd number of managers is best: three bear the loss of one, five of two."
	if role == worker {
		long = "Make managers workers. The others take over what the manager kept, one change at a time; its containers go on.\n\n" +
			"The command waits until the node is a worker. The last manager is not demoted, nor one that the others need for a majority."
	}
	cmd := &cobra.Command{Use: verb + " [OPTIONS] NODE [NODE...]", Short: short, Long: long, Args: minArgs(1), ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			changed := false
			err := a.each(ctx, args, func(name string) error {
				did, err := a.changeRole(ctx, name, role, &w)
				changed = changed || did
				return err
			})
			if changed {
				a.adviseManagers(ctx)
			}
			return err
		}}
	f := cmd.Flags()
	f.BoolVarP(&w.detach, "detach", "d", false, "Return at once instead of waiting for the change")
	f.BoolVarP(&w.quiet, "quiet", "q", false, "Do not show progress")
	f.Var((*timeoutFlag)(&w.timeout), "timeout", "Stop waiting after this long, with exit status 4 (0 = wait as long as it takes)")
	return cmd
}

// changeRole promotes or demotes one node, and reports whether there was something to do.
func (a *app) changeRole(ctx context.Context, name string, role skepv1.NodeRole, w *waitFlags) (bool, error) {
	ref, err := a.node(ctx, name)
	if err != nil {
		return false, err
	}
	n, err := a.inspectNode(ctx, ref)
	if err != nil {
		return false, err
	}
	if n.GetSpec().GetRole() == role {
		a.printf("Node %s is already a %s.\n", name, roleWord(role))
		return false, nil
	}
	id := n.GetMeta().GetId()
	changed, err := call(ctx, a, api.NodeUpdate, &skepv1.UpdateNodeRequest{Ref: id, Role: &role})
	if err != nil {
		return false, err
	}
	if !w.detach {
		if err := a.awaitRole(ctx, id, name, role, changed.GetNode().GetMeta().GetVersion(), w); err != nil {
			return true, err
		}
	}
	if role == manager {
		a.printf("Node %s promoted to a manager in the swarm.\n", name)
	} else {
		a.printf("Manager %s demoted in the swarm.\n", name)
	}
	if role == worker && n.GetWitness() {
		a.printf("It is a witness, and without its vote it does nothing: skep node promote %s gives it back; skep leave --force there takes it out of the swarm.\n", name)
	}
	return true, nil
}

func roleWord(r skepv1.NodeRole) string {
	if r == manager {
		return "manager"
	}
	return "worker"
}

// awaitRole waits until a node that was promoted keeps the store, or one that was demoted is a worker. since is the node's version
// by the change: another manager's answer may be older for a moment.
func (a *app) awaitRole(ctx context.Context, id, name string, role skepv1.NodeRole, since uint64, w *waitFlags) error {
	const goesOn = "The change goes on without this command; `skep node ls` shows how far it is"
	var deadline <-chan time.Time
	if w.timeout > 0 {
		t := time.NewTimer(w.timeout)
		defer t.Stop()
		deadline = t.C
	}
	said := ""
	for {
		n, err := a.inspectNode(impatient(ctx), id)
		line, done := "", false
		switch {
		case ctx.Err() != nil:
		case err == nil && n.GetMeta().GetVersion() < since:
		case err == nil:
			line, done, err = roleStep(n, a.group(ctx), role)
		case role == worker && a.demotedHere(ctx, id):
			return nil // who was asked is a manager no more, and nobody answers here
		case fault.Is(err, fault.CodeUnavailable):
			line, err = "no manager answers; the change goes on when they are back", nil
		}
		switch {
		case err != nil:
			return err
		case done:
			return nil
		case line != said && line != "" && !w.quiet:
			a.tellf("%s: %s\n", name, line)
			said = line
		}
		select {
		case <-ctx.Done():
			a.tellf("%s.\n", goesOn)
			return ctx.Err()
		case <-deadline:
			return &Failure{ExitTimeout, plain.Errorf("node %s is no %s after %s: %s\n%s", name, roleWord(role), w.timeout, said, goesOn)}
		case <-time.After(lookAtRole):
		}
	}
}

// demotedHere: the node is this one, and it says that it is a worker.
func (a *app) demotedHere(ctx context.Context, id string) bool {
	i := a.info(ctx)
	return i.NodeID == id && i.Role == "worker"
}

// roleStep says how far a node's change of role is, and whether it is done. Without a group, as an older version has it,
// there is nothing to wait for.
func roleStep(n *skepv1.Node, g *skepv1.ListManagersReply, role skepv1.NodeRole) (line string, done bool, err error) {
	if n.GetSpec().GetRole() != role {
		return "", false, fault.Conflict("node %s was made a %s again meanwhile", render.Hostname(n), roleWord(n.GetSpec().GetRole()))
	}
	m := n.GetManager()
	if m == nil && role == worker || m.GetState() == "" && m.GetReachability() != "" {
		return "", true, nil
	}
	if role == manager && m.GetState() == "voter" {
		return "", true, nil
	}
	step := stepText(g)
	switch {
	case step != "":
		return step, false, nil
	case role == worker:
		return "it waits to be let go", false, nil
	case n.GetStatus().GetState() == skepv1.NodeState_NODE_STATE_DOWN:
		return "it is down, and becomes a manager when it is back", false, nil
	case m.GetState() == "joining":
		return "it restarts as a manager and asks to be let in", false, nil
	}
	return "it becomes a manager", false, nil
}

// group is the managers as one of them knows them, nil when none says.
func (a *app) group(ctx context.Context) *skepv1.ListManagersReply {
	g, err := say(impatient(ctx), a, api.ManagerList, &skepv1.Empty{})
	if err != nil {
		return nil
	}
	return g
}

// stepText is the change of the group that is under way, for people; "" when there is none.
func stepText(g *skepv1.ListManagersReply) string {
	s := g.GetSet().GetStep()
	if s == nil || s.Action == "" {
		return ""
	}
	who := s.NodeId
	for _, m := range g.GetSet().GetManagers() {
		if m.NodeId == s.NodeId && m.Hostname != "" {
			who = m.Hostname
		}
	}
	text := strings.TrimSpace(s.Action + " " + who)
	if s.WaitsFor != "" {
		text += ", waits: " + s.WaitsFor
	}
	return text
}

// tellStep notes beside a list of nodes that the group of managers is changing.
func (a *app) tellStep(ctx context.Context, list []*skepv1.Node) {
	managers := 0
	for _, n := range list {
		if n.GetManager() != nil || n.GetSpec().GetRole() == manager {
			managers++
		}
	}
	if managers < 2 {
		return // there is nobody to change places with
	}
	g := a.group(ctx)
	if text := stepText(g); text != "" {
		a.tellf("The managers are changing: %s\n", text)
	}
}

// adviseManagers warns of a number of managers that is not worth having.
func (a *app) adviseManagers(ctx context.Context) {
	nodes, err := a.nodes(impatient(ctx))
	if err != nil {
		return // it is advice
	}
	managers := 0
	for _, n := range nodes {
		if n.GetSpec().GetRole() == manager {
			managers++
		}
	}
	if text := member.Advice(managers); text != "" {
		a.warnf("%s", text)
	}
}
