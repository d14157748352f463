package bus

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"skep.dev/libs/id"
	"skep.dev/libs/pki"
	"skep.dev/libs/pki/pkitest"
)

func TestRoutesAreForManagersOfThisCluster(t *testing.T) {
	ca := pkitest.NewCA(t)
	cfg := lone(t, ca, id.New())
	b := run(t, cfg)
	before, err := b.Members()
	if err != nil {
		t.Fatal(err)
	}
	routes := b.running().NumRoutes()
	for name, creds := range map[string]*pki.Store{
		"worker":  pkitest.Store(t, ca, pki.Identity{NodeID: id.New(), Role: pki.Worker}, time.Hour),
		"admin":   pkitest.Store(t, ca, pki.Identity{NodeID: "user-ada", Role: pki.User, UserRole: pki.Admin}, time.Hour),
		"foreign": pkitest.Store(t, pkitest.NewCA(t), pki.Identity{NodeID: id.New(), Role: pki.Manager}, time.Hour),
		"manager": pkitest.Store(t, ca, pki.Identity{NodeID: id.New(), Role: pki.Manager}, time.Hour), // the counter-proof
	} {
		tc := pki.RouteTLS(creds)
		tc.InsecureSkipVerify = true // a rogue does not mind whom it talks to
		o := &server.Options{
			ServerName: "rogue-" + name, Host: "127.0.0.1", Port: -1, NoLog: true, NoSigs: true, SystemAccount: systemAccount,
			Accounts: []*server.Account{server.NewAccount(systemAccount), server.NewAccount(accountName)},
			Cluster:  server.ClusterOpts{Name: "skep", Host: "127.0.0.1", Port: -1, TLSConfig: tc, TLSTimeout: 5},
			Routes:   []*url.URL{{Scheme: "nats-route", Host: cfg.RouteAddr()}},
		}
		s, err := server.NewServer(o)
		if err != nil {
			t.Fatal(err)
		}
		turned := &turnedAway{}
		s.SetLoggerV2(turned, true, false, false)
		go s.Start()
		// It dials again after each refusal; twice is enough to be sure that the first was no accident.
		in := false
		for deadline := time.Now().Add(30 * time.Second); !in && turned.times.Load() < 2; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: neither let in nor turned away", name)
			}
			in = b.running().NumRoutes() > routes
		}
		if in != (name == "manager") {
			t.Errorf("%s: a server with this certificate has a route: %v", name, in)
		}
		s.Shutdown()
		s.WaitForShutdown()
		if err := await(within(t), 10*time.Millisecond, 0, func() bool { return b.running().NumRoutes() == routes }); err != nil {
			t.Fatalf("%s: its routes remain: %v", name, err)
		}
	}
	if n := b.running().NumRoutes(); n != routes {
		t.Errorf("%d routes, before %d", n, routes)
	}
	after, err := b.Members()
	if err != nil || len(after) != len(before) {
		t.Errorf("the group is %v, %v", after, err)
	}
}

// turnedAway notices in a server's log that its routes are refused.
type turnedAway struct{ times atomic.Int32 }

func (l *turnedAway) note(f string, a ...any) {
	s := fmt.Sprintf(f, a...)
	if strings.Contains(s, "Authorization Violation") || strings.Contains(s, "connection closed") && !strings.Contains(s, "Duplicate") {
		l.times.Add(1)
	}
}
func (l *turnedAway) Noticef(f string, a ...any) { l.note(f, a...) }
func (l *turnedAway) Warnf(f string, a ...any)   { l.note(f, a...) }
func (l *turnedAway) Fatalf(f string, a ...any)  { l.note(f, a...) }
func (l *turnedAway) Errorf(f string, a ...any)  { l.note(f, a...) }
func (l *turnedAway) Debugf(f string, a ...any)  { l.note(f, a...) }
func (l *turnedAway) Tracef(string, ...any)      {}

func TestTheWitnessTakesNoClients(t *testing.T) {
	ca := pkitest.NewCA(t)
	b := run(t, lone(t, ca, id.New()))
	b.mu.Lock()
	addr := b.witness.Addr().String()
	b.mu.Unlock()
	creds := pkitest.Store(t, ca, pki.Identity{NodeID: id.New(), Role: pki.Manager}, time.Hour)
	// Nobody is sent there either: clients are told of the managers only.
	for _, u := range dial(t, b, creds).DiscoveredServers() {
		if strings.HasSuffix(u, addr) {
			t.Errorf("clients are told of the witness: %s", u)
		}
	}
	_, err := nats.Connect("tls://"+addr, nats.Secure(pki.ClientTLS(creds)), nats.TLSHandshakeFirst(), nats.NoReconnect(), nats.IgnoreDiscoveredServers())
	if !errors.Is(err, nats.ErrAuthorization) {
		t.Fatalf("the witness let a manager in: %v", err)
	}
}
