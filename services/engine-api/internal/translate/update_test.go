package translate

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"pgregory.net/rapid"

	"skep.dev/libs/fault"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// api is a version of Docker's API, by its second number.
type api int

func (v api) Before(minor int) bool { return int(v) < minor }

const newest api = 56

// unsayable are the fields of a service that Docker has no words for. An update by Docker's clients keeps them.
var unsayable = map[string]bool{
	"ServiceSpec.on_partition": true, "ServiceSpec.schedule": true, "ServiceSpec.health_budget": true, "ServiceSpec.depends_on": true,
	"ContainerSpec.ready": true, "ContainerSpec.secret_update_signal": true, "ContainerSpec.config_update_signal": true, "ContainerSpec.registry_auth": true,
	"Mount.volume_sharing": true, "Mount.bind_wait": true, "FileReference.version": true, "FileReference.pinned": true,
	"RestartPolicy.max_delay": true, "Placement.volume_pin": true, "NetworkAttachment.ipv4_address": true, "NetworkAttachment.ipv6_address": true,
	"UpdateConfig.timeout": true, "EndpointSpec.dns_starting": true, "PortConfig.host_ip": true,
}

// impossible are fields that no service can have: libs/spec refuses them.
var impossible = map[string]string{
	"task.resources.limits.generic.kind": "reserved, not limited", "task.resources.limits.generic.value": "reserved, not limited",
	"task.resources.limits.generic.named": "Named Generic Resources", "task.resources.reservations.pids": "limited, not reserved",
	"task.resources.reservations.generic.named": "Named Generic Resources",
}

// TestEveryFieldOfSkepIsSaidOrKept walks every field of a service's spec: Docker's form says it, or it is in the list of those that it
// cannot say. Either way it is there after a client has sent the service back. A field that is added to the spec fails here until
// somebody decides.
func TestEveryFieldOfSkepIsSaidOrKept(t *testing.T) {
	n := 0
	met := map[string]bool{}
	walkProto((&skepv1.ServiceSpec{}).ProtoReflect().Descriptor(), nil, func(path []protoreflect.FieldDescriptor) {
		name := pathName(path)
		if _, ok := impossible[name]; ok {
			return
		}
		n++
		leaf := path[len(path)-1]
		s := &skepv1.ServiceSpec{Name: "web", Task: &skepv1.TaskSpec{Container: &skepv1.ContainerSpec{Image: "nginx:1"}}}
		setProto(s.ProtoReflect(), path)
		back, _, err := ServiceFromDocker(ServiceSpecToDocker(s), nil)
		if err != nil {
			t.Errorf("%s: what is told in Docker's form is refused in it: %v", name, err)
			return
		}
		hidden := slices.ContainsFunc(path, func(f protoreflect.FieldDescriptor) bool { return unsayable[fieldName(f)] })
		if said := hasProto(back.ProtoReflect(), s.ProtoReflect(), path); said == hidden {
			t.Errorf("%s (%s): in Docker's form %v, in the list of what cannot be said there %v\n%v", name, fieldName(leaf), said, hidden, back)
		}
		for _, f := range path {
			met[fieldName(f)] = true
		}
		spec.Defaults(s)
		kept, _, err := UpdateFromDocker(s, ServiceSpecToDocker(s), nil, newest)
		if err != nil || !proto.Equal(kept, s) {
			t.Errorf("%s: a service that was sent back as it was is another one: %v\n%s\n%s", name, err, protojson.Format(s), protojson.Format(kept))
		}
	})
	for name := range unsayable {
		if !met[name] {
			t.Errorf("%s is in the list of what Docker cannot say, and no field", name)
		}
	}
	if n < 130 {
		t.Errorf("only %d fields were looked at", n)
	}
}

func fieldName(f protoreflect.FieldDescriptor) string {
	return string(f.Parent().Name()) + "." + string(f.Name())
}

func pathName(path []protoreflect.FieldDescriptor) string {
	var words []string
	for _, f := range path {
		words = append(words, string(f.Name()))
	}
	return strings.Join(words, ".")
}

func isMessage(f protoreflect.FieldDescriptor) bool {
	return f.Message() != nil && !f.IsMap() && whole(f.Message()) && f.Message().Fields().Len() > 0
}

