package state

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/rpc"
	"skep.dev/libs/stack"
	skepv1 "skep.dev/proto/skep/v1"
)

// stackVault is a fakeVault that has labels and takes back what stacks made.
type stackVault struct {
	*fakeVault
	mu      sync.Mutex
	labels  map[string]string // by name: the stack's
	dropped []*skepv1.DropFileRequest
}

func (r *rig) stackVault() *stackVault {
	r.t.Helper()
	v := &stackVault{fakeVault: r.vault(), labels: map[string]string{}}
	srv, err := rpc.NewServer(r.n.Conn(r.t), rpc.Config{Name: "skep-vault-stacks"})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = srv.Close() })
	list := func(_ context.Context, q *skepv1.ListSecretsRequest) (*skepv1.ListSecretsReply, error) {
		v.mu.Lock()
		defer v.mu.Unlock()
		out := &skepv1.ListSecretsReply{}
		for name, of := range v.labels {
			if slices.Contains(q.Filters[0].Values, name) {
				out.Secrets = append(out.Secrets, &skepv1.Secret{Spec: &skepv1.SecretSpec{Name: name, Labels: map[string]string{stack.Label: of}}})
			}
		}
		return out, nil
	}
	if err := api.Handle(srv, api.SecretList, list); err != nil {
		r.t.Fatal(err)
	}
	if err := api.Handle(srv, api.FilesDrop, v.take); err != nil {
		r.t.Fatal(err)
	}
	await(r.t, "the vault", func() bool {
		_, err := call(r, api.FilesDrop, &skepv1.DropFileRequest{})
		return fault.Is(err, fault.CodeNotFound)
	})
	return v
}

