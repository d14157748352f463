package spec

import (
	"testing"

	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"
)

// FuzzValidate: whatever bytes a request holds, a spec is refused or taken, and one that is taken has defaults, passes
// again with them and can be stored and compared.
func FuzzValidate(f *testing.F) {
	whole := &skepv1.ServiceSpec{
		Name:   "web",
		Labels: map[string]string{"a": "b"},
		Task: &skepv1.TaskSpec{Container: &skepv1.ContainerSpec{Image: "httpd:latest", Env: []string{"A=b"}, Hostname: "h"},
			Placement: &skepv1.Placement{Constraints: []string{"node.labels.zone==eu"}}},
		Mode:     &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_Replicated{Replicated: &skepv1.ReplicatedMode{Replicas: 3_000_000}}},
		Update:   &skepv1.UpdateConfig{MaxFailureRatio: 0.5},
		Endpoint: &skepv1.EndpointSpec{Ports: []*skepv1.PortConfig{{Protocol: "tcp", TargetPort: 80, PublishedPort: 8080}}},
	}
	small := proto.CloneOf(whole)
	small.Mode = nil
	for _, s := range []*skepv1.ServiceSpec{whole, small, {}} {
		body, err := proto.Marshal(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var s skepv1.ServiceSpec
		if proto.Unmarshal(body, &s) == nil && Validate(&s) == nil {
			Defaults(&s)
			if err := Validate(&s); err != nil {
				t.Fatalf("taken without defaults and refused with them: %v", err)
			}
			if d := Diff(&s, proto.CloneOf(&s)); d != "" {
				t.Fatalf("differs from itself: %s", d)
			}
			if n, ok := Replicas(&s); ok && n > MaxReplicas {
				t.Fatalf("%d replicas are taken", n)
			}
		}
		var n skepv1.NodeSpec
		if proto.Unmarshal(body, &n) == nil {
			_ = ValidateNode(&n)
		}
	})
}