func walkProto(d protoreflect.MessageDescriptor, path []protoreflect.FieldDescriptor, f func([]protoreflect.FieldDescriptor)) {
	for i := range d.Fields().Len() {
		at := append(slices.Clone(path), d.Fields().Get(i))
		if isMessage(at[len(at)-1]) {
			walkProto(at[len(at)-1].Message(), at, f)
			continue
		}
		f(at)
	}
}

// setProto sets the field at the end of a path, and what it cannot be without.
func setProto(m protoreflect.Message, path []protoreflect.FieldDescriptor) {
	f := path[0]
	if len(path) > 1 {
		if !f.IsList() {
			setProto(m.Mutable(f).Message(), path[1:])
			return
		}
		one := m.NewField(f).List().NewElement()
		setProto(one.Message(), path[1:])
		switch e := one.Message().Interface().(type) {
		case *skepv1.FileReference:
			e.Id, e.Name = "id", "name"
		case *skepv1.Mount:
			if strings.HasPrefix(string(path[1].Name()), "bind_") {
				e.Type = skepv1.Mount_TYPE_BIND
			}
		case *skepv1.NetworkAttachment:
			e.Target = "net"
		case *skepv1.GenericResource:
			e.Kind, e.Value = "gpu", 7
		}
		m.Mutable(f).List().Append(one)
		return
	}
	m.Set(f, sampleProto(m, f))
	if f.Name() == "seccomp_profile" {
		m.Interface().(*skepv1.Privileges).SeccompMode = "custom"
	}
	if f.Parent().Name() == "HTTPCheck" && f.Name() == "path" {
		m.Interface().(*skepv1.HTTPCheck).Port = 80
	}
	if f.Parent().Name() == "HTTPCheck" && f.Name() == "port" {
		m.Interface().(*skepv1.HTTPCheck).Path = "/"
	}
	if f.Parent().Name() == "GRPCCheck" && f.Name() == "service" {
		m.Interface().(*skepv1.GRPCCheck).Port = 80
	}
}

func sampleProto(m protoreflect.Message, f protoreflect.FieldDescriptor) protoreflect.Value {
	one := func(f protoreflect.FieldDescriptor) protoreflect.Value {
		switch f.Kind() {
		case protoreflect.BoolKind:
			return protoreflect.ValueOfBool(true)
		case protoreflect.EnumKind:
			return protoreflect.ValueOfEnum(f.Enum().Values().Get(1).Number())
		case protoreflect.BytesKind:
			return protoreflect.ValueOfBytes([]byte("{}"))
		case protoreflect.DoubleKind:
			return protoreflect.ValueOfFloat64(0.1)
		case protoreflect.Int32Kind:
			return protoreflect.ValueOfInt32(7)
		case protoreflect.Int64Kind:
			return protoreflect.ValueOfInt64(7)
		case protoreflect.Uint32Kind:
			return protoreflect.ValueOfUint32(7)
		case protoreflect.Uint64Kind:
			return protoreflect.ValueOfUint64(7)
		case protoreflect.StringKind:
			for word, v := range map[string]string{"nameservers": "10.0.0.53", "credential_spec": "file://x", "bind_recursive": "disabled", "protocol": "udp", "path": "/x",
				"ipv6_address": "fd00::7"} {
				if string(f.Name()) == word {
					return protoreflect.ValueOfString(v)
				}
			}
			return protoreflect.ValueOfString("x")
		}
		panic(fmt.Sprintf("no sample of %s: give it one", f.FullName()))
	}
	switch {
	case f.IsMap():
		v := m.NewField(f)
		v.Map().Set(protoreflect.ValueOfString("k").MapKey(), protoreflect.ValueOfString("v"))
		return v
	case f.IsList():
		v := m.NewField(f)
		v.List().Append(one(f))
		return v
	case f.Message() != nil && whole(f.Message()):
		return m.NewField(f)
	case f.Message() != nil && f.Message().Name() == "Duration":
		return protoreflect.ValueOfMessage(durationpb.New(7e9).ProtoReflect())
	}
	return one(f)
}

