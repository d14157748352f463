package state

import (
	"context"
	"fmt"
	"testing"
	"time"

	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// The stream's leader dies while services are created: clients that try again on `unavailable` end with every
// service exactly once, named by its index key and with its revision in place.
func TestBrokerLeaderDies(t *testing.T) {
	r := newRig(t, kvtest.Cluster(t, 3))
	r.start()
	leader := func() string {
		st, err := r.s.js.Stream(r.ctx(), subject.Spec.Stream())
		if err != nil || st.CachedInfo().Cluster == nil {
			return ""
		}
		return st.CachedInfo().Cluster.Leader
	}
	const services = 60
	end := time.Now().Add(2 * deadline)
	for i := range services {
		if i == services/3 {
			name := leader()
			for _, s := range r.n.Servers {
				if s.Name() == name {
					s.Shutdown()
				}
			}
		}
		name := fmt.Sprintf("s%d", i)
		unsure := false
		for {
			// A request that was on its way through the dead server is lost: ask again soon.
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			began := time.Now()
			err := rpc.Call(ctx, r.nc, subject.API("service", "create"), &skepv1.CreateServiceRequest{Spec: webSpec(name, 1), NoResolveImage: true}, nil)
			cancel()
			if d := time.Since(began); d > time.Second {
				t.Logf("%s took %s: %v", name, d, err)
			}
			if err == nil || unsure && fault.Is(err, fault.CodeConflict) {
				break
			}
			if !fault.Is(err, fault.CodeUnavailable) {
				t.Fatalf("create %s: %v", name, err)
			}
			if time.Now().After(end) {
				t.Fatalf("create %s: still %v", name, err)
			}
			unsure = true
		}
	}
	r.caughtUp()
	for i := range services {
		name := fmt.Sprintf("s%d", i)
		svc, err := r.inspect(name)
		if err != nil {
			t.Fatal(err)
		}
		if k, ok := r.s.ix.Key(keys.Name(keys.ServiceName, name)); !ok || k.Value != svc.Meta.Id {
			t.Errorf("%s is named by %v", name, k)
		}
		if r.s.ix.Revision(svc.Meta.Id, 1) == nil {
			t.Errorf("%s has lost its revision", name)
		}
	}
	if n := r.s.ix.ServiceCount(); n != services {
		t.Errorf("%d services, want %d", n, services)
	}
}

// What one instance freed a moment ago is free for the others at once.
func TestAFreedNameIsFree(t *testing.T) {
	r := newRig(t, kvtest.Cluster(t, 3))
	other, stop := r.start()
	defer stop()
	for i := range 30 {
		if _, err := r.s.createService(r.ctx(), &skepv1.CreateServiceRequest{Spec: webSpec("web", 0), NoResolveImage: true}); err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		// The other one knows it, so that its picture can be behind.
		if _, err := other.inspectService(r.ctx(), &skepv1.Ref{Ref: "web"}); err != nil {
			t.Fatal(err)
		}
		if _, err := r.s.removeService(r.ctx(), &skepv1.RemoveServiceRequest{Ref: "web"}); err != nil {
			t.Fatal(err)
		}
		if _, err := other.createService(r.ctx(), &skepv1.CreateServiceRequest{Spec: webSpec("web", 0), NoResolveImage: true}); err != nil {
			t.Fatalf("round %d, at the other instance: %v", i, err)
		}
		if _, err := r.s.removeService(r.ctx(), &skepv1.RemoveServiceRequest{Ref: "web"}); err != nil {
			t.Fatal(err)
		}
	}
}
