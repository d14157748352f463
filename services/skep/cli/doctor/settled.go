package doctor

import (
	skepv1 "skep.dev/proto/skep/v1"
)

// settledParts are what was the same before and after the nodes were asked.
type settledParts struct {
	services []*skepv1.Service
	networks map[string]*skepv1.Network // by id
	running  map[string]*skepv1.Task    // by id
	// ever are the ports some service had on the mesh before or after: protocol and number.
	ever map[port]bool
}

type port struct {
	protocol string
	number   uint32
}

func portOf(p *skepv1.PortConfig) port {
	if p.Protocol == "" {
		return port{"tcp", p.PublishedPort}
	}
	return port{p.Protocol, p.PublishedPort}
}

// onMesh are a service's ports that every node has.
func onMesh(s *skepv1.Service) []*skepv1.PortConfig {
	var out []*skepv1.PortConfig
	for _, p := range s.GetEndpoint().GetPorts() {
		if p.PublishMode == skepv1.PublishMode_PUBLISH_MODE_INGRESS && p.PublishedPort != 0 {
			out = append(out, p)
		}
	}
	return out
}

func settled(p Picture) settledParts {
	out := settledParts{networks: map[string]*skepv1.Network{}, running: map[string]*skepv1.Task{}, ever: map[port]bool{}}
	versions := map[string]uint64{}
	for _, s := range p.Before.Services {
		versions[s.GetMeta().GetId()] = s.GetMeta().GetVersion()
	}
	for _, s := range p.After.Services {
		if v, ok := versions[s.GetMeta().GetId()]; ok && v == s.GetMeta().GetVersion() {
			out.services = append(out.services, s)
		}
	}
	for _, list := range [][]*skepv1.Service{p.Before.Services, p.After.Services} {
		for _, s := range list {
			for _, x := range onMesh(s) {
				out.ever[portOf(x)] = true
			}
		}
	}
	before := map[string]bool{}
	for _, n := range p.Before.Networks {
		before[n.GetMeta().GetId()] = true
	}
	for _, n := range p.After.Networks {
		if before[n.GetMeta().GetId()] {
			out.networks[n.GetMeta().GetId()] = n
		}
	}
	was := map[string]bool{}
	for _, t := range p.Before.Tasks {
		was[t.GetMeta().GetId()] = t.GetStatus().GetState() == skepv1.TaskState_TASK_STATE_RUNNING
	}
	for _, t := range p.After.Tasks {
		if was[t.GetMeta().GetId()] && t.GetStatus().GetState() == skepv1.TaskState_TASK_STATE_RUNNING {
			out.running[t.GetMeta().GetId()] = t
		}
	}
	return out
}