// hasProto: the field at the end of a path is the same in both.
func hasProto(a, b protoreflect.Message, path []protoreflect.FieldDescriptor) bool {
	f := path[0]
	if !a.Has(f) || !b.Has(f) {
		return false
	}
	if len(path) == 1 {
		return a.Get(f).Equal(b.Get(f))
	}
	if f.IsList() {
		return hasProto(a.Get(f).List().Get(0).Message(), b.Get(f).List().Get(0).Message(), path[1:])
	}
	return hasProto(a.Get(f).Message(), b.Get(f).Message(), path[1:])
}

// withUnsayable is a stored spec with much that Docker cannot say.
func withUnsayable(t *rapid.T, in swarm.ServiceSpec) *skepv1.ServiceSpec {
	s, _, err := ServiceFromDocker(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	spec.Defaults(s)
	flip := func(name string) bool { return rapid.Bool().Draw(t, name) }
	c := s.Task.Container
	if flip("ready") {
		c.Ready = &skepv1.HealthConfig{Http: &skepv1.HTTPCheck{Port: 80, Path: "/ready"}}
	}
	if flip("signals") {
		c.SecretUpdateSignal, c.RegistryAuth = "SIGHUP", strings.Repeat("a", 25)
	}
	if flip("partition") {
		s.OnPartition, s.HealthBudget = skepv1.PartitionPolicy_PARTITION_POLICY_STOP, 3
	}
	if flip("depends") {
		s.DependsOn = []*skepv1.Dependency{{Service: "db", Condition: skepv1.Dependency_CONDITION_HEALTHY}}
	}
	if flip("pin") {
		s.Task.Placement.VolumePin, s.Task.Restart.MaxDelay = true, durationpb.New(1e9)
	}
	if s.Update != nil && flip("timeout") {
		s.Update.Timeout, s.Update.MaxFailureRatio = durationpb.New(99e9), 0.123456789012
	}
	if flip("spelled") { // what Docker says in fewer ways
		c.Isolation, c.Init = "default", proto.Bool(false)
	}
	s.Endpoint.DnsStarting = flip("dns")
	for _, p := range s.Endpoint.Ports {
		if p.PublishMode == skepv1.PublishMode_PUBLISH_MODE_HOST && flip("at") {
			p.HostIp = "127.0.0.1"
		}
	}
	for _, f := range slices.Concat(c.Secrets, c.Configs) {
		f.Version, f.Pinned = rapid.Uint64Range(1, 9).Draw(t, "version"), flip("pinned")
	}
	for _, n := range s.Task.Networks {
		if flip("address") {
			n.Ipv4Address = "10.0.5.7"
		}
	}
	for _, m := range c.Mounts {
		switch m.Type {
		case skepv1.Mount_TYPE_VOLUME:
			m.VolumeSharing = rapid.SampledFrom([]string{"", "none", "onewriter", "all"}).Draw(t, "sharing")
		case skepv1.Mount_TYPE_BIND:
			m.BindWait = flip("wait")
			if m.BindRecursive == "" && flip("enabled") {
				m.BindRecursive = "enabled"
			}
		}
	}
	return s
}

// TestAnUpdateKeepsWhatDockerCannotSay: a service that is sent back as it was stays as it was; one that is sent back changed says
// in Docker's form what was sent, and nothing else of it changed.
func TestAnUpdateKeepsWhatDockerCannotSay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := withUnsayable(t, genSpec.Draw(t, "is"))
		before := proto.CloneOf(s)
		v := rapid.SampledFrom([]api{24, 39, 40, 41, 43, 44, 46, 50, 52, newest}).Draw(t, "version")
		same, _, err := UpdateFromDocker(s, clone(t, ServiceSpecToDocker(s)), nil, v)
		if err != nil || !proto.Equal(same, s) {
			t.Fatalf("sent back as it was by a client of 1.%d: %v\n%s\n%s", v, err, protojson.Format(s), protojson.Format(same))
		}
		wish := genSpec.Draw(t, "wish")
		wish.Name, wish.Mode = s.Name, ServiceSpecToDocker(s).Mode
		if spec.IsJob(s) {
			wish.UpdateConfig, wish.RollbackConfig = nil, nil
		}
		asked, _, err := ServiceFromDocker(clone(t, wish), nil)
		if err != nil {
			t.Fatal(err)
		}
		spec.Defaults(asked)
		got, _, err := UpdateFromDocker(s, wish, nil, newest)
		if err != nil {
			t.Fatal(err)
		}
		if a, b := asJSON(t, ServiceSpecToDocker(asked)), asJSON(t, ServiceSpecToDocker(got)); a != b {
			t.Fatalf("asked for, and got:\n%s\n%s", a, b)
		}
		if !proto.Equal(before, s) {
			t.Fatal("the current spec was changed")
		}
		for what, pair := range map[string][2]proto.Message{
			"ready": {s.Task.Container.Ready, got.Task.Container.Ready}, "schedule": {s.Schedule, got.Schedule},
			"max-delay": {s.Task.Restart.MaxDelay, got.Task.Restart.MaxDelay}, "timeout": {s.Update.GetTimeout(), got.Update.GetTimeout()},
		} {
			if !proto.Equal(pair[0], pair[1]) {
				t.Fatalf("%s was %v and is %v", what, pair[0], pair[1])
			}
		}
		if got.HealthBudget != s.HealthBudget || got.OnPartition != s.OnPartition || len(got.DependsOn) != len(s.DependsOn) || got.Endpoint.DnsStarting != s.Endpoint.DnsStarting ||
			got.Task.Placement.VolumePin != s.Task.Placement.VolumePin || got.Task.Container.RegistryAuth != s.Task.Container.RegistryAuth {
			t.Fatalf("something that Docker cannot say was changed:\n%s\n%s", protojson.Format(s), protojson.Format(got))
		}
	})
}

