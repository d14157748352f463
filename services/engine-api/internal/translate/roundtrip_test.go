package translate

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
	"pgregory.net/rapid"

	"skep.dev/libs/spec"
)

// canonical is a spec as it comes back: what says nothing has one form, that of Docker's own client.
func canonical(s swarm.ServiceSpec) swarm.ServiceSpec {
	if s.Labels == nil {
		s.Labels = map[string]string{}
	}
	one := uint64(1)
	switch m := s.Mode; {
	case m == (swarm.ServiceMode{}) || m.Replicated != nil && m.Replicated.Replicas == nil:
		s.Mode = swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: &one}}
	case m.ReplicatedJob != nil:
		j := *m.ReplicatedJob
		if j.MaxConcurrent == nil {
			j.MaxConcurrent = &one
		}
		if j.TotalCompletions == nil {
			j.TotalCompletions = j.MaxConcurrent
		}
		s.Mode.ReplicatedJob = &j
	}
	t := &s.TaskTemplate
	t.Runtime = swarm.RuntimeContainer
	if t.Resources == nil {
		t.Resources = &swarm.ResourceRequirements{}
	}
	if t.Resources.Limits == nil {
		t.Resources.Limits = &swarm.Limit{}
	}
	if t.Resources.Reservations == nil {
		t.Resources.Reservations = &swarm.Resources{}
	}
	if t.RestartPolicy != nil && t.RestartPolicy.MaxAttempts == nil {
		t.RestartPolicy.MaxAttempts = new(uint64)
	}
	if t.Placement == nil {
		t.Placement = &swarm.Placement{}
	}
	if s.EndpointSpec == nil {
		s.EndpointSpec = &swarm.EndpointSpec{}
	}
	if s.EndpointSpec.Mode == "" {
		s.EndpointSpec.Mode = "vip"
	}
	for i := range s.EndpointSpec.Ports {
		p := &s.EndpointSpec.Ports[i]
		if p.Protocol == "" {
			p.Protocol = network.TCP
		}
		if p.PublishMode == "" {
			p.PublishMode = "ingress"
		}
	}
	canonicalContainer(t.ContainerSpec)
	return s
}

func canonicalContainer(c *swarm.ContainerSpec) {
	if c.Init == nil {
		c.Init = new(bool)
	}
	c.Isolation = "default"
	if c.DNSConfig == nil {
		c.DNSConfig = &swarm.DNSConfig{}
	}
	if h := c.Healthcheck; h != nil && len(h.Test) == 0 && h.Interval+h.Timeout+h.StartPeriod+h.StartInterval == 0 && h.Retries == 0 {
		c.Healthcheck = nil
	}
	if p := c.Privileges; p != nil {
		if p.SELinuxContext = nil; *p == (swarm.Privileges{}) {
			c.Privileges = nil
		}
	}
	for i := range c.Mounts {
		m := &c.Mounts[i]
		if m.Type == "" {
			m.Type = mount.TypeBind
		}
		if m.BindOptions != nil && *m.BindOptions == (mount.BindOptions{}) {
			m.BindOptions = nil
		}
		if v := m.VolumeOptions; v != nil {
			if v.DriverConfig != nil && v.DriverConfig.Name == "" {
				v.DriverConfig = nil
			}
			if !v.NoCopy && len(v.Labels) == 0 && v.Subpath == "" && v.DriverConfig == nil {
				m.VolumeOptions = nil
			}
		}
		if o := m.TmpfsOptions; o != nil && o.SizeBytes == 0 && o.Mode == 0 {
			m.TmpfsOptions = nil
		}
	}
}

func asJSON(t rapid.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// clone is a spec with nothing shared, by the way it goes over the wire.
func clone(t rapid.TB, s swarm.ServiceSpec) swarm.ServiceSpec {
	t.Helper()
	var out swarm.ServiceSpec
	if err := json.Unmarshal([]byte(asJSON(t, s)), &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestDockersSpecComesBack: what a client sends and skep keeps is what it gets back.
func TestDockersSpecComesBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := genSpec.Draw(t, "spec")
		out, _, err := ServiceFromDocker(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := spec.Validate(out); err != nil && !isPicky(err) {
			t.Fatalf("the spec is refused by all other clients' rules: %v", err)
		}
		want, got := asJSON(t, canonical(clone(t, in))), asJSON(t, ServiceSpecToDocker(out))
		if got != want {
			t.Fatalf("sent, and got back:\n%s\n%s", want, got)
		}
	})
}

// isPicky: rules that look at values across fields, which the generator does not know.
func isPicky(err error) bool {
	for _, text := range []string{"duplicate published ports", "requires 'readonly'", "log-opt", "has no start period", "less than 1ms", "duplicate mount"} {
		if strings.Contains(err.Error(), text) {
			return true
		}
	}
	return false
}

// TestDefaultsDoNotChangeWhatWasAsked: what is stored, with its defaults, says in Docker's form what Docker's defaults make of
// what was sent.
func TestDefaultsDoNotChangeWhatWasAsked(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := genSpec.Draw(t, "spec")
		out, _, err := ServiceFromDocker(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		spec.Defaults(out)
		got := ServiceSpecToDocker(out)
		InsertDefaults(&got)
		want := canonical(clone(t, in))
		InsertDefaults(&want)
		blur(&got)
		blur(&want)
		if a, b := asJSON(t, want), asJSON(t, got); a != b {
			t.Fatalf("asked for, and stored:\n%s\n%s", a, b)
		}
	})
}

// blur takes away the defaults that Docker's nodes fill in and skep's stored specs say: how a bind propagates, a tmpfs's mode.
func blur(s *swarm.ServiceSpec) {
	c := s.TaskTemplate.ContainerSpec
	for i := range c.Mounts {
		m := &c.Mounts[i]
		if b := m.BindOptions; b != nil {
			if b.Propagation == "rprivate" {
				b.Propagation = ""
			}
			if *b == (mount.BindOptions{}) {
				m.BindOptions = nil
			}
		}
		if o := m.TmpfsOptions; o != nil {
			if o.Mode == 0o1777 {
				o.Mode = 0
			}
			if o.Mode == 0 && o.SizeBytes == 0 {
				m.TmpfsOptions = nil
			}
		}
	}
}
