package state

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/stack"
	skepv1 "skep.dev/proto/skep/v1"
)

const (
	deploying = skepv1.StackState_STACK_STATE_DEPLOYING
	deployed  = skepv1.StackState_STACK_STATE_DEPLOYED
)

// blog is a stack of that name: web depends on db, both are on a network of its own.
func blog(name string) *skepv1.StackSpec {
	web, db := webSpec(name+"_web", 2), webSpec(name+"_db", 1)
	for _, s := range []*skepv1.ServiceSpec{web, db} {
		s.Task.Networks = []*skepv1.NetworkAttachment{{Target: name + "_net", Aliases: []string{strings.TrimPrefix(s.Name, name+"_")}}}
	}
	web.DependsOn = []*skepv1.Dependency{{Service: name + "_db"}}
	return &skepv1.StackSpec{Name: name, Services: []*skepv1.ServiceSpec{db, web}, Networks: []*skepv1.NetworkSpec{{Name: name + "_net"}}, ResolveImage: "never"}
}

func (r *rig) deploy(spec *skepv1.StackSpec, expect uint64, set ...func(*skepv1.DeployStackRequest)) (*skepv1.DeployStackReply, error) {
	q := &skepv1.DeployStackRequest{Spec: proto.CloneOf(spec), ExpectRevision: expect}
	for _, f := range set {
		f(q)
	}
	return call(r, api.StackDeploy, q)
}

func (r *rig) mustDeploy(spec *skepv1.StackSpec, expect uint64, set ...func(*skepv1.DeployStackRequest)) *skepv1.Stack {
	r.t.Helper()
	must[*skepv1.DeployStackReply](r.t)(r.deploy(spec, expect, set...))
	return r.settled(spec.Name)
}

func pruned(q *skepv1.DeployStackRequest) { q.Prune = true }
func dryRun(q *skepv1.DeployStackRequest) { q.DryRun = true }

// stack is a stack as the first instance sees it, with its newest spec; nil when there is none.
func (r *rig) stack(name string) *skepv1.Stack {
	st := r.s.stackNamed(name)
	if st != nil {
		st.Spec = r.s.newest(st).GetSpec()
	}
	return st
}

// service is a service as the first instance sees it.
func (r *rig) service(name string) *skepv1.Service {
	r.t.Helper()
	id, ok := r.s.ix.ServiceByName(name)
	if !ok {
		r.t.Fatalf("there is no service %s", name)
	}
	return r.s.ix.Service(id)
}

// settled waits until a stack is deployed: the newest revision that any instance has stored by now.
func (r *rig) settled(name string) (st *skepv1.Stack) {
	r.t.Helper()
	r.caughtUp()
	await(r.t, "stack "+name, func() bool { st = r.stack(name); return st.GetState() == deployed && st.Spec != nil })
	return st
}

func (r *rig) removeStack(name string) {
	r.t.Helper()
	must[*skepv1.StackReply](r.t)(call(r, api.StackRemove, &skepv1.RemoveStackRequest{Ref: name}))
	await(r.t, "the end of stack "+name, func() bool { return r.stack(name) == nil })
}

func changes(reply *skepv1.DeployStackReply) string {
	var out []string
	for _, c := range reply.GetChanges() {
		line := strings.ToLower(strings.TrimPrefix(c.Verb.String(), "VERB_")) + " " + c.Kind + " " + c.Name
		if len(c.Fields) > 0 {
			line += " (" + strings.Join(c.Fields, "; ") + ")"
		}
		out = append(out, line)
	}
	return strings.Join(out, ", ")
}

func members(st *skepv1.Stack) string {
	var out []string
	for _, m := range st.GetMembers() {
		out = append(out, m.Kind+" "+m.Name)
	}
	return strings.Join(out, ", ")
}

func (r *rig) everything() (out []string) {
	for _, n := range r.s.ix.ServicesAfter("") {
		out = append(out, n.Name)
	}
	for _, n := range r.s.ix.Networks() {
		out = append(out, n.Name)
	}
	slices.Sort(out)
	return out
}