func stored(change func(*skepv1.ServiceSpec)) *skepv1.ServiceSpec {
	s := &skepv1.ServiceSpec{Name: "web", Task: &skepv1.TaskSpec{Container: &skepv1.ContainerSpec{Image: "nginx:1"}}, Mode: spec.Replicated(2)}
	if change != nil {
		change(s)
	}
	spec.Defaults(s)
	return s
}

// TestWhatAnUpdateChanges shows single changes of services that have what Docker has not.
func TestWhatAnUpdateChanges(t *testing.T) {
	networks := func(ref string) *skepv1.Network {
		if ref == "back" || ref == "netid" {
			return &skepv1.Network{Meta: &skepv1.Meta{Id: "netid"}, Spec: &skepv1.NetworkSpec{Name: "back"}}
		}
		return nil
	}
	for _, c := range []struct {
		name   string
		is     func(*skepv1.ServiceSpec)
		client func(*swarm.ServiceSpec)
		want   func(*skepv1.ServiceSpec)
	}{
		{"a scale", nil, func(s *swarm.ServiceSpec) { *s.Mode.Replicated.Replicas = 5 },
			func(s *skepv1.ServiceSpec) { s.Mode.GetReplicated().Replicas = 5 }},
		{"a port more leaves the address of the other", func(s *skepv1.ServiceSpec) {
			s.Endpoint = &skepv1.EndpointSpec{Ports: []*skepv1.PortConfig{{TargetPort: 80, PublishedPort: 80, Protocol: "tcp", PublishMode: 1, HostIp: "127.0.0.1"}}}
		}, func(s *swarm.ServiceSpec) {
			s.EndpointSpec.Ports = append([]swarm.PortConfig{{TargetPort: 9, PublishedPort: 9}}, s.EndpointSpec.Ports...)
		}, func(s *skepv1.ServiceSpec) {
			s.Endpoint.Ports = append([]*skepv1.PortConfig{{TargetPort: 9, PublishedPort: 9, Protocol: "tcp"}}, s.Endpoint.Ports...)
		}},
		{"a network by its name keeps the address", func(s *skepv1.ServiceSpec) {
			s.Task.Networks = []*skepv1.NetworkAttachment{{Target: "netid", Ipv4Address: "10.0.0.7"}}
		}, func(s *swarm.ServiceSpec) {
			s.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: "back", Aliases: []string{"db"}}}
		}, func(s *skepv1.ServiceSpec) { s.Task.Networks[0].Aliases = []string{"db"} }},
		{"a mount made read-only stays one writer's", func(s *skepv1.ServiceSpec) {
			s.Task.Container.Mounts = []*skepv1.Mount{{Source: "data", Target: "/data", VolumeSharing: "onewriter"}}
		}, func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Mounts[0].ReadOnly = true },
			func(s *skepv1.ServiceSpec) { s.Task.Container.Mounts[0].ReadOnly = true }},
		{"a secret in another place is at its newest version", func(s *skepv1.ServiceSpec) {
			s.Task.Container.Secrets = []*skepv1.FileReference{{Id: "id", Name: "key", Target: "key", Version: 3, Pinned: true}}
		}, func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Secrets[0].File.Name = "other" },
			func(s *skepv1.ServiceSpec) {
				f := s.Task.Container.Secrets[0]
				f.Target, f.Version, f.Pinned = "other", 0, false
			}},
		{"another mode of its file leaves a secret at its version", func(s *skepv1.ServiceSpec) {
			s.Task.Container.Secrets = []*skepv1.FileReference{{Id: "id", Name: "key", Target: "key", Version: 3, Pinned: true}}
		}, func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Secrets[0].File.Mode = 0o400 },
			func(s *skepv1.ServiceSpec) { s.Task.Container.Secrets[0].Mode = 0o400 }},
		{"a command takes the place of a check by HTTP", func(s *skepv1.ServiceSpec) {
			s.Task.Container.Health = &skepv1.HealthConfig{Http: &skepv1.HTTPCheck{Port: 80, Path: "/"}, Retries: 3}
		}, func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Healthcheck.Test = []string{"CMD", "true"} },
			func(s *skepv1.ServiceSpec) {
				s.Task.Container.Health = &skepv1.HealthConfig{Test: []string{"CMD", "true"}, Retries: 3}
			}},
		{"other retries leave a check by HTTP", func(s *skepv1.ServiceSpec) {
			s.Task.Container.Health = &skepv1.HealthConfig{Http: &skepv1.HTTPCheck{Port: 80, Path: "/"}, Retries: 3}
		}, func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Healthcheck.Retries = 5 },
			func(s *skepv1.ServiceSpec) { s.Task.Container.Health.Retries = 5 }},
		{"no update configuration is Docker's, with the time skep gives", func(s *skepv1.ServiceSpec) {
			s.Update = &skepv1.UpdateConfig{Parallelism: 4, Timeout: durationpb.New(7e9)}
		}, func(s *swarm.ServiceSpec) { s.UpdateConfig = nil },
			func(s *skepv1.ServiceSpec) { s.Update.Parallelism = 1 }},
		{"what is emptied is empty", func(s *skepv1.ServiceSpec) {
			s.Labels, s.Task.Container.Env = map[string]string{"a": "b"}, []string{"A=b"}
			s.Task.Container.Mounts = []*skepv1.Mount{{Source: "data", Target: "/data"}}
			s.Task.Resources = &skepv1.ResourceRequirements{Limits: &skepv1.Resources{Pids: 3}}
		}, func(s *swarm.ServiceSpec) {
			s.Labels, s.TaskTemplate.ContainerSpec.Env, s.TaskTemplate.ContainerSpec.Mounts = nil, nil, nil
			s.TaskTemplate.Resources = nil
		}, func(s *skepv1.ServiceSpec) {
			s.Labels, s.Task.Container.Env, s.Task.Container.Mounts, s.Task.Resources.Limits = nil, nil, nil, nil
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := stored(c.is)
			in := clone(t, ServiceSpecToDocker(s))
			c.client(&in)
			got, _, err := UpdateFromDocker(s, in, networks, newest)
			if err != nil {
				t.Fatal(err)
			}
			want := proto.CloneOf(s)
			c.want(want)
			if !proto.Equal(got, want) {
				t.Errorf("got\n%s\nwant\n%s", protojson.Format(got), protojson.Format(want))
			}
		})
	}
}

