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

	"skep.dev/libs/cron"
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

func (a *app) infoCommand() *cobra.Command {
	var format string
	cmd := &cobra.Command{Use: "info [OPTIONS]", Short: "Show what this node is and what the cluster holds", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			i := a.info(ctx)
			var nodes []*skepv1.Node
			var services []*skepv1.Service
			var err error
			manager := i.Role == "manager" || a.contextName() != "" || a.Connect != nil
			if manager {
				if nodes, err = a.nodes(ctx); err == nil {
					services, err = a.services(ctx)
				}
				if err != nil {
					return err
				}
			}
			var lock *skepv1.AutolockState
			if manager {
				lock = a.lockState(ctx)
			}
			locked := lockedNames(lock)
			fence := ""
			var backups *skepv1.BackupPlan
			if manager {
				if c, err := a.cluster(impatient(ctx)); err == nil { // what is not known is not shown
					fence, backups = c.GetSpec().GetFenceCommand(), c.GetSpec().GetBackups()
				}
			}
			managers, reachable, ready := 0, 0, 0
			var running, desired uint64
			for _, n := range nodes {
				if n.Manager != nil {
					managers++
					if n.Manager.Reachability == "reachable" {
						reachable++
					}
				}
				if n.GetStatus().GetState() == skepv1.NodeState_NODE_STATE_READY {
					ready++
				}
			}
			for _, s := range services {
				running += s.GetStatus().GetRunning()
				desired += s.GetStatus().GetDesired()
			}
			state := i.State
			for _, m := range lock.GetManagers() {
				if m.Locked && m.NodeId == i.NodeID {
					state = "locked"
				}
			}
			if format != "" {
				return render.One(a.Out, map[string]any{
					"ID": i.NodeID, "Name": i.Hostname, "ServerVersion": i.Version,
					"Swarm": map[string]any{"NodeID": i.NodeID, "NodeAddr": i.Addr, "LocalNodeState": localNodeState(i.NodeID, state), "Error": "", "ControlAvailable": manager, "Nodes": len(nodes), "Managers": managers, "ManagersReachable": reachable,
						"AutoLockManagers": lock.GetOn(), "LockedManagers": locked, "FenceCommand": fence, "BackupSchedule": backups.GetCron(), "RemoteManagers": remoteManagers(i.ManagerAddrs, nodes), "Cluster": map[string]any{"ID": i.ClusterID}},
					"Services": len(services), "TasksRunning": running, "TasksDesired": desired,
				}, format)
			}
			where := a.contextName()
			if where == "" {
				where = "default (this machine)"
			}
			a.printf("Context: %s\n", where)
			if i.NodeID == "" && !manager {
				a.printf("Swarm: inactive\n Use \"skep init\" or \"skep join\" to connect this node to a swarm.\n")
				return nil
			}
			if i.NodeID != "" {
				a.printf("Node:\n ID: %s\n Hostname: %s\n Role: %s\n State: %s\n Address: %s\n Version: %s\n", i.NodeID, i.Hostname, i.Role, cmp.Or(state, "active"), i.Addr, i.Version)
				if i.Upgrade != "" {
					a.printf(" Upgrade: %s\n", i.Upgrade)
				}
				a.printf("Swarm:\n Cluster ID: %s\n", i.ClusterID)
				for _, m := range i.ManagerAddrs {
					a.printf(" Manager: %s\n", m)
				}
			} else {
				a.printf("Swarm:\n")
			}
			if manager {
				a.printf(" Managers: %d, reachable %d\n Nodes: %d (%d ready)\n Services: %d\n Tasks: %d running of %d desired\n", managers, reachable, len(nodes), ready, len(services), running, desired)
			}
			if lock != nil {
				a.printf(" Autolock Managers: %v\n", lock.On)
			}
			if fence != "" {
				a.printf(" Fencing Command: %s\n", fence)
			}
			if backups != nil {
				a.printf(" Backup Schedule: %s, %d kept on each manager\n", cron.Words(&skepv1.Schedule{Cron: backups.Cron, TimeZone: backups.TimeZone}), backups.Keep)
			}
			if len(locked) > 0 {
				a.printf(" Locked: %s (no secrets, joins and certificates until `skep unlock`)\n", strings.Join(locked, ", "))
			}
			return nil
		}}
	cmd.Flags().StringVarP(&format, "format", "f", "", "A Go template")
	return cmd
}

// localNodeState is Docker's word for the state of this machine's node.
func localNodeState(node, state string) string {
	if node == "" {
		return "inactive"
	}
	switch state {
	case "starting":
		return "pending"
	case "failed":
		return "error"
	case "locked":
		return state
	}
	return "active"
}

type remoteManager struct{ NodeID, Addr string }

// remoteManagers are the managers' addresses in Docker's form, with the ids of those nodes that are known.
func remoteManagers(addrs []string, nodes []*skepv1.Node) []remoteManager {
	out := []remoteManager{}
	for _, a := range addrs {
		m := remoteManager{Addr: a}
		for _, n := range nodes {
			if n.GetManager().GetAddr() == a {
				m.NodeID = n.GetMeta().GetId()
			}
		}
		out = append(out, m)
	}
	return out
}
