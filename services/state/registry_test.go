package state

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/id"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/rpc"
	skepv1 "skep.dev/proto/skep/v1"
)

const (
	digestA = "@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	digestB = "@sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
)

// privateHub is a registry that answers who has the credentials it takes now, and the vault that keeps them.
type privateHub struct {
	mu     sync.Mutex
	takes  string
	digest string
	asked  []string // the credentials of each request
	kept   []string
}

func (r *rig) privateHub() *privateHub {
	r.t.Helper()
	h := &privateHub{digest: digestA}
	nc := r.n.Conn(r.t)
	srv := must[*rpc.Server](r.t)(rpc.NewServer(nc, rpc.Config{Name: "agent"}))
	r.t.Cleanup(func() { _ = srv.Close() }) // the connection may be closed already
	err := api.Handle(srv, api.ImageResolve, func(_ context.Context, q *skepv1.ResolveImageRequest) (*skepv1.ResolveImageReply, error) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.asked = append(h.asked, q.RegistryAuth)
		if q.RegistryAuth != h.takes {
			return nil, fault.NotFound("pull access denied")
		}
		return &skepv1.ResolveImageReply{Ref: q.Ref + h.digest, Platforms: []*skepv1.Platform{{Os: "linux", Arch: "amd64"}}}, nil
	})
	if err == nil {
		err = api.Handle(srv, api.FilesResolve, func(_ context.Context, q *skepv1.ResolveFilesRequest) (*skepv1.ResolveFilesReply, error) {
			h.mu.Lock()
			defer h.mu.Unlock()
			if q.RegistryAuth != "" && !slices.Contains(h.kept, q.RegistryAuth) {
				return nil, fault.Invalid("the credentials of its registry are not kept any more")
			}
			return &skepv1.ResolveFilesReply{}, nil
		})
	}
	if err == nil {
		err = nc.Flush()
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return h
}

func (h *privateHub) set(takes, digest string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.takes, h.digest = takes, digest
}

func (h *privateHub) questions() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.asked)
}

