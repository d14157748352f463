package place

import skepv1 "skep.dev/proto/skep/v1"

// FromSpec is what a service's tasks need of a node. It shares the spec's slices.
func FromSpec(s *skepv1.ServiceSpec) Request {
	var r Request
	t := s.GetTask()
	if res := t.GetResources().GetReservations(); res != nil {
		r.CPU, r.Memory = res.GetNanoCpus(), res.GetMemoryBytes()
		for _, g := range res.GetGeneric() {
			n := g.GetValue()
			if len(g.GetNamed()) > 0 {
				n = int64(len(g.GetNamed()))
			}
			r.Generic = append(r.Generic, Generic{Kind: g.GetKind(), Value: n})
		}
	}
	if p := t.GetPlacement(); p != nil {
		r.Constraints, r.MaxPerNode = p.GetConstraints(), int(p.GetMaxReplicasPerNode())
		for _, x := range p.GetPlatforms() {
			r.Platforms = append(r.Platforms, Platform{OS: x.GetOs(), Arch: x.GetArch()})
		}
		for _, x := range p.GetPreferences() {
			r.Spread = append(r.Spread, x.GetSpread())
		}
	}
	for _, m := range t.GetContainer().GetMounts() {
		if d := m.GetVolumeDriver(); d != "" && d != "local" && m.GetType() == skepv1.Mount_TYPE_VOLUME {
			r.Plugins = append(r.Plugins, Plugin{Type: "Volume", Name: d})
		}
	}
	if d := t.GetLogDriver().GetName(); d != "" && d != "none" {
		r.Plugins = append(r.Plugins, Plugin{Type: "Log", Name: d})
	}
	for _, p := range s.GetEndpoint().GetPorts() {
		if p.GetPublishMode() == skepv1.PublishMode_PUBLISH_MODE_HOST && p.GetPublishedPort() != 0 {
			r.Ports = append(r.Ports, MakePort(p.GetProtocol(), p.GetPublishedPort(), p.GetHostIp()))
		}
	}
	return r
}
