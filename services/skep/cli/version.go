package cli

import (
	"cmp"
	"context"
	"maps"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/conn"
	"skep.dev/services/skep/cli/render"
)

func (a *app) versionCommand() *cobra.Command {
	var format string
	var asJSON bool
	cmd := &cobra.Command{Use: "version [OPTIONS]", Short: "Show the versions of this command, of the local daemon and of the nodes", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			i := a.info(cmd.Context())
			v := &skepv1.VersionReply{Version: a.Version, Commit: a.Commit, GoVersion: runtime.Version(), ClusterId: i.ClusterID, NodeId: i.NodeID}
			switch {
			case asJSON:
				v.Nodes = a.versionsOfNodes(cmd.Context(), i)
				return render.JSONObject(a.Out, v)
			case format != "":
				return render.One(a.Out, map[string]any{
					"Client": map[string]any{"Version": a.Version, "GitCommit": a.Commit, "GoVersion": v.GoVersion, "Os": runtime.GOOS, "Arch": runtime.GOARCH, "Context": cmp.Or(a.contextName(), conn.Local)},
					"Server": map[string]any{"Version": i.Version, "NodeID": i.NodeID, "ClusterID": i.ClusterID},
				}, format)
			}
			a.printf("Client:\n Version:    %s\n", a.Version)
			if a.Commit != "" {
				a.printf(" Git commit: %s\n", a.Commit)
			}
			a.printf(" Go version: %s\n OS/Arch:    %s/%s\n", v.GoVersion, runtime.GOOS, runtime.GOARCH)
			if i.NodeID != "" {
				a.printf("\nNode:\n Version:    %s\n ID:         %s\n Cluster:    %s\n", i.Version, i.NodeID, i.ClusterID)
			}
			for k, s := range a.versionsOfNodes(cmd.Context(), i) {
				if k == 0 {
					a.printf("\nNodes:\n")
				}
				a.printf(" %s: %s\n", s.Version, strings.Join(s.Nodes, ", "))
			}
			return nil
		}}
	cmd.Flags().StringVarP(&format, "format", "f", "", "A Go template")
	cmd.Flags().BoolVar(&asJSON, "json", false, "Print it as JSON (a stable form)")
	return cmd
}

// versionsWithin is how long the managers may take to say which version runs where: what is asked for stands without it.
const versionsWithin = 3 * time.Second

// versionsOfNodes is which version runs on which nodes, as far as managers answer; nil where nobody can be asked.
func (a *app) versionsOfNodes(ctx context.Context, i conn.Info) (out []*skepv1.VersionOnNodes) {
	if i.Role != "manager" && a.contextName() == "" && a.Connect == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(impatient(ctx), versionsWithin)
	defer cancel()
	nodes, err := a.nodes(ctx)
	if err != nil {
		a.warnf("the versions of the nodes are not known: %v", err)
		return nil
	}
	on := map[string][]string{}
	for _, n := range nodes {
		v := n.GetDescription().GetEngineVersion()
		on[v] = append(on[v], render.Hostname(n))
	}
	for _, v := range slices.Sorted(maps.Keys(on)) {
		slices.Sort(on[v])
		out = append(out, &skepv1.VersionOnNodes{Version: v, Nodes: on[v]})
	}
	return out
}
