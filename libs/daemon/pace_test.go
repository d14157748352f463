package daemon

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"skep.dev/libs/id"
	"skep.dev/libs/pki"
	"skep.dev/libs/pki/pkitest"
)

func TestOnlyTheRefusedSlowDown(t *testing.T) {
	const wait, jitter = 250 * time.Millisecond, 2 * time.Second
	p := &pace{}
	refused := fmt.Errorf("connect: %w", nats.ErrAuthorization)
	for range 100 {
		if got := p.pause(errors.New("connection refused"), wait, jitter); got < wait || got > wait+jitter {
			t.Fatalf("a manager that is away is tried after %v", got)
		}
	}
	for i, want := range []time.Duration{250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second} {
		if got := p.pause(refused, wait, jitter); got < want/2 || got > want*3/2 {
			t.Errorf("after refusal %d: %v, want about %v", i+1, got, want)
		}
	}
	var sum time.Duration
	for range 1000 {
		got := p.pause(refused, wait, jitter)
		if sum += got; got > 45*time.Second || got <= 0 {
			t.Fatalf("a removed node waits %v", got)
		}
	}
	if sum < 1000*20*time.Second {
		t.Errorf("a removed node comes every %v", sum/1000)
	}
	if got := p.pause(nil, wait, jitter); got > wait+jitter {
		t.Errorf("after that a manager that is away is tried after %v", got)
	}
}

// refuser admits nobody and counts who tries.
type refuser chan struct{}

func (r refuser) Check(server.ClientAuthentication) bool { r <- struct{}{}; return false }

// The broker's no is noticed from the first connection on.
func TestARefusedConnectionSlowsDown(t *testing.T) {
	ca := pkitest.NewCA(t)
	certify := func(ident pki.Identity) *pki.Store {
		return pkitest.Store(t, ca, ident, time.Hour)
	}
	tries := make(refuser, 1000)
	s, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: -1, NoLog: true, NoSigs: true, TLSConfig: pki.ServerTLS(certify(pki.Identity{NodeID: id.New(), Role: pki.Manager})),
		TLSHandshakeFirst: true, CustomClientAuthentication: tries,
	})
	if err != nil {
		t.Fatal(err)
	}
	go s.Start()
	defer func() { s.Shutdown(); s.WaitForShutdown() }()
	if !s.ReadyForConnections(30 * time.Second) {
		t.Fatal("the broker takes no connections")
	}
	nc, err := Connect("test", []string{s.Addr().String()}, certify(pki.Identity{NodeID: id.New(), Role: pki.Worker}), zap.NewNop(), nats.ReconnectWait(time.Millisecond), nats.ReconnectJitter(time.Millisecond, time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	// From 1 ms on each pause is about twice as long as the one before: the tenth takes half a second.
	began := time.Now()
	for range 10 {
		select {
		case <-tries:
		case <-time.After(time.Minute):
			t.Fatal("it gave up")
		}
	}
	if took := time.Since(began); took < 200*time.Millisecond {
		t.Errorf("ten attempts in %v", took)
	}
}

// TestARefusedCertificateIsExplained: a node whose root was rotated out, or whose certificate has expired, says so and what
// to do, not only that the connection failed.
func TestARefusedCertificateIsExplained(t *testing.T) {
	old := pkitest.NewCA(t)
	next, err := pki.NewCA(old.ClusterID())
	if err != nil {
		t.Fatal(err)
	}
	link, err := old.CrossSign(next.Cert)
	if err != nil {
		t.Fatal(err)
	}
	cert, key := pkitest.Certify(t, next, pki.Identity{NodeID: id.New(), Role: pki.Manager}, time.Hour)
	manager, err := pki.Memory(append(cert, pki.EncodeCertificates(link, old.Cert)...), key, next.CertPEM())
	if err != nil {
		t.Fatal(err)
	}
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, NoLog: true, NoSigs: true, TLSConfig: pki.ServerTLS(manager), TLSHandshakeFirst: true, TLSTimeout: 5})
	if err != nil {
		t.Fatal(err)
	}
	go s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(20 * time.Second) {
		t.Fatal("the broker does not start")
	}
	worker := pki.Identity{NodeID: id.New(), Role: pki.Worker}
	explained := func(want string, to *server.Server, store *pki.Store) {
		t.Helper()
		core, seen := observer.New(zap.ErrorLevel)
		nc, err := Connect("skep test", []string{to.Addr().String()}, store, zap.New(core))
		if err != nil {
			t.Fatal(err)
		}
		deadline := time.Now().Add(20 * time.Second)
		for seen.Len() == 0 && time.Now().Before(deadline) {
			time.Sleep(10 * time.Millisecond)
		}
		nc.Close()
		if all := seen.All(); len(all) != 1 || !strings.Contains(all[0].Message, want) {
			t.Errorf("%v, want %q once", all, want)
		}
	}
	for want, store := range map[string]*pki.Store{
		"the root of the cluster was rotated without it, or the clock of one of them is wrong. If the clocks are right, this node must join again: skep leave --force": pkitest.Store(t, old, worker, time.Hour),
		"the certificate of this node has expired; this node must join again: skep leave --force":                                                                      pkitest.Store(t, next, worker, -time.Minute),
	} {
		explained(want, s, store)
	}
	// By this machine's clock the manager's certificate has ended.
	if cert, key := pkitest.Certify(t, next, manager.Identity(), -time.Minute); manager.Save(cert, key, next.CertPEM()) != nil {
		t.Fatal("the manager takes no other certificate")
	}
	explained("not valid by this machine's clock", s, pkitest.Store(t, next, worker, time.Hour))
}
