package state

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/stack"
	skepv1 "skep.dev/proto/skep/v1"
)

// What cannot be deployed is refused by name, before anything is stored.
func TestStackRefused(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	r.vault()
	taken := webSpec("blog_taken", 1)
	taken.Endpoint = &skepv1.EndpointSpec{Ports: []*skepv1.PortConfig{{TargetPort: 80, PublishedPort: 8080}}}
	must[*skepv1.ServiceReply](t)(r.create(taken))
	must[*skepv1.NetworkReply](t)(call(r, api.NetworkCreate, &skepv1.CreateNetworkRequest{Spec: &skepv1.NetworkSpec{Name: "theirs"}}))
	r.mustDeploy(blog("other"), 0)
	port := func(n uint32) func(*skepv1.ServiceSpec) {
		return func(s *skepv1.ServiceSpec) {
			s.Endpoint = &skepv1.EndpointSpec{Ports: []*skepv1.PortConfig{{TargetPort: 80, PublishedPort: n}}}
		}
	}
	with := func(f func(s *skepv1.StackSpec)) *skepv1.StackSpec {
		s := blog("blog")
		f(s)
		return s
	}
	web := func(f func(*skepv1.ServiceSpec)) *skepv1.StackSpec {
		return with(func(s *skepv1.StackSpec) { f(s.Services[1]) })
	}
	for want, spec := range map[string]*skepv1.StackSpec{
		"stack spec is missing":                                                            nil,
		"the stack has no name":                                                            with(func(s *skepv1.StackSpec) { s.Name = " \t" }),
		`invalid stack name "my blog": use letters`:                                        with(func(s *skepv1.StackSpec) { s.Name = "my blog" }),
		`invalid stack name "` + strings.Repeat("a", 70):                                   with(func(s *skepv1.StackSpec) { s.Name = strings.Repeat("a", 70) }),
		"invalid resolve-image value 'sometimes'":                                          with(func(s *skepv1.StackSpec) { s.ResolveImage = "sometimes" }),
		"stack blog has 301 services: at most 250":                                         with(func(s *skepv1.StackSpec) { s.Services = make([]*skepv1.ServiceSpec, 301) }),
		"stack blog has a service without a name":                                          web(func(s *skepv1.ServiceSpec) { s.Name = "" }),
		"stack blog has service BLOG_DB twice":                                             web(func(s *skepv1.ServiceSpec) { s.Name = "BLOG_DB"; s.DependsOn = nil }),
		"service blog_web: invalid replicas value":                                         web(func(s *skepv1.ServiceSpec) { s.Mode.GetReplicated().Replicas = 1 << 40 }),
		"service blog_web has label com.docker.stack.namespace=x: it is of stack blog":     web(func(s *skepv1.ServiceSpec) { s.Labels = map[string]string{stack.Label: "x"} }),
		"service blog_web depends on blog_nope: no such service: blog_nope":                web(func(s *skepv1.ServiceSpec) { s.DependsOn[0].Service = "blog_nope" }),
		"service blog_web: network nope not found: create it first":                        web(func(s *skepv1.ServiceSpec) { s.Task.Networks[0].Target = "nope" }),
		"service blog_web: Service cannot be explicitly attached to the ingress network":   web(func(s *skepv1.ServiceSpec) { s.Task.Networks[0].Target = "ingress" }),
		"service blog_web cannot wait for blog_db to complete: it is not a job":            web(func(s *skepv1.ServiceSpec) { s.DependsOn[0].Condition = skepv1.Dependency_CONDITION_COMPLETED }),
		"secret not found: nope":                                                           web(func(s *skepv1.ServiceSpec) { s.Task.Container.Secrets = refs(&skepv1.FileReference{Name: "nope"}) }),
		"service blog_web: port '8080' is already in use by service 'blog_taken'":          web(port(8080)),
		"service blog_web: port '4789' cannot be published: skep itself uses 4789/udp":     web(func(s *skepv1.ServiceSpec) { port(4789)(s); s.Endpoint.Ports[0].Protocol = "udp" }),
		"network host: host is a pre-defined network and cannot be created":                with(func(s *skepv1.StackSpec) { s.Networks[0].Name = "host" }),
		"service blog_taken exists and is not of this stack: remove it, or deploy under":   web(func(s *skepv1.ServiceSpec) { s.Name = "blog_taken" }),
		"network theirs exists and is not of this stack: remove it, or deploy under":       with(func(s *skepv1.StackSpec) { s.Networks = append(s.Networks, &skepv1.NetworkSpec{Name: "theirs"}) }),
		"network other_net is of stack other: no two stacks have one; declare it external": with(func(s *skepv1.StackSpec) { s.Networks = append(s.Networks, &skepv1.NetworkSpec{Name: "other_net"}) }),
		"secret blog_pw of stack blog has no id and version: it is stored before":          with(func(s *skepv1.StackSpec) { s.Secrets = []*skepv1.StackFile{{Name: "blog_pw"}} }),
		"secret a b: invalid name":                                                         with(func(s *skepv1.StackSpec) { s.Secrets = []*skepv1.StackFile{{Name: "a b"}} }),
		"services depend on one another in a circle, each would wait for the other: blog_db -> blog_web -> blog_db": with(func(s *skepv1.StackSpec) {
			s.Services[0].DependsOn = []*skepv1.Dependency{{Service: "blog_web"}}
		}),
		"services blog_db and blog_web of stack blog both publish port 81/tcp": with(func(s *skepv1.StackSpec) { port(81)(s.Services[0]); port(81)(s.Services[1]) }),
		"stack blog is 3": with(func(s *skepv1.StackSpec) {
			for i := range 30 {
				x := webSpec(fmt.Sprintf("blog_%d", i), 1)
				x.Task.Container.Env = []string{"A=" + strings.Repeat("x", 11<<10)}
				s.Services = append(s.Services, x)
			}
		}),
	} {
		for _, dry := range []bool{true, false} {
			if dry && strings.Contains(want, "no id and version") {
				continue // what is not stored yet is planned
			}
			_, err := r.deploy(spec, 0, func(q *skepv1.DeployStackRequest) { q.DryRun = dry })
			if err == nil || !strings.HasPrefix(err.Error(), want) {
				t.Errorf("dry %v: want %q, got %v", dry, want, err)
			}
		}
	}
	if st := r.stack("blog"); st != nil || fmt.Sprint(r.everything()) != "[blog_taken other_db other_net other_web theirs]" || len(r.s.ix.Keys("idx.stack.")) != 1 {
		t.Fatal(st, r.everything())
	}
	for _, ref := range []string{"", "  "} {
		for _, err := range []error{
			func() error { _, err := call(r, api.StackRemove, &skepv1.RemoveStackRequest{Ref: ref}); return err }(),
			func() error { _, err := call(r, api.StackRollback, &skepv1.RollbackStackRequest{Ref: ref}); return err }(),
			func() error { _, err := call(r, api.StackInspect, &skepv1.Ref{Ref: ref}); return err }(),
		} {
			wantErr(t, err, "stack: give a name or an id")
			if !fault.Is(err, fault.CodeInvalid) {
				t.Error(err)
			}
		}
	}
	_, err := call(r, api.StackRemove, &skepv1.RemoveStackRequest{Ref: "othe"})
	wantErr(t, err, "no such stack: othe; did you mean other?")
	_, err = r.deploy(blog("Other"), 0)
	wantErr(t, err, "stack other exists, and the case of letters tells no two stacks apart: use its name")
	_, err = r.deploy(blog("gone"), 3)
	wantErr(t, err, "stack gone was removed meanwhile: look at the plan again, then deploy")
	_, err = call(r, api.StackRollback, &skepv1.RollbackStackRequest{Ref: "other"})
	wantErr(t, err, "stack other has no revision before this one to go back to")
	_, err = call(r, api.StackRollback, &skepv1.RollbackStackRequest{Ref: "other", Revision: 9})
	wantErr(t, err, "stack other has no revision 9: skep stack history other lists them")
}

