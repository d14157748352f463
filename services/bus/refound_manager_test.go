package bus

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/id"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/pki/pkitest"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

const records = 200

// oldGroup makes a group of three managers with every stream on each, and stops it: what is left are three directories.
func oldGroup(t *testing.T) []Config {
	t.Helper()
	ca := pkitest.NewCA(t)
	var cfgs []Config
	var all []*Bus
	set := &skepv1.ManagerSet{Replicas: 3, Used: map[string]uint32{}, Epoch: 1}
	var names, routes []string
	for i := range 3 {
		c := lone(t, ca, id.New())
		c.Name, c.Witness, c.Routes, c.Hostname = serverName(c.NodeID, 1), "", routes, fmt.Sprintf("m%d", i+1)
		if i == 0 {
			c.Witness = witnessName(c.NodeID, 1)
		}
		cfgs, routes, names = append(cfgs, c), append(routes, c.RouteAddr()), append(names, c.Name)
		all = append(all, run(t, c))
		set.Managers = append(set.Managers, &skepv1.Manager{
			NodeId: c.NodeID, Server: c.Name, Addr: c.Advertise, Route: c.RouteAddr(), Hostname: c.Hostname, State: skepv1.ManagerState_MANAGER_STATE_VOTER,
		})
		set.Used[c.NodeID] = 1
	}
	first, ctx := all[0], within(t)
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(first.WaitMembers(ctx, append([]string{cfgs[0].Witness}, names...)...))
	_, js := inProcessJS(t, first, "manager")
	check(kv.Ensure(ctx, js, 3))
	check(first.Scale(ctx, 3)) // waits until all are current
	check(first.Evacuate(ctx, cfgs[0].Witness))
	check(first.StopWitness(true))
	check(first.Remove(ctx, cfgs[0].Witness))
	check(first.WaitMembers(ctx, names...))
	spec := kv.Open(js, subject.Spec)
	for i := range records {
		_, err := spec.Put(ctx, fmt.Sprintf("test.%d", i), []byte("x"))
		check(err)
	}
	body, err := proto.Marshal(set)
	check(err)
	rev, err := kv.Open(js, subject.NodeB).Put(ctx, keys.Managers.Key(), body)
	check(err)
	check(first.Scale(ctx, 3))
	text, err := protojson.Marshal(set)
	check(err)
	for i := range cfgs {
		c := &cfgs[i]
		check(all[i].Close())
		p := &Place{Server: c.Name, Epoch: 1, ClusterID: c.TLS.Identity().ClusterID, Routes: routesOf(set, c.Name), Set: text, Revision: rev}
		check(p.Write(c.DataDir))
		c.Name, c.Witness, c.Routes = "", "", nil
	}
	return cfgs
}

