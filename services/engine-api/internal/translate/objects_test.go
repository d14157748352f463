package translate

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"maps"
	"math/big"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/fault"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

var (
	born    = time.Date(2026, 11, 30, 10, 0, 0, 5, time.UTC)
	changed = born.Add(time.Hour)
	meta    = &skepv1.Meta{Id: "obj", Version: 42, CreatedAt: timestamppb.New(born), UpdatedAt: timestamppb.New(changed)}
	back    = &skepv1.Network{Meta: &skepv1.Meta{Id: "netid"}, Spec: &skepv1.NetworkSpec{Name: "back", Driver: "overlay", Ipv6: true}, Vni: 4097,
		Ipam: []*skepv1.IPAMConfig{{Subnet: "10.0.9.0/24", Gateway: "10.0.9.1"}}, Scope: "swarm"}
)

func lookup(ref string) *skepv1.Network {
	switch ref {
	case "netid", "back":
		return back
	case "ingress":
		return &skepv1.Network{Meta: &skepv1.Meta{Id: "ingress"}, Spec: &skepv1.NetworkSpec{Name: "ingress", Driver: "overlay"}}
	}
	return nil
}

// same compares what goes over the wire.
func same(t *testing.T, what string, got, want any) {
	t.Helper()
	if a, b := asJSON(t, got), asJSON(t, want); a != b {
		t.Errorf("%s:\n%s, want\n%s", what, a, b)
	}
}

// TestAServiceInDockersForm has what Docker's clients read of a service besides its spec, each in the form they read it in.
func TestAServiceInDockersForm(t *testing.T) {
	s := &skepv1.Service{
		Meta: meta, Spec: stored(nil), Status: &skepv1.ServiceStatus{Running: 1, Desired: 2},
		Endpoint: &skepv1.Endpoint{Ports: []*skepv1.PortConfig{{TargetPort: 80, PublishedPort: 30000, Protocol: "tcp"}},
			VirtualIps: []*skepv1.VirtualIP{{NetworkId: "netid", Addr: "10.0.9.2/24"}, {NetworkId: "six", Addr: "fd00::2"}, {NetworkId: "odd", Addr: "none"}}},
		UpdateStatus: &skepv1.UpdateStatus{State: "canary", StartedAt: timestamppb.New(born), Message: "1 of 2"},
	}
	previous := stored(func(s *skepv1.ServiceSpec) { s.Task.Container.Image = "nginx:0" })
	got := ServiceToDocker(s, ServiceView{Previous: previous, Status: true})
	same(t, "its meta", got.Meta, swarm.Meta{Version: swarm.Version{Index: 42}, CreatedAt: born, UpdatedAt: changed})
	same(t, "its endpoint", got.Endpoint, swarm.Endpoint{
		Spec:       swarm.EndpointSpec{Mode: "vip"},
		Ports:      []swarm.PortConfig{{Protocol: "tcp", TargetPort: 80, PublishedPort: 30000, PublishMode: "ingress"}},
		VirtualIPs: []swarm.EndpointVirtualIP{{NetworkID: "netid", Addr: netip.MustParsePrefix("10.0.9.2/24")}, {NetworkID: "six", Addr: netip.MustParsePrefix("fd00::2/128")}}})
	same(t, "its update", got.UpdateStatus, swarm.UpdateStatus{State: "paused", StartedAt: &born, Message: "1 of 2"})
	same(t, "its status", got.ServiceStatus, swarm.ServiceStatus{RunningTasks: 1, DesiredTasks: 2})
	if got.PreviousSpec == nil || got.PreviousSpec.TaskTemplate.ContainerSpec.Image != "nginx:0" || got.JobStatus != nil {
		t.Errorf("%s", asJSON(t, got))
	}

	// What is not there is left out, but for what clients read without a look.
	got = ServiceToDocker(&skepv1.Service{}, ServiceView{})
	if got.UpdateStatus != nil || got.ServiceStatus != nil || got.PreviousSpec != nil || got.JobStatus != nil {
		t.Errorf("an empty service: %s", asJSON(t, got))
	}
	if got.Spec.TaskTemplate.ContainerSpec == nil || got.Spec.EndpointSpec == nil || got.Spec.Mode.Replicated.Replicas == nil || got.Spec.Labels == nil {
		t.Errorf("clients would end at %s", asJSON(t, got))
	}
	if s := asJSON(t, got); strings.Contains(s, "1970-") {
		t.Errorf("a time that is none: %s", s)
	}
}

