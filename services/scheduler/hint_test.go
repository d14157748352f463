package scheduler

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/kvtest"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// Members that wait for one another's names never get well: explain names the option that lists them from their start.
func TestExplainNamesDNSStarting(t *testing.T) {
	f := newFake(t, kvtest.Server(t), 2)
	f.probes("nslookup: can't resolve 'tasks.zoo'\n")
	s, _ := f.start("a", nil)
	spec := service("zoo", 3, "v1")
	spec.Task.Networks = []*skepv1.NetworkAttachment{{Target: "net1"}}
	f.putService("svc1", 1, spec)
	hints := func() []string {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		var x skepv1.ExplainReply
		if err := rpc.Call(ctx, s.cfg.NC, subject.API("service", "explain"), &skepv1.ExplainRequest{Ref: "zoo"}, &x); err != nil {
			t.Fatal(err)
		}
		return x.Hints
	}
	await := func(what string, n int) {
		t.Helper()
		f.await(what, func() error {
			got := hints()
			if len(got) != n || n == 1 && !strings.Contains(got[0], "skep service update --dns-starting zoo") {
				return fmt.Errorf("hints %q", got)
			}
			return nil
		})
	}
	await("a hint while none is well", 1)
	f.probes("")
	await("no hint once they are well", 0)
	f.probes("nslookup: can't resolve 'tasks.zoo'\n")
	await("the hint again", 1)
	spec = proto.CloneOf(spec)
	spec.Endpoint = &skepv1.EndpointSpec{DnsStarting: true}
	f.putService("svc1", 2, spec)
	await("no hint for who has the option", 0)
}

func TestNameHintIsForMembersOfANetwork(t *testing.T) {
	for what, change := range map[string]func(*skepv1.ServiceSpec){
		"one task":         func(s *skepv1.ServiceSpec) { s.Mode.GetReplicated().Replicas = 1 },
		"no network":       func(s *skepv1.ServiceSpec) { s.Task.Networks = nil },
		"the host's alone": func(s *skepv1.ServiceSpec) { s.Task.Networks[0].Target = "host" },
		"a job": func(s *skepv1.ServiceSpec) {
			s.Mode = &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_ReplicatedJob{ReplicatedJob: &skepv1.ReplicatedJobMode{TotalCompletions: 3}}}
		},
	} {
		s := service("zoo", 3, "v1")
		s.Task.Networks = []*skepv1.NetworkAttachment{{Target: "net1"}}
		if len(nameHint(s)) != 1 {
			t.Fatal("members of a network get no hint")
		}
		if change(s); len(nameHint(s)) != 0 {
			t.Errorf("%s: %q", what, nameHint(s))
		}
	}
}
