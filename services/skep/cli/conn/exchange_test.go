package conn

import (
	"context"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/pki"
	"skep.dev/libs/pki/pkitest"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// TestExchange: a context of the old root is exchanged when the manager shows one of the next root, and only then; what goes
// wrong is told and the command goes on.
func TestExchange(t *testing.T) {
	old := pkitest.NewCA(t)
	next, err := pki.NewCA(old.ClusterID())
	if err != nil {
		t.Fatal(err)
	}
	link, err := old.CrossSign(next.Cert)
	if err != nil {
		t.Fatal(err)
	}
	manager := pkitest.Store(t, old, pki.Identity{NodeID: "m1", Role: pki.Manager}, time.Hour)
	srv := broker(t, &server.Options{Host: "127.0.0.1", Port: -1, NoLog: true, NoSigs: true, TLS: true, TLSConfig: pki.ServerTLS(manager), TLSHandshakeFirst: true, TLSTimeout: 10})
	vault, err := nats.Connect("", nats.InProcessServer(srv), nats.CustomInboxPrefix(subject.Inbox("vault-m1")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(vault.Close)
	rs, err := rpc.NewServer(vault, rpc.Config{Name: "vault"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = rs.Close() }) // the connection is closed already
	asked, ca := 0, next
	err = api.Handle(rs, api.UserExchange, func(_ context.Context, r *skepv1.ExchangeUserRequest) (*skepv1.IssueUserReply, error) {
		asked++
		if ca == nil {
			return nil, fault.Denied("not today")
		}
		was, err := x509.ParseCertificate(r.CertDer)
		if err != nil {
			return nil, err
		}
		if err := pki.CheckStatement(was, pki.PurposeExchange, r.CsrDer, r.Signature); err != nil {
			return nil, err
		}
		cert, err := ca.Sign(r.CsrDer, pki.Identity{NodeID: "user-ada", Role: pki.User, UserRole: pki.Admin}, time.Hour)
		return &skepv1.IssueUserReply{CertPem: cert, CaPem: pki.EncodeCertificates(ca.Cert, old.Cert)}, err
	})
	if err != nil {
		t.Fatal(err)
	}
	inspected := &skepv1.CAReply{Root: &skepv1.CARoot{Digest: pki.Digest(old.Cert)}, Rotation: &skepv1.CARotation{}}
	err = api.Handle(rs, api.CAInspect, func(context.Context, *skepv1.Empty) (*skepv1.CAReply, error) { return inspected, nil })
	if err != nil {
		t.Fatal(err)
	}
	s := Store{t.TempDir()}
	cert, key := pkitest.Certify(t, old, pki.Identity{NodeID: "user-ada", Role: pki.User, UserRole: pki.Admin}, time.Hour)
	if err := s.Create(Context{Name: "prod", Description: "ours", Addr: srv.Addr().String(), Cert: string(cert), Key: string(key), CA: string(old.CertPEM())}); err != nil {
		t.Fatal(err)
	}
	var kept error
	dial := func() {
		t.Helper()
		kept = nil
		nc, err := Dial(t.Context(), Options{Context: "prod", Store: s, Timeout: 10 * time.Second, Kept: func(err error) { kept = err }})
		if err != nil {
			t.Fatal(err)
		}
		nc.Close()
	}
	file := func() string {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(s.Dir, "contexts", "prod.json"))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	before := file()
	dial()
	if asked != 0 || file() != before {
		t.Error("exchanged without a rotation")
	}
	text, mkey := pkitest.Certify(t, next, pki.Identity{NodeID: "m1", Role: pki.Manager}, time.Hour)
	if err := manager.Save(append(text, pki.EncodeCertificates(link, old.Cert)...), mkey, pki.EncodeCertificates(next.Cert, old.Cert)); err != nil {
		t.Fatal(err)
	}
	ca = nil
	if dial(); kept == nil || !strings.Contains(kept.Error(), "not today") || file() != before {
		t.Error("refused:", kept)
	}
	if ca, err = pki.NewCA(old.ClusterID()); err != nil {
		t.Fatal(err)
	}
	if dial(); kept == nil || !strings.Contains(kept.Error(), "does not vouch for") || file() != before {
		t.Error("a root that nobody vouches for:", kept)
	}
	ca, asked = next, 0
	dial()
	c, err := s.Load("prod")
	if err != nil || kept != nil || c.Description != "ours" || c.Addr != srv.Addr().String() {
		t.Fatalf("%+v, %v, %v", c, kept, err)
	}
	id, err := c.identity()
	if err != nil || !id.CA().Equal(next.Cert) {
		t.Fatal("not exchanged", err)
	}
	if fi, err := os.Stat(filepath.Join(s.Dir, "contexts", "prod.json")); err != nil || fi.Mode() != 0o600 {
		t.Error(fi.Mode(), err)
	}
	if dial(); asked != 1 || kept != nil {
		t.Errorf("asked %d times, %v", asked, kept)
	}
	// The old root is trusted until the rotation has ended, and no longer.
	roots := func() int {
		t.Helper()
		if c, err = s.Load("prod"); err != nil {
			t.Fatal(err)
		}
		if id, err = c.identity(); err != nil || !id.CA().Equal(next.Cert) {
			t.Fatal(err)
		}
		return len(id.Roots())
	}
	inspected = &skepv1.CAReply{Root: &skepv1.CARoot{Digest: pki.Digest(next.Cert)}, Rotation: &skepv1.CARotation{Phase: skepv1.CAPhase_CA_PHASE_DROP}}
	if dial(); roots() != 2 {
		t.Error("trimmed before the rotation had ended")
	}
	inspected.Rotation = nil
	if dial(); roots() != 1 || kept != nil {
		t.Error("the old root is still trusted", kept)
	}
	// Removed meanwhile, it stays away.
	if err := s.Remove("prod"); err != nil {
		t.Fatal(err)
	}
	if err := s.replace(c); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
