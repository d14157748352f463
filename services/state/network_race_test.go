package state

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/spec"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

func TestFiftyClientsOneNetworkName(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	r.start()
	const clients = 50
	var wg sync.WaitGroup
	errs := make([]error, clients)
	for i := range clients {
		wg.Go(func() { _, errs[i] = r.network(&skepv1.NetworkSpec{Name: "one"}) })
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
			continue
		}
		wantErr(t, err, "network with name one already exists")
	}
	r.caughtUp()
	if won != 1 || len(r.s.ix.Networks()) != 1 || len(r.s.ix.Keys(keys.VNI.Prefix())) != 1 || len(r.s.ix.Keys(keys.Subnet.Prefix())) != 1 {
		t.Fatalf("%d won: %v", won, r.s.ix.Keys("idx."))
	}
}

// Fifty clients and three instances take the whole pool: 32 get a subnet each, the others hear that there are no more.
func TestFiftyClientsOnePool(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	must[*skepv1.ClusterReply](t)(call(r, api.ClusterInit,
		&skepv1.InitClusterRequest{CaDigest: "d", Spec: &skepv1.ClusterSpec{DefaultAddrPools: []string{"10.20.0.0/19"}, SubnetSize: 24}}))
	r.start()
	r.start()
	const clients = 50
	var wg sync.WaitGroup
	errs := make([]error, clients)
	for i := range clients {
		wg.Go(func() { _, errs[i] = r.network(&skepv1.NetworkSpec{Name: fmt.Sprintf("n%d", i)}) })
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		switch {
		case err == nil:
			won++
		case !fault.Is(err, fault.CodeExhausted):
			t.Error(err)
		}
	}
	r.caughtUp()
	subnets, vnis := map[string]bool{}, map[uint32]bool{}
	for _, n := range r.s.ix.Networks() {
		o := r.s.ix.Network(n.ID)
		if subnets[o.Ipam[0].Subnet] || vnis[o.Vni] {
			t.Errorf("%s or VXLAN id %d twice", o.Ipam[0].Subnet, o.Vni)
		}
		subnets[o.Ipam[0].Subnet], vnis[o.Vni] = true, true
	}
	if won != 32 || len(subnets) != 32 {
		t.Errorf("%d networks, %d subnets of 32", won, len(subnets))
	}
	if found := audit(r.s.ix); len(found) > 0 {
		t.Errorf("audit: %v", found)
	}
}

// onlyWhatExists fails when a service is on a network that is not there.
func (r *rig) onlyWhatExists() {
	r.t.Helper()
	for _, n := range r.s.ix.ServicesAfter("") {
		for _, id := range spec.Overlays(r.s.ix.Service(n.ID).GetSpec()) {
			if st, ok := r.s.ix.NetworkState(id); !ok || st.Removing {
				r.t.Errorf("service %s is on network %s: %v", n.Name, id, st)
			}
		}
	}
}