// What a network or a service cannot become is refused; a network's labels stay, with a word.
func TestStackCannotChange(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	spec := blog("blog")
	r.mustDeploy(spec, 0)
	other := proto.CloneOf(spec)
	other.Networks[0].Internal = true
	_, err := r.deploy(other, 1)
	wantErr(t, err, "network blog_net exists with other options (internal), and a network cannot change: undo that, or name a new network and remove this one")
	other = proto.CloneOf(spec)
	other.Services[0].Mode = &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_Global{Global: &skepv1.GlobalMode{}}}
	_, err = r.deploy(other, 1)
	wantErr(t, err, "service blog_db is replicated and cannot become global: remove it first, or name it anew")
	other = proto.CloneOf(spec)
	other.Networks[0].Labels = map[string]string{"a": "b"}
	reply := must[*skepv1.DeployStackReply](t)(r.deploy(other, 1))
	if fmt.Sprint(reply.Warnings) != "[network blog_net keeps the labels it was made with: a network cannot change]" {
		t.Fatal(reply)
	}
	// Another network in its place: services move, and with pruning the old one goes.
	other = blog("blog")
	other.Networks[0].Name = "blog_new"
	for _, s := range other.Services {
		s.Task.Networks[0].Target = "blog_new"
	}
	st := r.settled("blog")
	if got := changes(must[*skepv1.DeployStackReply](t)(r.deploy(other, st.Revision, pruned))); got != "create network blog_new, change service blog_db (networks +blog_new:db -blog_net:db), change service blog_web (networks +blog_new:web -blog_net:web), remove network blog_net" {
		t.Fatal(got)
	}
	r.settled("blog")
	if got := fmt.Sprint(r.everything()); got != "[blog_db blog_new blog_web]" {
		t.Fatal(got)
	}
}

// A port goes from one service to another, and from one that goes to one that comes.
func TestStackMovesPorts(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	at := func(s *skepv1.ServiceSpec, port uint32) {
		s.Endpoint = &skepv1.EndpointSpec{Ports: []*skepv1.PortConfig{{TargetPort: 80, PublishedPort: port}}}
	}
	spec := blog("blog")
	at(spec.Services[1], 8080) // web, which comes after db
	r.mustDeploy(spec, 0)
	spec.Services[1].Endpoint = nil
	at(spec.Services[0], 8080)
	r.mustDeploy(spec, 1)
	front := webSpec("blog_front", 1)
	at(front, 8080)
	spec.Services = []*skepv1.ServiceSpec{front}
	_, err := r.deploy(spec, 2)
	if err == nil || !strings.HasPrefix(err.Error(), "service blog_front: port '8080' is already in use by service 'blog_db'") {
		t.Fatal("what is left behind keeps its port", err)
	}
	r.mustDeploy(spec, 2, pruned)
	if got := fmt.Sprint(r.everything()); got != "[blog_front blog_net]" {
		t.Fatal(got)
	}
}
