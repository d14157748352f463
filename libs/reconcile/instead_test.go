package reconcile

import (
	"strings"
	"testing"

	skepv1 "skep.dev/proto/skep/v1"
)

// A start-first update whose new tasks have no room beside the old ones goes on, stop-first where it must, and says so.
func TestStartFirstThatCannotGoesStopFirst(t *testing.T) {
	hostPort := func(s *skepv1.ServiceSpec) {
		s.Endpoint.Ports = []*skepv1.PortConfig{{TargetPort: 80, PublishedPort: 8080, PublishMode: skepv1.PublishMode_PUBLISH_MODE_HOST, Protocol: "tcp"}}
	}
	for name, c := range map[string]struct {
		change func(*skepv1.ServiceSpec)
		want   string
	}{
		"a limit per node":           {func(s *skepv1.ServiceSpec) { s.Task.Placement.MaxReplicasPerNode = 1 }, "; 3 tasks went stop-first: no suitable node (max replicas per node limit exceed)"},
		"a port of the host":         {hostPort, "; 3 tasks went stop-first: no suitable node (host-mode port already in use on 3 nodes)"},
		"a port of the host, global": {func(s *skepv1.ServiceSpec) { hostPort(s); setGlobal(s) }, "; 3 tasks went stop-first: no suitable node (host-mode port already in use on 1 node)"},
		"reservations":               {func(s *skepv1.ServiceSpec) { s.Task.Resources.Reservations.NanoCpus = 3e9 }, "; 3 tasks went stop-first: no suitable node (insufficient resources on 3 nodes)"},
		"reservations of two nodes":  {func(s *skepv1.ServiceSpec) { s.Task.Resources.Reservations.NanoCpus = 3e9; setReplicas(s, 2) }, ""},
		"an address of its own": {func(s *skepv1.ServiceSpec) {
			s.Task.Networks = []*skepv1.NetworkAttachment{{Target: "net", Ipv4Address: "10.0.5.7"}}
			setReplicas(s, 1)
		}, "; 1 task went stop-first: its tasks have an address of their own"},
		"a volume that stays": {func(s *skepv1.ServiceSpec) {
			s.Task.Placement.VolumePin = true
			s.Task.Container.Mounts = []*skepv1.Mount{{Type: skepv1.Mount_TYPE_VOLUME, Source: "data", Target: "/data"}}
		}, "; 3 tasks went stop-first: they would share the volumes of node n"},
	} {
		t.Run(name, func(t *testing.T) {
			m := rolling(t, 3, func(u *skepv1.UpdateConfig) { u.Order = startFirst })
			m.service("s", c.change)
			m.converge()
			m.update("v2")
			m.converge()
			if st := m.status(); st.GetState() != "completed" || !strings.HasPrefix(st.GetMessage(), "update completed"+c.want) || c.want == "" && st.GetMessage() != "update completed" {
				m.dump()
				t.Errorf("%s: %s", st.GetState(), st.GetMessage())
			}
			for _, x := range m.s.services["s"].tasks {
				if x.wanted() && m.image(x) != "v2" {
					t.Errorf("%s runs %s", x.ID, m.image(x))
				}
			}
		})
	}
}