// TestWhatAnUpdateCannotChange: names and modes, in Docker's words, as what is not implemented.
func TestWhatAnUpdateCannotChange(t *testing.T) {
	job := func(s *skepv1.ServiceSpec) {
		s.Mode = &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_ReplicatedJob{ReplicatedJob: &skepv1.ReplicatedJobMode{MaxConcurrent: 2, TotalCompletions: 4}}}
	}
	five := uint64(5)
	for _, c := range []struct {
		is      func(*skepv1.ServiceSpec)
		client  func(*swarm.ServiceSpec)
		version api
		want    string
	}{
		{nil, func(s *swarm.ServiceSpec) { s.Name = "other" }, newest, "renaming services is not supported"},
		{nil, func(s *swarm.ServiceSpec) { s.Mode = swarm.ServiceMode{Global: &swarm.GlobalService{}} }, newest, "service mode change is not allowed"},
		{job, func(s *swarm.ServiceSpec) { s.Mode = swarm.ServiceMode{} }, newest, "service mode change is not allowed"},
		// A client that knows no jobs does not make a service of one.
		{job, func(s *swarm.ServiceSpec) {
			s.Mode = swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: &five}}
		}, 40, "service mode change is not allowed"},
		{job, func(s *swarm.ServiceSpec) { s.Mode = swarm.ServiceMode{} }, 40, ""},
	} {
		s := stored(c.is)
		in := clone(t, ServiceSpecToDocker(s))
		c.client(&in)
		got, _, err := UpdateFromDocker(s, in, nil, c.version)
		switch {
		case c.want == "" && (err != nil || !proto.Equal(got, s)):
			t.Errorf("a client of 1.%d that leaves a job as it is: %v, %v", c.version, got, err)
		case c.want != "" && (err == nil || err.Error() != c.want || !IsUnsupported(err) || !fault.Is(err, fault.CodeInvalid)):
			t.Errorf("got %v, want %q", err, c.want)
		}
	}
}

