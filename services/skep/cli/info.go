package cli

import (
	"strings"

	"github.com/spf13/cobra"

	"skep.dev/libs/cron"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/render"
)

func (a *app) infoCommand() *cobra.Command {
	var format string
	cmd := &cobra.Command{Use: "info [OPTIONS]", Short: "Show what this node is and what the cluster holds", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			i, how := a.standing(ctx)
			var nodes []*skepv1.Node
			var services []*skepv1.Service
			var err error
			manager := i.Role == "manager" && how.state != "down" || a.contextName() != "" || a.Connect != nil
			if manager {
				if nodes, err = a.nodes(ctx); err == nil {
					services, err = a.services(ctx)
				}
			}
			if err != nil && (i.NodeID == "" || format != "") {
				return err
			}
			var lock *skepv1.AutolockState
			if manager && err == nil {
				lock = a.lockState(ctx)
			}
			locked := lockedNames(lock)
			fence := ""
			var backups *skepv1.BackupPlan
			if manager && err == nil {
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
			for _, m := range lock.GetManagers() {
				if m.Locked && m.NodeId == i.NodeID {
					how = standing{state: "locked"}
				}
			}
			if format != "" {
				return render.One(a.Out, map[string]any{
					"ID": i.NodeID, "Name": i.Hostname, "ServerVersion": i.Version,
					"Swarm": map[string]any{"NodeID": i.NodeID, "NodeAddr": i.Addr, "LocalNodeState": how.docker(), "Error": how.text(a.Now()), "ControlAvailable": manager, "Nodes": len(nodes), "Managers": managers, "ManagersReachable": reachable,
						"AutoLockManagers": lock.GetOn(), "LockedManagers": locked, "FenceCommand": fence, "BackupSchedule": backups.GetCron(), "RemoteManagers": remoteManagers(i.ManagerAddrs, nodes), "Cluster": map[string]any{"ID": i.ClusterID}},
					"Services": len(services), "TasksRunning": running, "TasksDesired": desired,
				}, format)
			}
			where := a.contextName()
			if where == "" {
				where = "default (this machine)"
			}
			a.printf("Context: %s\n", where)
			if i.NodeID == "" && !manager && how.why != "" {
				a.printf("Swarm: %s: %s\n", how.state, how.why)
				return nil
			}
			if i.NodeID == "" && !manager {
				a.printf("Swarm: inactive\n Use \"skep init\" or \"skep join\" to connect this node to a swarm.\n")
				return nil
			}
			if i.NodeID != "" {
				a.printf("Node:\n ID: %s\n Hostname: %s\n Role: %s\n State: %s\n Address: %s\n Version: %s\n", i.NodeID, i.Hostname, i.Role, how.line(a.Now()), i.Addr, i.Version)
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
			if err != nil {
				return err // what is known was told
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
