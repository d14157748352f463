package vault

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap/zaptest"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/api"
	"skep.dev/libs/join"
	"skep.dev/libs/pki"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
)

// rotating is a cluster whose manager renews as a node does, and whose state lists nodes.
type rotating struct {
	*cluster
	manager *pki.Store
	down    map[string]bool
}

func startRotating(t *testing.T) *rotating {
	t.Helper()
	c := &rotating{cluster: start(t), down: map[string]bool{}}
	if err := c.vault.Close(); err != nil {
		t.Fatal(err)
	}
	c.vault = c.runVaultSettling(t)
	c.mu.Lock()
	c.nodes[c.boot.NodeID] = &skepv1.AdmitNodeRequest{NodeId: c.boot.NodeID, Role: skepv1.NodeRole_NODE_ROLE_MANAGER, Hostname: "m1"}
	c.mu.Unlock()
	srv, err := rpc.NewServer(c.nc, rpc.Config{Name: "state-nodes"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = srv.Close() }) // the connection may be closed already
	err = api.Handle(srv, api.NodeList, func(context.Context, *skepv1.ListNodesRequest) (*skepv1.ListNodesReply, error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		out := &skepv1.ListNodesReply{}
		for _, n := range c.nodes {
			live := &skepv1.NodeLive{State: skepv1.NodeState_NODE_STATE_READY}
			if c.down[n.NodeId] {
				live.State = skepv1.NodeState_NODE_STATE_DOWN
			}
			out.Nodes = append(out.Nodes, &skepv1.Node{Meta: &skepv1.Meta{Id: n.NodeId}, Role: n.Role, Status: live, Description: &skepv1.NodeDescription{Hostname: n.Hostname}})
		}
		return out, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	c.manager = c.store
	nc, err := nats.Connect("", nats.InProcessServer(c.server), nats.CustomInboxPrefix(subject.Inbox(c.boot.NodeID)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	c.renew(t, nc, c.manager)
	return c
}

// renew runs a node's side until the test ends, or until the returned function is called.
func (c *rotating) renew(t *testing.T, nc *nats.Conn, store *pki.Store) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	r := &join.Renewal{NC: nc, Store: store, Log: zaptest.NewLogger(t)}
	go func() { ended <- r.Run(ctx) }()
	stop = func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		ended <- nil
	}
	t.Cleanup(stop)
	return stop
}

// node joins a worker and runs its side.
func (c *rotating) node(t *testing.T, token string) (store *pki.Store, stop func()) {
	t.Helper()
	r, err := join.Join(ctx(t), c.addr, token, join.Params{Hostname: "w"})
	if err != nil {
		t.Fatal(err)
	}
	if store, err = pki.Memory(r.Cert, r.Key, r.CA); err != nil {
		t.Fatal(err)
	}
	return store, c.renew(t, c.connect(t, store), store)
}

func (c *rotating) connect(t *testing.T, store *pki.Store) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect("tls://"+c.addr, nats.Secure(pki.ClientTLS(store)), nats.TLSHandshakeFirst(), nats.CustomInboxPrefix(subject.Inbox(store.Identity().NodeID)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func (c *rotating) rotate(t *testing.T, r *skepv1.RotateCARequest) (*skepv1.CAReply, error) {
	t.Helper()
	return api.Call(ctx(t), c.nc, api.CARotate, r)
}

func (c *rotating) state(t *testing.T) *skepv1.CAReply {
	t.Helper()
	r, err := api.Call(ctx(t), c.nc, api.CAInspect, &skepv1.Empty{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (c *rotating) await(t *testing.T, what string, ok func(*skepv1.CAReply) bool) *skepv1.CAReply {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		r := c.state(t)
		if ok(r) {
			return r
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, r)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func ended(r *skepv1.CAReply) bool { return r.Rotation == nil }

func inPhase(p skepv1.CAPhase) func(*skepv1.CAReply) bool {
	return func(r *skepv1.CAReply) bool { return r.GetRotation().GetPhase() == p && r.Progress != nil }
}

func keyOf(t *testing.T, s *pki.Store) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(s.Certificate().PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func (c *rotating) runVaultSettling(t *testing.T) *Service {
	return c.runVaultFor(t, 20*time.Millisecond)
}

// runVaultFor runs a vault that keeps to each phase for so long.
func (c *rotating) runVaultFor(t *testing.T, settle time.Duration) *Service {
	t.Helper()
	v, err := New(Config{NC: c.nc, Log: zaptest.NewLogger(t), Dir: c.dir, NodeID: c.boot.NodeID, ManagerAddrs: func() []string { return []string{c.addr} }})
	if err != nil {
		t.Fatal(err)
	}
	v.settleAfter = settle
	c.serve(t, v)
	return v
}
