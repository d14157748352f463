package member

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"go.uber.org/zap"

	"skep.dev/libs/api"
	"skep.dev/libs/dial"
	"skep.dev/libs/pki"
	"skep.dev/libs/pki/pkitest"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// managers is a broker with a state that says what the test wants.
type managers struct {
	t  *testing.T
	nc *nats.Conn

	mu    sync.Mutex
	reply *skepv1.NodeManagersReply
	asked int
}

func newManagers(t *testing.T) *managers {
	t.Helper()
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	go s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("the broker does not start")
	}
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	m := &managers{t: t, reply: &skepv1.NodeManagersReply{}}
	if m.nc, err = nats.Connect(s.ClientURL(), nats.CustomInboxPrefix(subject.Inbox("n1"))); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.nc.Close)
	srv, err := rpc.NewServer(m.nc, rpc.Config{Name: "state"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = srv.Close() })
	err = api.Handle(srv, api.StateManagers.At("n1"), func(context.Context, *skepv1.Empty) (*skepv1.NodeManagersReply, error) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.asked++
		return m.reply, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// say changes what state answers and tells the node to ask.
func (m *managers) say(role skepv1.NodeRole, epoch uint64, addrs ...string) {
	m.t.Helper()
	m.mu.Lock()
	m.reply = &skepv1.NodeManagersReply{Role: role, Addrs: addrs, Epoch: epoch}
	m.mu.Unlock()
	m.push()
}

func (m *managers) push() {
	m.t.Helper()
	if err := errors.Join(m.nc.Publish(subject.PushRole("n1"), nil), m.nc.Flush()); err != nil {
		m.t.Fatal(err)
	}
}

func (m *managers) count() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.asked
}

// await polls until check holds.
func await(t *testing.T, what string, check func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !check(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not in time: " + what)
		}
	}
}

const (
	isManager = skepv1.NodeRole_NODE_ROLE_MANAGER
	isWorker  = skepv1.NodeRole_NODE_ROLE_WORKER
)

func follow(t *testing.T, m *managers, rec *Record) (*Follower, Paths) {
	t.Helper()
	p := Paths{Data: t.TempDir()}
	if err := rec.Save(p); err != nil {
		t.Fatal(err)
	}
	f := NewFollower(m.nc, "n1", p, zap.NewNop())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	go func() { done <- f.Run(ctx) }()
	await(t, "it asks when it is connected", func() bool { return m.count() > 0 })
	return f, p
}

