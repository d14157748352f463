package vault

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/types/known/durationpb"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/id"
	"skep.dev/libs/join"
	"skep.dev/libs/pki"
	"skep.dev/libs/pki/pkitest"
	"skep.dev/libs/seal"
	"skep.dev/libs/spec"
	"skep.dev/libs/subject"
)

// TestRotation: nodes move to a new root; a token of before lets in, a new one too; the old root is good for nothing.
func TestRotation(t *testing.T) {
	c := startRotating(t)
	before := c.token(t, skepv1.NodeRole_NODE_ROLE_WORKER, false)
	w1, _ := c.node(t, before)
	w2, _ := c.node(t, before)
	events, err := c.nc.SubscribeSync(subject.Event("cluster", "*", "ca-rotate"))
	if err != nil {
		t.Fatal(err)
	}
	old := c.state(t).Root
	oldLeaf := w1.Leaf()
	stale, err := pki.Memory(pki.EncodeCertificates(oldLeaf), keyOf(t, w1), pki.EncodeCertificates(w1.CA()))
	if err != nil {
		t.Fatal(err)
	}
	if r, err := c.rotate(t, &skepv1.RotateCARequest{}); err != nil || r.Rotation == nil || r.Root.Digest != old.Digest {
		t.Fatal(r, err)
	}
	r := c.await(t, "the rotation does not end", ended)
	if r.Root.Digest == old.Digest || len(r.Former) != 1 || r.Former[0].Digest != old.Digest {
		t.Errorf("after it: %v", r)
	}
	for name, s := range map[string]*pki.Store{"manager": c.manager, "w1": w1, "w2": w2} {
		if got := pki.Digest(s.CA()); got != r.Root.Digest || len(s.Roots()) != 1 {
			t.Errorf("%s: certificate of %s, %d roots", name, got, len(s.Roots()))
		}
	}
	for _, phase := range []string{"trust", "issue", "users", "drop", "finished"} {
		m, err := events.NextMsg(10 * time.Second)
		if err != nil || !strings.Contains(string(m.Data), phase) {
			t.Errorf("event of %s: %v", phase, err)
		}
	}
	after := c.token(t, skepv1.NodeRole_NODE_ROLE_WORKER, false)
	if after == before || !strings.Contains(after, r.Root.Digest) || before[len(before)-25:] != after[len(after)-25:] {
		t.Error("the token's secret changed, or its digest did not")
	}
	for _, token := range []string{before, after} {
		s, _ := c.node(t, token)
		if pki.Digest(s.CA()) != r.Root.Digest {
			t.Error("joined with a certificate of another root")
		}
	}
	if nc, err := nats.Connect("tls://"+c.addr, nats.Secure(pki.ClientTLS(stale)), nats.TLSHandshakeFirst()); err == nil {
		nc.Close()
		t.Error("a certificate of the old root is let in")
	}
	// A second one: the first token is two roots old.
	if _, err := c.rotate(t, &skepv1.RotateCARequest{}); err != nil {
		t.Fatal(err)
	}
	c.await(t, "the second rotation does not end", func(r *skepv1.CAReply) bool { return ended(r) && len(r.Former) == 2 })
	c.node(t, before)
}

// TestRotationWaitsForWhoIsAway: progress says for whom; it ends by itself when the node is back, which knows the old root
// alone, or at once by force.
func TestRotationWaitsForWhoIsAway(t *testing.T) {
	c := startRotating(t)
	w1, stop := c.node(t, c.boot.WorkerToken)
	c.node(t, c.boot.WorkerToken)
	away := w1.Identity().NodeID
	set := func(down bool) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.down[away] = down
	}
	stop()
	set(true)
	if _, err := c.rotate(t, &skepv1.RotateCARequest{}); err != nil {
		t.Fatal(err)
	}
	r := c.await(t, "the others do not move", func(r *skepv1.CAReply) bool {
		return r.GetProgress().GetMoved() == 2 && inPhase(skepv1.CAPhase_CA_PHASE_ISSUE)(r)
	})
	if w := r.Progress.Waiting; len(w) != 1 || w[0].NodeId != away || w[0].Why != "it is down" || r.Progress.Nodes != 3 {
		t.Errorf("it waits for %v", w)
	}
	// Asked twice: it goes on. To another root: it says so.
	if again, err := c.rotate(t, &skepv1.RotateCARequest{}); err != nil || again.Rotation.Next.Digest != r.Rotation.Next.Digest {
		t.Error("a rotation asked for twice:", err)
	}
	// The vault is killed and starts again; the node comes back with a certificate of the old root.
	if err := c.vault.Close(); err != nil {
		t.Fatal(err)
	}
	c.vault = c.runVaultSettling(t)
	set(false)
	c.renew(t, c.connect(t, w1), w1)
	c.await(t, "it does not go on when the node is back", ended)
	if len(w1.Roots()) != 1 || pki.Digest(w1.CA()) != c.state(t).Root.Digest {
		t.Error("the late node did not move")
	}

	// By force.
	if _, err := c.rotate(t, &skepv1.RotateCARequest{ForceFinish: true}); !fault.Is(err, fault.CodeInvalid) {
		t.Error("there is nothing to finish:", err)
	}
	set(true)
	if _, err := c.rotate(t, &skepv1.RotateCARequest{}); err != nil {
		t.Fatal(err)
	}
	c.await(t, "the next rotation does not begin", inPhase(skepv1.CAPhase_CA_PHASE_ISSUE))
	if _, err := c.rotate(t, &skepv1.RotateCARequest{ForceFinish: true}); err != nil {
		t.Fatal(err)
	}
	c.await(t, "it does not end by force", ended)
}