// manage runs a manager; ended has what Run returns.
func manage(t *testing.T, cfg Config) (m *Manager, stop func(), ended chan error) {
	t.Helper()
	m, err := NewManager(cfg, filepath.Join(t.TempDir(), "skep.sock"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended = make(chan error, 1)
	done := make(chan struct{})
	go func() { defer close(done); ended <- m.Run(ctx) }()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return m, stop, ended
}

func awaitReady(t *testing.T, m *Manager, ended chan error, limit time.Duration) {
	t.Helper()
	select {
	case <-m.Ready():
	case err := <-ended:
		t.Fatalf("the manager ended: %v", err)
	case <-time.After(limit):
		t.Fatalf("not ready after %v", limit)
	}
}

// playState answers for state that the lost managers are workers.
func playState(t *testing.T, m *Manager) (asked chan *skepv1.RefoundRequest) {
	t.Helper()
	nc, _ := inProcessJS(t, m.Bus, "state")
	srv, err := rpc.NewServer(nc, rpc.Config{Name: "state", Log: m.log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = srv.Close() }) // the connection may be gone
	asked = make(chan *skepv1.RefoundRequest, 16)
	err = api.Handle(srv, api.ClusterRefound, func(_ context.Context, q *skepv1.RefoundRequest) (*skepv1.Empty, error) {
		asked <- q
		return &skepv1.Empty{}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return asked
}

// Two of three managers are lost for good; the third founds the cluster anew. They return as the majority of the group that
// is over, while the new manager is away too, and end when it is back.
func TestRefoundAndTheReturned(t *testing.T) {
	cfgs := oldGroup(t)
	survivor, lost := cfgs[2], cfgs[:2]
	r, err := AskRefound(survivor.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Lost) != 2 || r.Lost[0].Hostname != "m1" || r.Epoch != 2 {
		t.Errorf("to be founded anew: %+v", r)
	}
	if again, err := AskRefound(survivor.DataDir); err != nil || !again.Asked.Equal(r.Asked) {
		t.Errorf("asked again: %+v, %v", again, err)
	}

	began := time.Now()
	m, stop, ended := manage(t, survivor)
	awaitReady(t, m, ended, 2*patience)
	t.Logf("founded anew in %v", time.Since(began))
	if r, err = ReadRefounding(survivor.DataDir); err != nil || r == nil || r.Stage != StageNodes || time.Since(r.Newest) > 10*time.Minute {
		t.Fatalf("before state follows: %+v, %v", r, err)
	}
	asked := playState(t, m)
	if q := <-asked; q.NodeId != survivor.NodeID || q.Epoch != 2 {
		t.Errorf("state is asked for %v", q)
	}
	err = await(within(t), 10*time.Millisecond, patience, func() bool { r, err := ReadRefounding(survivor.DataDir); return r == nil && err == nil })
	if err != nil {
		t.Fatal("it does not end")
	}
	checkRefounded(t, m, survivor)
	stop()

	// The old majority, while nobody tells them.
	m1, _, ended1 := manage(t, lost[0])
	m2, _, ended2 := manage(t, lost[1])
	awaitReady(t, m1, ended1, patience)
	awaitReady(t, m2, ended2, patience)

	began = time.Now()
	m, _, ended = manage(t, survivor)
	awaitReady(t, m, ended, patience)
	t.Logf("restarted in %v", time.Since(began))
	for _, ended := range []chan error{ended1, ended2} {
		select {
		case err := <-ended:
			isOver(t, err, survivor)
		case <-time.After(patience):
			t.Fatal("a manager of the old group goes on")
		}
	}
	t.Logf("the old managers ended after %v", time.Since(began))
	// Now they do not even start.
	began = time.Now()
	_, _, ended1 = manage(t, lost[0])
	_, _, ended2 = manage(t, lost[1])
	isOver(t, <-ended1, survivor)
	isOver(t, <-ended2, survivor)
	t.Logf("they know after %v", time.Since(began))
	// A server of theirs that is started all the same gets no route.
	rogue := lost[0]
	rogue.Name, rogue.Routes = serverName(rogue.NodeID, 1), []string{survivor.RouteAddr()}
	b, err := New(rogue)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = b.Run(context.Background()) }()
	defer b.Close() //nolint:errcheck // nil
	<-b.Serving()
	// It dials, and holds what it dialled for a route until it is refused: the manager's list counts.
	if err := await(within(t), 10*time.Millisecond, 3*time.Second, func() bool { return hasRoute(t, m.Bus, rogue.Name) }); err == nil {
		t.Error("a lost manager's server has a route")
	}
	checkRefounded(t, m, survivor)
}

// hasRoute reports whether a broker has admitted a server of that name.
func hasRoute(t *testing.T, b *Bus, name string) bool {
	t.Helper()
	z, err := b.running().Routez(nil)
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(z.Routes, func(r *server.RouteInfo) bool { return r.RemoteName == name })
}

// isOver checks what a manager of the old group is told.
func isOver(t *testing.T, err error, by Config) {
	t.Helper()
	if !errors.Is(err, ErrOver) {
		t.Errorf("a manager of the old group ends with %v", err)
		return
	}
	for _, want := range []string{"founded anew", by.NodeID, by.Advertise, "skep leave --force", "skep join-token manager"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("it is not told %q: %v", want, err)
		}
	}
}

func checkRefounded(t *testing.T, m *Manager, cfg Config) {
	t.Helper()
	nc, js := inProcessJS(t, m.Bus, "manager")
	_, set, _, err := readSet(within(t), nc)
	if err != nil {
		t.Fatal(err)
	}
	witness := witnessName(cfg.NodeID, 2)
	if len(set.Managers) != 1 || set.Epoch != 2 || set.Replicas != 1 || set.Step != nil || len(set.Used) != 3 || set.Used[cfg.NodeID] != 2 {
		t.Fatalf("the group is %v", set)
	}
	if got := set.Managers[0]; got.Server != serverName(cfg.NodeID, 1) || got.Witness != witness || got.Addr != cfg.Advertise || got.State != skepv1.ManagerState_MANAGER_STATE_VOTER {
		t.Errorf("the manager is %v", got)
	}
	if err := m.WaitMembers(within(t), serverName(cfg.NodeID, 1), witness); err != nil {
		t.Error(err)
	}
	p, err := ReadPlace(cfg.DataDir)
	if err != nil || p.Epoch != 2 || len(p.Routes) != 0 || p.Witness != witness {
		t.Errorf("its place is %+v, %v", p, err)
	}
	s, err := js.Stream(within(t), subject.Spec.Stream())
	if err != nil {
		t.Fatal(err)
	}
	if i := s.CachedInfo(); i.State.Msgs < records || i.State.FirstSeq != 1 || i.Config.Replicas != 1 {
		t.Errorf("the stream is %+v", i.State)
	}
	for i := range records {
		e, err := kv.Open(js, subject.Spec).Get(within(t), fmt.Sprintf("test.%d", i))
		if err != nil || string(e.Value) != "x" {
			t.Fatalf("record %d: %v", i, err)
		}
	}
	if _, err := kv.Open(js, subject.Spec).Put(within(t), "test.more", []byte("x")); err != nil {
		t.Error(err)
	}
	l := js.ListStreams(within(t))
	for s := range l.Info() {
		if s.Config.Replicas != 1 || s.Cluster == nil || s.Cluster.Leader != serverName(cfg.NodeID, 1) {
			t.Errorf("stream %s has %d replicas and is led by %+v", s.Config.Name, s.Config.Replicas, s.Cluster)
		}
	}
	if err := l.Err(); err != nil {
		t.Error(err)
	}
}

// Without a copy of the data nothing is founded anew.
func TestRefoundNeedsACopy(t *testing.T) {
	dir := t.TempDir()
	if _, err := AskRefound(dir); !errors.Is(err, ErrNoCopy) {
		t.Errorf("an empty directory: %v", err)
	}
	for _, s := range kv.Streams(1)[1:] {
		msgs := filepath.Join(dir, "main", "jetstream", accountName, "streams", s.Name, "msgs")
		if err := os.MkdirAll(msgs, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(msgs, "1.blk"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := AskRefound(dir); !errors.Is(err, ErrNoCopy) || !strings.Contains(err.Error(), kv.Streams(1)[0].Name+" of") {
		t.Errorf("a stream is missing: %v", err)
	}
	if r, err := ReadRefounding(dir); r != nil || err != nil {
		t.Errorf("what was refused is to be done: %+v, %v", r, err)
	}
	if err := os.WriteFile(filepath.Join(dir, refoundFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := AskRefound(dir); err == nil || !strings.Contains(err.Error(), "remove the file") {
		t.Errorf("a damaged record: %v", err)
	}
}
