// Package roll plans how a new version of skep goes over a cluster, one node at a time, and judges when the next node may
// be touched. It asks nobody and changes nothing.
package roll

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/render"
)

// Plan is what is to be done.
type Plan struct {
	Next []*skepv1.Node // to be upgraded, in this order
	Same []*skepv1.Node // they have the version already
	Away []*skepv1.Node // they do not answer: left out
}

// Order plans the way of a version over nodes: the managers that do not lead, the leader, the workers. A manager of a newer
// version serves agents of an older one, and not the other way round. The leader changes once that way.
func Order(nodes []*skepv1.Node, version string) (p Plan) {
	for _, n := range nodes {
		switch {
		case n.GetStatus().GetState() != skepv1.NodeState_NODE_STATE_READY:
			p.Away = append(p.Away, n)
		case n.GetDescription().GetEngineVersion() == version && (n.GetManager().GetVersion() == "" || n.GetManager().GetVersion() == version):
			p.Same = append(p.Same, n)
		default:
			p.Next = append(p.Next, n)
		}
	}
	for _, l := range [][]*skepv1.Node{p.Next, p.Same, p.Away} {
		slices.SortStableFunc(l, func(a, b *skepv1.Node) int {
			return cmp.Or(cmp.Compare(rank(a), rank(b)), strings.Compare(render.Hostname(a), render.Hostname(b)))
		})
	}
	return p
}

func rank(n *skepv1.Node) int {
	switch {
	case n.GetManager().GetLeader():
		return 1
	case n.GetManager() != nil || n.GetSpec().GetRole() == skepv1.NodeRole_NODE_ROLE_MANAGER:
		return 0
	}
	return 2
}

// Role is what a node is, for people.
func Role(n *skepv1.Node) string { return [...]string{"manager", "leader", "worker"}[rank(n)] }

// Foreign are the nodes of the plan that are other machines than a program is built for. What is not known fits.
func (p Plan) Foreign(os, arch string) (out []*skepv1.Node) {
	for _, n := range p.Next {
		pl := n.GetDescription().GetPlatform()
		if arch != "" && pl.GetArch() != "" && machine(pl.GetArch()) != machine(arch) || os != "" && pl.GetOs() != "" && pl.GetOs() != os {
			out = append(out, n)
		}
	}
	return out
}

// machine is Go's name of a processor that a kernel may name otherwise.
func machine(arch string) string {
	switch arch {
	case "x86_64":
		return "amd64"
	case "aarch64":
		return "arm64"
	}
	return arch
}

// Cluster is what the gate looks at.
type Cluster struct {
	Nodes  []*skepv1.Node
	Group  *skepv1.ListManagersReply // nil: nobody says
	Locked []string                  // managers that wait for the unlock key
	Store  *skepv1.StoreStateReply   // as one manager has it, nil: nobody says
}

// Gate says why the next node may not be touched now, "" when it may: with it the cluster must still have a majority, and
// everything that was restarted before must be back.
func Gate(c Cluster, next *skepv1.Node) string {
	name := render.Hostname(next)
	now := find(c.Nodes, next.GetMeta().GetId())
	switch {
	case now == nil:
		return fmt.Sprintf("node %s is gone", name)
	case now.GetStatus().GetState() != skepv1.NodeState_NODE_STATE_READY:
		return fmt.Sprintf("node %s is %s", name, strings.ToLower(render.NodeState(now.GetStatus().GetState())))
	case c.Group == nil:
		return "no manager says how the group of managers is"
	case !c.Group.Led:
		return "the managers have no majority"
	}
	for _, n := range c.Nodes {
		if m := n.GetManager(); m != nil && m.Reachability != "reachable" {
			return fmt.Sprintf("manager %s is not reached by the others", render.Hostname(n))
		}
	}
	if s := c.Group.GetSet().GetStep(); s.GetAction() != "" {
		return "the group of managers is changing: skep node ls tells how"
	}
	for _, n := range c.Nodes {
		if m := n.GetManager(); m != nil && m.State != "" && m.State != "voter" {
			return fmt.Sprintf("manager %s is %s the group", render.Hostname(n), m.State)
		}
	}
	if rank(now) < 2 {
		if len(c.Locked) > 0 {
			return fmt.Sprintf("manager %s is locked: open it with skep unlock", strings.Join(c.Locked, ", "))
		}
		return behind(c.Store)
	}
	return ""
}

// behind says which stream has a replica that is not up to date: a majority that is restarted now may lack it.
func behind(s *skepv1.StoreStateReply) string {
	for _, st := range s.GetStreams() {
		if st.Err != "" || st.Leader == "" {
			return fmt.Sprintf("stream %s has no leader", st.Name)
		}
		for _, r := range st.Replicas {
			if r.Offline || !r.Current {
				return fmt.Sprintf("a replica of stream %s is not up to date", st.Name)
			}
		}
	}
	return ""
}

// Back says what is missing until a node that was upgraded is as it was before, "" when nothing is. before are the tasks
// that ran on it, now those that should.
func Back(nodes []*skepv1.Node, id, version string, before map[string]bool, now []*skepv1.Task) string {
	n := find(nodes, id)
	switch {
	case n == nil:
		return "it is gone"
	case n.GetDescription().GetEngineVersion() != version:
		return "it restarts"
	case n.GetStatus().GetState() != skepv1.NodeState_NODE_STATE_READY:
		return "it is " + strings.ToLower(render.NodeState(n.GetStatus().GetState()))
	case n.GetManager() != nil && n.GetManager().GetReachability() != "reachable":
		return "the other managers do not reach it yet"
	case n.GetManager() != nil && n.GetManager().GetVersion() != "" && n.GetManager().GetVersion() != version:
		return "its broker restarts"
	}
	missing := 0
	for _, t := range now {
		if before[t.GetMeta().GetId()] && t.GetStatus().GetState() < skepv1.TaskState_TASK_STATE_RUNNING {
			missing++
		}
	}
	if missing > 0 {
		return fmt.Sprintf("%d of the tasks that ran on it do not yet", missing)
	}
	return ""
}

func find(nodes []*skepv1.Node, id string) *skepv1.Node {
	for _, n := range nodes {
		if n.GetMeta().GetId() == id {
			return n
		}
	}
	return nil
}