// TestRotationOfUsers: a user's certificate goes on being good until it has been exchanged, once, by who has its key.
func TestRotationOfUsers(t *testing.T) {
	c := startRotating(t)
	user := func(name string) *pki.Store {
		t.Helper()
		key, csr, err := pki.NewKeyAndCSR()
		if err != nil {
			t.Fatal(err)
		}
		r, err := api.Call(ctx(t), c.nc, api.UserIssue, &skepv1.IssueUserRequest{Name: name, Role: pki.Viewer, CsrDer: csr, Expiry: durationpb.New(time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		s, err := pki.Memory(r.CertPem, key, r.CaPem)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	ada, bob := user("ada"), user("bob")
	if _, err := c.rotate(t, &skepv1.RotateCARequest{}); err != nil {
		t.Fatal(err)
	}
	r := c.await(t, "it does not wait for users", func(r *skepv1.CAReply) bool {
		return inPhase(skepv1.CAPhase_CA_PHASE_USERS)(r) && r.Progress.UsersLeft == 2
	})
	if fmt.Sprint(r.Progress.Users) != "[ada bob]" || r.Rotation.UsersUntil.AsTime().Before(time.Now().Add(usersFor-time.Hour)) {
		t.Errorf("%v", r)
	}
	if token := c.token(t, skepv1.NodeRole_NODE_ROLE_WORKER, false); !strings.Contains(token, r.Rotation.Next.Digest) {
		t.Error("the token names the old root while users are waited for")
	}
	exchange := func(s *pki.Store, change func(*skepv1.ExchangeUserRequest)) (*skepv1.IssueUserReply, []byte, error) {
		t.Helper()
		key, csr, err := pki.NewKeyAndCSR()
		if err != nil {
			t.Fatal(err)
		}
		req := &skepv1.ExchangeUserRequest{CsrDer: csr}
		if req.Signature, req.CertDer, err = pki.SignStatement(s, pki.PurposeExchange, csr); err != nil {
			t.Fatal(err)
		}
		if change != nil {
			change(req)
		}
		reply, err := api.Call(ctx(t), c.nc, api.UserExchange, req)
		return reply, key, err
	}
	_, other, err := pki.NewKeyAndCSR()
	if err != nil {
		t.Fatal(err)
	}
	stranger := pkitest.Store(t, pkitest.NewCA(t), pki.Identity{NodeID: "user-ada", Role: pki.User, UserRole: pki.Admin}, time.Hour)
	node, _ := c.node(t, c.boot.WorkerToken)
	for name, f := range map[string]func(*skepv1.ExchangeUserRequest){
		"another request":       func(r *skepv1.ExchangeUserRequest) { r.CsrDer = other },
		"another's certificate": func(r *skepv1.ExchangeUserRequest) { r.CertDer = bob.Leaf().Raw },
		"another cluster's":     func(r *skepv1.ExchangeUserRequest) { r.CertDer = stranger.Leaf().Raw },
		"nothing":               func(r *skepv1.ExchangeUserRequest) { r.CertDer = nil },
	} {
		if _, _, err := exchange(ada, f); err == nil {
			t.Errorf("%s was exchanged", name)
		}
	}
	for _, s := range []*pki.Store{stranger, node} {
		if _, _, err := exchange(s, nil); !fault.Is(err, fault.CodeDenied) {
			t.Errorf("%s was given a user's certificate: %v", s.Identity().NodeID, err)
		}
	}
	got, key, err := exchange(ada, nil)
	if err != nil {
		t.Fatal(err)
	}
	moved, err := pki.Memory(got.CertPem, key, got.CaPem)
	if err != nil {
		t.Fatal(err)
	}
	if id := moved.Identity(); id.NodeID != "user-ada" || id.UserRole != pki.Viewer || moved.Leaf().NotAfter.After(ada.Leaf().NotAfter) || pki.Digest(moved.CA()) != r.Rotation.Next.Digest {
		t.Errorf("exchanged for %+v until %s", id, moved.Leaf().NotAfter)
	}
	if _, _, err := exchange(moved, nil); !fault.Is(err, fault.CodeInvalid) {
		t.Error("a certificate of the new root was exchanged:", err)
	}
	// A lost answer is asked for again, but nobody fills the records with it.
	for range maxExchanged - 1 {
		if _, _, err := exchange(ada, nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := exchange(ada, nil); !fault.Is(err, fault.CodeExhausted) {
		t.Error("exchanged for ever:", err)
	}
	// A revoked one is not exchanged, and not waited for.
	if _, err := api.Call(ctx(t), c.nc, api.UserRevoke, &skepv1.RevokeUserRequest{Ref: "bob"}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := exchange(bob, nil); !fault.Is(err, fault.CodeDenied) && c.state(t).Rotation != nil {
		t.Error("a revoked certificate was exchanged:", err)
	}
	c.await(t, "it does not end when the last user has moved", ended)
	if _, _, err := exchange(bob, nil); !fault.Is(err, fault.CodeDenied) {
		t.Error("a certificate of a dropped root was exchanged:", err)
	}
}

// TestRotationToARootOfOnesOwn: its key travels sealed; what does not suit is refused before anything changes.
func TestRotationToARootOfOnesOwn(t *testing.T) {
	c := startRotating(t)
	w, _ := c.node(t, c.boot.WorkerToken)
	own := pkitest.NewCA(t) // of another cluster by its name: it need not name this one
	key, err := own.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	vk, err := api.Call(ctx(t), c.nc, api.VaultKey, &skepv1.Empty{})
	if err != nil {
		t.Fatal(err)
	}
	sealed := func(name string, v []byte) []byte {
		t.Helper()
		s, err := seal.ToVault(w.CA(), vk, &skepv1.SealedValue{Name: name, Value: v})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	for want, r := range map[string]*skepv1.RotateCARequest{
		"give both, or neither":  {CertPem: own.CertPEM()},
		"the key: the value was": {CertPem: own.CertPEM(), SealedKey: sealed("a secret", key)},
		"does not belong":        {CertPem: pkitest.NewCA(t).CertPEM(), SealedKey: sealed(seal.CAKey, key)},
		"there is no PEM":        {CertPem: []byte("x"), SealedKey: sealed(seal.CAKey, key)},
		"too long":               {CertPem: make([]byte, maxOwnRoot+1), SealedKey: sealed(seal.CAKey, key)},
	} {
		if _, err := c.rotate(t, r); !fault.Is(err, fault.CodeInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", want, err)
		}
	}
	if c.state(t).Rotation != nil {
		t.Fatal("a rotation began")
	}
	good := &skepv1.RotateCARequest{CertPem: own.CertPEM(), SealedKey: sealed(seal.CAKey, key)}
	if _, err := c.rotate(t, good); err != nil {
		t.Fatal(err)
	}
	if _, err := c.rotate(t, good); err != nil && !fault.Is(err, fault.CodeConflict) {
		t.Error("to another root meanwhile:", err)
	}
	r := c.await(t, "it does not end", ended)
	if r.Root.Digest != pki.Digest(own.Cert) || pki.Digest(w.CA()) != r.Root.Digest || w.Identity().ClusterID != c.boot.ClusterID {
		t.Errorf("%v, the node is of cluster %s", r, w.Identity().ClusterID)
	}
	if _, err := c.rotate(t, &skepv1.RotateCARequest{CertPem: own.CertPEM(), SealedKey: func() []byte {
		vk, err := api.Call(ctx(t), c.nc, api.VaultKey, &skepv1.Empty{})
		if err != nil {
			t.Fatal(err)
		}
		s, err := seal.ToVault(own.Cert, vk, &skepv1.SealedValue{Name: seal.CAKey, Value: key})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}()}); !fault.Is(err, fault.CodeInvalid) || !strings.Contains(err.Error(), "the root in use") {
		t.Error("to the root in use:", err)
	}
}

// TestExpiredManagerHealsItself: a lone manager that was off until its certificate expired asks its own vault, in process,
// and its workers are let in again.
func TestExpiredManagerHealsItself(t *testing.T) {
	c := start(t)
	w, err := join.Join(ctx(t), c.addr, c.boot.WorkerToken, join.Params{Hostname: "w"})
	if err != nil {
		t.Fatal(err)
	}
	worker, err := pki.Memory(w.Cert, w.Key, w.CA)
	if err != nil {
		t.Fatal(err)
	}
	cert, key := pkitest.Certify(t, c.vault.idx.authority(), c.store.Identity(), -time.Minute)
	if err := c.store.Save(cert, key, c.boot.CA); err != nil {
		t.Fatal(err)
	}
	if nc, err := nats.Connect("tls://"+c.addr, nats.Secure(pki.ClientTLS(worker)), nats.TLSHandshakeFirst()); err == nil {
		nc.Close()
		t.Fatal("a worker trusts a certificate that expired")
	}
	c.mu.Lock()
	c.nodes[c.boot.NodeID] = &skepv1.AdmitNodeRequest{NodeId: c.boot.NodeID, Role: skepv1.NodeRole_NODE_ROLE_MANAGER}
	c.mu.Unlock()
	nc, err := nats.Connect("", nats.InProcessServer(c.server), nats.CustomInboxPrefix(subject.Inbox(c.boot.NodeID)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	(&rotating{cluster: c}).renew(t, nc, c.store)
	for deadline := time.Now().Add(20 * time.Second); time.Now().After(c.store.Leaf().NotAfter); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the manager does not renew")
		}
	}
	again, err := nats.Connect("tls://"+c.addr, nats.Secure(pki.ClientTLS(worker)), nats.TLSHandshakeFirst())
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

// TestFoundedOnARootOfOnesOwn: the root need not name the cluster; everything the vault makes does.
func TestFoundedOnARootOfOnesOwn(t *testing.T) {
	own := pkitest.NewCA(t).For("another")
	key, err := own.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "vault")
	if _, err := Bootstrap(BootstrapParams{Dir: dir, OwnCert: own.CertPEM(), OwnKey: []byte("no key")}); err == nil {
		t.Fatal("founded without a key")
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("something was made before the root was checked")
	}
	b, err := Bootstrap(BootstrapParams{Dir: dir, OwnCert: own.CertPEM(), OwnKey: key})
	if err != nil {
		t.Fatal(err)
	}
	s, err := pki.Memory(b.Cert, b.Key, b.CA)
	if err != nil || s.Identity().ClusterID != b.ClusterID || b.CADigest != pki.Digest(own.Cert) || !id.Valid(b.ClusterID) {
		t.Fatalf("%+v, %v", b.ClusterID, err)
	}
	sealed, err := bootstrapped(dir)
	if err != nil {
		t.Fatal(err)
	}
	master, err := (disk{dir: dir}).readClear()
	if err != nil {
		t.Fatal(err)
	}
	x, err := newSealer(master)
	if err != nil {
		t.Fatal(err)
	}
	var r caRecord
	if err := x.open(keyCA, sealed[keyCA], &r); err != nil {
		t.Fatal(err)
	}
	if a, err := r.read(1); err != nil || a.signs.ClusterID() != b.ClusterID {
		t.Error("a vault that starts certifies for another cluster", err)
	}
}

// TestKilledInEachPhase: a vault that starts in the middle of a rotation brings it to its end, wherever the one before it was.
func TestKilledInEachPhase(t *testing.T) {
	c := startRotating(t)
	w, _ := c.node(t, c.boot.WorkerToken)
	for p := skepv1.CAPhase_CA_PHASE_TRUST; p <= skepv1.CAPhase_CA_PHASE_DROP; p++ {
		if err := c.vault.Close(); err != nil {
			t.Fatal(err)
		}
		holds := c.runVaultFor(t, time.Hour)
		if _, err := c.rotate(t, &skepv1.RotateCARequest{}); err != nil {
			t.Fatal(err)
		}
		for a := holds.idx.authorities(); a.phase() != p; a = holds.idx.authorities() {
			if err := holds.storeCA(ctx(t), a, a.advance(time.Now()), "in a test"); err != nil {
				t.Fatal(err)
			}
		}
		goal := c.state(t)
		if err := holds.Close(); err != nil {
			t.Fatal(err)
		}
		c.vault = c.runVaultSettling(t)
		r := c.await(t, "killed in "+spec.Word(p)+", it does not go on", ended)
		want := r.Root.Digest
		if next := goal.Rotation.Next; next != nil && next.Digest != want || pki.Digest(w.CA()) != want || len(w.Roots()) != 1 || pki.Digest(c.manager.CA()) != want {
			t.Errorf("killed in %s: the nodes are not where they should be", spec.Word(p))
		}
	}
}
