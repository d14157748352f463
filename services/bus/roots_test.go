package bus

import (
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"skep.dev/libs/id"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/pki"
	"skep.dev/libs/pki/pkitest"
	"skep.dev/libs/subject"
)

// TestRootsComeAndGo: a running broker takes certificates of a root that came, keeps the connections of the old one, and
// ends them when it is dropped; then it refuses them.
func TestRootsComeAndGo(t *testing.T) {
	old := pkitest.NewCA(t)
	next, err := pki.NewCA(old.ClusterID())
	if err != nil {
		t.Fatal(err)
	}
	link, err := old.CrossSign(next.Cert)
	if err != nil {
		t.Fatal(err)
	}
	cfg := lone(t, old, id.New())
	b := run(t, cfg)
	worker := func(ca *pki.CA) *pki.Store {
		return pkitest.Store(t, ca, pki.Identity{NodeID: id.New(), Role: pki.Worker}, time.Hour)
	}
	before := dial(t, b, worker(old))
	moved := pkitest.Store(t, next, pki.Identity{NodeID: id.New(), Role: pki.Worker}, time.Hour)
	if err := moved.Trust([]*x509.Certificate{next.Cert, old.Cert}, nil); err != nil {
		t.Fatal(err)
	}
	if p, err := tryDial(t, b, moved); err == nil {
		p.Close()
		t.Fatal("a root that is not trusted yet")
	}

	shown := []*x509.Certificate{link, old.Cert}
	if err := cfg.TLS.Trust([]*x509.Certificate{old.Cert, next.Cert}, []*x509.Certificate{link}); err != nil {
		t.Fatal(err)
	}
	after := dial(t, b, moved)
	// The manager's own certificate moves as well; who knows the old root alone still connects.
	cert, key := pkitest.Certify(t, next, cfg.TLS.Identity(), time.Hour)
	if err := cfg.TLS.Save(append(cert, pki.EncodeCertificates(shown...)...), key, pki.EncodeCertificates(next.Cert, old.Cert)); err != nil {
		t.Fatal(err)
	}
	late := worker(old)
	lateConn := dial(t, b, late)
	for name, p := range map[string]*peer{"old": before, "next": after, "late": lateConn} {
		if err := p.FlushTimeout(10 * time.Second); err != nil {
			t.Errorf("%s: a connection did not outlive the root's coming: %v", name, err)
		}
	}

	if err := cfg.TLS.Trust([]*x509.Certificate{next.Cert}, shown); err != nil {
		t.Fatal(err)
	}
	before.mustEnd(patience)
	lateConn.mustEnd(patience)
	if p, err := tryDial(t, b, late); err == nil {
		p.Close()
		t.Error("a certificate of a root that was dropped is let in")
	}
	if err := after.FlushTimeout(10 * time.Second); err != nil {
		t.Errorf("a connection of the new root ended with the old one's: %v", err)
	}
	if err := dial(t, b, moved).FlushTimeout(10 * time.Second); err != nil {
		t.Error(err)
	}
}

// TestRemovedNodeStaysOut: its certificate opens nothing, also at a broker that starts again and cannot read the store.
func TestRemovedNodeStaysOut(t *testing.T) {
	ca := pkitest.NewCA(t)
	cfg := lone(t, ca, id.New())
	cfg.Found = true
	m, err := NewManager(cfg, filepath.Join(t.TempDir(), "skep.sock"))
	if err != nil {
		t.Fatal(err)
	}
	cancel, ended := runManager(t, m)
	defer cancel()
	state, err := m.InProcess("state")
	if err != nil {
		t.Fatal(err)
	}
	defer state.Close()
	js, err := jetstream.New(state)
	if err != nil {
		t.Fatal(err)
	}
	spec := kv.Open(js, subject.Spec)
	creds := func() *pki.Store {
		return pkitest.Store(t, ca, pki.Identity{NodeID: id.New(), Role: pki.Worker}, time.Hour)
	}
	gone, stays := creds(), creds()
	var rev uint64
	for _, s := range []string{cfg.NodeID, stays.Identity().NodeID, gone.Identity().NodeID} {
		if rev, err = spec.Put(within(t), keys.Node.Key(s), []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	if err := await(within(t), 5*time.Millisecond, patience, func() bool {
		return m.nodes.Revoked("somebody else") && !m.nodes.Revoked(gone.Identity().NodeID) && !m.nodes.Revoked(stays.Identity().NodeID)
	}); err != nil {
		t.Fatal("the broker does not know the nodes")
	}
	p, q := dial(t, m.Bus, gone), dial(t, m.Bus, stays)
	if err := spec.Delete(within(t), keys.Node.Key(gone.Identity().NodeID), rev); err != nil {
		t.Fatal(err)
	}
	p.mustEnd(patience)
	if err := q.FlushTimeout(10 * time.Second); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	// The store is away: the broker itself starts, nobody follows the nodes.
	cfg.Revoked = OpenMembers(cfg.DataDir, zap.NewNop()).Revoked
	cfg.Name = serverName(cfg.NodeID, 1)
	b := run(t, cfg)
	if p, err := tryDial(t, b, gone); err == nil {
		p.Close()
		t.Error("a removed node was let in before the store was read")
	}
	if err := dial(t, b, stays, nats.Name("stays")).FlushTimeout(10 * time.Second); err != nil {
		t.Error(err)
	}
}

// TestListOfNodes: new nodes are written a moment later or when the broker stops, a removal at once; nobody is let in on a
// guess.
func TestListOfNodes(t *testing.T) {
	dir := t.TempDir()
	open := func() *Members {
		m := OpenMembers(dir, zap.NewNop())
		m.removed, m.loaded = func(string) {}, func() {}
		return m
	}
	a, b, c := id.New(), id.New(), id.New()
	entry := func(id string) kv.Entry { return kv.Entry{Key: keys.Node.Key(id), Value: []byte("x")} }
	m := open()
	if m.Revoked(a) {
		t.Error("a cluster that is being founded refuses its nodes")
	}
	m.apply(kv.Delta{Reset: true})
	if open().Revoked(a) {
		t.Error("an empty store refuses everybody")
	}
	m.apply(kv.Delta{Entries: []kv.Entry{entry(a), entry(b)}})
	m.Save()
	m.Save()
	if n := open(); n.Revoked(a) || n.Revoked(b) || !n.Revoked(c) {
		t.Error("the list was not kept")
	}
	m.apply(kv.Delta{Entries: []kv.Entry{entry(c)}})
	m.apply(kv.Delta{Entries: []kv.Entry{{Key: keys.Node.Key(b), Deleted: true}}})
	if n := open(); n.Revoked(a) || !n.Revoked(b) || n.Revoked(c) {
		t.Error("a removal was not written at once, with who came before it")
	}
	// Another manager removed a node while this one was away.
	n := open()
	var gone []string
	n.removed = func(id string) { gone = append(gone, id) }
	n.apply(kv.Delta{Reset: true, Entries: []kv.Entry{entry(c)}})
	if len(gone) != 1 || gone[0] != a || !open().Revoked(a) {
		t.Errorf("removed meanwhile: %v", gone)
	}
	if err := os.WriteFile(filepath.Join(dir, membersFile), []byte(`["`), 0o600); err != nil {
		t.Fatal(err)
	}
	if u := open(); !u.Revoked(c) {
		t.Error("let in although the list is unreadable")
	} else if u.apply(kv.Delta{Reset: true, Entries: []kv.Entry{entry(c)}}); u.Revoked(c) || !u.Revoked(a) {
		t.Error("the store's word does not count")
	}
}
