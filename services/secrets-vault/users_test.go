package vault

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/fault"
	"skep.dev/libs/pki"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
)

func (c *cluster) issue(t *testing.T, nc *nats.Conn, name string, expiry time.Duration) string {
	t.Helper()
	_, csr, err := pki.NewKeyAndCSR()
	if err != nil {
		t.Fatal(err)
	}
	var r skepv1.IssueUserReply
	req := &skepv1.IssueUserRequest{Name: name, Role: pki.Viewer, CsrDer: csr, Expiry: durationpb.New(expiry)}
	if err := rpc.Call(ctx(t), nc, subject.API("user", "issue"), req, &r); err != nil {
		t.Fatal(err)
	}
	leaf, err := pki.ParseCertificate(r.CertPem)
	if err != nil {
		t.Fatal(err)
	}
	return pki.Serial(leaf)
}

func (c *cluster) issued(t *testing.T) map[string]*skepv1.UserCertificate {
	t.Helper()
	var r skepv1.IssuedUsersReply
	if err := rpc.Call(ctx(t), c.nc, subject.API("user", "issued"), &skepv1.Empty{}, &r); err != nil {
		t.Fatal(err)
	}
	out := map[string]*skepv1.UserCertificate{}
	for _, x := range r.Certificates {
		out[x.Serial] = x
	}
	return out
}

func (c *cluster) revoke(t *testing.T, ref string) ([]*skepv1.UserCertificate, error) {
	t.Helper()
	var r skepv1.RevokeUserReply
	err := rpc.Call(ctx(t), c.nc, subject.API("user", "revoke"), &skepv1.RevokeUserRequest{Ref: ref}, &r)
	return r.Revoked, err
}

// TestUserCertificatesAreRevoked: every certificate is recorded with who asked for it, is revoked by name or serial number,
// once, and forgotten after its end; events tell of both.
func TestUserCertificatesAreRevoked(t *testing.T) {
	c := start(t)
	events, err := c.nc.SubscribeSync(subject.Event("user", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	admin, err := nats.Connect("", nats.InProcessServer(c.server), nats.CustomInboxPrefix(subject.Inbox("user-boss")))
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	laptop, phone, other := c.issue(t, admin, "ada", time.Hour), c.issue(t, admin, "ada", 2*time.Hour), c.issue(t, admin, "bob", time.Hour)
	all := c.issued(t)
	if x := all[laptop]; len(all) != 3 || x.GetName() != "ada" || x.Role != pki.Viewer || x.IssuedBy != "user-boss" || x.RevokedAt != nil || time.Until(x.NotAfter.AsTime()) > time.Hour {
		t.Fatalf("recorded: %v", all)
	}

	if got, err := c.revoke(t, laptop); err != nil || len(got) != 1 || got[0].Serial != laptop || got[0].RevokedAt == nil {
		t.Fatalf("by serial number: %v %v", got, err)
	}
	if got, err := c.revoke(t, "ada"); err != nil || len(got) != 1 || got[0].Serial != phone {
		t.Fatalf("by name, of two one was revoked before: %v %v", got, err)
	}
	if got, err := c.revoke(t, "ada"); err != nil || len(got) != 0 {
		t.Fatalf("again: %v %v", got, err)
	}
	if x := c.issued(t); x[laptop].RevokedAt == nil || x[phone].RevokedAt == nil || x[other].RevokedAt != nil {
		t.Fatalf("revoked the wrong ones: %v", x)
	}
	for ref, code := range map[string]fault.Code{"eve": fault.CodeNotFound, "": fault.CodeInvalid, "user.ada": fault.CodeInvalid, "*": fault.CodeInvalid, laptop[:31]: fault.CodeNotFound} {
		if _, err := c.revoke(t, ref); !fault.Is(err, code) {
			t.Errorf("%q: %v", ref, err)
		}
	}
	// One from before there were records.
	old := "0123456789abcdef0123456789abcdef"
	if got, err := c.revoke(t, "0123456789ABCDEF0123456789abcdef"); err != nil || len(got) != 1 || got[0].Serial != old {
		t.Fatalf("a certificate without a record: %v %v", got, err)
	}
	_, csr, err := pki.NewKeyAndCSR()
	if err != nil {
		t.Fatal(err)
	}
	if err := rpc.Call(ctx(t), c.nc, subject.API("user", "issue"), &skepv1.IssueUserRequest{Name: old, Role: pki.Admin, CsrDer: csr}, nil); !fault.Is(err, fault.CodeInvalid) {
		t.Errorf("a name that is a serial number: %v", err)
	}

	for _, want := range []string{"issue ada", "issue ada", "issue bob", "revoke ada", "revoke ada", "revoke "} {
		m, err := events.NextMsg(10 * time.Second)
		if err != nil {
			t.Fatalf("%s: %v", want, err)
		}
		var e skepv1.Event
		if err := protojson.Unmarshal(m.Data, &e); err != nil || e.Verb+" "+e.Name != want || e.Attributes["by"] == "" {
			t.Errorf("event %v, want %s: %v", &e, want, err)
		}
	}

	// Ninety minutes on, those of an hour are expired but may still be refused by a slow clock; after four hours all are gone.
	for _, step := range []struct {
		after time.Duration
		left  int
	}{{90 * time.Minute, 4}, {4*time.Hour + time.Minute, 1}} {
		after, left := step.after, step.left
		v := c.runVault(t, func() time.Time { return time.Now().Add(after) })
		if err := v.prune(ctx(t)); err != nil {
			t.Fatal(err)
		}
		if err := v.feed.Current(ctx(t)); err != nil {
			t.Fatal(err)
		}
		if n := len(v.idx.certificates(func(*skepv1.UserCertificate) bool { return true })); n != left {
			t.Errorf("after %v %d records are left, want %d", after, n, left)
		}
		if err := v.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
