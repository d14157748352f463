package index

import (
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/kv"
	skepv1 "skep.dev/proto/skep/v1"
)

// HeardWithin is how long a manager counts as reachable after its broker was heard of, which it is every second.
const HeardWithin = 5 * time.Second

// beat is a manager's last sign of life. at is by this machine's clock, and its monotonic reading is compared: clocks that
// are set do not make managers unreachable.
type beat struct {
	*skepv1.ManagerBeat
	at time.Time
}

// applyManagersLocked takes the group as the bus wrote it down. One that nobody can read leaves the last one.
func (x *Index) applyManagersLocked(e kv.Entry) {
	if e.Deleted {
		x.group = nil
		return
	}
	set := &skepv1.ManagerSet{}
	if proto.Unmarshal(e.Value, set) == nil {
		x.group = set
	}
}

// Listens notes that managers are heard from now on: one that is not is unreachable HeardWithin later.
func (x *Index) Listens(from time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.began = from
}

// Heard takes a manager's sign of life. Of what is no manager here none is kept, nor one of a cluster that is over.
func (x *Index) Heard(b *skepv1.ManagerBeat, at time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if _, is := x.managers[b.NodeId]; is && b.Epoch >= x.group.GetEpoch() {
		x.beats[b.NodeId] = beat{b, at}
	}
}

// Turned takes the nodes whose certified role has changed since it was asked last.
func (x *Index) Turned() []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	out := x.turned
	x.turned = nil
	return out
}

// ManagerSet is the group as the bus wrote it down, nil while it has not.
func (x *Index) ManagerSet() *skepv1.ManagerSet {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return proto.CloneOf(x.group)
}

// Desired are the nodes that are to be managers, in order.
func (x *Index) Desired() (out []string) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for id := range x.managers {
		if x.nodes[id].desired == skepv1.NodeRole_NODE_ROLE_MANAGER {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

// Witnesses are the nodes that joined as witnesses.
func (x *Index) Witnesses() map[string]bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	out := map[string]bool{}
	for id, n := range x.nodes {
		if n.witness {
			out[id] = true
		}
	}
	return out
}

// Role is a node's role as it is to be certified, false when there is no such node.
func (x *Index) Role(id string) (skepv1.NodeRole, bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	n := x.nodes[id]
	if n == nil || n.rev == 0 {
		return 0, false
	}
	return n.role, true
}

// ManagerHosts are the addresses that certified managers describe themselves with, in order: good while there is no group.
func (x *Index) ManagerHosts() (out []string) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for id := range x.managers {
		n := x.nodes[id]
		var d skepv1.NodeDescription
		if n.role == skepv1.NodeRole_NODE_ROLE_MANAGER && n.desc.rev != 0 && proto.Unmarshal(n.desc.raw, &d) == nil && d.Addr != "" {
			out = append(out, d.Addr)
		}
	}
	slices.Sort(out)
	return out
}

// managerLocked is what is shown of a node as a manager, nil for one that is none.
func (x *Index) managerLocked(n *skepv1.Node, now time.Time) *skepv1.ManagerStatus {
	if n.Role != skepv1.NodeRole_NODE_ROLE_MANAGER {
		return nil
	}
	id := n.Meta.Id
	b := x.beats[id]
	fresh := b.ManagerBeat != nil && now.Sub(b.at) < HeardWithin
	m := &skepv1.ManagerStatus{Addr: n.Description.Addr, Reachability: "unknown", Version: b.GetVersion(), Server: b.GetServer(), Witness: n.Witness}
	if a := b.GetAddr(); a != "" {
		m.Addr = a
	}
	in := x.memberLocked(id)
	switch {
	case in != nil:
		m.State, m.Server = stateWord(in.State), in.Server
		if in.Addr != "" {
			m.Addr = in.Addr
		}
	case x.group == nil:
	case n.Spec.Role == skepv1.NodeRole_NODE_ROLE_MANAGER:
		m.State = "joining"
	default:
		m.State = "leaving"
	}
	switch {
	case x.loneLocked(id): // whoever answers runs on it
		m.Leader, m.Reachability = true, "reachable"
		return m
	case fresh:
		m.Reachability = "reachable"
	case x.group == nil: // nobody counts the beats of what is no group: how the node is has to do
		switch n.Status.State {
		case skepv1.NodeState_NODE_STATE_READY:
			m.Reachability = "reachable"
		case skepv1.NodeState_NODE_STATE_DOWN:
			m.Reachability = "unreachable"
		}
	case in != nil && !x.began.IsZero() && now.Sub(x.began) >= HeardWithin:
		m.Reachability = "unreachable"
	}
	if m.Leader = x.leaderLocked(now) == id; x.group == nil && len(x.beats) == 0 {
		m.Leader = x.leases["scheduler"] == id
	}
	return m
}

func (x *Index) memberLocked(id string) *skepv1.Manager {
	for _, m := range x.group.GetManagers() {
		if m.NodeId == id {
			return m
		}
	}
	return nil
}

// loneLocked: it is the only manager, and no other is in the group or about to come.
func (x *Index) loneLocked(id string) bool {
	_, is := x.managers[id]
	return is && len(x.managers) == 1 && (x.group == nil || len(x.group.Managers) == 1 && x.group.Managers[0].NodeId == id)
}

// leaderLocked is the manager that says it leads the group. While the lead changes hands two may say so: the one that was
// heard last is right.
func (x *Index) leaderLocked(now time.Time) (leader string) {
	var at time.Time
	for id, b := range x.beats {
		if b.Leader && now.Sub(b.at) < HeardWithin && (leader == "" || b.at.After(at)) {
			leader, at = id, b.at
		}
	}
	return leader
}

func stateWord(s skepv1.ManagerState) string {
	switch s {
	case skepv1.ManagerState_MANAGER_STATE_JOINING:
		return "joining"
	case skepv1.ManagerState_MANAGER_STATE_VOTER:
		return "voter"
	case skepv1.ManagerState_MANAGER_STATE_LEAVING:
		return "leaving"
	}
	return ""
}

// Reachable are the managers that were heard of lately, or, alone, the one there is.
func (x *Index) Reachable() map[string]bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	out, now := map[string]bool{}, time.Now()
	for id := range x.managers {
		b := x.beats[id]
		out[id] = x.loneLocked(id) || b.ManagerBeat != nil && now.Sub(b.at) < HeardWithin
	}
	return out
}
