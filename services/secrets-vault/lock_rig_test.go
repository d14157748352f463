package vault

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap/zaptest"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/api"
	"skep.dev/libs/pki"
	"skep.dev/libs/rpc"
	"skep.dev/libs/seal"
	"skep.dev/libs/unlockkey"
)

// manager is a vault as one manager runs it.
type manager struct {
	*Service
	t     testing.TB
	c     *cluster
	node  string
	ended chan error
	done  bool
}

// end ends it and waits.
func (m *manager) end() {
	m.t.Helper()
	if m.done {
		return
	}
	m.done = true
	_ = m.Close() // always nil
	if err := <-m.ended; err != nil {
		m.t.Errorf("the vault of %s: %v", m.Service.cfg.Hostname, err)
	}
}

// manager runs a vault on a directory, under an identity of its own. The cluster's own vault is ended before.
func (c *cluster) manager(t testing.TB, dir, hostname string, certificate *pki.Store, now func() time.Time, at func(string) error) *manager {
	t.Helper()
	m := c.begin(t, c.nc, dir, hostname, certificate, now, at)
	select {
	case <-m.Ready():
	case err := <-m.ended:
		m.ended <- nil
		t.Fatalf("the vault ended: %v", err)
	case <-time.After(30 * time.Second):
		t.Fatal("the vault is not ready")
	}
	return m
}

// begin runs a vault over a connection and does not wait for it.
func (c *cluster) begin(t testing.TB, nc *nats.Conn, dir, hostname string, certificate *pki.Store, now func() time.Time, at func(string) error) *manager {
	t.Helper()
	node := certificate.Identity().NodeID
	v, err := New(Config{NC: nc, Log: zaptest.NewLogger(t), Dir: dir, NodeID: node, Hostname: hostname, Certificate: certificate, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	v.lock.disk.at = at
	m := &manager{Service: v, t: t, c: c, node: node, ended: make(chan error, 1)}
	go func() { m.ended <- v.Run(context.Background()) }()
	t.Cleanup(m.end)
	return m
}

// alone ends the cluster's first vault, and returns its identity for managers of the test.
func (c *cluster) alone(t testing.TB) *pki.Store {
	t.Helper()
	_ = c.vault.Close() // always nil
	await(t, "the first vault ends", func() error {
		_, err := api.Call(ctx(t), c.nc, api.VaultOpen, &skepv1.Empty{})
		if !errors.Is(err, rpc.ErrNobody) {
			return fmt.Errorf("%v", err)
		}
		return nil
	})
	store, err := pki.Memory(c.boot.Cert, c.boot.Key, c.boot.CA)
	if err != nil {
		t.Fatal(err)
	}
	return store
}

func await(t testing.TB, what string, check func() error) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: %v", what, err)
		}
	}
}

func (c *cluster) set(t testing.TB, on bool) error {
	t.Helper()
	_, err := api.Call(ctx(t), c.nc, api.AutolockSet, &skepv1.SetAutolockRequest{On: on, By: "ann"})
	return err
}

// shown asks for the unlock key as the command line does.
func (c *cluster) shown(t testing.TB, rotate bool) (unlockkey.Key, error) {
	t.Helper()
	reader, err := seal.NewReader()
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	r, err := api.Call(ctx(t), c.nc, api.AutolockKey, &skepv1.UnlockKeyRequest{Rotate: rotate, Reader: reader.Key()})
	if err != nil {
		return unlockkey.Key{}, err
	}
	ca, err := pki.ParseCertificate(c.boot.CA)
	if err != nil {
		t.Fatal(err)
	}
	var s skepv1.ShownUnlockKey
	if err := reader.Open(ca, r.Key, r.Sealed, &s); err != nil {
		t.Fatal(err)
	}
	if s.Text == "" {
		return unlockkey.Key{}, nil
	}
	k, err := unlockkey.Parse(s.Text)
	if err != nil || s.Info.Id != k.ID() {
		t.Fatalf("%v, %v", err, s.Info)
	}
	return k, nil
}

// unlock does what `skep unlock` does, without asking twice.
func (m *manager) unlock(text string) (*skepv1.UnlockReply, error) {
	m.t.Helper()
	d, err := api.Call(ctx(m.t), m.c.nc, api.VaultDoor.At(m.node), &skepv1.VaultDoorRequest{})
	if err != nil {
		return nil, err
	}
	ca, err := pki.ParseCertificate(m.c.boot.CA)
	if err != nil {
		m.t.Fatal(err)
	}
	req, err := seal.ToDoor(ca, d, m.node, text)
	if err != nil {
		m.t.Fatal(err)
	}
	return api.Call(ctx(m.t), m.c.nc, api.VaultUnlock.At(m.node), req)
}

func (m *manager) mustUnlock(k unlockkey.Key) *skepv1.UnlockReply {
	m.t.Helper()
	r, err := m.unlock(k.Text())
	if err != nil {
		m.t.Fatalf("unlock %s: %v", m.cfg.Hostname, err)
	}
	await(m.t, "it serves", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err := api.Call(ctx, m.c.nc, api.VaultOpen, &skepv1.Empty{})
		return err
	})
	return r
}

// rests is what stands in a directory, and under which key.
func rests(t testing.TB, dir string) string {
	t.Helper()
	r, err := disk{dir: dir, log: zaptest.NewLogger(t)}.read()
	if err != nil {
		return err.Error()
	}
	switch {
	case r.master != nil && r.sealed != nil:
		return "both"
	case r.broken:
		return "broken"
	case r.master != nil:
		return "clear"
	}
	return r.sealed.info.Id
}

// bring starts the manager, and unlocks it with whatever known key its disk names.
func (c *cluster) bring(t *testing.T, id *pki.Store, known map[string]unlockkey.Key, at func(string) error) *manager {
	t.Helper()
	m := c.manager(t, c.dir, "m1", id, nil, at)
	if m.lock.locked() {
		k, ok := known[m.lock.diskKey().Id]
		if !ok {
			t.Fatalf("nobody knows key %s", m.lock.diskKey().Id)
		}
		m.mustUnlock(k)
	}
	await(t, "it serves", func() error {
		_, err := api.Call(ctx(t), c.nc, api.VaultOpen, &skepv1.Empty{})
		return err
	})
	return m
}

// certified is the identity of a second manager.
func (m *manager) certified(t testing.TB) (string, *pki.Store, error) {
	t.Helper()
	key, csr, err := pki.NewKeyAndCSR()
	if err != nil {
		return "", nil, err
	}
	req, err := pki.ParseCSR(csr)
	if err != nil {
		return "", nil, err
	}
	node := pki.NodeIDFor(req)
	cert, err := m.idx.authority().Sign(csr, pki.Identity{NodeID: node, Role: pki.Manager}, time.Hour)
	if err != nil {
		return "", nil, err
	}
	s, err := pki.Memory(cert, key, m.idx.authority().CertPEM())
	return node, s, err
}

// as is a connection with an inbox that may ask a verb.
func (c *cluster) as(t testing.TB, v *api.Verb, node string) *nats.Conn {
	t.Helper()
	if v.Callers != api.Nodes {
		return c.nc
	}
	nc, err := nats.Connect("", nats.InProcessServer(c.server), nats.CustomInboxPrefix("_INBOX_"+node))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}
