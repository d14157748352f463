package translate

import (
	"encoding/json"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// TestDockersOwnAnswers: what Docker 20.10 answers for a service is what skep answers for the same service, field for field.
func TestDockersOwnAnswers(t *testing.T) {
	files, err := filepath.Glob("testdata/docker-20.10/*.json")
	if err != nil || len(files) < 15 {
		t.Fatalf("%d recorded answers: %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".json"), func(t *testing.T) {
			var golden struct {
				Service  struct{ Spec json.RawMessage }
				Defaults json.RawMessage `json:"insertDefaults"`
			}
			read(t, file, &golden)
			var in swarm.ServiceSpec
			if err := json.Unmarshal(golden.Service.Spec, &in); err != nil {
				t.Fatal(err)
			}
			s, warn, err := ServiceFromDocker(in, nil)
			if err != nil || len(warn) > 0 {
				t.Fatalf("%v %q", err, warn)
			}
			equal(t, "the spec", asAny(t, ServiceSpecToDocker(s)), asAny(t, golden.Service.Spec))
			spec.Defaults(s)
			out := ServiceSpecToDocker(s)
			InsertDefaults(&out)
			equal(t, "the spec with its defaults", asAny(t, out), asAny(t, golden.Defaults))
		})
	}
}

func asAny(t *testing.T, v any) any {
	t.Helper()
	var out any
	if err := json.Unmarshal([]byte(asJSON(t, v)), &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// different are the places where skep answers otherwise on purpose, by the end of their path.
var different = map[string]string{
	"defaults.UpdateConfig":    "of a job: it has none, and one that was inserted could not be sent back",
	"defaults.RollbackConfig":  "likewise",
	".NoNewPrivileges":         "came with 1.44",
	".BindOptions":             "the propagation is filled in, with and without defaults",
	".BindOptions.Propagation": "likewise",
	".EnableIPv4":              "came with 1.48",
	"network.Containers":       "Docker tells null where it may not look",
	"network.Labels":           "clients range over them",
	".DefaultAddrPool":         "stored from the start",
	".SubnetSize":              "skep's own default",
	".Volumes":                 "came with 1.42",
	"Endpoint.Spec.Mode":       "known at once",
	"Endpoint.Spec":            "likewise",
}

// equal names the places where two JSON values differ.
func equal(t *testing.T, at string, got, want any) {
	t.Helper()
	for end := range different {
		if strings.HasSuffix(at, end) && (end != "defaults.UpdateConfig" && end != "defaults.RollbackConfig" || got == nil) {
			return
		}
	}
	switch w := want.(type) {
	case map[string]any:
		g, ok := got.(map[string]any)
		if !ok && got != nil {
			break
		}
		for k := range w {
			equal(t, at+"."+k, g[k], w[k])
		}
		for k := range g {
			if _, ok := w[k]; !ok {
				equal(t, at+"."+k, g[k], nil)
			}
		}
		return
	case []any:
		g, ok := got.([]any)
		if !ok || len(g) != len(w) {
			break
		}
		for i := range w {
			equal(t, at+"[]", g[i], w[i])
		}
		return
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s: %v, in Docker %v", at, got, want)
	}
}

// TestDockersOwnObjects: the other objects, as Docker 20.10 tells them, and skep's of the same.
func TestDockersOwnObjects(t *testing.T) {
	var g struct {
		Node    swarm.Node
		Secret  swarm.Secret
		Config  swarm.Config
		Network network.Inspect
		Task    swarm.Task
		Swarm   swarm.Swarm
		Updated swarm.Service
		Info    swarm.Info
		Events  []events.Message
	}
	read(t, "testdata/docker-20.10-objects.json", &g)
	metaOf := func(id string, m swarm.Meta) *skepv1.Meta {
		return &skepv1.Meta{Id: id, Version: m.Version.Index, CreatedAt: timestamppb.New(m.CreatedAt), UpdatedAt: timestamppb.New(m.UpdatedAt)}
	}
	compare := func(what string, got, want any) { t.Helper(); equal(t, what, asAny(t, got), asAny(t, want)) }

	compare("secret", SecretToDocker(&skepv1.Secret{Meta: metaOf(g.Secret.ID, g.Secret.Meta), Spec: &skepv1.SecretSpec{Name: g.Secret.Spec.Name}}), g.Secret)
	compare("config", ConfigToDocker(&skepv1.Secret{Meta: metaOf(g.Config.ID, g.Config.Meta), Spec: &skepv1.SecretSpec{Name: g.Config.Spec.Name}}, []byte("v\n")), g.Config)

	d := g.Node.Description
	node := &skepv1.Node{Meta: metaOf(g.Node.ID, g.Node.Meta), Spec: &skepv1.NodeSpec{Role: skepv1.NodeRole_NODE_ROLE_MANAGER, Availability: skepv1.Availability_AVAILABILITY_DRAIN},
		Description: &skepv1.NodeDescription{Hostname: d.Hostname, Platform: &skepv1.Platform{Os: "linux", Arch: "amd64"}, Addr: g.Node.Status.Addr, EngineVersion: d.Engine.EngineVersion,
			Resources: &skepv1.Resources{NanoCpus: d.Resources.NanoCPUs, MemoryBytes: d.Resources.MemoryBytes}},
		Status: &skepv1.NodeLive{State: skepv1.NodeState_NODE_STATE_READY}, Manager: &skepv1.ManagerStatus{Leader: true, Reachability: "reachable", Addr: g.Node.ManagerStatus.Addr}}
	for _, p := range d.Engine.Plugins {
		node.Description.Plugins = append(node.Description.Plugins, &skepv1.Plugin{Type: p.Type, Name: p.Name})
	}
	tls, err := TLSInfo([]byte(d.TLSInfo.TrustRoot))
	if err != nil {
		t.Fatal(err)
	}
	compare("node", NodeToDocker(node, tls), g.Node)

	ipam := []*skepv1.IPAMConfig{{Subnet: "10.0.1.0/24", Gateway: "10.0.1.1"}}
	compare("network", NetworkToDocker(&skepv1.Network{Meta: &skepv1.Meta{Id: g.Network.ID, CreatedAt: timestamppb.New(g.Network.Created)}, Spec: &skepv1.NetworkSpec{Name: "back", Driver: "overlay"},
		Ipam: ipam, Vni: 4097, Scope: "swarm"}, nil, false), g.Network)

	made, err := taskFromDocker(g.Task.Spec, nil)
	if err != nil {
		t.Fatal(err)
	}
	compare("task", TaskToDocker(&skepv1.Task{Meta: metaOf(g.Task.ID, g.Task.Meta), ServiceId: g.Task.ServiceID, Slot: 1, Desired: skepv1.TaskState_TASK_STATE_RUNNING, Spec: made,
		Status: &skepv1.TaskStatus{State: skepv1.TaskState_TASK_STATE_PENDING, Message: g.Task.Status.Message, Err: g.Task.Status.Err, SinceUnixMs: g.Task.Status.Timestamp.UnixMilli()}}, TaskView{}),
		func() swarm.Task {
			g.Task.Status.Timestamp = g.Task.Status.Timestamp.Truncate(time.Millisecond)
			return g.Task
		}())

	cluster := &skepv1.Cluster{Meta: metaOf(g.Swarm.ID, g.Swarm.Meta), Spec: &skepv1.ClusterSpec{HeartbeatPeriod: durationpb.New(g.Swarm.Spec.Dispatcher.HeartbeatPeriod), TaskHistoryLimit: 5}}
	spec.ClusterDefaults(cluster.Spec)
	view := ClusterView{Tokens: g.Swarm.JoinTokens, TLS: tls}
	compare("swarm", ClusterToDocker(cluster, view), g.Swarm)
	compare("info", SwarmInfo(LocalNode{ID: g.Info.NodeID, Addr: g.Info.NodeAddr, State: "active", Manager: true}, []*skepv1.Node{node}, cluster, view), g.Info)

	now, _, err := ServiceFromDocker(g.Updated.Spec, nil)
	if err != nil {
		t.Fatal(err)
	}
	before, _, err := ServiceFromDocker(*g.Updated.PreviousSpec, nil)
	if err != nil {
		t.Fatal(err)
	}
	u := g.Updated.UpdateStatus
	compare("service", ServiceToDocker(&skepv1.Service{Meta: metaOf(g.Updated.ID, g.Updated.Meta), Spec: now,
		UpdateStatus: &skepv1.UpdateStatus{State: "updating", StartedAt: timestamppb.New(*u.StartedAt), Message: u.Message}}, ServiceView{Previous: before}), g.Updated)

	for _, e := range g.Events {
		if e.Type == "network" && e.Action == "update" { // of the network's allocation, which skep does before it tells of it
			continue
		}
		got, ok := EventToDocker(&skepv1.Event{Kind: string(e.Type), Verb: string(e.Action), Id: e.Actor.ID, Name: e.Actor.Attributes["name"], Attributes: e.Actor.Attributes,
			Time: timestamppb.New(time.Unix(0, e.TimeNano))})
		if !ok {
			t.Errorf("%s %s is not told", e.Type, e.Action)
		}
		compare("event", got, e)
	}
}
