package state

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// noStore are the reads that are of the store itself.
var noStore = map[string]bool{api.EventList.Verb.Subject: true, api.AuditList.Verb.Subject: true}

// Two of three brokers are gone. Whatever people may read of state is answered at once from what is known, and marked; what
// changes something is refused at once, by name of who is missing, and not done later.
func TestQuorumLost(t *testing.T) {
	r := newRig(t, kvtest.Cluster(t, 3))
	r.init()
	node := r.admit("w1", skepv1.NodeRole_NODE_ROLE_WORKER)
	r.mustCreate("web", 1)
	must[*skepv1.NetworkReply](t)(call(r, api.NetworkCreate, &skepv1.CreateNetworkRequest{Spec: &skepv1.NetworkSpec{Name: "front", Driver: "overlay"}}))

	// The broker that is left says what it would say.
	bus, err := rpc.NewServer(r.n.As(t, "bus-m1"), rpc.Config{Name: "skep-bus"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = bus.Close() })
	view := &skepv1.ListManagersReply{Voters: 3, Present: 1, Set: &skepv1.ManagerSet{}}
	for _, m := range []string{"m1", "m2", "m3"} {
		view.Set.Managers = append(view.Set.Managers, &skepv1.Manager{NodeId: m, Hostname: m, Addr: m + ":2377"})
		view.Views = append(view.Views, &skepv1.ManagerView{NodeId: m, Reachable: m == "m1"})
	}
	err = api.Handle(bus, api.ManagerList, func(context.Context, *skepv1.Empty) (*skepv1.ListManagersReply, error) { return view, nil })
	if err != nil {
		t.Fatal(err)
	}
	beat := func(led bool) {
		body, err := proto.Marshal(&skepv1.ManagerBeat{NodeId: "m1", Led: led})
		if err == nil {
			err = r.nc.Publish(subject.ManagerBeat("m1"), body)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	beat(true)
	for _, s := range r.n.Servers[1:] {
		s.Shutdown()
	}
	ask := func(v *api.Verb, req proto.Message) (took time.Duration, marked bool, err error) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		ctx = rpc.OnStale(ctx, func(time.Time) { marked = true })
		began := time.Now()
		err = rpc.Call(ctx, r.nc, v.Subject, req, v.Reply.New().Interface())
		return time.Since(began), marked, err
	}
	await(t, "answers are marked", func() bool {
		beat(false)
		_, marked, err := ask(api.ServiceList.Verb, &skepv1.ListServicesRequest{})
		return err == nil && marked
	})
	refs := map[string]string{"service": "web", "node": node.Meta.Id, "network": "front"}
	for _, v := range api.All() {
		if v.Service != "state" || v.Callers > api.Admins || noStore[v.Subject] {
			continue
		}
		beat(false)
		if v.Effect == api.Writes {
			took, _, err := ask(v, v.Request.New().Interface())
			if !fault.Is(err, fault.CodeUnavailable) || !strings.Contains(err.Error(), "Missing: m2 (m2:2377)") || took > 2*time.Second {
				t.Errorf("%s: after %v: %v", v.Subject, took, err)
			}
			continue
		}
		req := v.Request.New()
		kind, known := strings.Split(v.Subject, ".")[3], true
		if f := req.Descriptor().Fields().ByName("ref"); f != nil {
			ref := refs[kind]
			if known = ref != ""; !known {
				ref = "nosuch" // a name that is not found is looked for twice
			}
			req.Set(f, protoreflect.ValueOfString(ref))
		}
		took, marked, err := ask(v, req.Interface())
		if took > 2*time.Second || known && (err != nil || !marked) || !known && !fault.Is(err, fault.CodeNotFound) {
			t.Errorf("%s: after %v, marked %v: %v", v.Subject, took, marked, err)
		}
	}
}
