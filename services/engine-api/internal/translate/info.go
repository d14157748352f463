package translate

import (
	"cmp"
	"slices"

	"github.com/moby/moby/api/types/swarm"

	skepv1 "skep.dev/proto/skep/v1"
)

// LocalNode is what a node knows of itself.
type LocalNode struct {
	ID, Addr string
	State    swarm.LocalNodeState
	Manager  bool
	Err      string
}

// SwarmInfo is the part of GET /info about the cluster. A worker knows managers at most, and no cluster:
// nil.
func SwarmInfo(local LocalNode, nodes []*skepv1.Node, cluster *skepv1.Cluster, view ClusterView) swarm.Info {
	out := swarm.Info{NodeID: local.ID, NodeAddr: local.Addr, LocalNodeState: local.State, ControlAvailable: local.Manager, Error: local.Err}
	managers := 0
	for _, n := range nodes {
		if n.GetManager() == nil {
			continue
		}
		managers++
		out.RemoteManagers = append(out.RemoteManagers, swarm.Peer{NodeID: n.GetMeta().GetId(), Addr: n.GetManager().GetAddr()})
	}
	slices.SortFunc(out.RemoteManagers, func(a, b swarm.Peer) int { return cmp.Compare(a.NodeID, b.NodeID) })
	if local.Manager {
		out.Nodes, out.Managers = len(nodes), managers
	}
	if local.Manager && cluster != nil {
		info := ClusterToDocker(cluster, view).ClusterInfo
		out.Cluster = &info
	}
	return out
}
