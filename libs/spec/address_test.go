package spec

import (
	"strings"
	"testing"

	skepv1 "skep.dev/proto/skep/v1"
)

// What a spec says of addresses of its own is refused where no task could have them.
func TestValidateFixed(t *testing.T) {
	for _, c := range []struct {
		name, want string
		change     func(*skepv1.ServiceSpec)
	}{
		{"fine", "", func(*skepv1.ServiceSpec) {}},
		{"none runs", "", func(s *skepv1.ServiceSpec) { s.Mode = Replicated(0) }},
		{"stop-first", "", func(s *skepv1.ServiceSpec) {
			s.Update = &skepv1.UpdateConfig{Order: skepv1.UpdateOrder_UPDATE_ORDER_STOP_FIRST}
		}},
		{"no address", "invalid ip", func(s *skepv1.ServiceSpec) { s.Task.Networks[0].Ipv4Address = "10.0.5" }},
		{"IPv6 as IPv4", "invalid ip ", func(s *skepv1.ServiceSpec) { s.Task.Networks[0].Ipv4Address = "fd00::1" }},
		{"IPv4 as IPv6", "invalid ip6", func(s *skepv1.ServiceSpec) { s.Task.Networks[0].Ipv6Address = "::ffff:10.0.0.1" }},
		{"a zone", "invalid ip6", func(s *skepv1.ServiceSpec) { s.Task.Networks[0].Ipv6Address = "fe80::1%eth0" }},
		{"a word for a network", "network host has no addresses to choose from", func(s *skepv1.ServiceSpec) { s.Task.Networks[0].Target = "host" }},
		{"two replicas", "2 replicas cannot have one address", func(s *skepv1.ServiceSpec) { s.Mode = Replicated(2) }},
		{"global", "mode global has no address of its own", func(s *skepv1.ServiceSpec) {
			s.Mode = &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_Global{}}
		}},
		{"a job", "mode replicated-job has no address of its own", func(s *skepv1.ServiceSpec) {
			s.Mode = &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_ReplicatedJob{}}
		}},
		{"start-first", "update-order start-first is not possible", func(s *skepv1.ServiceSpec) {
			s.Update = &skepv1.UpdateConfig{Order: skepv1.UpdateOrder_UPDATE_ORDER_START_FIRST}
		}},
		{"back start-first", "rollback-order start-first is not possible", func(s *skepv1.ServiceSpec) {
			s.Rollback = &skepv1.UpdateConfig{Order: skepv1.UpdateOrder_UPDATE_ORDER_START_FIRST}
		}},
	} {
		s := &skepv1.ServiceSpec{Name: "s", Task: &skepv1.TaskSpec{Container: &skepv1.ContainerSpec{Image: "i"}, Networks: []*skepv1.NetworkAttachment{{Target: "net", Ipv4Address: "10.0.5.7"}}}}
		c.change(s)
		if err := Validate(s); c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

func TestHostIPs(t *testing.T) {
	port := func(ip string, n uint32) *skepv1.PortConfig {
		return &skepv1.PortConfig{TargetPort: 80, PublishedPort: n, PublishMode: skepv1.PublishMode_PUBLISH_MODE_HOST, HostIp: ip}
	}
	ingress := port("127.0.0.1", 80)
	ingress.PublishMode = skepv1.PublishMode_PUBLISH_MODE_INGRESS
	for _, c := range []struct {
		name, network, want string
		ports               []*skepv1.PortConfig
	}{
		{"two addresses", "", "", []*skepv1.PortConfig{port("127.0.0.1", 80), port("::1", 80)}},
		{"one of them twice", "", "duplicate published ports", []*skepv1.PortConfig{port("127.0.0.1", 80), port("::ffff:127.0.0.1", 80)}},
		{"one and all", "", "duplicate published ports", []*skepv1.PortConfig{port("127.0.0.1", 80), port("0.0.0.0", 80)}},
		{"any number", "", "", []*skepv1.PortConfig{port("127.0.0.1", 0), port("", 0)}},
		{"no address", "", "invalid host_ip", []*skepv1.PortConfig{port("localhost", 80)}},
		{"a zone", "", "invalid host_ip", []*skepv1.PortConfig{port("fe80::1%eth0", 80)}},
		{"many hosts'", "", "invalid host_ip", []*skepv1.PortConfig{port("224.0.0.1", 80)}},
		{"the mesh", "", "cannot be published at 127.0.0.1 in ingress mode", []*skepv1.PortConfig{ingress}},
		{"network host", "host", "listen at the node's addresses by themselves", []*skepv1.PortConfig{port("127.0.0.1", 80)}},
	} {
		s := &skepv1.ServiceSpec{Name: "s", Task: &skepv1.TaskSpec{Container: &skepv1.ContainerSpec{Image: "i"}}, Endpoint: &skepv1.EndpointSpec{Ports: c.ports}}
		if c.network != "" {
			s.Task.Networks = []*skepv1.NetworkAttachment{{Target: c.network}}
		}
		if err := Validate(s); c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	s := &skepv1.ServiceSpec{Endpoint: &skepv1.EndpointSpec{Ports: []*skepv1.PortConfig{port("0.0.0.0", 80), port("0:0::1", 81)}}}
	Defaults(s)
	if a, b := s.Endpoint.Ports[0].HostIp, s.Endpoint.Ports[1].HostIp; a != "" || b != "::1" {
		t.Errorf("stored %q and %q", a, b)
	}
}
