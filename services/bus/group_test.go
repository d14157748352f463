package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
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

// found makes a cluster of one manager, m1.
func found(t *testing.T, names ...string) *fleet {
	t.Helper()
	core, logs := observer.New(zap.InfoLevel)
	f := &fleet{t: t, ca: pkitest.NewCA(t), members: map[string]*manned{}, logs: logs, log: zap.New(core)}
	t.Cleanup(func() {
		if t.Failed() {
			for _, e := range logs.All() {
				t.Logf("%s %s %s %v", e.Time.Format("05.000"), e.Level, e.Message, e.ContextMap())
			}
		}
	})
	for _, n := range append([]string{"m1"}, names...) {
		cfg := lone(t, f.ca, n)
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
	creds := pkitest.Store(f.t, f.ca, pki.Identity{NodeID: testState, Role: pki.Manager}, time.Hour)
	var err error
	f.nc, err = nats.Connect("tls://"+strings.Join(f.addrs, ",tls://"), nats.Secure(pki.ClientTLS(creds)), nats.TLSHandshakeFirst(), nats.MaxReconnects(-1),
		nats.ReconnectWait(50*time.Millisecond), nats.Timeout(2*time.Second), nats.IgnoreAuthErrorAbort(), nats.RetryOnFailedConnect(true),
		nats.CustomInboxPrefix(subject.Inbox("state-"+testState)), nats.PingInterval(time.Second), nats.DontRandomize())
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
	for _, n := range []string{"m1", testState, "writer"} {
		f.role(n, n == "m1")
	}
}

// put writes a node's object; it is repeated until it is written.
func (f *fleet) put(ctx context.Context, node string, manager, certified bool) error {
	o := &skepv1.NodeObject{Meta: &skepv1.Meta{Id: node}, Spec: &skepv1.NodeSpec{}}
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
	if err := f.put(within(f.t), node, manager, manager || f.members[node] != nil); err != nil {
		f.t.Fatal(err)
	}
}

// removeNode is `node rm --force`.
func (f *fleet) removeNode(node string) {
	f.t.Helper()
	err := again(within(f.t), func(ctx context.Context) error { return f.spec.Delete(ctx, keys.Node.Key(node), 0) })
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

// end is what Run returned.
func (m *manned) end() error {
	m.f.t.Helper()
	select {
	case err := <-m.ended:
		return err
	case <-time.After(patience):
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
	if err := await(within(f.t), 50*time.Millisecond, patience, ok); err != nil {
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

// TestGroupGrowsAndShrinks: 1→3→5→1 by nothing but the roles of nodes, with writers; the founder leaves too.
func TestGroupGrowsAndShrinks(t *testing.T) {
	f := found(t, "m2", "m3", "m4", "m5")
	creds := pkitest.Store(t, f.ca, pki.Identity{NodeID: "writer", Role: pki.Manager}, time.Hour)
	l := startWriters(t, creds, 3, f.addrs...)
	if _, err := l.js.CreateStream(within(t), bucket("a")); err != nil {
		t.Fatal(err)
	}
	f.await(1, true, "m1-1")
	join := func(replicas uint32, witness bool, servers []string, who ...string) {
		t.Helper()
		began := time.Now()
		for _, n := range who {
			f.role(n, true)
			f.members[n].run()
		}
		f.await(replicas, witness, servers...)
		l.mark(fmt.Sprintf("%v joined", who), began)
	}
	leave := func(replicas uint32, witness bool, servers []string, who ...string) {
		t.Helper()
		began := time.Now()
		for _, n := range who {
			f.role(n, false)
		}
		for _, n := range who {
			if err := f.members[n].end(); !errors.Is(err, ErrRetired) {
				t.Fatalf("%s ended: %v", n, err)
			}
			if p, err := ReadPlace(f.members[n].cfg.DataDir); p != nil || err != nil {
				t.Errorf("%s left %v, %v", n, p, err)
			}
			if have, err := hasStore(f.members[n].cfg.DataDir); have || err != nil {
				t.Errorf("%s left its store: %v", n, err)
			}
		}
		f.await(replicas, witness, servers...)
		l.mark(fmt.Sprintf("%v left", who), began)
	}
	join(1, true, []string{"m1-1", "m2-1"}, "m2")
	f.said("make it 3")
	join(3, false, []string{"m1-1", "m2-1", "m3-1"}, "m3")
	f.said("replicas of all streams: 1 -> 3")
	join(5, false, []string{"m1-1", "m2-1", "m3-1", "m4-1", "m5-1"}, "m4", "m5") // two at once
	for _, n := range []string{"m1", "m5"} {
		p, err := ReadPlace(f.members[n].cfg.DataDir)
		if err != nil || len(p.Routes) != 4 || p.Witness != "" {
			t.Errorf("%s would start by %+v, %v", n, p, err)
		}
	}
	leave(3, false, []string{"m2-1", "m3-1", "m4-1"}, "m1", "m5")
	leave(1, true, []string{"m3-1"}, "m2", "m4")
	l.halt()
	l.verify("at the end")
	if err := await(within(t), 50*time.Millisecond, patience, func() bool { f.mu.Lock(); defer f.mu.Unlock(); return len(f.settled) >= 4 }); err != nil {
		t.Errorf("settled: %v", f.settled)
	}
}
