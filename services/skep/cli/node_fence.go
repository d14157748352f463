package cli

import (
	"github.com/spf13/cobra"

	"skep.dev/libs/api"
	skepv1 "skep.dev/proto/skep/v1"
)

func (a *app) nodeFence() *cobra.Command {
	r := &skepv1.FenceNodeRequest{}
	cmd := &cobra.Command{Use: "fence [OPTIONS] NODE", Short: "Say that a node that is down is cut off, so that others may have its volumes", Args: exactArgs(1), ValidArgsFunction: a.completeNodes,
		Long: "Say that a node that is down is cut off: it has no power, or no way to the storage.\n\nThe cluster cannot tell a machine that is off from one that is cut off and goes on writing, so volumes with a single writer " +
			"stay with a node that is down until somebody says so, or the cluster's fencing command does (skep swarm update --fence-cmd). A node that says it is up is refused. The fence ends by itself when the node is back and has taken its new tasks.",
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := a.node(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			r.Ref = ref
			if _, err := call(cmd.Context(), a, api.NodeFence, r); err != nil {
				return err
			}
			a.printf("%s\n", args[0])
			return nil
		}}
	cmd.Flags().BoolVar(&r.Undo, "undo", false, "It was a mistake: the node is not cut off. What has moved since stays where it is")
	return cmd
}
