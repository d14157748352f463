package state

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/id"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// lossy is a connection of root on which answers can be lost.
type lossy struct {
	*kvtest.Lossy
	nc *nats.Conn
}

func newLossy(t *testing.T, n *kvtest.NATS) *lossy {
	t.Helper()
	y := kvtest.NewLossy(t, n.Servers[0].ClientURL())
	nc, err := nats.Connect(y.URL, nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond), nats.CustomInboxPrefix(subject.Inbox(subject.LocalRoot)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return &lossy{y, nc}
}

// unanswered asks, waits until stored says that the change is made, and breaks the connection before the answer.
func unanswered[Q, R proto.Message](t *testing.T, r *rig, y *lossy, e api.Endpoint[Q, R], request string, q Q, stored func() bool) {
	t.Helper()
	if err := y.nc.FlushTimeout(deadline); err != nil {
		t.Fatal(err)
	}
	y.Lose(true)
	ctx, cancel := context.WithCancel(rpc.WithRequest(r.ctx(), rpc.Request{ID: request}))
	ended := make(chan error, 1)
	go func() {
		_, err := api.Call(ctx, y.nc, e, q)
		ended <- err
	}()
	await(t, e.Subject()+" to be carried out", stored)
	y.Cut()
	y.Lose(false)
	cancel()
	if err := <-ended; err == nil {
		t.Fatalf("%s was answered", e.Subject())
	}
}

func asked[Q, R proto.Message](r *rig, nc *nats.Conn, e api.Endpoint[Q, R], request string, q Q) (R, error) {
	return api.Call(rpc.WithRequest(r.ctx(), rpc.Request{ID: request, Again: true}), nc, e, q)
}

// Each change whose connection breaks between the write and the answer is asked again, at an instance that was started since, and
// was made once.
func TestAskedAgain(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	y := newLossy(t, r.n)
	service := func() *skepv1.Service { return r.s.ix.Service(must[string](t)(r.s.serviceID("web"))) }
	spec := func(image string, n uint64) *skepv1.ServiceSpec {
		s := webSpec("web", n)
		s.Task.Container.Image = image
		return s
	}
	revision := func(n uint64) func() bool {
		return func() bool { s := service(); return s.GetRevision() == n }
	}
	next := func() { // the instance that made the change is gone, and so is all it had in memory
		t.Helper()
		last := r.stop
		r.s, r.stop = r.start()
		last() // while it ends it answers that it does, which would be lost as well
	}

	one := id.New()
	create := &skepv1.CreateServiceRequest{Spec: spec("nginx:1", 2), NoResolveImage: true}
	unanswered(t, r, y, api.ServiceCreate, one, create, func() bool { return r.s.ix.ServiceCount() == 1 })
	next()
	made := must[*skepv1.ServiceReply](t)(asked(r, y.nc, api.ServiceCreate, one, create)).Service
	if made.Meta.Id != service().Meta.Id || r.s.ix.ServiceCount() != 1 || made.Asked != nil {
		t.Fatalf("%v, of %d services", made, r.s.ix.ServiceCount())
	}
	// Somebody else who asks the same is somebody else, and so is who asks anew.
	ada := r.n.As(t, subject.Person("ada"))
	for _, c := range []struct {
		nc      *nats.Conn
		request string
	}{{ada, one}, {y.nc, id.New()}} {
		if _, err := asked(r, c.nc, api.ServiceCreate, c.request, create); !fault.Is(err, fault.CodeConflict) {
			t.Errorf("another request for the same: %v", err)
		}
	}

	two := id.New()
	update := &skepv1.UpdateServiceRequest{Ref: made.Meta.Id, Version: made.Meta.Version, Spec: spec("nginx:2", 2), NoResolveImage: true}
	unanswered(t, r, y, api.ServiceUpdate, two, update, revision(2))
	next()
	if got := must[*skepv1.ServiceReply](t)(asked(r, y.nc, api.ServiceUpdate, two, update)).Service; got.Revision != 2 {
		t.Errorf("revision %d", got.Revision)
	}
	if _, err := asked(r, ada, api.ServiceUpdate, two, update); !fault.Is(err, fault.CodeSequence) {
		t.Errorf("somebody else's update: %v", err)
	}

	// What others change meanwhile stays, also where no version is named.
	three := id.New()
	scale := &skepv1.ScaleServiceRequest{Ref: made.Meta.Id, Replicas: 5}
	unanswered(t, r, y, api.ServiceScale, three, scale, func() bool { return service().Spec.Mode.GetReplicated().Replicas == 5 })
	must[*skepv1.ServiceReply](t)(call(r, api.ServiceScale, &skepv1.ScaleServiceRequest{Ref: "web", Replicas: 7}))
	next()
	if got := must[*skepv1.ServiceReply](t)(asked(r, y.nc, api.ServiceScale, three, scale)).Service; got.Spec.Mode.GetReplicated().Replicas != 7 {
		t.Errorf("scaled to %d over what somebody else did", got.Spec.Mode.GetReplicated().Replicas)
	}

	four := id.New()
	back := &skepv1.UpdateServiceRequest{Ref: made.Meta.Id, Rollback: true}
	unanswered(t, r, y, api.ServiceUpdate, four, back, revision(3))
	next()
	if got := must[*skepv1.ServiceReply](t)(asked(r, y.nc, api.ServiceUpdate, four, back)).Service; got.Revision != 3 || got.Spec.Task.Container.Image != "nginx:1" {
		t.Errorf("revision %d with %s: it went back and forth", got.Revision, got.Spec.Task.Container.Image)
	}

	five := id.New()
	remove := &skepv1.RemoveServiceRequest{Ref: made.Meta.Id}
	unanswered(t, r, y, api.ServiceRemove, five, remove, func() bool { return r.s.ix.ServiceCount() == 0 })
	other := must[*skepv1.ServiceReply](t)(call(r, api.ServiceCreate, create)).Service
	next()
	if got := must[*skepv1.ServiceReply](t)(asked(r, y.nc, api.ServiceRemove, five, remove)).Service; got.Meta.Id != made.Meta.Id {
		t.Errorf("removed %v", got)
	}
	if s := r.s.ix.Service(other.Meta.Id); s == nil {
		t.Error("the service that has the name now was removed")
	}
	// By name it is not known whose removal it is: nothing is taken for done.
	must[*skepv1.ServiceReply](t)(call(r, api.ServiceRemove, &skepv1.RemoveServiceRequest{Ref: "web"}))
	if _, err := asked(r, y.nc, api.ServiceRemove, id.New(), &skepv1.RemoveServiceRequest{Ref: "web"}); !fault.Is(err, fault.CodeNotFound) {
		t.Errorf("a name that nobody has: %v", err)
	}
	// What was made and is gone is not made again.
	if _, err := asked(r, y.nc, api.ServiceCreate, one, create); !fault.Is(err, fault.CodeNotFound) || !strings.Contains(err.Error(), "removed since") {
		t.Errorf("created again: %v", err)
	}

	six := id.New()
	net := &skepv1.CreateNetworkRequest{Spec: &skepv1.NetworkSpec{Name: "back"}}
	networks := func(n int) func() bool { return func() bool { return len(r.s.ix.Networks()) == n } }
	unanswered(t, r, y, api.NetworkCreate, six, net, networks(1))
	next()
	back1 := must[*skepv1.NetworkReply](t)(asked(r, y.nc, api.NetworkCreate, six, net)).Network
	if back1.Spec.Name != "back" || !networks(1)() {
		t.Errorf("%v", back1)
	}
	seven := id.New()
	unanswered(t, r, y, api.NetworkRemove, seven, &skepv1.Ref{Ref: back1.Meta.Id}, networks(0))
	next()
	if _, err := asked(r, y.nc, api.NetworkRemove, seven, &skepv1.Ref{Ref: back1.Meta.Id}); err != nil {
		t.Error(err)
	}
	if _, err := asked(r, y.nc, api.NetworkCreate, six, net); !fault.Is(err, fault.CodeNotFound) || !networks(0)() {
		t.Errorf("created again: %v", err)
	}
}

// Two tries of one request that go on at once make one change, and both answer with it.
func TestAskedAtOnce(t *testing.T) {
	r := newRig(t, kvtest.Cluster(t, 3))
	r.start()
	r.start()
	conns := []*nats.Conn{r.nc, r.n.Conn(t), r.n.Conn(t)}
	for range 15 {
		made := atOnce(t, r, conns, api.ServiceCreate, &skepv1.CreateServiceRequest{Spec: webSpec("web", 1), NoResolveImage: true})
		web := made[0].Service.Meta
		sp := webSpec("web", 1)
		sp.Task.Container.Image = "httpd:2"
		changed := atOnce(t, r, conns, api.ServiceUpdate, &skepv1.UpdateServiceRequest{Ref: web.Id, Version: web.Version, Spec: sp, NoResolveImage: true})
		for i := range conns {
			if m := made[i].Service.Meta; m.Id != web.Id {
				t.Fatalf("two services: %v, %v", m, web)
			}
			// Its number may have a gap before it: of a try that was about to store another.
			if s := changed[i].Service; s.PreviousRevision != 1 || s.Revision != changed[0].Service.Revision {
				t.Fatalf("changed more than once: revision %d after %d, and %d", s.Revision, s.PreviousRevision, changed[0].Service.Revision)
			}
		}
		if now, err := r.inspect("web"); err != nil || now.Meta.Id != web.Id || now.Revision != changed[0].Service.Revision {
			t.Fatalf("web is %v, made was %v, %v", now, web, err)
		}
		atOnce(t, r, conns, api.ServiceRemove, &skepv1.RemoveServiceRequest{Ref: web.Id})
		if left := must[*skepv1.ListServicesReply](t)(call(r, api.ServiceList, &skepv1.ListServicesRequest{})).Services; len(left) > 0 {
			t.Fatalf("still there: %v", left)
		}
	}
}

// atOnce asks one thing under one id at once over each connection.
func atOnce[Q, R proto.Message](t *testing.T, r *rig, conns []*nats.Conn, e api.Endpoint[Q, R], q Q) []R {
	t.Helper()
	request := id.New()
	out, errs := make([]R, len(conns)), make([]error, len(conns))
	var wg sync.WaitGroup
	for i, nc := range conns {
		wg.Go(func() { out[i], errs[i] = asked(r, nc, e, request, proto.Clone(q).(Q)) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatalf("%s: %v", e.Subject(), err)
	}
	return out
}

// The marks of an object do not grow with what is asked of it.
func TestMarksAreBounded(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	web := r.mustCreate("web", 1)
	first := id.New()
	for i := range uint64(30) {
		request := first
		if i > 0 {
			request = id.New()
		}
		must[*skepv1.ServiceReply](t)(asked(r, r.nc, api.ServiceScale, request, &skepv1.ScaleServiceRequest{Ref: web.Meta.Id, Replicas: i + 2}))
	}
	svc := r.s.ix.Service(web.Meta.Id)
	if n, b := len(svc.Asked), proto.Size(&skepv1.Service{Asked: svc.Asked}); n != 8 || b > 200 {
		t.Errorf("%d marks of %d bytes", n, b)
	}
	if now, err := r.inspect("web"); err != nil || now.Asked != nil {
		t.Errorf("shown: %v, %v", now.GetAsked(), err)
	}
	for _, bad := range []string{"x", strings.Repeat("a", 26), strings.Repeat("a", 1<<12), "../../../../../../../../x"} {
		if _, err := asked(r, r.nc, api.ServiceScale, bad, &skepv1.ScaleServiceRequest{Ref: "web", Replicas: 1}); !fault.Is(err, fault.CodeInvalid) {
			t.Errorf("id %.20q: %v", bad, err)
		}
	}
}