// TestAJobInDockersForm: its client ends without a status and without its two numbers.
func TestAJobInDockersForm(t *testing.T) {
	job := &skepv1.Service{Meta: meta, JobIteration: 3, Run: &skepv1.RunControl{Started: timestamppb.New(changed)}, Spec: stored(func(s *skepv1.ServiceSpec) {
		s.Mode = &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_ReplicatedJob{ReplicatedJob: &skepv1.ReplicatedJobMode{TotalCompletions: 4}}}
	})}
	got := ServiceToDocker(job, ServiceView{Defaults: true})
	same(t, "its job status", got.JobStatus, swarm.JobStatus{JobIteration: swarm.Version{Index: 3}, LastExecution: changed})
	if j := got.Spec.Mode.ReplicatedJob; j == nil || *j.MaxConcurrent != 4 || *j.TotalCompletions != 4 || got.Spec.UpdateConfig != nil {
		t.Errorf("%s", asJSON(t, got.Spec))
	}
	job.JobIteration, job.Run = 0, nil // a schedule has not come to its first time
	same(t, "one that did not run yet", ServiceToDocker(job, ServiceView{}).JobStatus, swarm.JobStatus{LastExecution: born})
	job.Spec.Mode = &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_GlobalJob{GlobalJob: &skepv1.GlobalJobMode{}}}
	if ServiceToDocker(job, ServiceView{}).JobStatus == nil {
		t.Error("a global job has no job status")
	}
}

// TestInsertDefaults: what clients ask for with insertDefaults, of a spec that says nothing.
func TestInsertDefaults(t *testing.T) {
	var s swarm.ServiceSpec
	InsertDefaults(&s)
	const want = `{"Labels":null,"TaskTemplate":{"ContainerSpec":{"StopGracePeriod":10000000000,"DNSConfig":{}},"Resources":{},` +
		`"RestartPolicy":{"Condition":"any","Delay":5000000000,"MaxAttempts":0},"Placement":{},"ForceUpdate":0},"Mode":{},` +
		`"UpdateConfig":{"Parallelism":1,"FailureAction":"pause","Monitor":5000000000,"MaxFailureRatio":0,"Order":"stop-first"},` +
		`"RollbackConfig":{"Parallelism":1,"FailureAction":"pause","Monitor":5000000000,"MaxFailureRatio":0,"Order":"stop-first"},"EndpointSpec":{"Mode":"vip"}}`
	if got := asJSON(t, s); got != want {
		t.Errorf("got\n%s, want\n%s", got, want)
	}
}

// TestATaskInDockersForm has what observers read: addresses with their length, networks with their ids, ports, container, slot.
func TestATaskInDockersForm(t *testing.T) {
	code := int32(0)
	task := &skepv1.Task{Meta: meta, ServiceId: "svc", Slot: 2, NodeId: "node", Desired: skepv1.TaskState_TASK_STATE_RUNNING, Image: "nginx:1", Name: "web.2",
		Status: &skepv1.TaskStatus{State: skepv1.TaskState_TASK_STATE_RUNNING, SinceUnixMs: changed.UnixMilli(), Message: "started", ContainerId: "c1", Pid: 7, ExitCode: &code,
			ServedUnixMs: 1, Addresses: []string{"100.64.0.5/23"}, Networks: []*skepv1.NetworkAddress{{NetworkId: "netid", Addr: "10.0.9.5/24", Addr6: "fd00::5/64"}, {NetworkId: "gone", Addr: "10.1.0.5/24"}},
			Ports: []*skepv1.PortConfig{{TargetPort: 53, PublishedPort: 53, Protocol: "udp", PublishMode: skepv1.PublishMode_PUBLISH_MODE_HOST}}}}
	service := stored(func(s *skepv1.ServiceSpec) {
		s.Endpoint = &skepv1.EndpointSpec{Ports: []*skepv1.PortConfig{{TargetPort: 80}}}
	})
	got := TaskToDocker(task, TaskView{Service: service, Networks: lookup})
	same(t, "its status", got.Status, swarm.TaskStatus{Timestamp: changed.Truncate(time.Millisecond), State: "running", Message: "started",
		ContainerStatus: &swarm.ContainerStatus{ContainerID: "c1", PID: 7},
		PortStatus:      swarm.PortStatus{Ports: []swarm.PortConfig{{Protocol: "udp", TargetPort: 53, PublishedPort: 53, PublishMode: "host"}}}})
	var on []string
	for _, a := range got.NetworksAttachments {
		on = append(on, a.Network.ID+"="+a.Network.Spec.Name+" "+asJSON(t, a.Addresses))
	}
	want := []string{`ingress=ingress ["100.64.0.5/23"]`, `netid=back ["10.0.9.5/24","fd00::5/64"]`, `gone=gone ["10.1.0.5/24"]`}
	if !slices.Equal(on, want) {
		t.Errorf("it is on %q, want %q", on, want)
	}
	if got.Slot != 2 || got.DesiredState != "running" || got.JobIteration != nil || got.Spec.ContainerSpec.Image != "nginx:1" || got.Labels == nil || got.Name != "" {
		t.Errorf("%s", asJSON(t, got))
	}
	if got := TaskToDocker(&skepv1.Task{Image: "nginx:1"}, TaskView{}); got.Spec.ContainerSpec.Image != "nginx:1" || got.Status.ContainerStatus != nil || got.Status.State != "new" || !got.Status.Timestamp.IsZero() {
		t.Errorf("a task of which nothing is known: %s", asJSON(t, got))
	}
}

