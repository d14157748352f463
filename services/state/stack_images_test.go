package state

import (
	"fmt"
	"strings"
	"testing"

	"skep.dev/libs/api"
	"skep.dev/libs/id"
	"skep.dev/libs/kvtest"
	skepv1 "skep.dev/proto/skep/v1"
)

// When a tag's digest is looked up, and what becomes of the digest that is there; of several services with one image it is
// looked up once.
func TestStackImages(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	h := r.privateHub()
	revision := uint64(0)
	image := "httpd:1"
	deploy := func(mode string) (digest, did string, warnings []string) {
		t.Helper()
		spec := &skepv1.StackSpec{Name: "s", Services: []*skepv1.ServiceSpec{webSpec("s_a", 1), webSpec("s_b", 1)}, ResolveImage: mode}
		for _, s := range spec.Services {
			s.Task.Container.Image = image
		}
		reply := must[*skepv1.DeployStackReply](t)(r.deploy(spec, revision))
		revision = reply.Stack.Revision
		r.settled("s")
		a, b := r.service("s_a"), r.service("s_b")
		if a.Spec.Task.Container.Image != b.Spec.Task.Container.Image || len(a.Spec.Task.Placement.Platforms) != len(b.Spec.Task.Placement.Platforms) {
			t.Fatal("one image, two digests")
		}
		_, digest, _ = strings.Cut(a.Spec.Task.Container.Image, "@")
		return strings.TrimPrefix(digest, "sha256:"), strings.ToLower(strings.TrimPrefix(reply.Changes[0].Verb.String(), "VERB_")), reply.Warnings
	}
	for _, x := range []struct {
		what, mode, image string
		set               func()
		digest, did       string
		asked             int
	}{
		{"new", "", "httpd:1", nil, "a", "create", 1},
		{"the same", "always", "httpd:1", nil, "a", "keep", 2},
		{"a newer digest, not looked at", "changed", "httpd:1", func() { h.set("", digestB) }, "a", "keep", 2},
		{"not looked at", "never", "httpd:1", nil, "a", "keep", 2},
		{"looked at", "always", "httpd:1", nil, "b", "change", 3},
		{"another text", "changed", "httpd:2", func() { h.set("", digestA) }, "a", "change", 4},
		{"another text, never", "never", "httpd:3", nil, "", "change", 4},
	} {
		if x.set != nil {
			x.set()
		}
		image = x.image
		digest, did, warnings := deploy(x.mode)
		if !strings.HasPrefix(digest, x.digest) || (digest == "") != (x.digest == "") || did != x.did || len(h.questions()) != x.asked || len(warnings) > 0 {
			t.Errorf("%s: digest %.3s, %s, asked %d times, %v", x.what, digest, did, len(h.questions()), warnings)
		}
	}
	// The registry is away: what is there stays, and that is said once.
	image = "httpd:4"
	deploy("always")
	h.set("nobody", digestB)
	if digest, did, warnings := deploy("always"); !strings.HasPrefix(digest, "a") || did != "keep" || len(warnings) != 1 || !strings.Contains(warnings[0], "the service keeps the one it has") {
		t.Error(digest, did, warnings)
	}
}

// Credentials that a deploy brings are a change; a deploy that brings none leaves those that are there; a rollback takes those
// of today, and goes without those that are gone.
func TestStackCredentials(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	h := r.privateHub()
	one, two := id.New(), id.New()
	h.mu.Lock()
	h.kept = []string{one, two}
	h.mu.Unlock()
	spec := func(auth, env string) *skepv1.StackSpec {
		s := webSpec("s_a", 1)
		s.Task.Container.Env = []string{env}
		s.Task.Container.RegistryAuth = auth
		return &skepv1.StackSpec{Name: "s", Services: []*skepv1.ServiceSpec{s}, ResolveImage: "never"}
	}
	auth := func() string { return r.service("s_a").Spec.Task.Container.RegistryAuth }
	r.mustDeploy(spec(one, "A=1"), 0)
	if reply := must[*skepv1.DeployStackReply](t)(r.deploy(spec("", "A=1"), 1)); reply.Stack.Revision != 1 || changes(reply) != "keep service s_a" {
		t.Fatal(changes(reply))
	}
	r.mustDeploy(spec("", "A=2"), 1)
	if auth() != one {
		t.Fatal(auth())
	}
	if reply := must[*skepv1.DeployStackReply](t)(r.deploy(spec(two, "A=2"), 2)); changes(reply) != "change service s_a (registry credentials changed)" {
		t.Fatal(changes(reply))
	}
	r.settled("s")
	_, err := r.deploy(spec(id.New(), "A=2"), 3)
	wantErr(t, err, "the credentials of its registry are not kept any more")
	h.mu.Lock()
	h.kept = []string{two}
	h.mu.Unlock()
	must[*skepv1.DeployStackReply](t)(call(r, api.StackRollback, &skepv1.RollbackStackRequest{Ref: "s", Revision: 1}))
	r.settled("s")
	if auth() != two || fmt.Sprint(r.service("s_a").Spec.Task.Container.Env) != "[A=1]" {
		t.Fatal(auth())
	}
	must[*skepv1.ServiceReply](t)(call(r, api.ServiceRemove, &skepv1.RemoveServiceRequest{Ref: "s_a"}))
	h.mu.Lock()
	h.kept = nil
	h.mu.Unlock()
	reply := must[*skepv1.DeployStackReply](t)(call(r, api.StackRollback, &skepv1.RollbackStackRequest{Ref: "s", Revision: 3}))
	if len(reply.Warnings) != 1 || !strings.Contains(reply.Warnings[0], "credentials of that revision are gone") {
		t.Fatal(reply.Warnings)
	}
	r.settled("s")
}