// The whole life of a stack: planned, made, the same again, changed, changed by hand, pruned, gone back, removed.
func TestStack(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	spec := blog("blog")
	plan := must[*skepv1.DeployStackReply](t)(r.deploy(spec, 0, dryRun))
	if got := changes(plan); got != "create network blog_net, create service blog_db, create service blog_web" || plan.Stack.Revision != 0 || r.stack("blog") != nil {
		t.Fatal(got, plan.Stack)
	}
	st := r.mustDeploy(spec, 0)
	if st.Revision != 1 || members(st) != "network blog_net, service blog_db, service blog_web" || !proto.Equal(st.Spec.Services[0].Mode, spec.Services[0].Mode) {
		t.Fatal(st)
	}
	web := r.service("blog_web")
	if web.Spec.Labels[stack.Label] != "blog" || web.Spec.Task.Networks[0].Target == "blog_net" || web.Revision != 1 {
		t.Fatal(web)
	}
	// The same again changes nothing.
	same := must[*skepv1.DeployStackReply](t)(r.deploy(spec, 1))
	if got := changes(same); got != "keep network blog_net, keep service blog_db, keep service blog_web" || same.Stack.Revision != 1 || same.Stack.State != deployed {
		t.Fatal(got, same.Stack)
	}
	// A change, over the wrong revision and over the right one.
	spec.Services[1].Task.Container.Env = []string{"A=b"}
	_, err := r.deploy(spec, 0)
	if !fault.Is(err, fault.CodeConflict) || !strings.HasPrefix(err.Error(), "stack blog was deployed meanwhile: revision 1, by ") {
		t.Fatal(err)
	}
	second := must[*skepv1.DeployStackReply](t)(r.deploy(spec, 1))
	if got := changes(second); got != "keep network blog_net, keep service blog_db, change service blog_web (env +A)" {
		t.Fatal(got)
	}
	r.settled("blog")
	if web := r.service("blog_web"); web.Revision != 2 || fmt.Sprint(web.Spec.Task.Container.Env) != "[A=b]" {
		t.Fatal(web)
	}
	// By hand: the next deploy brings it back and says so, and what is the same is left alone.
	must[*skepv1.ServiceReply](t)(call(r, api.ServiceScale, &skepv1.ScaleServiceRequest{Ref: "blog_web", Replicas: 7}))
	back := must[*skepv1.DeployStackReply](t)(r.deploy(spec, 2))
	if got := changes(back); got != "keep network blog_net, keep service blog_db, change service blog_web (replicas 7 -> 2)" {
		t.Fatal(got)
	}
	if st := r.settled("blog"); st.Revision != 3 {
		t.Fatal(st)
	}
	// Left out: it stays, until somebody asks for pruning.
	spec.Services = spec.Services[:1]
	left := must[*skepv1.DeployStackReply](t)(r.deploy(spec, 3))
	if got := changes(left); got != "keep network blog_net, keep service blog_db, leave service blog_web" {
		t.Fatal(got)
	}
	r.settled("blog")
	r.service("blog_web")
	gone := must[*skepv1.DeployStackReply](t)(r.deploy(spec, 4, pruned))
	if got := changes(gone); got != "remove service blog_web, keep network blog_net, keep service blog_db" {
		t.Fatal(got)
	}
	if st := r.settled("blog"); members(st) != "network blog_net, service blog_db" {
		t.Fatal(st)
	}
	if got := fmt.Sprint(r.everything()); got != "[blog_db blog_net]" {
		t.Fatal(got)
	}
	// Back to where there were two.
	rolled := must[*skepv1.DeployStackReply](t)(call(r, api.StackRollback, &skepv1.RollbackStackRequest{Ref: "blog", Revision: 2}))
	if got := changes(rolled); got != "keep network blog_net, keep service blog_db, create service blog_web" {
		t.Fatal(got)
	}
	r.settled("blog")
	revs := must[*skepv1.ListStackRevisionsReply](t)(call(r, api.StackRevisions, &skepv1.ListStackRevisionsRequest{Ref: "blog", Brief: true})).Revisions
	if len(revs) != 6 || revs[0].RollbackTo != 2 || revs[0].Spec != nil || revs[0].Summary != "rollback to revision 2, create service blog_web" || revs[5].Summary != "create network blog_net, create service blog_db, create service blog_web" {
		t.Fatal(revs)
	}
	list := must[*skepv1.ListStacksReply](t)(call(r, api.StackList, &skepv1.ListStacksRequest{})).Stacks
	if len(list) != 1 || list[0].Name != "blog" || list[0].Spec != nil || list[0].Revision != 6 {
		t.Fatal(list)
	}
	r.removeStack("blog")
	await(t, "the end of its revisions", func() bool { return len(r.s.ix.StackRevisions(st.Meta.Id)) == 0 })
	if got := r.everything(); len(got) != 0 || len(r.s.ix.Keys("idx.")) != 0 {
		t.Fatal(got, r.s.ix.Keys("idx."))
	}
}
