package doctor

import (
	"fmt"
	"slices"
	"strings"

	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/render"
)

// mesh compares the services that publish ports with what the mesh controller made of them.
func (d *exam) mesh() {
	const check = "mesh"
	if d.denied(d.MeshErr, "what the mesh made of the services") {
		return
	}
	if d.MeshErr != nil {
		d.add(Error, check, "its controller does not answer, so nodes keep what they have and learn nothing new: %v", d.MeshErr)
		return
	}
	since := len(d.out)
	ports := 0
	for _, s := range d.settled.services {
		name, published := s.GetSpec().GetName(), onMesh(s)
		if len(published) == 0 {
			continue
		}
		ports += len(published)
		m := d.meshService(s.GetMeta().GetId())
		for _, p := range published {
			label := fmt.Sprintf("%d/%s", p.PublishedPort, portOf(p).protocol)
			switch {
			case m == nil || !slices.ContainsFunc(m.GetService().GetPorts(), func(o *skepv1.PortConfig) bool { return portOf(o) == portOf(p) && o.TargetPort == p.TargetPort }):
				d.add(Error, "port "+label, "the mesh does not know that service %s publishes it: look at the log of the mesh controller on the managers", name)
			case s.GetStatus().GetRunning() > 0 && d.serving(m) == 0:
				d.add(Warn, "port "+label, "no task of service %s serves it: tasks run, and none is healthy and about to stay (skep service ps %s)", name, name)
			}
		}
	}
	d.found(since, check, "its controller answers and has %s", count(ports, "published port"))
}

func (d *exam) meshService(id string) *skepv1.MeshNetworkService {
	for _, m := range d.Mesh.GetServices() {
		if m.GetService().GetId() == id {
			return m
		}
	}
	return nil
}

// serving counts the tasks behind a service that ran all the time.
func (d *exam) serving(m *skepv1.MeshNetworkService) int {
	n := 0
	for _, t := range m.GetTasks() {
		if t.Serving && d.settled.running[t.TaskId] != nil {
			n++
		}
	}
	return n
}

// kernels compares what every node has with what services ask for, and passes on what nodes found themselves.
func (d *exam) kernels() {
	list := slices.Clone(d.Kernels)
	slices.SortStableFunc(list, func(a, b render.NodeMesh) int {
		if render.NaturalLess(render.Hostname(a.Node), render.Hostname(b.Node)) {
			return -1
		}
		return 1
	})
	lost := d.lost()
	for _, k := range list {
		name := render.Hostname(k.Node)
		check := "mesh of " + name
		if k.Err != nil {
			d.add(Error, check, "%v", k.Err)
			continue
		}
		since := len(d.out)
		for _, f := range k.State.GetFindings() {
			if lost[strings.TrimPrefix(f.Subject, "peer ")] && strings.HasPrefix(f.Subject, "peer ") {
				continue // that it is down is told once
			}
			s, text := Warn, f.Text
			if f.Severity == "error" {
				s = Error
			}
			if network, is := strings.CutPrefix(f.Subject, "network "); is && s == Error && !d.runsOn(k.Node, network) {
				// It is on its way to this node or away from it, and no task here feels it.
				s, text = Warn, text+" (no task of this node is on it all the time: if that stays, look at skep's log there)"
			}
			d.add(s, check+": "+f.Subject, "%s", text)
		}
		d.missingPorts(k)
		d.missingNetworks(k)
		peers := 0
		for _, p := range k.State.GetPeers() {
			if p.Reachable {
				peers++
			}
		}
		d.found(since, check, "%s and %s as they should be, %s reachable", count(len(k.State.GetPorts()), "port"), count(len(k.State.GetNetworks()), "network"), count(peers, "peer"))
	}
}

// runsOn reports whether a task on a network ran on the node all the time.
func (d *exam) runsOn(n *skepv1.Node, network string) bool {
	for _, t := range d.settled.running {
		if t.NodeId != n.GetMeta().GetId() {
			continue
		}
		for _, a := range t.GetStatus().GetNetworks() {
			if a.NetworkId == network || d.settled.networks[a.NetworkId].GetSpec().GetName() == network {
				return true
			}
		}
	}
	return false
}

// lost are the names of nodes that are not ready.
func (d *exam) lost() map[string]bool {
	out := map[string]bool{}
	for _, nodes := range [][]*skepv1.Node{d.Before.Nodes, d.After.Nodes} {
		for _, n := range nodes {
			if n.GetStatus().GetState() != skepv1.NodeState_NODE_STATE_READY {
				out[render.Hostname(n)] = true
			}
		}
	}
	return out
}

// missingPorts: every port that is served somewhere is on every node, and nothing else is.
func (d *exam) missingPorts(k render.NodeMesh) {
	name := render.Hostname(k.Node)
	has := map[port]*skepv1.MeshPortState{}
	for _, p := range k.State.GetPorts() {
		if p.HostMode {
			continue
		}
		at := port{p.Protocol, p.Port}
		has[at] = p
		if !d.settled.ever[at] {
			d.add(Warn, fmt.Sprintf("mesh of %s: port %d/%s", name, p.Port, p.Protocol), "no service publishes it, and the node still takes it: it should be gone within seconds; if not, look at skep's log there")
		}
	}
	for _, s := range d.settled.services {
		m := d.meshService(s.GetMeta().GetId())
		if m == nil || d.serving(m) == 0 {
			continue
		}
		for _, p := range onMesh(s) {
			check := fmt.Sprintf("mesh of %s: port %d/%s", name, p.PublishedPort, portOf(p).protocol)
			switch got := has[portOf(p)]; {
			case got == nil:
				d.add(Error, check, "service %s publishes it and this node does not take it: look at skep's log there", s.GetSpec().GetName())
			case got.ServiceId != "" && got.ServiceId != s.GetMeta().GetId():
				d.add(Error, check, "service %s publishes it and this node sends it to another service (%s): look at skep's log there", s.GetSpec().GetName(), got.ServiceId)
			case len(got.Backends) == 0:
				d.add(Error, check, "service %s has tasks that serve it and this node knows none: look at skep's log there", s.GetSpec().GetName())
			}
		}
	}
}

// missingNetworks: a node has every network that a task of it is on.
func (d *exam) missingNetworks(k render.NodeMesh) {
	has := map[string]bool{}
	for _, n := range k.State.GetNetworks() {
		has[n.Id] = true
	}
	told := map[string]bool{}
	for _, t := range d.After.Tasks {
		if t.NodeId != k.Node.GetMeta().GetId() || d.settled.running[t.GetMeta().GetId()] == nil {
			continue
		}
		for _, a := range t.GetStatus().GetNetworks() {
			if has[a.NetworkId] || told[a.NetworkId] {
				continue
			}
			told[a.NetworkId] = true
			name := a.NetworkId
			if n := d.settled.networks[a.NetworkId]; n != nil {
				name = n.GetSpec().GetName()
			}
			d.add(Error, "mesh of "+render.Hostname(k.Node)+": network "+name, "task %s is on it and the node does not have it: look at skep's log there", t.Name)
		}
	}
}
