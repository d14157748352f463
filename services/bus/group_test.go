package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/id"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/pki"
	"skep.dev/libs/pki/pkitest"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// fleet is a cluster of managers in this process, with what state does for them.
type fleet struct {
	t       *testing.T
	ca      *pki.CA
	members map[string]*manned
	addrs   []string // where clients find one
	spec    *kv.Bucket
	nc      *nats.Conn
	logs    *observer.ObservedLogs
	log     *zap.Logger

	witness  map[string]bool // nodes that only vote
	handOver atomic.Bool     // who leads gives the lease up after each step

	mu      sync.Mutex
	settled []string
}

// manned is one of them.
type manned struct {
	f      *fleet
	cfg    Config
	m      *Manager
	cancel context.CancelFunc
	ended  chan error
}

const testState = "state0" // a node whose certificate the test's own services use

// idOf makes an id of a short name; named does so within the name of a server.
func idOf(name string) string { return name + strings.Repeat("0", id.Len-len(name)) }
func named(server string) string {
	name, n, _ := strings.Cut(server, "-")
	return idOf(name) + "-" + n
}

// found makes a cluster of one manager, m1.
func found(t *testing.T, names ...string) *fleet {
	t.Helper()
	core, logs := observer.New(zap.InfoLevel)
	f := &fleet{t: t, ca: pkitest.NewCA(t), members: map[string]*manned{}, logs: logs, log: zap.New(core)}
	t.Cleanup(func() {
		if t.Failed() || testing.Verbose() {
			for _, e := range logs.All() {
				t.Logf("%s %s %s %v", e.Time.Format("05.000"), e.Level, e.Message, e.ContextMap())
			}
		}
	})
	for _, n := range append([]string{"m1"}, names...) {
		cfg := lone(t, f.ca, idOf(n))
		cfg.Witness, cfg.Hostname, cfg.Version, cfg.Found = "", "host-"+n, "1.2.3", n == "m1"
		cfg.Log = f.log.With(zap.String("on", n))
		f.members[n] = &manned{f: f, cfg: cfg}
		f.addrs = append(f.addrs, cfg.Advertise)
	}
	for n, m := range f.members {
		for other, o := range f.members {
			if other != n {
				m.cfg.Managers = append(m.cfg.Managers, o.cfg.Advertise)
			}
		}
	}
	f.members["m1"].start()
	f.serve()
	f.role("m1", true)
	return f
}

// serve connects the test's state.
func (f *fleet) serve() {
	f.t.Helper()
	creds := pkitest.Store(f.t, f.ca, pki.Identity{NodeID: idOf(testState), Role: pki.Manager}, time.Hour)
	var err error
	f.nc, err = nats.Connect("tls://"+strings.Join(f.addrs, ",tls://"), nats.Secure(pki.ClientTLS(creds)), nats.TLSHandshakeFirst(), nats.MaxReconnects(-1),
		nats.ReconnectWait(50*time.Millisecond), nats.Timeout(2*time.Second), nats.IgnoreAuthErrorAbort(), nats.RetryOnFailedConnect(true),
		nats.CustomInboxPrefix(subject.Inbox("state-"+idOf(testState))), nats.PingInterval(time.Second), nats.DontRandomize())
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(f.nc.Close)
	js, err := jetstream.New(f.nc)
	if err != nil {
		f.t.Fatal(err)
	}
	f.spec = kv.Open(js, subject.Spec)
	srv, err := rpc.NewServer(f.nc, rpc.Config{Name: "skep-state"})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { srv.Close() })
	if err := api.Handle(srv, api.NodeSettle, func(ctx context.Context, q *skepv1.SettleNodeRequest) (*skepv1.NodeReply, error) {
		f.mu.Lock()
		f.settled = append(f.settled, q.GetNodeId())
		f.mu.Unlock()
		return &skepv1.NodeReply{}, f.put(ctx, q.GetNodeId(), false, false)
	}); err != nil {
		f.t.Fatal(err)
	}
	for _, n := range []string{testState, "writer", "m1"} { // a node that is not known while others are is let in no more
		f.role(n, n == "m1")
	}
}

// put writes a node's object; it is repeated until it is written.
func (f *fleet) put(ctx context.Context, node string, manager, certified bool) error {
	o := &skepv1.NodeObject{Meta: &skepv1.Meta{Id: node}, Spec: &skepv1.NodeSpec{}, Witness: f.witness[node]}
	if manager {
		o.Spec.Role = skepv1.NodeRole_NODE_ROLE_MANAGER
	}
	if certified {
		o.Role = skepv1.NodeRole_NODE_ROLE_MANAGER
	}
	body, err := proto.Marshal(o)
	if err != nil {
		return err
	}
	return again(ctx, func(ctx context.Context) error {
		_, err := f.spec.Put(ctx, keys.Node.Key(node), body)
		return err
	})
}