// However removal, creation and update of the network's services meet, in two instances: no service is ever left on a
// network that is gone, and every refusal is one of those that are meant.
func TestNetworkRemovalMeetsServices(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	r.start()
	r.mustNetwork("home")
	r.mustOn("mover", "home")
	kept, removed, undone := 0, 0, 0
	for round := range 60 {
		name := fmt.Sprintf("net%d", round)
		n := r.mustNetwork(name)
		var wg sync.WaitGroup
		var created, moved, gone error
		wg.Go(func() { _, created = r.create(on(fmt.Sprintf("svc%d", round), name)) })
		wg.Go(func() { _, moved = r.update("mover", on("mover", name)) })
		wg.Go(func() {
			time.Sleep(time.Duration(round%20) * time.Millisecond)
			gone = r.rmNetwork(n.Meta.Id)
		})
		wg.Wait()
		r.caughtUp()
		r.onlyWhatExists()
		for what, err := range map[string]error{"create": created, "update": moved} {
			if err != nil && err.Error() != "network "+name+" not found" {
				t.Errorf("%s: %v", what, err)
			}
		}
		switch {
		case gone == nil:
			removed++
			if created == nil || moved == nil {
				t.Errorf("round %d: removed, and create said %v, update %v", round, created, moved)
			}
		case fault.Is(gone, fault.CodeConflict) && strings.HasPrefix(gone.Error(), "network "+name+" is in use by service"):
			kept++
			if created != nil && moved != nil {
				undone++ // both sides gave way
			}
		default:
			t.Errorf("remove: %v", gone)
		}
		if mover := r.s.ix.Service(must[*skepv1.Service](t)(r.inspect("mover")).Meta.Id); len(spec.Overlays(mover.Spec)) != 1 {
			t.Errorf("mover is on %v", mover.Spec.Task.Networks)
		}
		if created == nil {
			if err := r.rmService(fmt.Sprintf("svc%d", round)); err != nil {
				t.Error(err)
			}
		}
		if moved == nil {
			r.mustUpdate("mover", on("mover", "home"))
		}
		if err := r.rmNetwork(name); err != nil && !fault.Is(err, fault.CodeNotFound) {
			t.Error(err)
		}
	}
	t.Logf("%d removed, %d kept, of these %d with neither service", removed, kept, undone)
	for _, ref := range []string{"mover"} {
		if err := r.rmService(ref); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.rmNetwork("home"); err != nil {
		t.Fatal(err)
	}
	r.nothingLeft()
}

// caughtUp waits until the first instance knows what the bucket has now: another one may have answered the last request,
// and only the one that answers waits for its own writes.
func (r *rig) caughtUp() {
	r.t.Helper()
	for _, f := range []struct {
		bucket subject.Bucket
		feed   *kv.Feed
	}{{subject.Spec, r.s.feeds.Of(subject.Spec)}, {subject.Rev, r.s.feeds.Of(subject.Rev)}} {
		st, err := r.s.js.Stream(r.ctx(), f.bucket.Stream())
		if err == nil {
			err = f.feed.Wait(r.ctx(), st.CachedInfo().State.LastSeq)
		}
		if err != nil {
			r.t.Fatal(err)
		}
	}
}

// The orders that a race seldom takes, made by hand: the mark comes between look and write.
func TestWrittenAfterTheMark(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	s := r.s
	a, b := r.mustNetwork("a"), r.mustNetwork("b")
	svc := r.mustOn("web", "a")

	// A service that was written before the mark stays, one written after it goes.
	mark := func(id string, on bool) {
		t.Helper()
		if err := s.markRemoving(r.ctx(), s.ix.Network(id), on); err != nil {
			t.Fatal(err)
		}
	}
	mark(a.Meta.Id, true)
	if err := s.keepOffLost(r.ctx(), svc.Meta.Id, nil); err != nil {
		t.Fatalf("written before the mark: %v", err)
	}
	mark(a.Meta.Id, false)

	mark(b.Meta.Id, true)
	_, err := r.create(on("late", "b"))
	wantErr(t, err, "network b not found")
	before := s.ix.Service(svc.Meta.Id)
	sp := proto.CloneOf(before.Spec)
	sp.Task.Networks = append(sp.Task.Networks, &skepv1.NetworkAttachment{Target: b.Meta.Id})
	_, err = r.update("web", sp)
	wantErr(t, err, "network "+b.Meta.Id+" not found")
	// As if the instance had looked before the mark.
	before, after, err := s.apply(r.ctx(), svc.Meta.Id, false, func(*skepv1.Service) (step, error) { return step{spec: sp}, nil })
	if err != nil {
		t.Fatal(err)
	}
	err = s.backOffLost(r.ctx(), before, after, map[string]string{b.Meta.Id: "b"})
	wantErr(t, err, "network b not found")
	now := s.ix.Service(svc.Meta.Id)
	if len(now.Spec.Task.Networks) != 1 || now.RollbackTo != before.Revision || vipOf(now, a.Meta.Id) != vipOf(before, a.Meta.Id) || vipOf(now, b.Meta.Id) != "" {
		t.Fatalf("put back to %v", now)
	}
	// When the remover gave way in the last moment, what was written stands, and nobody hears otherwise.
	before, after, err = s.apply(r.ctx(), svc.Meta.Id, false, func(*skepv1.Service) (step, error) { return step{spec: sp}, nil })
	if err != nil {
		t.Fatal(err)
	}
	mark(b.Meta.Id, false)
	if err := s.putBack(r.ctx(), before, after, b.Meta.Id, nil); err != nil {
		t.Errorf("an update that stands: %v", err)
	}
	if now = s.ix.Service(svc.Meta.Id); now.Revision != after.Revision {
		t.Errorf("put back to revision %d", now.Revision)
	}
	if err := s.takeOff(r.ctx(), now, b.Meta.Id, nil); err != nil || s.ix.Service(svc.Meta.Id) == nil {
		t.Errorf("a service that stays: %v", err)
	}
	must[*skepv1.Service](t)(r.update("web", on("web", "a")))
	mark(b.Meta.Id, true)
	// And when the network it came from has gone as well, it is on none.
	sp = on("web", b.Meta.Id)
	before, after, err = s.apply(r.ctx(), svc.Meta.Id, false, func(*skepv1.Service) (step, error) { return step{spec: sp}, nil })
	if err != nil {
		t.Fatal(err)
	}
	if err := r.rmNetwork("a"); err != nil {
		t.Fatal(err)
	}
	err = s.backOffLost(r.ctx(), before, after, map[string]string{b.Meta.Id: "b"})
	wantErr(t, err, "network b not found")
	if now = s.ix.Service(svc.Meta.Id); len(now.Spec.Task.Networks) != 0 || len(now.Endpoint.VirtualIps) != 0 {
		t.Fatalf("put back to %v", now)
	}
	// A second remover does the rest of what the first one began.
	if err := r.rmNetwork("b"); err != nil {
		t.Fatal(err)
	}
	if err := r.rmService("web"); err != nil {
		t.Fatal(err)
	}
	r.nothingLeft()
}

// The sweep ends what a remover left half done, and releases what nobody owns.
func TestSweepOfNetworks(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	s := r.s
	used, unused := r.mustNetwork("used"), r.mustNetwork("unused")
	svc := must[*skepv1.ServiceReply](t)(r.create(func() *skepv1.ServiceSpec {
		sp := on("web", "used")
		sp.Endpoint = &skepv1.EndpointSpec{Ports: []*skepv1.PortConfig{{TargetPort: 80, PublishedPort: 80, PublishMode: host}}}
		return sp
	}())).Service
	for _, n := range []*skepv1.Network{used, unused} {
		if err := s.markRemoving(r.ctx(), s.ix.Network(n.Meta.Id), true); err != nil {
			t.Fatal(err)
		}
	}
	s.sweepOnce(r.ctx(), time.Now().Add(-leaveFor))
	if st, ok := s.ix.NetworkState(unused.Meta.Id); !ok || !st.Removing {
		t.Fatal("the sweep does not wait")
	}
	s.sweepOnce(r.ctx(), time.Now().Add(time.Minute))
	if _, ok := s.ix.NetworkState(unused.Meta.Id); ok {
		t.Error("a removal stays half done")
	}
	if st, ok := s.ix.NetworkState(used.Meta.Id); !ok || st.Removing {
		t.Error("a network in use goes, or keeps its mark")
	}

	const gone = "0123456789abcdefghijklmno"
	var last uint64
	for key, value := range map[string]string{
		"idx.vni.9999": gone, "idx.wgport.52000": gone, "idx.subnet.10.77.0.0-24": gone, keys.Name(keys.NetworkName, "ghost"): gone, "idx.vip." + used.Meta.Id + ".10-0-12-9": gone,
		"idx.port.tcp.81": gone, "idx.port.tcp.82": hostPrefix + gone + " " + svc.Meta.Id, "idx.vip." + used.Meta.Id + ".10-0-12-8": svc.Meta.Id,
	} {
		rev, err := s.spec.Create(r.ctx(), key, []byte(value))
		if err != nil {
			t.Fatal(err)
		}
		last = max(last, rev)
	}
	if err := s.feeds.Of(subject.Spec).Wait(r.ctx(), last); err != nil {
		t.Fatal(err)
	}
	if found := audit(s.ix); len(found) != 9 { // port 82 is two: one holder is gone, the other does not use it
		t.Errorf("%d findings: %s", len(found), strings.Join(found, "\n"))
	}
	s.sweepOnce(r.ctx(), time.Now().Add(-leaveFor))
	if len(s.ix.Keys(keys.VNI.Prefix())) != 2 {
		t.Error("the sweep does not wait")
	}
	s.sweepOnce(r.ctx(), time.Now().Add(time.Minute))
	r.caughtUp()
	if x := strays(s.ix); len(x) != 0 {
		t.Errorf("strays stay: %v", x)
	}
	if k, _ := s.ix.Key("idx.port.tcp.82"); k.Value != hostPrefix+svc.Meta.Id {
		t.Errorf("port of several holders: %q", k.Value)
	}
	if k, _ := s.ix.Key("idx.port.tcp.80"); k.Value != hostPrefix+svc.Meta.Id {
		t.Errorf("port in use: %q", k.Value)
	}
	// What it cannot mend is told of: keys of a service that does not use them, and services on nothing.
	found := strings.Join(audit(s.ix), "\n")
	if !strings.Contains(found, "10-0-12-8 is taken by "+svc.Meta.Id+", which does not use it") {
		t.Errorf("audit: %s", found)
	}
	if err := s.spec.Delete(r.ctx(), keys.Network.Key(used.Meta.Id), 0); err != nil {
		t.Fatal(err)
	}
	r.caughtUp()
	if found = strings.Join(audit(s.ix), "\n"); !strings.Contains(found, "network "+used.Meta.Id+" does not exist and is used by service web: take it off with service update --network-rm") {
		t.Errorf("audit: %s", found)
	}
}
