// Package doctor judges what a cluster says of itself: what is stored, what the mesh made of it and what the kernels of
// the nodes have, side by side; when certificates end, how clocks and stores are, and what nobody uses any more.
//
// It owns which differences are worth a line and what a reader should do about each. It asks nobody and changes nothing:
// the same picture gives the same answer. What changed while the picture was taken is left out, for a difference there
// may be no more than the order of the questions; so a fault that moves all the time stays unseen.
package doctor

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"skep.dev/libs/fault"

	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/render"
)

// Status is how bad a finding is.
type Status string

// From good to bad.
const (
	OK    Status = "ok"
	Warn  Status = "warning"
	Error Status = "error"
)

// Check is one line: what was looked at, and what to do about what was found.
type Check struct {
	Status Status `json:"status"`
	Check  string `json:"check"`
	Text   string `json:"text"`
}

// Stored is what the state service knows at one moment.
type Stored struct {
	Nodes    []*skepv1.Node
	Services []*skepv1.Service
	Networks []*skepv1.Network
	Tasks    []*skepv1.Task // those that should run
}

// Picture is all there is to judge by.
type Picture struct {
	// Before and After were read before the mesh and the nodes were asked, and afterwards.
	Before, After Stored
	// Mesh is who is behind published ports, as the mesh controller has it; MeshErr is why that is not known.
	Mesh    *skepv1.MeshNetworkReply
	MeshErr error
	// Lock is which managers wait for the unlock key, nil when nobody said.
	Lock *skepv1.AutolockState
	// Kernels are the answers of the nodes that are ready.
	Kernels []render.NodeMesh
	// Now is by a manager's clock where one says, else by that of who asks.
	Now time.Time
	// Clocks is how the nodes' clocks stand; here and below, the error is why that is not known.
	Clocks    *skepv1.ClocksReply
	ClocksErr error
	// Stores are the answers of the managers that are ready.
	Stores []NodeStore
	// State is what state found left over, Vault what the vault found.
	State    *skepv1.ClusterCheckReply
	StateErr error
	Vault    *skepv1.VaultCheckReply
	VaultErr error
	// Group is the managers as one of them knows them, nil when none says.
	Group *skepv1.ListManagersReply
	// Claims are which nodes hold which volumes.
	Claims    []*skepv1.VolumeClaim
	ClaimsErr error
	// KernelsErr is why no node was asked what its kernel has, nil when they were.
	KernelsErr error
	// Cluster is its settings, nil when nobody says; Backups are the managers' answers about scheduled backups.
	Cluster *skepv1.Cluster
	Backups []NodeBackups
}

// Examine judges the picture.
func Examine(p Picture) []Check {
	d := &exam{Picture: p, settled: settled(p)}
	d.duplicates()
	d.managers()
	d.nodes()
	d.lock()
	d.certificates()
	d.clocks()
	d.stores()
	d.services()
	d.files()
	d.binds()
	d.vault()
	d.leftovers()
	d.claims()
	d.backups()
	d.addresses()
	d.mesh()
	d.dataPath()
	d.kernels()
	d.unseen()
	return d.out
}

// Worst is the worst status of some checks.
func Worst(checks []Check) Status {
	worst := OK
	for _, c := range checks {
		if c.Status == Error || c.Status == Warn && worst == OK {
			worst = c.Status
		}
	}
	return worst
}

type exam struct {
	Picture
	settled settledParts
	out     []Check
	hidden  []string // what whoever asks may not see
}

func (d *exam) add(s Status, check, format string, a ...any) {
	d.out = append(d.out, Check{s, check, fmt.Sprintf(format, a...)})
}

// found adds what went wrong under one heading, or that nothing did.
func (d *exam) found(since int, check, fine string, a ...any) {
	if len(d.out) == since {
		d.add(OK, check, fine, a...)
	}
}

// byName are nodes in the order of their names.
func byName(nodes []*skepv1.Node) []*skepv1.Node {
	nodes = slices.Clone(nodes)
	slices.SortStableFunc(nodes, func(a, b *skepv1.Node) int {
		switch x, y := render.Hostname(a), render.Hostname(b); {
		case render.NaturalLess(x, y):
			return -1
		case render.NaturalLess(y, x):
			return 1
		}
		return 0
	})
	return nodes
}

// name is what a node is called, its id where it is not known.
func (d *exam) name(id string) string {
	for _, n := range d.After.Nodes {
		if n.GetMeta().GetId() == id {
			return render.Hostname(n)
		}
	}
	return id
}

// ref is what names a node in a command: its name, or its id where several nodes have that name.
func (d *exam) ref(id string) string {
	name, n := d.name(id), 0
	for _, o := range d.After.Nodes {
		if strings.EqualFold(render.Hostname(o), name) {
			n++
		}
	}
	if n == 1 && name != "" {
		return name
	}
	return id
}