func TestTheRecordFollowsTheManagers(t *testing.T) {
	m := newManagers(t)
	_, p := follow(t, m, &Record{NodeID: "n1", Role: RoleWorker, Advertise: "10.0.0.9", Managers: []string{"10.0.0.1:2377"}, Subnet: "10.254.1.0/26"})
	have := func() *Record {
		r, err := Load(p)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	three := []string{"10.0.0.1:2377", "10.0.0.2:2377", "[fd00::3]:2377"}
	m.say(isWorker, 1, append(three, "10.0.0.1:2377", "nonsense", "10.0.0.4:0", ":2377", "10.0.0.5:70000")...)
	await(t, "it has three", func() bool { return slices.Equal(have().Managers, three) && have().Epoch == 1 })
	if r := have(); r.Subnet != "10.254.1.0/26" || r.Role != RoleWorker {
		t.Errorf("other fields: %+v", r)
	}
	// What counts for nothing: no managers, only nonsense, an epoch that is over.
	for _, say := range []func(){
		func() { m.say(isWorker, 1) },
		func() { m.say(isWorker, 2, "nonsense") },
		func() { m.say(isManager, 0, "10.0.0.66:2377") },
	} {
		before := m.count()
		say()
		await(t, "it has asked", func() bool { return m.count() > before })
		m.push() // the answer was followed before the next question
		await(t, "it has asked again", func() bool { return m.count() > before+1 })
		if r := have(); !slices.Equal(r.Managers, three) || r.Epoch != 1 || r.Role != RoleWorker {
			t.Errorf("it followed what counts for nothing: %+v", r)
		}
	}
	// A cluster that was founded anew by another manager.
	m.say(isWorker, 2, "10.0.0.7:2377")
	await(t, "it follows the newer epoch", func() bool { return slices.Equal(have().Managers, []string{"10.0.0.7:2377"}) && have().Epoch == 2 })
}

// The address a node keeps beside what it is told is the one it dialled, not one of those nats.go knows.
func TestWhomANodeDialled(t *testing.T) {
	ca := pkitest.NewCA(t)
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, NoSigs: true, NoLog: true, TLSHandshakeFirst: true, TLSTimeout: 10,
		TLSConfig: pki.ServerTLS(pkitest.Store(t, ca, pki.Identity{NodeID: "m1", Role: pki.Manager}, time.Hour))})
	if err != nil {
		t.Fatal(err)
	}
	go s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("the broker does not start")
	}
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	creds := pki.ClientTLS(pkitest.Store(t, ca, pki.Identity{NodeID: "n1", Role: pki.Worker}, time.Hour))
	addr := fmt.Sprintf("localhost:%d", s.Addr().(*net.TCPAddr).Port)
	nc, err := nats.Connect(dial.URL+",tls://10.9.9.9:2377", nats.Secure(creds), nats.TLSHandshakeFirst(), nats.SkipHostLookup(),
		nats.SetCustomDialer(dial.New(dial.Config{TLS: creds, Addrs: []string{addr}})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	if got := dialed(nc); got != addr {
		t.Errorf("it dialled %q, want %q", got, addr)
	}
	plain := newManagers(t)
	if got := dialed(plain.nc); "nats://"+got != plain.nc.ConnectedUrl() && got != plain.nc.ConnectedUrl() {
		t.Errorf("it dialled %q at %s", got, plain.nc.ConnectedUrl())
	}
}

func TestAManagerDoesNotDialItself(t *testing.T) {
	m := newManagers(t)
	_, p := follow(t, m, &Record{NodeID: "n1", Role: RoleManager, Advertise: "10.0.0.1:2377", Listen: DefaultListen, RoutePort: 2378})
	for _, want := range [][]string{{"10.0.0.2:2377", "10.0.0.3:2377"}, {"10.0.0.3:2377"}, nil} {
		m.say(isManager, 1, append([]string{"10.0.0.1:2377"}, want...)...)
		await(t, "the others", func() bool { r, err := Load(p); return err == nil && r.Epoch == 1 && slices.Equal(r.Managers, want) })
	}
}

func TestATurnIsTriedUntilItComesAbout(t *testing.T) {
	m := newManagers(t)
	p := Paths{Data: t.TempDir()}
	if err := (&Record{NodeID: "n1", Role: RoleWorker, Advertise: "10.0.0.9", Managers: []string{"10.0.0.1:2377"}}).Save(p); err != nil {
		t.Fatal(err)
	}
	f := NewFollower(m.nc, "n1", p, zap.NewNop())
	turned := make(chan string, 10)
	left := 1
	f.Turn = func(_ context.Context, role string) error {
		turned <- role
		if left--; left >= 0 {
			return errors.New("the vault is away")
		}
		_, err := turn(p, role)
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	m.say(isManager, 1, "10.0.0.1:2377")
	for i := range 2 {
		if role := <-turned; role != RoleManager {
			t.Errorf("turn %d: to %q", i, role)
		}
	}
	await(t, "the record is a manager's", func() bool { r, err := Load(p); return err == nil && r.Role == RoleManager })
	m.say(isWorker, 1, "10.0.0.1:2377", "10.0.0.9:2377")
	if role := <-turned; role != RoleWorker {
		t.Errorf("back: to %q", role)
	}
	await(t, "the record is a worker's", func() bool {
		r, err := Load(p)
		return err == nil && r.Role == RoleWorker && r.Advertise == "10.0.0.9" && r.RoutePort == 0
	})
}

func TestTurnOfARecord(t *testing.T) {
	for name, c := range map[string]struct {
		listen, advertise string // of the worker
		want              Record
		bad               bool
	}{
		"the default port": {"", "10.0.0.9", Record{Advertise: "10.0.0.9:2377", Listen: DefaultListen, RoutePort: 2378}, false},
		"one of its own":   {"10.0.0.9:4000", "10.0.0.9", Record{Advertise: "10.0.0.9:4000", Listen: "10.0.0.9:4000", RoutePort: 4001}, false},
		"IPv6":             {"[::]:2377", "fd00::9", Record{Advertise: "[fd00::9]:2377", Listen: "[::]:2377", RoutePort: 2378}, false},
		"no address":       {"", "", Record{}, true},
		"nonsense":         {"here", "10.0.0.9", Record{}, true},
	} {
		r := &Record{Role: RoleWorker, Listen: c.listen, Advertise: c.advertise, Managers: []string{"10.0.0.1:2377"}}
		err := r.Turn(RoleManager)
		if c.bad != (err != nil) {
			t.Errorf("%s: %v", name, err)
		}
		if c.bad {
			if r.Role != RoleWorker {
				t.Errorf("%s: it turned all the same: %+v", name, r)
			}
			continue
		}
		if r.Role != RoleManager || r.Advertise != c.want.Advertise || r.Listen != c.want.Listen || r.RoutePort != c.want.RoutePort {
			t.Errorf("%s: %+v", name, r)
		}
		if err := r.Turn(RoleWorker); err != nil || r.Role != RoleWorker || r.Advertise != c.advertise || len(r.Dial()) != 1 {
			t.Errorf("%s: and back: %+v %v", name, r, err)
		}
	}
	if err := (&Record{Role: RoleWorker}).Turn("king"); err == nil {
		t.Error("there are kings")
	}
}

// A record that cannot be read is no reason to write another one.
func TestAFollowerLeavesABrokenRecordAlone(t *testing.T) {
	m := newManagers(t)
	_, p := follow(t, m, &Record{NodeID: "n1", Role: RoleWorker, Managers: []string{"10.0.0.1:2377"}})
	if err := os.WriteFile(p.Record(), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := m.count()
	m.say(isWorker, 1, "10.0.0.2:2377")
	await(t, "it has asked", func() bool { return m.count() > before })
	m.push()
	await(t, "it has asked again", func() bool { return m.count() > before+1 })
	if b, err := os.ReadFile(p.Record()); err != nil || string(b) != "{" {
		t.Errorf("%s %v", b, err)
	}
}
