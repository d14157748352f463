package cli

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/plain"
	"skep.dev/services/skep/cli/render"
)

func (a *app) nodePrune() *cobra.Command {
	var force, dry bool
	var downFor time.Duration
	cmd := &cobra.Command{Use: "prune [OPTIONS]", Short: "Remove the workers that have been down for long", Args: noArgs,
		Long: "Remove the workers that have been down for long. It lists them and asks before it removes any.\n\n" +
			"Managers and witnesses are never among them, nor are nodes that hold volumes with a single writer: nobody knows whether those still write. " +
			"They are named, with the command that removes each. A node that comes back meanwhile stays.",
		Example: "  skep node prune --dry-run\n  skep node prune --down-for 168h",
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			if downFor < 0 {
				return Usagef("--down-for must not be negative")
			}
			gone, kept, err := a.downFor(ctx, downFor)
			if err != nil {
				return err
			}
			for _, k := range kept {
				a.warnf("node %s stays: it has been down for %s, and %s", nameAndID(k.node), a.down(k.node), k.why)
			}
			if len(gone) == 0 {
				a.tellf("No worker has been down for %s or longer.\n", downFor)
				return nil
			}
			if dry || !force {
				a.printf("To be removed:\n")
				for _, n := range gone {
					a.printf("  %s, down for %s\n", nameAndID(n), a.down(n))
				}
			}
			if dry {
				return nil
			}
			if !force {
				if err := a.confirm(ctx, "node prune"); err != nil {
					return err
				}
			}
			return a.removeDown(ctx, gone)
		}}
	f := cmd.Flags()
	f.DurationVar(&downFor, "down-for", 24*time.Hour, "How long a node has been down at least")
	f.BoolVarP(&force, "force", "f", false, "Do not ask")
	f.BoolVar(&dry, "dry-run", false, "Only list them")
	return cmd
}

// keptNode is a node that is down and that only a person may remove.
type keptNode struct {
	node *skepv1.Node
	why  string
}

// downFor are the nodes that have been down for so long: those to remove, and those that stay.
func (a *app) downFor(ctx context.Context, least time.Duration) (gone []*skepv1.Node, kept []keptNode, err error) {
	nodes, err := a.nodes(ctx)
	if err != nil {
		return nil, nil, err
	}
	claims, err := a.claims(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("ask which nodes hold volumes: %w", err)
	}
	slices.SortFunc(nodes, func(x, y *skepv1.Node) int {
		return cmp.Or(render.NaturalCompare(render.Hostname(x), render.Hostname(y)), cmp.Compare(x.GetMeta().GetId(), y.GetMeta().GetId()))
	})
	for _, n := range nodes {
		st, id := n.GetStatus(), n.GetMeta().GetId()
		// Since when it is down is the managers' word: without it, it is not long.
		if st.GetState() != skepv1.NodeState_NODE_STATE_DOWN || st.GetSinceUnixMs() == 0 || a.Now().Sub(time.UnixMilli(st.SinceUnixMs)) < least {
			continue
		}
		held := slices.IndexFunc(claims, func(c *skepv1.VolumeClaim) bool { return c.GetNodeId() == id })
		switch {
		case n.GetWitness() || n.GetManager().GetWitness():
			kept = append(kept, keptNode{n, "it is a witness: if it is gone for good, skep node rm --force " + id})
		case n.GetManager() != nil || n.GetRole() == manager || n.GetSpec().GetRole() == manager:
			kept = append(kept, keptNode{n, "it is a manager: if it is gone for good, skep node rm --force " + id})
		case held >= 0:
			kept = append(kept, keptNode{n, "it holds volume " + claims[held].GetName() + ": if it is surely off, skep node rm " + id})
		default:
			gone = append(gone, n)
		}
	}
	return gone, kept, nil
}

// removeDown removes nodes without force, so that the managers refuse one that is not down any more.
func (a *app) removeDown(ctx context.Context, nodes []*skepv1.Node) error {
	return a.each(ctx, nodeIDs(nodes), func(id string) error {
		_, err := call(ctx, a, api.NodeRemove, &skepv1.RemoveNodeRequest{Ref: id})
		switch {
		case fault.Is(err, fault.CodeNotFound):
			return nil // somebody else removed it
		case fault.Is(err, fault.CodeInvalid):
			a.warnf("%v", err) // it is back
			return nil
		case err != nil:
			return err
		}
		a.printf("%s\n", id)
		return nil
	})
}

func nodeIDs(nodes []*skepv1.Node) []string {
	var out []string
	for _, n := range nodes {
		out = append(out, n.GetMeta().GetId())
	}
	return out
}

// down is since when a node is down, as people say it.
func (a *app) down(n *skepv1.Node) string {
	return a.Now().Sub(time.UnixMilli(n.GetStatus().GetSinceUnixMs())).Round(time.Second).String()
}

func nameAndID(n *skepv1.Node) string {
	return plain.Cell(render.Hostname(n)) + " (" + n.GetMeta().GetId() + ")"
}
