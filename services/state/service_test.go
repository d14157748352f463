package state

import (
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/kvtest"
	skepv1 "skep.dev/proto/skep/v1"
)

func TestServiceLifeR1(t *testing.T) { serviceLife(t, newRig(t, kvtest.Server(t))) }
func TestServiceLifeR3(t *testing.T) { serviceLife(t, newRig(t, kvtest.Cluster(t, 3))) }

func serviceLife(t *testing.T, r *rig) {
	svc := r.mustCreate("web_server", 3)
	if svc.Revision != 1 || svc.Meta.Version == 0 || svc.Spec.Task.Container.Image != "httpd:latest" || svc.Status.Desired != 3 {
		t.Fatalf("created %v", svc)
	}
	_, err := r.create(webSpec("WEB_server", 1))
	wantErr(t, err, "name conflicts with an existing object: service WEB_server already exists")
	if fault.Of(err) != fault.CodeConflict {
		t.Fatalf("code %s", fault.Of(err))
	}
	for _, ref := range []string{svc.Meta.Id, "web_server", "Web_Server", svc.Meta.Id[:5]} {
		got, err := r.inspect(ref)
		if err != nil || got.Meta.Id != svc.Meta.Id {
			t.Fatalf("inspect %s: %v %v", ref, got, err)
		}
	}
	_, err = r.inspect("web")
	wantErr(t, err, "no such service: web; did you mean web_server?")
	_, err = r.inspect("zzzzzz")
	wantErr(t, err, "no such service: zzzzzz")

	// Scaling is no revision, an image is.
	scaled := must[*skepv1.ServiceReply](t)(call(r, api.ServiceScale, &skepv1.ScaleServiceRequest{Ref: "web_server", Replicas: 5})).Service
	if scaled.Revision != 1 || scaled.Status.Desired != 5 || scaled.Meta.Version <= svc.Meta.Version {
		t.Fatalf("scaled %v", scaled)
	}
	next := proto.CloneOf(scaled.Spec)
	next.Task.Container.Image = "httpd:2"
	update := func(version uint64, sp *skepv1.ServiceSpec) (*skepv1.Service, error) {
		reply, err := call(r, api.ServiceUpdate, &skepv1.UpdateServiceRequest{Ref: "web_server", Version: version, Spec: sp, NoResolveImage: true})
		return reply.GetService(), err
	}
	_, err = update(svc.Meta.Version, next)
	wantErr(t, err, "update out of sequence")
	v2 := must[*skepv1.Service](t)(update(scaled.Meta.Version, next))
	if v2.Revision != 2 || v2.PreviousRevision != 1 || v2.Spec.GetMode().GetReplicated().Replicas != 5 {
		t.Fatalf("updated %v", v2)
	}
	bad := proto.CloneOf(next)
	bad.Name = "other"
	_, err = update(0, bad)
	wantErr(t, err, "renaming services is not supported")
	bad = proto.CloneOf(next)
	bad.Mode = &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_Global{Global: &skepv1.GlobalMode{}}}
	_, err = update(0, bad)
	wantErr(t, err, "service mode change is not allowed")

	// Scale after the update, then roll back: the scale stands.
	must[*skepv1.ServiceReply](t)(call(r, api.ServiceScale, &skepv1.ScaleServiceRequest{Ref: "web_server", Replicas: 7}))
	rollback := func(to uint64) (*skepv1.Service, error) {
		reply, err := call(r, api.ServiceUpdate, &skepv1.UpdateServiceRequest{Ref: "web_server", Rollback: true, RollbackRevision: to})
		return reply.GetService(), err
	}
	v3 := must[*skepv1.Service](t)(rollback(0))
	if v3.Revision != 3 || v3.PreviousRevision != 2 || v3.RollbackTo != 1 || v3.Spec.Task.Container.Image != "httpd:latest" || v3.Spec.GetMode().GetReplicated().Replicas != 7 {
		t.Fatalf("rolled back %v", v3)
	}
	_, err = rollback(9)
	wantErr(t, err, "service web_server has no revision 9: it keeps 1 to 3")
	v4 := must[*skepv1.Service](t)(rollback(2))
	if v4.Spec.Task.Container.Image != "httpd:2" || v4.RollbackTo != 2 {
		t.Fatalf("rolled forward %v", v4)
	}
	revs := must[*skepv1.ListRevisionsReply](t)(call(r, api.ServiceRevisions, &skepv1.ListRevisionsRequest{Ref: "web_server"}))
	var got []string
	for _, v := range revs.Revisions {
		got = append(got, v.Summary)
	}
	want := "rollback to revision 2: image httpd:latest -> httpd:2|rollback to revision 1: image httpd:2 -> httpd:latest|image httpd:latest -> httpd:2|created"
	if strings.Join(got, "|") != want {
		t.Fatalf("revisions %s", strings.Join(got, "|"))
	}

	must[*skepv1.ServiceReply](t)(call(r, api.ServiceRemove, &skepv1.RemoveServiceRequest{Ref: "web_server"}))
	_, err = r.inspect("web_server")
	wantErr(t, err, "no such service: web_server")
	// The name is free again at once, over its tombstone.
	again := r.mustCreate("web_server", 1)
	if again.Meta.Id == svc.Meta.Id {
		t.Fatal("an id came back")
	}
	_, err = rollback(0)
	wantErr(t, err, "service web_server does not have a previous spec")
}

func TestFiftyClientsOneName(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.start()
	r.start()
	const clients = 50
	var wg sync.WaitGroup
	errs := make([]error, clients)
	for i := range clients {
		wg.Go(func() { _, errs[i] = r.create(webSpec("one", 1)) })
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
			continue
		}
		wantErr(t, err, "name conflicts with an existing object: service one already exists")
	}
	if won != 1 {
		t.Fatalf("%d of %d won", won, clients)
	}
	list := must[*skepv1.ListServicesReply](t)(call(r, api.ServiceList, &skepv1.ListServicesRequest{}))
	if len(list.Services) != 1 {
		t.Fatalf("%d services", len(list.Services))
	}
}

func TestWhatIsNotThereIsRefused(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	r.vault()
	for want, change := range map[string]func(*skepv1.TaskSpec){
		"secret not found: nope": func(x *skepv1.TaskSpec) {
			x.Container.Secrets = []*skepv1.FileReference{{Name: "nope", Target: "nope"}}
		},
		"config not found: nope": func(x *skepv1.TaskSpec) {
			x.Container.Configs = []*skepv1.FileReference{{Name: "nope", Target: "/nope"}}
		},
		"network nope not found": func(x *skepv1.TaskSpec) { x.Networks = []*skepv1.NetworkAttachment{{Target: "nope"}} },
	} {
		sp := webSpec("web", 1)
		change(sp.Task)
		_, err := r.create(sp)
		wantErr(t, err, want)
	}
	if _, err := r.inspect("web"); !fault.Is(err, fault.CodeNotFound) {
		t.Fatalf("something was stored: %v", err)
	}
}