// TestTaskStates: every state has Docker's word; one that runs and serves nobody is starting there.
func TestTaskStates(t *testing.T) {
	docker := []swarm.TaskState{"new", "allocated", "pending", "assigned", "accepted", "preparing", "ready", "starting", "running", "complete", "shutdown", "failed", "rejected", "remove", "orphaned"}
	for n := range skepv1.TaskState_name {
		got := taskStatusToDocker(&skepv1.TaskStatus{State: skepv1.TaskState(n)}).State
		if !slices.Contains(docker, got) {
			t.Errorf("state %d is %q, which Docker has not", n, got)
		}
	}
	for _, c := range []struct {
		health        skepv1.HealthState
		notReady      bool
		state, reason string
	}{
		{skepv1.HealthState_HEALTH_STATE_NONE, false, "running", "started"},
		{skepv1.HealthState_HEALTH_STATE_HEALTHY, false, "running", "started"},
		{skepv1.HealthState_HEALTH_STATE_HEALTHY, true, "starting", "not ready"},
		{skepv1.HealthState_HEALTH_STATE_STARTING, false, "starting", "starting"},
		{skepv1.HealthState_HEALTH_STATE_UNHEALTHY, false, "starting", "unhealthy"},
	} {
		got := taskStatusToDocker(&skepv1.TaskStatus{State: skepv1.TaskState_TASK_STATE_RUNNING, Message: "started", Health: c.health, NotReady: c.notReady})
		if string(got.State) != c.state || !strings.Contains(got.Message, c.reason) {
			t.Errorf("%v, not ready %v: %s (%s)", c.health, c.notReady, got.State, got.Message)
		}
	}
	if got := taskStatusToDocker(&skepv1.TaskStatus{State: skepv1.TaskState_TASK_STATE_FAILED, Health: skepv1.HealthState_HEALTH_STATE_UNHEALTHY}); got.State != "failed" {
		t.Errorf("an unhealthy task that failed is %s", got.State)
	}
}

// TestJobSlots are counted from 0 by Docker's client.
func TestJobSlots(t *testing.T) {
	got := TaskToDocker(&skepv1.Task{Slot: 1, JobIteration: 9}, TaskView{})
	if got.Slot != 0 || got.JobIteration == nil || got.JobIteration.Index != 9 {
		t.Errorf("the first slot of a job is %d of run %v", got.Slot, got.JobIteration)
	}
	if got := TaskToDocker(&skepv1.Task{JobIteration: 9}, TaskView{}); got.Slot != 0 { // of a global job
		t.Errorf("a global job's task has slot %d", got.Slot)
	}
}