func (v *stackVault) take(_ context.Context, q *skepv1.DropFileRequest) (*skepv1.RemoveSecretReply, error) {
	v.fakeVault.mu.Lock()
	o := v.objects[q.Id]
	delete(v.objects, q.Id)
	v.fakeVault.mu.Unlock()
	if o == nil {
		return nil, fault.NotFound("secret not found: %s", q.Id)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.dropped = append(v.dropped, q)
	return &skepv1.RemoveSecretReply{}, nil
}

// seal plays the deploying client: the secret is in the vault, in that version, with the stack's label.
func (v *stackVault) seal(name string, version uint64, of string) *skepv1.StackFile {
	v.put(aSecret, name, version)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.labels[name] = of
	return &skepv1.StackFile{Name: name, Id: idOf(name), Version: version}
}

// A new version of a stack's secret comes to exactly the services that use it, with whatever else changes of them; a version
// that somebody gives by hand stays until the stack has a newer one; a rollback goes back in versions, too.
func TestStackSecrets(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	v := r.stackVault()
	spec := blog("blog")
	spec.Secrets = []*skepv1.StackFile{v.seal("blog_pw", 1, "blog")}
	spec.Services[0].Task.Container.Secrets = refs(&skepv1.FileReference{Name: "blog_pw"})
	plan := proto.CloneOf(spec)
	plan.Secrets[0].Id, plan.Secrets[0].Version = "", 0
	if got := changes(must[*skepv1.DeployStackReply](t)(r.deploy(plan, 0, dryRun))); got != "create network blog_net, create secret blog_pw, create service blog_db, create service blog_web" {
		t.Fatal(got)
	}
	r.mustDeploy(spec, 0)
	revision := func(name string) uint64 { return r.service(name).Revision }
	if r.version("blog_db", "blog_pw") != 1 {
		t.Fatal("no version")
	}
	// A user of it that is not of the stack.
	r.mustCreateSpec(withFiles("outside", refs(&skepv1.FileReference{Name: "blog_pw"}), nil))
	same := must[*skepv1.DeployStackReply](t)(r.deploy(spec, 1))
	if same.Stack.Revision != 1 || same.Stack.State != deployed {
		t.Fatal(changes(same))
	}
	spec.Secrets[0] = v.seal("blog_pw", 2, "blog")
	spec.Services[0].Task.Container.Env = []string{"A=b"}
	second := must[*skepv1.DeployStackReply](t)(r.deploy(spec, 1))
	if got := changes(second); got != "keep network blog_net, change secret blog_pw (version 1 -> 2), change service blog_db (env +A; secrets +"+
		idOf("blog_pw")+":blog_pw:blog_pw:0:0:292:2 -"+idOf("blog_pw")+":blog_pw:blog_pw:0:0:292:1), keep service blog_web" {
		t.Fatal(got)
	}
	r.settled("blog")
	if a, b := revision("blog_db"), revision("blog_web"); a != 2 || b != 1 || r.version("blog_db", "blog_pw") != 2 {
		t.Fatal(a, b)
	}
	if r.version("outside", "blog_pw") != 2 {
		t.Fatal("a service of nobody's stack that uses it does not follow")
	}
	// By hand.
	v.seal("blog_pw", 3, "blog")
	if got := r.roll("blog_pw", 3); fmt.Sprint(got) != "[blog_db outside]" {
		t.Fatal(got)
	}
	if got := must[*skepv1.DeployStackReply](t)(r.deploy(spec, 2)); got.Stack.Revision != 2 {
		t.Fatal("an older version is brought back:", changes(got))
	}
	// Back to the first revision: in its version, and again forward.
	rolled := must[*skepv1.DeployStackReply](t)(call(r, api.StackRollback, &skepv1.RollbackStackRequest{Ref: "blog"}))
	if rolled.Stack.Revision != 3 {
		t.Fatal(rolled)
	}
	r.settled("blog")
	if got := r.version("blog_db", "blog_pw"); got != 1 {
		t.Fatal(got)
	}
	spec.Secrets[0] = v.seal("blog_pw", 3, "blog")
	r.mustDeploy(spec, 3)
	if got := r.version("blog_db", "blog_pw"); got != 3 {
		t.Fatal(got)
	}
	// Left out: older revisions of a service that stays could go back to it. It goes with the stack.
	spec.Secrets, spec.Services[0].Task.Container.Secrets = nil, nil
	left := must[*skepv1.DeployStackReply](t)(r.deploy(spec, 4, pruned))
	if got := changes(left); got[len(got)-len("leave secret blog_pw"):] != "leave secret blog_pw" {
		t.Fatal(got)
	}
	if st := r.settled("blog"); !isMember(st, stack.Secret, idOf("blog_pw")) {
		t.Fatal(st)
	}
	r.removeStack("blog")
	if len(v.dropped) != 1 || v.dropped[0].Author == "" || v.dropped[0].Id != idOf("blog_pw") {
		t.Fatal(v.dropped)
	}
}

// A secret that somebody else made is not taken over; one that a killed client has made for this stack is.
func TestStackAdoptsNoSecret(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	v := r.stackVault()
	spec := blog("blog")
	spec.Secrets = []*skepv1.StackFile{v.seal("blog_pw", 1, "")}
	_, err := r.deploy(spec, 0)
	wantErr(t, err, "secret blog_pw exists and is not of stack blog: declare it external, or name another")
	spec.Secrets[0].Id = idOf("blog_web")
	_, err = r.deploy(spec, 0)
	if err == nil {
		t.Fatal("a secret that is not there")
	}
	spec.Secrets[0] = v.seal("blog_pw", 1, "blog")
	r.mustDeploy(spec, 0)
}

// A service whose secret goes between the check and its turn is a problem of the stack, by name; the others are made, what
// depends on it waits, and the next deploy, or the secret's return, finishes it.
func TestStackGoesOnAfterARefusal(t *testing.T) {
	var v *stackVault
	var once sync.Once
	r := newRig(t, kvtest.Server(t), func(c *Config) {
		c.beforeStep = func(context.Context, *stack.Op) { once.Do(func() { v.drop("pw") }) }
	})
	r.init()
	v = r.stackVault()
	v.put(aSecret, "pw", 1)
	spec := blog("blog")
	spec.Services[0].Task.Container.Secrets = refs(&skepv1.FileReference{Name: "pw"})
	spec.Services = append(spec.Services, webSpec("blog_alone", 1))
	must[*skepv1.DeployStackReply](t)(r.deploy(spec, 0))
	await(t, "the problems", func() bool { return len(r.stack("blog").GetProblems()) == 2 })
	st := r.stack("blog")
	if p := st.Problems; p[0].Name != "blog_db" || p[0].Text != "secret not found: pw" || p[1].Name != "blog_web" || p[1].Text != "it waits for service blog_db, on which it depends" || st.State != deploying {
		t.Fatal(p)
	}
	if got := fmt.Sprint(r.everything()); got != "[blog_alone blog_net]" {
		t.Fatal(got)
	}
	v.put(aSecret, "pw", 1)
	if st := r.settled("blog"); len(st.Problems) != 0 || st.Revision != 1 {
		t.Fatal(st)
	}
}

// A secret that another uses keeps its stack from going, and says so by name, until that one lets go.
func TestStackSecretInUseElsewhere(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	v := r.stackVault()
	spec := blog("blog")
	spec.Secrets = []*skepv1.StackFile{v.seal("blog_pw", 1, "blog")}
	r.mustDeploy(spec, 0)
	must[*skepv1.NetworkReply](t)(call(r, api.NetworkInspect, &skepv1.Ref{Ref: "blog_net"}))
	outside := webSpec("outside", 1)
	outside.Task.Networks = []*skepv1.NetworkAttachment{{Target: "blog_net"}}
	must[*skepv1.ServiceReply](t)(r.create(outside))
	must[*skepv1.StackReply](t)(call(r, api.StackRemove, &skepv1.RemoveStackRequest{Ref: "blog"}))
	await(t, "the problem", func() bool { return len(r.stack("blog").GetProblems()) == 1 })
	if p := r.stack("blog").Problems[0]; p.Kind != stack.Network || p.Text != "network blog_net is in use by service outside" {
		t.Fatal(p)
	}
	_, err := r.deploy(spec, 1)
	wantErr(t, err, "stack blog is being removed: wait until it is gone (skep stack ls), then deploy it")
	must[*skepv1.ServiceReply](t)(call(r, api.ServiceRemove, &skepv1.RemoveServiceRequest{Ref: "outside"}))
	await(t, "the end", func() bool { return r.stack("blog") == nil })
	// And again at once.
	spec.Secrets[0] = v.seal("blog_pw", 1, "blog")
	r.mustDeploy(spec, 0)
}