// TestImpossibleFieldsAreImpossible: the list of fields that need no words holds those that no service can have.
func TestImpossibleFieldsAreImpossible(t *testing.T) {
	for _, name := range slices.Sorted(maps.Keys(impossible)) {
		walkProto((&skepv1.ServiceSpec{}).ProtoReflect().Descriptor(), nil, func(path []protoreflect.FieldDescriptor) {
			if pathName(path) != name {
				return
			}
			s := stored(nil)
			setProto(s.ProtoReflect(), path)
			if err := spec.Validate(s); err == nil || !strings.Contains(err.Error(), impossible[name]) {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
}

// TestNothingHasManyForms: clients write in their own way what they do not ask for. No task is replaced for that, and nothing else
// of the service changes (portainer 1569, moby 26193).
func TestNothingHasManyForms(t *testing.T) {
	s := stored(func(s *skepv1.ServiceSpec) { s.Task.Container.Ready = &skepv1.HealthConfig{TcpPort: 80} })
	const head = `{"Name":"web","Mode":{"Replicated":{"Replicas":2}},"TaskTemplate":{"ContainerSpec":{"Image":"nginx:1"`
	for _, body := range []string{
		head + `}}}`,
		head + `,"Init":false,"Isolation":"default","DNSConfig":{},"Healthcheck":{},"Privileges":{"CredentialSpec":null,"SELinuxContext":null}},"Resources":{"Limits":{"NanoCPUs":0,"MemoryBytes":0},"Reservations":{}}}}`,
		head + `,"Init":null,"DNSConfig":null,"Healthcheck":{"Test":[]},"Privileges":{"SELinuxContext":{"Disable":false}},"Mounts":[],"Env":[],"Labels":{},"Secrets":[],"Configs":null},` +
			`"Resources":{},"RestartPolicy":{"Condition":"any","Delay":5000000000,"MaxAttempts":0},"Placement":{"Constraints":[],"Platforms":null},"Networks":[],"LogDriver":{},"Runtime":"container"},` +
			`"UpdateConfig":{"Parallelism":1,"FailureAction":"","Order":""},"RollbackConfig":null,"EndpointSpec":{"Ports":[]},"Labels":null}`,
		head + `,"StopGracePeriod":10000000000},"Resources":{"Reservations":{"GenericResources":[]}},"RestartPolicy":{}},"Networks":[],"EndpointSpec":{"Mode":""}}`,
	} {
		in, _, err := DecodeService([]byte(body))
		if err != nil {
			t.Fatal(err)
		}
		got, warn, err := UpdateFromDocker(s, in, nil, newest)
		if err != nil || len(warn) > 0 || !proto.Equal(got, s) || !proto.Equal(spec.Core(got), spec.Core(s)) {
			t.Errorf("%s\nmade %v (%v, %q) of\n%v", body, got, err, warn, s)
		}
	}
}