func TestRegistryCredentials(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	h := r.privateHub()
	old, next := id.New(), id.New()
	h.kept = []string{old, next}
	h.set(old, digestA)
	spec := func(image, auth string) *skepv1.ServiceSpec {
		s := webSpec("web", 1)
		s.Task.Container.Image, s.Task.Container.RegistryAuth = image, auth
		return s
	}
	for auth, want := range map[string]string{
		"secret:password": "the id of credentials that the vault keeps", id.New(): "not kept any more",
	} {
		if _, err := call(r, api.ServiceCreate, &skepv1.CreateServiceRequest{Spec: spec("reg.lan/web:1", auth)}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", auth, err)
		}
	}
	svc := must[*skepv1.ServiceReply](t)(call(r, api.ServiceCreate, &skepv1.CreateServiceRequest{Spec: spec("reg.lan/web:1", old)})).Service
	if svc.Spec.Task.Container.Image != "reg.lan/web:1"+digestA || svc.Spec.Task.Container.RegistryAuth != old {
		t.Fatalf("%v", svc.Spec.Task.Container)
	}
	update := func(change func(*skepv1.ServiceSpec)) *skepv1.ServiceReply {
		t.Helper()
		s := must[*skepv1.ServiceReply](t)(call(r, api.ServiceInspect, &skepv1.Ref{Ref: "web"})).Service.Spec
		change(s)
		return must[*skepv1.ServiceReply](t)(call(r, api.ServiceUpdate, &skepv1.UpdateServiceRequest{Ref: "web", Spec: s}))
	}

	// The login expires. Whatever leaves the image alone asks nobody; asking for the same tag keeps what it was pinned to.
	h.set(next, digestB)
	before := len(h.questions())
	if got := update(func(s *skepv1.ServiceSpec) { s.Task.Container.Env = []string{"A=1"} }); len(got.Warnings) != 0 || len(h.questions()) != before {
		t.Errorf("%v, %d questions", got.Warnings, len(h.questions())-before)
	}
	got := update(func(s *skepv1.ServiceSpec) { s.Task.Container.Image = "reg.lan/web:1" })
	if c := got.Service.Spec.Task.Container; c.Image != "reg.lan/web:1"+digestA || len(got.Warnings) != 1 || !strings.Contains(got.Warnings[0], "keeps the one it has") || len(got.Service.Spec.Task.Placement.Platforms) != 1 {
		t.Errorf("%v %v", got.Warnings, c)
	}
	// Another tag is not held back by that, as in Docker.
	got = update(func(s *skepv1.ServiceSpec) { s.Task.Container.Image = "reg.lan/web:2" })
	if c := got.Service.Spec.Task.Container; c.Image != "reg.lan/web:2" || len(got.Warnings) != 1 || !strings.Contains(got.Warnings[0], "independently") {
		t.Errorf("%v %v", got.Warnings, c)
	}
	got = update(func(s *skepv1.ServiceSpec) {
		s.Task.Container.RegistryAuth = next
		s.Task.Container.Image = "reg.lan/web:1"
	})
	if c := got.Service.Spec.Task.Container; c.Image != "reg.lan/web:1"+digestB || len(got.Warnings) != 0 || h.questions()[len(h.questions())-1] != next {
		t.Errorf("%v %v", got.Warnings, c)
	}

	// Both are in use: one now, one by what could be gone back to.
	uses := must[*skepv1.SecretUsesReply](t)(call(r, api.FilesUses, &skepv1.SecretUsesRequest{Ids: []string{old, next, id.New(), ""}})).Uses
	if u := uses[next].GetUses(); len(u) != 1 || u[0].ServiceName != "web" || u[0].Version != 1 {
		t.Errorf("%v", u)
	}
	if u := uses[old].GetUses(); len(u) != 1 || u[0].Version != 0 || len(u[0].Revisions) == 0 {
		t.Errorf("%v", u)
	}
	if len(uses) != 3 {
		t.Errorf("%v", uses)
	}
	r.putTasks("n1", &skepv1.TaskRecord{Id: "t1", ServiceId: svc.Meta.Id, Slot: 1, Revision: got.Service.Revision, Desired: running}, &skepv1.TaskRecord{Id: "t2", ServiceId: svc.Meta.Id, Slot: 2, Revision: 1, Desired: running})
	await(t, "what the tasks pull with", func() bool {
		f := must[*skepv1.TaskFilesReply](t)(call(r, api.FilesOfTasks, &skepv1.TaskFilesRequest{NodeId: "n1", TaskIds: []string{"t1", "t2"}})).Tasks
		return len(f) == 2 && f[0].RegistryAuth == next && f[1].RegistryAuth == next // the newest, for every revision of one repository
	})
	// A rollback takes them along, to the same repository.
	back := must[*skepv1.ServiceReply](t)(call(r, api.ServiceUpdate, &skepv1.UpdateServiceRequest{Ref: "web", Rollback: true, RollbackRevision: 1})).Service
	if c := back.Spec.Task.Container; c.Image != "reg.lan/web:1"+digestA || c.RegistryAuth != next {
		t.Errorf("%v", c)
	}
	for _, x := range []struct{ oldImage, oldAuth, newImage, newAuth, want string }{
		{"reg.lan/web:1", old, "reg.lan/web:2" + digestB, next, next},
		{"reg.lan/web:1", old, "reg.lan/other:1", next, old},
		{"reg.lan/web:1", old, "web:1", next, old},
		{"reg.lan/web:1", old, "reg.lan/web:2", "", old},
		{"reg.lan/web:1", "", "reg.lan/web:2", next, ""},
		{"web:1", old, "docker.io/library/web", next, next},
	} {
		if got := registryAuth(spec(x.oldImage, x.oldAuth), spec(x.newImage, x.newAuth)); got != x.want {
			t.Errorf("%v: %q", x, got)
		}
	}
	// With the service go its revisions, and so does every use.
	must[*skepv1.ServiceReply](t)(call(r, api.ServiceRemove, &skepv1.RemoveServiceRequest{Ref: "web"}))
	if uses := must[*skepv1.SecretUsesReply](t)(call(r, api.FilesUses, &skepv1.SecretUsesRequest{Ids: []string{old, next}})).Uses; len(uses[old].GetUses())+len(uses[next].GetUses()) != 0 {
		t.Errorf("%v", uses)
	}
}

// A service created while the registry is away gets its digest by the next --image of the same tag, and by nothing else.
func TestImageNamedAgainIsResolved(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	h := r.privateHub()
	h.takes = "somebody else's"
	svc := r.mustCreate("web", 1)
	h.mu.Lock()
	h.takes = ""
	asked := len(h.asked)
	h.mu.Unlock()
	update := func(named, skip bool, image string) string {
		t.Helper()
		want := proto.CloneOf(svc.Spec)
		want.Task.Container.Image = image
		want.Task.Container.Env = append(want.Task.Container.Env, id.New()+"=x")
		rep := must[*skepv1.ServiceReply](t)(call(r, api.ServiceUpdate, &skepv1.UpdateServiceRequest{Ref: "web", Base: svc.Spec, Spec: want, ResolveImage: named, NoResolveImage: skip}))
		svc = rep.Service
		return svc.Spec.Task.Container.Image
	}
	for _, x := range []struct {
		named, skip bool
		image, want string
		asks        int
	}{
		{false, false, "httpd:latest", "httpd:latest", 0},
		{true, true, "httpd:latest", "httpd:latest", 0},
		{true, false, "httpd", "httpd:latest" + digestA, 1},
		{false, false, "httpd:latest" + digestA, "httpd:latest" + digestA, 0},
		{true, false, "httpd:latest" + digestA, "httpd:latest" + digestA, 0},
		{true, false, "httpd:latest", "httpd:latest" + digestB, 1},
	} {
		if x.want == "httpd:latest"+digestB {
			h.mu.Lock()
			h.digest = digestB
			h.mu.Unlock()
		}
		if got := update(x.named, x.skip, x.image); got != x.want {
			t.Errorf("%+v: %s", x, got)
		}
		h.mu.Lock()
		if n := len(h.asked) - asked; n != x.asks {
			t.Errorf("%+v: asked %d times", x, n)
		}
		asked = len(h.asked)
		h.mu.Unlock()
	}
}
