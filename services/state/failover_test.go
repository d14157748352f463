package state

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

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

// A manager is stopped, its state service first and then its broker, which led: of the changes that are made at another one, one
// after the other, none fails.
func TestAManagerStops(t *testing.T) {
	n := kvtest.Cluster(t, 3)
	r := newRig(t, n)
	r.stop() // it is connected to any of them
	type at struct {
		stop func()
		nc   *nats.Conn
	}
	instances := map[string]at{}
	for _, s := range n.Servers {
		nc, err := nats.Connect(s.ClientURL(), nats.MaxReconnects(-1))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		_, stop := r.start(func(c *Config) { c.NC, c.NodeID = nc, s.Name() })
		instances[s.Name()] = at{stop, nc}
	}
	js, err := jetstream.New(r.nc)
	if err != nil {
		t.Fatal(err)
	}
	st, err := js.Stream(r.ctx(), subject.Spec.Stream())
	if err != nil {
		t.Fatal(err)
	}
	leader := st.CachedInfo().Cluster.Leader
	var front *nats.Conn
	for name, i := range instances {
		if name != leader {
			front = i.nc
		}
	}
	change := func(i int) {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), deadline)
		defer cancel()
		q := &skepv1.ScaleServiceRequest{Ref: "web", Replicas: uint64(i % 7)}
		if err := rpc.Call(ctx, front, subject.API("service", "scale"), q, nil); err != nil {
			t.Errorf("change %d: %v", i, err)
		}
	}
	if err := rpc.Call(r.ctx(), front, subject.API("service", "create"), &skepv1.CreateServiceRequest{Spec: webSpec("web", 1), NoResolveImage: true}, nil); err != nil {
		t.Fatal(err)
	}
	var stopping, stopped atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		for !stopping.Load() {
			time.Sleep(time.Millisecond)
		}
		instances[leader].stop()
		for _, s := range n.Servers {
			if s.Name() == leader {
				s.LameDuckShutdown()
			}
		}
		stopped.Store(true)
	})
	for i, after := 0, 0; after < 20; i++ {
		change(i)
		if i == 20 {
			stopping.Store(true)
		}
		if stopped.Load() {
			after++
		}
	}
	wg.Wait()
}
