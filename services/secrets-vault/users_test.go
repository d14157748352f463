package vault

import (
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/api"
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
		if err := protojson.Unmarshal(m.Data, &e); err != nil || e.Verb+" "+e.Name != want || e.Actor == "" {
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

// TestOneUserOfAName: who makes a user is refused while the name has a certificate that is good, also when two ask at once;
// who renews is not. Records and events name who asked and from where.
func TestOneUserOfAName(t *testing.T) {
	c := start(t)
	admin, err := nats.Connect("", nats.InProcessServer(c.server), nats.CustomInboxPrefix(subject.Inbox("user-boss")))
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	create := func(name string, first bool, expiry time.Duration) error {
		_, csr, err := pki.NewKeyAndCSR()
		if err != nil {
			t.Error(err)
		}
		_, err = api.Call(ctx(t), admin, api.UserIssue, &skepv1.IssueUserRequest{Name: name, Role: pki.Operator, CsrDer: csr, Expiry: durationpb.New(expiry), First: first})
		return err
	}
	if err := create("ada", true, time.Hour); err != nil {
		t.Fatal(err)
	}
	if err := create("ada", true, time.Hour); !fault.Is(err, fault.CodeConflict) || !strings.Contains(err.Error(), "--renew") {
		t.Errorf("a second ada: %v", err)
	}
	if err := create("root", true, time.Hour); !fault.Is(err, fault.CodeInvalid) {
		t.Errorf("a user called root: %v", err)
	}
	if err := create("ada", false, 2*time.Hour); err != nil {
		t.Errorf("renewal: %v", err)
	}
	if _, err := c.revoke(t, "ada"); err != nil {
		t.Fatal(err)
	}
	if err := create("ada", true, time.Hour); err != nil {
		t.Errorf("after the former ones were revoked: %v", err)
	}
	good := 0
	for _, x := range c.issued(t) {
		if x.RevokedAt == nil {
			good++
		}
		if x.IssuedBy != "user-boss" || x.IssuedFrom != subject.Local {
			t.Errorf("issued by %s from %q", x.IssuedBy, x.IssuedFrom)
		}
		if x.RevokedAt != nil && x.RevokedFrom != subject.Local && x.RevokedBy == rpc.Root {
			t.Errorf("revoked by %s from %q", x.RevokedBy, x.RevokedFrom)
		}
	}
	if good != 1 {
		t.Errorf("%d good certificates of ada", good)
	}
	// Whatever the order: one of many who ask at once gets one, and what is refused is not recorded.
	var wg sync.WaitGroup
	var made atomic.Int32
	for range 8 {
		wg.Go(func() {
			switch err := create("bob", true, time.Hour); {
			case err == nil:
				made.Add(1)
			case !fault.Is(err, fault.CodeConflict):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	bobs := 0
	for _, x := range c.issued(t) {
		if x.Name == "bob" {
			bobs++
		}
	}
	if made.Load() != 1 || bobs != 1 {
		t.Errorf("%d were given a certificate, %d are recorded", made.Load(), bobs)
	}
}
