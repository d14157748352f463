package roll

import (
	"strings"
	"testing"

	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/render"
)

const (
	ready = skepv1.NodeState_NODE_STATE_READY
	down  = skepv1.NodeState_NODE_STATE_DOWN
)

func node(name, version string, state skepv1.NodeState) *skepv1.Node {
	return &skepv1.Node{
		Meta: &skepv1.Meta{Id: "id-" + name}, Spec: &skepv1.NodeSpec{Role: skepv1.NodeRole_NODE_ROLE_WORKER},
		Description: &skepv1.NodeDescription{Hostname: name, EngineVersion: version, Platform: &skepv1.Platform{Os: "linux", Arch: "x86_64"}},
		Status:      &skepv1.NodeLive{State: state},
	}
}

func manager(name, version string, leads bool) *skepv1.Node {
	n := node(name, version, ready)
	n.Spec.Role = skepv1.NodeRole_NODE_ROLE_MANAGER
	n.Manager = &skepv1.ManagerStatus{Leader: leads, Reachability: "reachable", State: "voter", Version: version}
	return n
}

func hosts(nodes []*skepv1.Node) string {
	var out []string
	for _, n := range nodes {
		out = append(out, render.Hostname(n))
	}
	return strings.Join(out, " ")
}

func TestOrder(t *testing.T) {
	gone := manager("m9", "1", false)
	gone.Status.State = down
	half := manager("m2", "2", false) // its broker is the old one's still
	half.Manager.Version = "1"
	for name, c := range map[string]struct {
		nodes            []*skepv1.Node
		next, same, away string
	}{
		"nobody":                    {nil, "", "", ""},
		"alone":                     {[]*skepv1.Node{manager("m1", "1", true)}, "m1", "", ""},
		"managers, leader, workers": {[]*skepv1.Node{node("w2", "1", ready), manager("m1", "1", true), manager("m3", "1", false), node("w1", "1", ready), manager("m2", "1", false)}, "m2 m3 m1 w1 w2", "", ""},
		"half way":                  {[]*skepv1.Node{manager("m1", "1", false), manager("m2", "2", true), node("w1", "2", ready), node("w2", "1", ready)}, "m1 w2", "m2 w1", ""},
		"away":                      {[]*skepv1.Node{manager("m1", "1", true), gone, node("w1", "1", down), node("w2", "1", ready)}, "m1 w2", "", "m9 w1"},
		"its broker is older":       {[]*skepv1.Node{half}, "m2", "", ""},
		"a manager to be is one":    {[]*skepv1.Node{node("w1", "1", ready), {Description: &skepv1.NodeDescription{Hostname: "w9"}, Spec: &skepv1.NodeSpec{Role: skepv1.NodeRole_NODE_ROLE_MANAGER}, Status: &skepv1.NodeLive{State: ready}}}, "w9 w1", "", ""},
	} {
		p := Order(c.nodes, "2")
		if hosts(p.Next) != c.next || hosts(p.Same) != c.same || hosts(p.Away) != c.away {
			t.Errorf("%s: %q, same %q, away %q", name, hosts(p.Next), hosts(p.Same), hosts(p.Away))
		}
	}
}

func TestForeign(t *testing.T) {
	arm, unsaid := node("w1", "1", ready), node("w2", "1", ready)
	arm.Description.Platform.Arch, unsaid.Description.Platform = "aarch64", nil
	p := Plan{Next: []*skepv1.Node{arm, unsaid, node("w3", "1", ready)}}
	if got := hosts(p.Foreign("linux", "amd64")); got != "w1" {
		t.Errorf("for amd64: %q", got)
	}
	if got := hosts(p.Foreign("linux", "arm64")); got != "w3" {
		t.Errorf("for arm64: %q", got)
	}
}