// TestANodeInDockersForm, there and back.
func TestANodeInDockersForm(t *testing.T) {
	n := &skepv1.Node{Meta: meta, Spec: &skepv1.NodeSpec{Labels: map[string]string{"rack": "1"}, Role: skepv1.NodeRole_NODE_ROLE_MANAGER, Availability: skepv1.Availability_AVAILABILITY_PAUSE},
		Description: &skepv1.NodeDescription{Hostname: "m1", Platform: &skepv1.Platform{Os: "linux", Arch: "amd64"}, EngineVersion: "0.1.0", Addr: "10.0.0.1",
			Resources: &skepv1.Resources{NanoCpus: 4e9, MemoryBytes: 1 << 30, Generic: []*skepv1.GenericResource{{Kind: "gpu", Named: []string{"a", "b"}}}},
			Plugins:   []*skepv1.Plugin{{Type: "Volume", Name: "local"}}},
		Status: &skepv1.NodeLive{State: skepv1.NodeState_NODE_STATE_READY}, Manager: &skepv1.ManagerStatus{Leader: true, Reachability: "reachable", Addr: "10.0.0.1:2377"}}
	tls := swarm.TLSInfo{TrustRoot: "root", CertIssuerSubject: []byte{1}, CertIssuerPublicKey: []byte{2}}
	got := NodeToDocker(n, tls)
	const want = `{"ID":"obj","Version":{"Index":42},"CreatedAt":"2026-11-30T10:00:00.000000005Z","UpdatedAt":"2026-11-30T11:00:00.000000005Z",` +
		`"Spec":{"Labels":{"rack":"1"},"Role":"manager","Availability":"pause"},"Description":{"Hostname":"m1","Platform":{"Architecture":"x86_64","OS":"linux"},` +
		`"Resources":{"NanoCPUs":4000000000,"MemoryBytes":1073741824,"GenericResources":[{"NamedResourceSpec":{"Kind":"gpu","Value":"a"}},{"NamedResourceSpec":{"Kind":"gpu","Value":"b"}}]},` +
		`"Engine":{"EngineVersion":"0.1.0","Plugins":[{"Type":"Volume","Name":"local"}]},"TLSInfo":{"TrustRoot":"root","CertIssuerSubject":"AQ==","CertIssuerPublicKey":"Ag=="}},` +
		`"Status":{"State":"ready","Addr":"10.0.0.1"},"ManagerStatus":{"Leader":true,"Reachability":"reachable","Addr":"10.0.0.1:2377"}}`
	if s := asJSON(t, got); s != want {
		t.Errorf("got\n%s, want\n%s", s, want)
	}
	spec, err := NodeFromDocker(n, got.Spec)
	if err != nil || !proto.Equal(spec, n.Spec) {
		t.Errorf("sent back as it was: %v %v", spec, err)
	}

	witness := proto.CloneOf(n)
	witness.Witness, witness.Spec.Availability = true, skepv1.Availability_AVAILABILITY_ACTIVE
	witness.Description.Trouble, witness.Manager.Reachability = "its disk is full", ""
	got = NodeToDocker(witness, tls)
	if got.Spec.Availability != "drain" || got.Status.Message != "its disk is full" || got.ManagerStatus.Reachability != "unknown" {
		t.Errorf("a witness in trouble: %s", asJSON(t, got))
	}
	got.Spec.Labels["a"] = "b"
	if spec, err = NodeFromDocker(witness, got.Spec); err != nil || spec.Availability != skepv1.Availability_AVAILABILITY_ACTIVE || spec.Labels["a"] != "b" {
		t.Errorf("a label of a witness: %v %v", spec, err)
	}
	for _, bad := range []swarm.NodeSpec{{Role: "boss", Availability: "active"}, {Role: "worker"}, {Availability: "active"}} {
		if _, err := NodeFromDocker(n, bad); !fault.Is(err, fault.CodeInvalid) || !strings.HasPrefix(err.Error(), "invalid ") {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

// TestNodeWords: every state, role and availability of a node is one that Docker has.
func TestNodeWords(t *testing.T) {
	for s := range skepv1.NodeState_name {
		got := NodeToDocker(&skepv1.Node{Status: &skepv1.NodeLive{State: skepv1.NodeState(s)}}, swarm.TLSInfo{}).Status.State
		if !slices.Contains([]swarm.NodeState{"unknown", "down", "ready", "disconnected"}, got) {
			t.Errorf("state %d is %q", s, got)
		}
	}
	for v := range skepv1.Availability_name {
		for r := range skepv1.NodeRole_name {
			n := &skepv1.Node{Spec: &skepv1.NodeSpec{Role: skepv1.NodeRole(r), Availability: skepv1.Availability(v)}}
			if got, err := NodeFromDocker(n, NodeToDocker(n, swarm.TLSInfo{}).Spec); err != nil || got.Role != n.Spec.Role || got.Availability != n.Spec.Availability {
				t.Errorf("%v comes back as %v, %v", n.Spec, got, err)
			}
		}
	}
}

// TestSecretsAndConfigs there and back: a secret's value is told to nobody, a config's is.
func TestSecretsAndConfigs(t *testing.T) {
	ann := swarm.Annotations{Name: "key", Labels: map[string]string{"a": "b"}}
	spec, data, err := SecretFromDocker(swarm.SecretSpec{Annotations: ann, Data: []byte("s3cret"), Templating: &swarm.Driver{Name: "golang"}})
	if err != nil || string(data) != "s3cret" || spec.TemplateDriver != "golang" || spec.Name != "key" || spec.Labels["a"] != "b" {
		t.Fatalf("%v %q %v", spec, data, err)
	}
	s := &skepv1.Secret{Meta: meta, Spec: spec}
	const want = `{"ID":"obj","Version":{"Index":42},"CreatedAt":"2026-11-30T10:00:00.000000005Z","UpdatedAt":"2026-11-30T11:00:00.000000005Z","Spec":{"Name":"key","Labels":{"a":"b"},%s"Templating":{"Name":"golang"}}}`
	if got := asJSON(t, SecretToDocker(s)); got != strings.Replace(want, "%s", "", 1) {
		t.Errorf("a secret: %s", got)
	}
	if got := asJSON(t, ConfigToDocker(s, []byte("v"))); got != strings.Replace(want, "%s", `"Data":"dg==",`, 1) {
		t.Errorf("a config: %s", got)
	}
	for _, c := range []struct {
		err         error
		want        string
		unsupported bool
	}{
		{second(SecretFromDocker(swarm.SecretSpec{Annotations: ann, Driver: &swarm.Driver{Name: "vault"}})), "Driver is not supported", true},
		{second(SecretFromDocker(swarm.SecretSpec{Annotations: ann, Data: []byte("x"), Templating: &swarm.Driver{Name: "golang", Options: map[string]string{"a": "b"}}})), "Templating.Options", true},
		{second(SecretFromDocker(swarm.SecretSpec{Annotations: ann, Data: []byte("x"), Templating: &swarm.Driver{Name: "jinja"}})), "unknown template driver", false},
		{second(SecretFromDocker(swarm.SecretSpec{Annotations: ann})), "secret data must be larger than 0 and less than 512000 bytes", false},
		{second(ConfigFromDocker(swarm.ConfigSpec{Annotations: ann, Data: make([]byte, 1024000)})), "config data must be larger than 0 and less than 1024000 bytes", false},
		{second(ConfigFromDocker(swarm.ConfigSpec{Annotations: swarm.Annotations{Name: "../x"}, Data: []byte("x")})), "invalid name, only 64", false},
	} {
		if c.err == nil || !strings.Contains(c.err.Error(), c.want) || IsUnsupported(c.err) != c.unsupported {
			t.Errorf("got %v, want %q", c.err, c.want)
		}
	}
}

func second(_ *skepv1.SecretSpec, _ []byte, err error) error { return err }

// TestSecretUpdates change labels, and nothing else.
func TestSecretUpdates(t *testing.T) {
	s := &skepv1.Secret{Meta: meta, Spec: &skepv1.SecretSpec{Name: "key", Labels: map[string]string{"keep": "1", "change": "1", "drop": "1"}}}
	labels := map[string]string{"keep": "1", "change": "2", "new": "3"}
	change, data, err := SecretUpdateFromDocker(s, swarm.SecretSpec{Annotations: swarm.Annotations{Name: "key", Labels: labels}, Data: []byte("same?")})
	if err != nil || string(data) != "same?" || change.Ref != "obj" || !maps.Equal(change.LabelAdd, map[string]string{"change": "2", "new": "3"}) || !slices.Equal(change.LabelRm, []string{"drop"}) {
		t.Errorf("%v %q %v", change, data, err)
	}
	change, _, err = ConfigUpdateFromDocker(s, ConfigToDocker(s, []byte("v")).Spec)
	if err != nil || len(change.LabelAdd)+len(change.LabelRm) != 0 {
		t.Errorf("sent back as it was: %v %v", change, err)
	}
	for _, in := range []swarm.SecretSpec{{Annotations: swarm.Annotations{Name: "other"}}, {Annotations: swarm.Annotations{Name: "key"}, Driver: &swarm.Driver{Name: "x"}},
		{Annotations: swarm.Annotations{Name: "key"}, Templating: &swarm.Driver{Name: "golang"}}} {
		if _, _, err := SecretUpdateFromDocker(s, in); err == nil || err.Error() != OnlyLabels().Error() {
			t.Errorf("%v: %v", in, err)
		}
	}
}

// TestNetworks there and back, and what is refused.
func TestNetworks(t *testing.T) {
	yes, no := true, false
	in := network.CreateRequest{Name: "back", Driver: "overlay", EnableIPv4: &yes, EnableIPv6: &yes, Internal: true, Attachable: true, Labels: map[string]string{"a": "b"},
		Options: map[string]string{"encrypted": ""}, IPAM: &network.IPAM{Driver: "default", Config: []network.IPAMConfig{{Subnet: netip.MustParsePrefix("10.0.9.0/24"),
			IPRange: netip.MustParsePrefix("10.0.9.128/25"), Gateway: netip.MustParseAddr("10.0.9.1")}, {}}}}
	got, err := NetworkFromDocker(in)
	want := &skepv1.NetworkSpec{Name: "back", Driver: "overlay", Labels: map[string]string{"a": "b"}, DriverOpts: map[string]string{"encrypted": ""}, Internal: true, Attachable: true, Ipv6: true,
		Ipam: []*skepv1.IPAMConfig{{Subnet: "10.0.9.0/24", IpRange: "10.0.9.128/25", Gateway: "10.0.9.1"}}}
	if err != nil || !proto.Equal(got, want) {
		t.Errorf("got %v %v, want %v", got, err, want)
	}
	n := &skepv1.Network{Meta: meta, Spec: want, Ipam: want.Ipam, Vni: 4097, Scope: "swarm"}
	out := NetworkToDocker(n, nil, false)
	const shown = `{"Name":"back","Id":"obj","Created":"2026-11-30T10:00:00.000000005Z","Scope":"swarm","Driver":"overlay","EnableIPv4":true,"EnableIPv6":true,` +
		`"IPAM":{"Driver":"default","Options":null,"Config":[{"Subnet":"10.0.9.0/24","IPRange":"10.0.9.128/25","Gateway":"10.0.9.1"}]},"Internal":true,"Attachable":true,"Ingress":false,` +
		`"ConfigFrom":{"Network":""},"ConfigOnly":false,"Options":{"com.docker.network.driver.overlay.vxlanid_list":"4097","encrypted":""},"Labels":{"a":"b"},"Containers":{}}`
	if s := asJSON(t, out); s != shown {
		t.Errorf("got\n%s, want\n%s", s, shown)
	}
	again, err := NetworkFromDocker(network.CreateRequest{Name: out.Name, Driver: out.Driver, Scope: out.Scope, EnableIPv6: &out.EnableIPv6, IPAM: &out.IPAM, Internal: out.Internal,
		Attachable: out.Attachable, Options: want.DriverOpts, Labels: out.Labels})
	if err != nil || !proto.Equal(again, want) {
		t.Errorf("made anew from what is shown: %v %v", again, err)
	}

	for name, c := range map[string]network.CreateRequest{
		"Ingress": {Name: "x", Ingress: true}, "ConfigOnly": {Name: "x", ConfigOnly: true}, "ConfigFrom": {Name: "x", ConfigFrom: &network.ConfigReference{Network: "y"}},
		"EnableIPv4=false": {Name: "x", EnableIPv4: &no}, "Scope local": {Name: "x", Scope: "local"}, "IPAM.Driver": {Name: "x", IPAM: &network.IPAM{Driver: "dhcp"}},
		"IPAM.Options":       {Name: "x", IPAM: &network.IPAM{Options: map[string]string{"a": "b"}}},
		"AuxiliaryAddresses": {Name: "x", IPAM: &network.IPAM{Config: []network.IPAMConfig{{AuxAddress: map[string]netip.Addr{"r": netip.MustParseAddr("10.0.0.1")}}}}},
	} {
		if _, err := NetworkFromDocker(c); err == nil || !strings.Contains(err.Error(), name) || !IsUnsupported(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := NetworkFromDocker(network.CreateRequest{Name: "x", IPAM: &network.IPAM{Config: []network.IPAMConfig{{Gateway: netip.MustParseAddr("10.0.0.1")}}}}); err == nil ||
		!strings.Contains(err.Error(), "must have a corresponding subnet") {
		t.Errorf("a gateway without a subnet: %v", err)
	}
	// Docker's client names bridge where nobody named a driver: that is not taken for overlay.
	bridge, err := NetworkFromDocker(network.CreateRequest{Name: "x", Driver: "bridge"})
	if err == nil {
		err = spec.ValidateNetwork(bridge, nil)
	}
	if err == nil || !strings.Contains(err.Error(), "driver bridge makes networks of a single node") {
		t.Errorf("a bridge: %v", err)
	}
}

// TestScopes: docker asks for --network host in scope swarm.
func TestScopes(t *testing.T) {
	host := NetworkToDocker(&skepv1.Network{Meta: &skepv1.Meta{Id: "host"}, Spec: &skepv1.NetworkSpec{Name: "host", Driver: "host"}, Scope: "local"}, nil, false)
	for _, c := range []struct {
		n      network.Inspect
		scope  string
		want   string
		exists bool
	}{
		{host, "", "local", true}, {host, "local", "local", true}, {host, "swarm", "swarm", true},
		{NetworkToDocker(back, nil, false), "swarm", "swarm", true}, {NetworkToDocker(back, nil, false), "", "swarm", true}, {NetworkToDocker(back, nil, false), "local", "swarm", false},
	} {
		if got, ok := InScope(c.n, c.scope); ok != c.exists || got.Scope != c.want {
			t.Errorf("%s in scope %q: %s, %v", c.n.Name, c.scope, got.Scope, ok)
		}
	}
}

// TestANetworkAndWhoIsOnIt is what inspect -v shows.
func TestANetworkAndWhoIsOnIt(t *testing.T) {
	mesh := &skepv1.MeshNetworkReply{Peers: []*skepv1.MeshPeer{{Hostname: "w1", Addr: "10.0.0.2"}},
		Services: []*skepv1.MeshNetworkService{{Service: &skepv1.MeshService{Name: "web", Vip: "10.0.9.2", Ports: []*skepv1.PortConfig{{TargetPort: 80, PublishedPort: 8080}}},
			Tasks: []*skepv1.MeshNetworkTask{{Name: "web.1", TaskId: "t1", Addr: "10.0.9.5", NodeAddr: "10.0.0.2"}}}, {Service: &skepv1.MeshService{Name: "headless"}}}}
	got := NetworkToDocker(back, mesh, true)
	same(t, "its peers", got.Peers, []network.PeerInfo{{Name: "w1", IP: netip.MustParseAddr("10.0.0.2")}})
	same(t, "its services", got.Services, map[string]network.ServiceInfo{
		"web": {VIP: netip.MustParseAddr("10.0.9.2"), Ports: []string{"Target: 80, Publish: 8080"}, Tasks: []network.Task{{Name: "web.1", EndpointID: "t1",
			EndpointIP: netip.MustParseAddr("10.0.9.5"), Info: map[string]string{"Host IP": "10.0.0.2"}}}},
		"headless": {Ports: []string{}, Tasks: []network.Task{}}})
	if back.Spec.DriverOpts != nil {
		t.Error("what was shown changed the network")
	}
}

// TestTheClusterInDockersForm, there and back; and what its client may change.
func TestTheClusterInDockersForm(t *testing.T) {
	c := &skepv1.Cluster{Meta: meta, Spec: &skepv1.ClusterSpec{FenceCommand: "/bin/fence", Autolock: true}}
	spec.ClusterDefaults(c.Spec)
	got := ClusterToDocker(c, ClusterView{Tokens: swarm.JoinTokens{Worker: "w", Manager: "m"}})
	const want = `{"ID":"obj","Version":{"Index":42},"CreatedAt":"2026-11-30T10:00:00.000000005Z","UpdatedAt":"2026-11-30T11:00:00.000000005Z","Spec":{"Name":"default","Labels":{},` +
		`"Orchestration":{"TaskHistoryRetentionLimit":5},"Raft":{"SnapshotInterval":10000,"KeepOldSnapshots":0,"LogEntriesForSlowFollowers":500,"ElectionTick":10,"HeartbeatTick":1},` +
		`"Dispatcher":{"HeartbeatPeriod":1000000000},"CAConfig":{"NodeCertExpiry":7776000000000000},"TaskDefaults":{},"EncryptionConfig":{"AutoLockManagers":true}},"TLSInfo":{},` +
		`"RootRotationInProgress":false,"DefaultAddrPool":["10.0.0.0/8"],"SubnetSize":20,"DataPathPort":4789,"JoinTokens":{"Worker":"w","Manager":"m"}}`
	if s := asJSON(t, got); s != want {
		t.Errorf("got\n%s, want\n%s", s, want)
	}
	change, err := ClusterFromDocker(c.Spec, got.Spec)
	if err != nil || !proto.Equal(change.Spec, c.Spec) || change.Rotate {
		t.Errorf("sent back as it was: %v %v", change, err)
	}
	in := got.Spec
	three := int64(3)
	in.Orchestration.TaskHistoryRetentionLimit, in.Dispatcher.HeartbeatPeriod, in.CAConfig.NodeCertExpiry = &three, 2*time.Second, 48*time.Hour
	in.EncryptionConfig.AutoLockManagers, in.CAConfig.ForceRotate = false, 1
	after := proto.CloneOf(c.Spec)
	after.TaskHistoryLimit, after.HeartbeatPeriod, after.NodeCertExpiry, after.Autolock = 3, durationpb.New(2e9), durationpb.New(48*time.Hour), false
	if change, err = ClusterFromDocker(c.Spec, in); err != nil || !proto.Equal(change.Spec, after) || !change.Rotate || change.RootCert != "" {
		t.Errorf("changed: %v %v", change, err)
	}
	if change, err = ClusterFromDocker(c.Spec, swarm.Spec{EncryptionConfig: swarm.EncryptionConfig{AutoLockManagers: true}}); err != nil || !proto.Equal(change.Spec, c.Spec) {
		t.Errorf("what is left out stays: %v %v", change, err)
	}
	if change, err = ClusterFromDocker(c.Spec, swarm.Spec{CAConfig: swarm.CAConfig{SigningCACert: "cert", SigningCAKey: "key"}}); err != nil || !change.Rotate || change.RootKey != "key" {
		t.Errorf("a root of one's own: %v %v", change, err)
	}
	seven := uint64(7)
	for name, bad := range map[string]swarm.Spec{
		"must be named": {Annotations: swarm.Annotations{Name: "mine"}}, "Labels of the cluster": {Annotations: swarm.Annotations{Labels: map[string]string{"a": "b"}}},
		"Raft.SnapshotInterval": {Raft: swarm.RaftConfig{SnapshotInterval: 5}}, "Raft.KeepOldSnapshots": {Raft: swarm.RaftConfig{KeepOldSnapshots: &seven}},
		"Raft.LogEntriesForSlowFollowers": {Raft: swarm.RaftConfig{LogEntriesForSlowFollowers: 5}}, "Raft.ElectionTick": {Raft: swarm.RaftConfig{ElectionTick: 5}},
		"Raft.HeartbeatTick": {Raft: swarm.RaftConfig{HeartbeatTick: 5}}, "CAConfig.ExternalCAs": {CAConfig: swarm.CAConfig{ExternalCAs: []*swarm.ExternalCA{nil}}},
		"TaskDefaults.LogDriver": {TaskDefaults: swarm.TaskDefaults{LogDriver: &swarm.Driver{Name: "syslog"}}}, "SigningCACert without SigningCAKey": {CAConfig: swarm.CAConfig{SigningCACert: "x"}},
	} {
		if _, err := ClusterFromDocker(c.Spec, bad); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestTLSInfo reads a root certificate.
func TestTLSInfo(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}}, &x509.Certificate{Subject: pkix.Name{CommonName: "root"}}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	root := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	got, err := TLSInfo(root)
	spki, _ := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil || got.TrustRoot != string(root) || string(got.CertIssuerPublicKey) != string(spki) || len(got.CertIssuerSubject) == 0 {
		t.Errorf("%v %v", got, err)
	}
	for _, bad := range []string{"", "no PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"} {
		if _, err := TLSInfo([]byte(bad)); err == nil {
			t.Errorf("%q is taken for a certificate", bad)
		}
	}
}

// TestSwarmInfo: managers tell of the cluster, workers of themselves and of the managers they know.
func TestSwarmInfo(t *testing.T) {
	nodes := []*skepv1.Node{{Meta: &skepv1.Meta{Id: "m2"}, Manager: &skepv1.ManagerStatus{Addr: "10.0.0.2:2377"}}, {Meta: &skepv1.Meta{Id: "w1"}},
		{Meta: &skepv1.Meta{Id: "m1"}, Manager: &skepv1.ManagerStatus{Addr: "10.0.0.1:2377"}}}
	got := SwarmInfo(LocalNode{ID: "m1", Addr: "10.0.0.1", State: swarm.LocalNodeStateActive, Manager: true}, nodes, &skepv1.Cluster{Meta: meta}, ClusterView{Tokens: swarm.JoinTokens{Worker: "token"}})
	if got.Nodes != 3 || got.Managers != 2 || got.Cluster == nil || got.Cluster.ID != "obj" || len(got.RemoteManagers) != 2 || got.RemoteManagers[0].NodeID != "m1" || strings.Contains(asJSON(t, got), "token") {
		t.Errorf("a manager: %s", asJSON(t, got))
	}
	got = SwarmInfo(LocalNode{ID: "w1", State: swarm.LocalNodeStateActive}, nodes[:1], nil, ClusterView{})
	if got.Nodes != 0 || got.Managers != 0 || got.Cluster != nil || len(got.RemoteManagers) != 1 {
		t.Errorf("a worker: %s", asJSON(t, got))
	}
	if got := asJSON(t, SwarmInfo(LocalNode{State: swarm.LocalNodeStateInactive}, nil, nil, ClusterView{})); got != `{"NodeID":"","NodeAddr":"","LocalNodeState":"inactive","ControlAvailable":false,"Error":"","RemoteManagers":null}` {
		t.Errorf("outside of a cluster: %s", got)
	}
}
