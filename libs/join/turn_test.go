package join

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/api"
	"skep.dev/libs/id"
	"skep.dev/libs/pki"
	"skep.dev/libs/pki/pkitest"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
)

// TestAddresses: a manager is named by host or address, with a port or without, in brackets or not.
func TestAddresses(t *testing.T) {
	for in, want := range map[string]string{
		"m1": "m1:2377", "m1:99": "m1:99", "192.0.2.1": "192.0.2.1:2377", "fd00::1": "[fd00::1]:2377", "[fd00::1]": "[fd00::1]:2377", "[fd00::1]:99": "[fd00::1]:99",
		"": "", "[]": "", "[fd00::1": "", "fd00::1]": "", "[m1]": "", "m1:": "",
	} {
		if got, err := complete(in); got != want || (want == "") != (err != nil) {
			t.Errorf("%q: %q, %v; want %q", in, got, err, want)
		}
	}
}

// TestTurn: a node gets the certificate of its new role once the vault certifies it, with a new key, and not before.
func TestTurn(t *testing.T) {
	ca, node := pkitest.NewCA(t), id.New()
	store := pkitest.Store(t, ca, pki.Identity{NodeID: node, Role: pki.Worker}, time.Hour)
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	go s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("the broker does not start")
	}
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	nc, err := nats.Connect(s.ClientURL(), nats.CustomInboxPrefix(subject.Inbox(node)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	srv, err := rpc.NewServer(nc, rpc.Config{Name: "vault"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = srv.Close() })
	var manager atomic.Bool
	err = api.Handle(srv, api.VaultRenew.At(node), func(_ context.Context, r *skepv1.RenewRequest) (*skepv1.RenewReply, error) {
		ident := pki.Identity{NodeID: node, Role: pki.Worker}
		if manager.Load() {
			ident.Role = pki.Manager
		}
		cert, err := ca.Sign(r.CsrDer, ident, time.Hour)
		return &skepv1.RenewReply{CertPem: cert, CaPem: ca.CertPEM()}, err
	})
	if err != nil {
		t.Fatal(err)
	}
	r := &Renewal{NC: nc, Store: store}
	if err := r.Turn(t.Context(), pki.Manager); !errors.Is(err, ErrRole) || store.Identity().Role != pki.Worker {
		t.Errorf("before the vault certifies it: %v, %s", err, store.Identity().Role)
	}
	manager.Store(true)
	if err := r.Turn(t.Context(), pki.Manager); err != nil || store.Identity().Role != pki.Manager || store.Identity().NodeID != node {
		t.Errorf("a manager: %v, %+v", err, store.Identity())
	}
	leaf := store.Leaf()
	if err := r.Turn(t.Context(), pki.Manager); err != nil || !store.Leaf().Equal(leaf) {
		t.Errorf("a manager already: %v", err)
	}
	// A connection that needs no certificate serves when the other one is gone.
	manager.Store(false)
	gone, err := nats.Connect(s.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	r = &Renewal{NC: gone, Store: store, Local: func() *nats.Conn { return nc }}
	if err := r.Turn(t.Context(), pki.Worker); err != nil || store.Identity().Role != pki.Worker {
		t.Errorf("by the local connection: %v, %s", err, store.Identity().Role)
	}
}