// role makes a node a manager, as promote does, or asks it to be one no more, as demote does.
func (f *fleet) role(node string, manager bool) {
	f.t.Helper()
	if err := f.put(within(f.t), idOf(node), manager, manager || f.members[node] != nil); err != nil {
		f.t.Fatal(err)
	}
}

// removeNode is `node rm --force`.
func (f *fleet) removeNode(node string) {
	f.t.Helper()
	err := again(within(f.t), func(ctx context.Context) error { return f.spec.Delete(ctx, keys.Node.Key(idOf(node)), 0) })
	if err != nil {
		f.t.Fatal(err)
	}
}

func (m *manned) start() {
	m.f.t.Helper()
	m.run()
	select {
	case <-m.m.Ready():
	case err := <-m.ended:
		m.f.t.Fatalf("%s ended: %v", m.cfg.NodeID, err)
	case <-time.After(patience):
		m.f.t.Fatalf("%s is not ready", m.cfg.NodeID)
	}
}

// run starts it and does not wait.
func (m *manned) run() {
	m.f.t.Helper()
	var err error
	if m.m, err = NewManager(m.cfg, m.cfg.DataDir+".sock"); err != nil {
		m.f.t.Fatal(err)
	}
	m.m.group.stepped = func() error {
		if m.f.handOver.Load() {
			return errHandOver
		}
		return nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	m.cancel, m.ended = cancel, make(chan error, 1)
	go func(m *Manager, ended chan error) { ended <- m.Run(ctx); close(ended) }(m.m, m.ended)
	m.f.t.Cleanup(m.stop)
}

func (m *manned) stop() {
	if m.cancel != nil {
		m.cancel()
		<-m.ended
	}
}

// stores logs what every server has of the streams.
func (f *fleet) stores() {
	for n, m := range f.members {
		if m.m == nil {
			continue
		}
		i := m.m.running()
		if i == nil {
			continue
		}
		j, err := i.Jsz(&server.JSzOptions{Accounts: true, Streams: true, RaftGroups: true})
		if err != nil {
			f.t.Logf("%s: %v", n, err)
			continue
		}
		b, err := json.Marshal(j)
		f.t.Logf("%s: %s %v", n, b, err)
	}
}

// end is what Run returned.
func (m *manned) end() error {
	m.f.t.Helper()
	select {
	case err := <-m.ended:
		return err
	case <-time.After(patience):
		m.f.stores()
		m.f.t.Fatalf("%s does not end", m.cfg.NodeID)
	}
	return nil
}

// list asks any manager.
func (f *fleet) list() *skepv1.ListManagersReply {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	r, err := api.Call(ctx, f.nc, api.ManagerList, &skepv1.Empty{})
	if err != nil {
		return &skepv1.ListManagersReply{}
	}
	return r
}

// await waits until the group is these servers, all voters, with that number of replicas and nothing under way.
func (f *fleet) await(replicas uint32, witness bool, servers ...string) {
	f.t.Helper()
	for i := range servers {
		servers[i] = named(servers[i])
	}
	var last *skepv1.ListManagersReply
	ok := func() bool {
		last = f.list()
		var have []string
		witnesses := 0
		for _, m := range last.GetSet().GetManagers() {
			if m.GetState() != voter {
				return false
			}
			have = append(have, m.GetServer())
			if m.GetWitness() != "" {
				witnesses++
			}
		}
		want := len(servers)
		if witness {
			want++
		}
		return slices.Equal(have, servers) && last.GetSet().GetStep() == nil && last.GetSet().GetReplicas() == replicas &&
			(witnesses == 1) == witness && int(last.GetVoters()) == want && last.GetLed()
	}
	if err := await(context.Background(), 50*time.Millisecond, 3*patience, ok); err != nil {
		f.t.Fatalf("the group is not %v with %d replicas, witness %v: %v", servers, replicas, witness, last)
	}
}

// said waits for a line of the log that has the text.
func (f *fleet) said(text string) {
	f.t.Helper()
	if err := await(within(f.t), 20*time.Millisecond, patience, func() bool {
		return len(f.logs.Filter(func(e observer.LoggedEntry) bool {
			return strings.Contains(e.Message, text) || e.Level >= zapcore.WarnLevel && strings.Contains(fmt.Sprint(e.ContextMap()), text)
		}).All()) > 0
	}); err != nil {
		f.t.Errorf("nothing in the log says %q", text)
	}
}

// TestGroup is the life of a group, with writers: nothing but the roles of nodes changes, and what happens to machines.
func TestGroup(t *testing.T) {
	f := found(t, "m2", "m3", "m4", "m5")
	creds := pkitest.Store(t, f.ca, pki.Identity{NodeID: idOf("writer"), Role: pki.Manager}, time.Hour)
	l := startWriters(t, creds, 2, f.addrs...)
	if err := created(t, l.js, "a"); err != nil {
		t.Fatal(err)
	}
	events, err := f.nc.SubscribeSync(subject.Event("node", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	f.await(1, true, "m1-1")
	// One after the other on the same group: no step stands for itself.
	step := func(name string, do func()) {
		t.Helper()
		began := time.Now()
		do()
		l.mark(name, began)
	}

	step("who is no manager is turned away", func() {
		f.role("m2", false)
		f.members["m2"].run()
		if err := f.members["m2"].end(); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "node "+idOf("m2")+" is not to be a manager") {
			t.Errorf("it ended with %v", err)
		}
	})
	step("who is not reached is turned away", func() {
		m := f.members["m2"]
		right := m.cfg.Advertise
		m.cfg.Advertise = fmt.Sprintf("127.0.0.1:%d", freePorts(t, 1)[0])
		f.role("m2", true)
		m.run()
		want := "manager host-m1 (" + idOf("m1") + ") does not reach this node at " + m.cfg.Advertise + " from 127.0.0.1: "
		if err := m.end(); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), want) {
			t.Errorf("it ended with %v, want %s", err, want)
		}
		m.cfg.Advertise = right
	})
	step("two join at once, and no leader does more than one step", func() {
		f.handOver.Store(true)
		for _, n := range []string{"m2", "m3"} {
			f.role(n, true)
			f.members[n].run()
		}
		f.await(3, false, "m1-1", "m2-1", "m3-1")
		f.handOver.Store(false)
		f.said("replicas of all streams: 1 -> 3")
		for _, n := range []string{"m1", "m3"} {
			if p, err := ReadPlace(f.members[n].cfg.DataDir); err != nil || len(p.Routes) != 2 || p.Witness != "" {
				t.Errorf("%s would start by %+v, %v", n, p, err)
			}
		}
	})
	step("each door is asked by who came to it", func() {
		member := pkitest.Store(t, f.ca, pki.Identity{NodeID: idOf("m4"), Role: pki.Manager}, time.Hour)
		for _, n := range []string{"m1", "m2", "m3"} {
			for range 8 { // by chance another's would answer as well
				r, err := AskEpoch(within(t), member, f.members[n].cfg.Advertise)
				if err != nil || r.NodeId != idOf(n) {
					t.Fatalf("%s, asked for its epoch: %v %v", n, r, err)
				}
			}
		}
	})
	step("a store is lost", func() {
		m := f.members["m3"]
		m.stop()
		if err := os.RemoveAll(filepath.Join(m.cfg.DataDir, "main")); err != nil {
			t.Fatal(err)
		}
		m.start()
		f.await(3, false, "m1-1", "m2-1", "m3-2")
	})
	step("five", func() {
		for _, n := range []string{"m4", "m5"} {
			f.role(n, true)
			f.members[n].run()
		}
		f.await(5, false, "m1-1", "m2-1", "m3-2", "m4-1", "m5-1")
	})
	step("one dies and is removed", func() {
		f.members["m2"].stop()
		f.removeNode("m2")
		f.await(3, false, "m1-1", "m3-2", "m4-1", "m5-1")
		f.said("make it 5")
	})
	step("one is demoted while it is away, the founder as well", func() {
		f.members["m5"].stop()
		f.role("m5", false)
		f.role("m1", false)
		f.members["m1"].retired()
		f.await(1, true, "m3-2", "m4-1")
		f.said("make it 3")
		f.members["m5"].run()
		f.members["m5"].retired()
	})
	step("one", func() {
		f.role("m3", false)
		f.members["m3"].retired()
		f.await(1, true, "m4-1")
	})
	l.halt()
	l.verify("at the end")
	if err := await(within(t), 50*time.Millisecond, patience, func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return !slices.ContainsFunc([]string{"m1", "m3", "m5"}, func(n string) bool { return !slices.Contains(f.settled, idOf(n)) })
	}); err != nil {
		t.Errorf("workers were made of %v", f.settled)
	}
	told := map[string]int{}
	for {
		m, err := events.NextMsg(100 * time.Millisecond)
		if err != nil {
			break
		}
		e := &skepv1.Event{}
		if err := protojson.Unmarshal(m.Data, e); err != nil {
			t.Fatal(err)
		}
		told[e.GetVerb()+" "+e.GetAttributes()["server"]]++
	}
	for _, want := range []string{"manager-join m2-1", "manager-join m3-2", "manager-leave m3-1", "manager-leave m2-1", "manager-leave m1-1"} {
		verb, server, _ := strings.Cut(want, " ")
		if told[verb+" "+named(server)] == 0 {
			t.Errorf("no event tells %s: %v", want, told)
		}
	}
}