// denied notes what whoever asks may not see, which is then not judged.
func (d *exam) denied(err error, what string) bool {
	if !fault.Is(err, fault.CodeDenied) {
		return false
	}
	if !slices.Contains(d.hidden, what) {
		d.hidden = append(d.hidden, what)
	}
	return true
}

// unseen tells what was not looked at.
func (d *exam) unseen() {
	d.denied(d.KernelsErr, "the nodes' kernels")
	if len(d.hidden) > 0 {
		d.add(Warn, "rights", "not looked at, because you may not see it: %s; ask somebody with role admin or operator to run skep doctor", strings.Join(d.hidden, ", "))
	}
}

// server is the name of the manager that a server of the store belongs to: <node>-<number>, or the node's id.
func (d *exam) server(name string) string {
	if i := strings.LastIndexByte(name, '-'); i > 0 {
		if host := d.name(name[:i]); host != name[:i] {
			return host
		}
	}
	return d.name(name)
}

// nodes looks at who is there.
func (d *exam) nodes() {
	nodes := byName(d.After.Nodes)
	ready, since := 0, len(d.out)
	versions := map[string][]string{}
	for _, n := range nodes {
		name, check := render.Hostname(n), "node "+render.Hostname(n)
		why := ""
		if m := n.GetStatus().GetMessage(); m != "" {
			why = " (" + m + ")"
		}
		switch n.GetStatus().GetState() {
		case skepv1.NodeState_NODE_STATE_READY:
			ready++
			if v := n.GetDescription().GetEngineVersion(); v != "" {
				versions[v] = append(versions[v], name)
			}
			if sick := n.GetDescription().GetTrouble(); sick != "" {
				d.add(Error, check, "it begins no tasks, and gets none, since %s: %s; what it runs goes on. If it does not recover, look at containerd's log there, or drain it: `skep node update --availability drain %s`",
					render.Ago(time.UnixMilli(n.GetDescription().GetTroubleSinceUnixMs()), d.Now), sick, n.GetMeta().GetId())
			}
			if !n.Witness && (n.Number == 0 || n.Subnet == "") {
				d.add(Error, check, "it has no subnet for its tasks: look for \"subnet\" in the log of the managers' state service")
			}
		case skepv1.NodeState_NODE_STATE_DOWN:
			s := Error
			if n.GetSpec().GetAvailability() == skepv1.Availability_AVAILABILITY_DRAIN {
				s = Warn // somebody took it out on purpose
			}
			d.add(s, check, "it is down%s: bring it back, or remove it with `skep node rm %s`", why, d.ref(n.GetMeta().GetId()))
		default:
			d.add(Warn, check, "it is %s%s: its managers have not heard of it lately", strings.ToLower(render.NodeState(n.GetStatus().GetState())), why)
		}
	}
	d.found(since, "nodes", "%d of %d ready", ready, len(nodes))
	if len(versions) > 1 {
		var parts []string
		for v, on := range versions {
			parts = append(parts, fmt.Sprintf("%s on %s", v, list(on)))
		}
		slices.Sort(parts)
		d.add(Warn, "versions", "nodes run different versions of skep, %s: finish the upgrade", strings.Join(parts, "; "))
	}
}

// services tells of those that do not run in full; why is another command's affair.
func (d *exam) services() {
	since := len(d.out)
	for _, s := range d.settled.services {
		st := s.GetStatus()
		if m := s.GetSpec().GetMode(); m.GetReplicatedJob() == nil && m.GetGlobalJob() == nil && st.GetRunning() < st.GetDesired() {
			d.add(Warn, "service "+s.GetSpec().GetName(), "%d of %d tasks run: `skep service explain %s` says why", st.GetRunning(), st.GetDesired(), s.GetSpec().GetName())
		}
		if u := s.GetUpdateStatus(); u.GetState() == "paused" || u.GetState() == "rollback_paused" {
			d.add(Warn, "service "+s.GetSpec().GetName(), "its %s: `skep service update` or `skep service rollback` goes on from there", pausedText(u))
		}
	}
	d.found(since, "services", "%s: all tasks run", count(len(d.settled.services), "service"))
}

func pausedText(u *skepv1.UpdateStatus) string {
	what := "update is paused"
	if u.State == "rollback_paused" {
		what = "rollback is paused"
	}
	if u.Message != "" {
		what += " (" + u.Message + ")"
	}
	return what
}

// mostNamed is how many things one line names.
const mostNamed = 5

func list(names []string) string {
	out := strings.Join(names[:min(len(names), mostNamed)], ", ")
	if more := len(names) - mostNamed; more > 0 {
		out += fmt.Sprintf(" and %d more", more)
	}
	return out
}

func count(n int, what string) string {
	switch {
	case n == 1:
	case strings.HasSuffix(what, "s"):
		what += "es"
	default:
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}