func TestGate(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Cluster)
		worker bool // that is to be upgraded
		want   string
	}{
		"all is well":            {func(*Cluster) {}, false, ""},
		"gone":                   {func(c *Cluster) { c.Nodes = c.Nodes[1:] }, false, "node m1 is gone"},
		"down":                   {func(c *Cluster) { c.Nodes[0].Status.State = down }, false, "node m1 is down"},
		"nobody says":            {func(c *Cluster) { c.Group = nil }, false, "no manager says how the group of managers is"},
		"no majority":            {func(c *Cluster) { c.Group.Led = false }, false, "the managers have no majority"},
		"a manager is away":      {func(c *Cluster) { c.Nodes[2].Manager.Reachability = "unreachable" }, false, "manager m3 is not reached by the others"},
		"also for a worker":      {func(c *Cluster) { c.Nodes[2].Manager.Reachability = "unreachable" }, true, "manager m3 is not reached by the others"},
		"a change":               {func(c *Cluster) { c.Group.Set.Step = &skepv1.ManagerStep{Action: "join"} }, false, "the group of managers is changing: skep node ls tells how"},
		"a manager joins":        {func(c *Cluster) { c.Nodes[1].Manager.State = "joining" }, false, "manager m2 is joining the group"},
		"a locked one":           {func(c *Cluster) { c.Locked = []string{"m2"} }, false, "manager m2 is locked: open it with skep unlock"},
		"locked, a worker":       {func(c *Cluster) { c.Locked = []string{"m2"} }, true, ""},
		"a replica is behind":    {func(c *Cluster) { c.Store.Streams[0].Replicas[0].Current = false }, false, "a replica of stream KV_spec is not up to date"},
		"a replica is away":      {func(c *Cluster) { c.Store.Streams[0].Replicas[0].Offline = true }, false, "a replica of stream KV_spec is not up to date"},
		"a stream has no leader": {func(c *Cluster) { c.Store.Streams[0].Leader = "" }, false, "stream KV_spec has no leader"},
		"behind, a worker":       {func(c *Cluster) { c.Store.Streams[0].Replicas[0].Current = false }, true, ""},
		"another node is down":   {func(c *Cluster) { c.Nodes[3].Status.State = down }, false, ""},
	} {
		nodes := []*skepv1.Node{manager("m1", "1", false), manager("m2", "1", true), manager("m3", "1", false), node("w1", "1", ready), node("w2", "1", ready)}
		next := nodes[0]
		if c.worker {
			next = nodes[4]
		}
		cl := Cluster{Nodes: nodes, Group: &skepv1.ListManagersReply{Led: true, Set: &skepv1.ManagerSet{}},
			Store: &skepv1.StoreStateReply{Streams: []*skepv1.StreamState{{Name: "KV_spec", Leader: "m1", Replicas: []*skepv1.StreamReplica{{Name: "m2", Current: true}}}}}}
		c.change(&cl)
		if got := Gate(cl, next); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestBack(t *testing.T) {
	task := func(id string, s skepv1.TaskState) *skepv1.Task {
		return &skepv1.Task{Meta: &skepv1.Meta{Id: id}, Status: &skepv1.TaskStatus{State: s}}
	}
	before := map[string]bool{"t1": true, "t2": true, "t3": true}
	// t3 is wanted no more, and t4 is new: neither is the upgrade's business.
	running := []*skepv1.Task{task("t1", skepv1.TaskState_TASK_STATE_RUNNING), task("t2", skepv1.TaskState_TASK_STATE_RUNNING), task("t4", skepv1.TaskState_TASK_STATE_PREPARING)}
	for name, c := range map[string]struct {
		change func(*skepv1.Node)
		tasks  []*skepv1.Task
		want   string
	}{
		"as before":         {func(*skepv1.Node) {}, running, ""},
		"still the old one": {func(n *skepv1.Node) { n.Description.EngineVersion = "1" }, running, "it restarts"},
		"down":              {func(n *skepv1.Node) { n.Status.State = down }, running, "it is down"},
		"not reached":       {func(n *skepv1.Node) { n.Manager.Reachability = "unreachable" }, running, "the other managers do not reach it yet"},
		"its broker":        {func(n *skepv1.Node) { n.Manager.Version = "1" }, running, "its broker restarts"},
		"a task":            {func(*skepv1.Node) {}, []*skepv1.Task{running[0], task("t2", skepv1.TaskState_TASK_STATE_STARTING)}, "1 of the tasks that ran on it do not yet"},
	} {
		n := manager("m1", "2", false)
		c.change(n)
		if got := Back([]*skepv1.Node{n}, "id-m1", "2", before, c.tasks); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	if got := Back(nil, "id-m1", "2", before, nil); got != "it is gone" {
		t.Errorf("gone: %q", got)
	}
}