// retired waits until it has left the group, with nothing of it on its disk.
func (m *manned) retired() {
	t := m.f.t
	t.Helper()
	if err := m.end(); !errors.Is(err, ErrRetired) {
		t.Fatalf("%s ended: %v", m.cfg.NodeID, err)
	}
	if p, err := ReadPlace(m.cfg.DataDir); p != nil || err != nil {
		t.Errorf("%s left %v, %v", m.cfg.NodeID, p, err)
	}
	if have, err := hasStore(m.cfg.DataDir); have || err != nil {
		t.Errorf("%s left its store: %v", m.cfg.NodeID, err)
	}
}

// A directory of a version without groups goes on under its name, and is written down.
func TestOldDirectory(t *testing.T) {
	ca := pkitest.NewCA(t)
	cfg := lone(t, ca, "m1")
	b := run(t, cfg)
	_, js := inProcessJS(t, b, "manager")
	if err := kv.Ensure(within(t), js, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Open(js, subject.Spec).Put(within(t), "x", []byte("y")); err != nil {
		t.Fatal(err)
	}
	b.Close()
	m, err := NewManager(cfg, cfg.DataDir+".sock")
	if err != nil {
		t.Fatal(err)
	}
	cancel, ended := runManager(t, m)
	_, js = inProcessJS(t, m.Bus, "manager")
	if e, err := kv.Open(js, subject.Spec).Get(within(t), "x"); err != nil || string(e.Value) != "y" {
		t.Errorf("what was stored is %v, %v", e, err)
	}
	want := &skepv1.Manager{NodeId: "m1", Server: "m1", Witness: "m1-w1", Addr: cfg.Advertise, Route: cfg.RouteAddr(), State: voter}
	if err := await(within(t), 20*time.Millisecond, patience, func() bool {
		set, _ := m.group.known()
		return len(set.GetManagers()) == 1 && proto.Equal(set.GetManagers()[0], want) && set.GetUsed()["m1"] == 1
	}); err != nil {
		t.Errorf("the group is %v", m.group.set)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if p, err := ReadPlace(cfg.DataDir); err != nil || p.Server != "m1" || p.Witness != "m1-w1" || len(p.set().GetManagers()) != 1 {
		t.Errorf("it would start by %+v, %v", p, err)
	}
}

// A lone manager whose store is gone does not found a group anew, nor does one that was never let in.
func TestNoStoreFoundsNothing(t *testing.T) {
	ca := pkitest.NewCA(t)
	cfg := lone(t, ca, "m1")
	if err := (&Place{Server: "m1-1", Witness: "m1-w1", Epoch: 1}).Write(cfg.DataDir); err != nil {
		t.Fatal(err)
	}
	m, err := NewManager(cfg, cfg.DataDir+".sock")
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Run(within(t)); err == nil || !strings.Contains(err.Error(), "the store of this manager, which had the only copy, is gone") {
		t.Errorf("it ended with %v", err)
	}
	cfg = lone(t, ca, "m2")
	core, logs := observer.New(zap.InfoLevel)
	cfg.Log, cfg.Managers = zap.New(core), []string{fmt.Sprintf("127.0.0.1:%d", freePorts(t, 1)[0])}
	if m, err = NewManager(cfg, cfg.DataDir+".sock"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(within(t))
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	if err := await(within(t), 10*time.Millisecond, patience, func() bool {
		return logs.FilterMessage("waiting to be let into the group of managers").Len() > 0
	}); err != nil {
		t.Error("it does not say whom it waits for")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("it ended with %v", err)
	}
	if have, _ := hasStore(cfg.DataDir); have {
		t.Error("it has a store")
	}
}

// The id of a peer is the one nats-server makes of its name.
func TestPeerID(t *testing.T) {
	b := run(t, lone(t, pkitest.NewCA(t), "m1"))
	if want := b.running().Node(); peerID("m1") != want {
		t.Errorf("%s, nats-server has %s", peerID("m1"), want)
	}
}
