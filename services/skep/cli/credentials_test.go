package cli

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/pki"
	"skep.dev/libs/pki/pkitest"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/conn"
)

// withVault adds the vault's endpoint: a real CA behind it.
func (c *cluster) withVault() *pki.CA {
	c.t.Helper()
	ca, err := pki.NewCA("clusterclusterclustercl01")
	if err != nil {
		c.t.Fatal(err)
	}
	serve(c, c.rs, api.UserIssue, func(r *skepv1.IssueUserRequest) (*skepv1.IssueUserReply, error) {
		cert, err := ca.Sign(r.CsrDer, pki.Identity{NodeID: "user-" + r.Name, Role: pki.User, UserRole: r.Role}, r.Expiry.AsDuration())
		return &skepv1.IssueUserReply{CertPem: cert, CaPem: ca.CertPEM(), ManagerAddrs: []string{"10.0.0.1:2377", "10.0.0.2:2377"}}, err
	})
	c.flush()
	return ca
}

// home is one person's machine: it keeps its contexts from one command line to the next.
type home struct {
	c   *cluster
	dir string
	in  string
}

func (h *home) run(args ...string) result {
	var out, errs safeBuffer
	env := h.c.env(&out, &errs)
	env.In, env.Now = strings.NewReader(h.in), time.Now
	env.Getenv = func(k string) string { return map[string]string{"HOME": h.dir}[k] }
	return result{Main(h.c.t.Context(), env, args), out.String(), errs.String()}
}

func private(t *testing.T, path string) []byte {
	t.Helper()
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if fi.Mode().Perm() != 0o600 {
		t.Errorf("%s has mode %o", path, fi.Mode().Perm())
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestIssueImportExport(t *testing.T) {
	c := newCluster(t)
	c.withVault()
	manager, laptop := &home{c: c, dir: t.TempDir()}, &home{c: c, dir: t.TempDir()}
	file := filepath.Join(t.TempDir(), "alice.skepcontext")

	want(t, manager.run("context", "issue", "--role", "viewer", "--expiry", "24h", "-o", file, "alice"), 0, file+"\n", "context import")
	if r := sent[*skepv1.IssueUserRequest](c); r.Name != "alice" || r.Role != "viewer" || r.Expiry.AsDuration() != 24*time.Hour {
		t.Errorf("asked for %v", r)
	}
	if text := string(private(t, file)); !strings.Contains(text, "PRIVATE KEY") {
		t.Errorf("the file has no key: %s", text)
	}
	want(t, manager.run("context", "issue", "-o", file, "alice"), 1, "", "exists already")

	want(t, laptop.run("context", "import", file, "prod"), 0, "prod\n", "skep context use prod")
	private(t, filepath.Join(laptop.dir, ".config/skep/contexts/prod.json"))
	want(t, laptop.run("context", "import", file, "prod"), 1, "", `context "prod" exists already`)
	want(t, laptop.run("context", "inspect", "prod"), 0, `"Role": "viewer"`, "")
	want(t, laptop.run("context", "inspect", "prod"), 0, `"10.0.0.2:2377"`, "")

	out := laptop.run("context", "export", "-o", "-", "prod")
	want(t, out, 0, "PRIVATE KEY", "")
	laptop.in = out.out
	want(t, laptop.run("context", "import", "--use", "--addr", "prod.example", "-", "again"), 0, "again\n", "")
	want(t, laptop.run("context", "ls"), 0, "prod.example:2377", "")
	want(t, laptop.run("context", "show"), 0, "again\n", "")
	want(t, laptop.run("context", "export", "default"), 1, "", "has no certificate")

	want(t, laptop.run("context", "nats", "prod"), 0, "skep-prod.json", "--context skep-prod")
	var n natsContext
	if err := json.Unmarshal(private(t, filepath.Join(laptop.dir, ".config/nats/context/skep-prod.json")), &n); err != nil {
		t.Fatal(err)
	}
	if n.URL != "tls://10.0.0.1:2377,tls://10.0.0.2:2377" || n.InboxPrefix != "_INBOX_viewer.user-alice" || !n.TLSFirst {
		t.Errorf("natscli's context is %+v", n)
	}
	if _, err := pki.Memory(private(t, n.Cert), private(t, n.Key), private(t, n.CA)); err != nil {
		t.Error(err)
	}
	want(t, laptop.run("context", "rm", "prod"), 0, "prod\n", "")
	for _, gone := range []string{n.Cert, n.Key, filepath.Join(laptop.dir, ".config/nats/context/skep-prod.json")} {
		if _, err := os.Stat(gone); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", gone, err)
		}
	}
}

func TestIssuedRevoke(t *testing.T) {
	c := newCluster(t)
	now := time.Now()
	serial, heir := "0123456789abcdef0123456789abcdef", "1123456789abcdef0123456789abcdef"
	ada := &skepv1.UserCertificate{Serial: serial, Name: "ada", Role: "admin", IssuedBy: "root", IssuedAt: timestamppb.New(now.Add(-time.Hour)), NotAfter: timestamppb.New(now.Add(time.Hour))}
	eve := &skepv1.UserCertificate{Serial: heir, Name: "eve", Role: "admin", IssuedBy: "user-ada", IssuedAt: timestamppb.New(now), NotAfter: timestamppb.New(now.Add(time.Hour))}
	serve(c, c.rs, api.UserIssued, func(*skepv1.Empty) (*skepv1.IssuedUsersReply, error) {
		return &skepv1.IssuedUsersReply{Certificates: []*skepv1.UserCertificate{ada, eve}}, nil
	})
	serve(c, c.rs, api.UserRevoke, func(r *skepv1.RevokeUserRequest) (*skepv1.RevokeUserReply, error) {
		switch {
		case r.Ref != "ada":
			return nil, fault.NotFound("revoke %s: no certificate of that name is recorded", r.Ref)
		case ada.RevokedAt != nil:
			return &skepv1.RevokeUserReply{}, nil
		}
		ada.RevokedAt, ada.RevokedBy = timestamppb.New(now), "root"
		return &skepv1.RevokeUserReply{Revoked: []*skepv1.UserCertificate{ada}}, nil
	})
	c.flush()
	h := &home{c: c, dir: t.TempDir()}
	want(t, h.run("context", "issued"), 0, serial+"   ada ", "")
	want(t, h.run("context", "issued", "-q"), 0, serial+"\n"+heir+"\n", "")
	want(t, h.run("context", "revoke", "ada"), 0, serial+"\n", "user-ada made a certificate that is still good: "+heir+" of eve")
	want(t, h.run("context", "revoke", "ada"), 0, "", "Revoked before: ada")
	want(t, h.run("context", "issued"), 0, "by root", "")
	want(t, h.run("context", "revoke", "bob"), 1, "", "no certificate of that name")
	want(t, h.run("context", "revoke"), 2, "", "")
}

func TestIssueRefusals(t *testing.T) {
	c := newCluster(t)
	c.withVault()
	h := &home{c: c, dir: t.TempDir()}
	t.Chdir(t.TempDir())
	c.on = func(r proto.Message) error {
		if _, ok := r.(*skepv1.IssueUserRequest); ok {
			return fault.Invalid("user X: a name is up to 63 of a-z")
		}
		return nil
	}
	want(t, h.run("context", "issue", "X"), 1, "", "a name is up to 63")
	if left, _ := filepath.Glob("*"); len(left) > 0 {
		t.Errorf("a refused certificate left %v", left)
	}
	want(t, h.run("context", "issue", "a/b"), 2, "", "invalid name")
	want(t, h.run("context", "issue", "--role", "root", "x"), 2, "", "it is admin, operator, viewer")
	want(t, h.run("context", "issue", "--expiry", "-1h", "x"), 2, "", "must be above 0")
	h.in = `{"addr":"x"}`
	want(t, h.run("context", "import", "-"), 1, "", "this is not a context")
	h.in = "PK\x03\x04"
	want(t, h.run("context", "import", "-"), 1, "", "this is not a context")
	want(t, h.run("context", "import", "/nope"), 1, "", "no such file")
}

// TestNoKeyOnATerminal: what is printed there ends in scroll-back and screen shares.
func TestNoKeyOnATerminal(t *testing.T) {
	c := newCluster(t)
	c.withVault()
	master, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	defer tty.Close()
	var out, errs safeBuffer
	env := c.env(&out, &errs)
	env.Out = tty
	if code := Main(t.Context(), env, []string{"context", "issue", "-o", "-", "alice"}); code != ExitUsage || !strings.Contains(errs.String(), "refusing to print a private key on a terminal") {
		t.Errorf("status %d: %s", code, errs.String())
	}
}

// TestBrokerRefuses: the broker answers a forbidden publish with an error on the connection, not with a reply.
func TestBrokerRefuses(t *testing.T) {
	c := newCluster(t, func(o *server.Options) {
		o.Users = []*server.User{{Username: "admin", Password: "x"}, {Username: "bob", Password: "x", Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Allow: []string{"skep.v1.api.*.list", "skep.v1.api.*.inspect", "skep.v1.here.api.*.list", "skep.v1.here.api.*.inspect"}},
		}}}
	})
	ca := c.withVault()
	cert, key := pkitest.Certify(t, ca, pki.Identity{NodeID: "user-bob", Role: pki.User, UserRole: pki.Viewer}, time.Hour)
	var out, errs safeBuffer
	env := c.env(&out, &errs)
	if err := conn.DefaultStore(env.Getenv).Create(conn.Context{Name: "prod", Addr: "h:2377", Cert: string(cert), Key: string(key), CA: string(ca.CertPEM())}); err != nil {
		t.Fatal(err)
	}
	env.Connect = func(context.Context) (*nats.Conn, error) { return nats.Connect(c.url, nats.UserInfo("bob", "x")) }
	c.services = []*skepv1.Service{webService()}
	began := time.Now()
	code := Main(t.Context(), env, []string{"--context", "prod", "service", "scale", "web=3"})
	if code != 1 || !strings.Contains(errs.String(), "the certificate of user bob is a viewer's") {
		t.Errorf("status %d: %s", code, errs.String())
	}
	if d := time.Since(began); d > callTimeout/2 {
		t.Errorf("the refusal took %s", d)
	}
	if code := Main(t.Context(), env, []string{"--context", "prod", "service", "ls", "-q"}); code != 0 {
		t.Errorf("a viewer may list: %s", errs.String())
	}
}

// TestManagerRestarts: what is asked while nobody answers is asked again; a change only if nobody heard it.
func TestManagerRestarts(t *testing.T) {
	c := newCluster(t)
	c.services = []*skepv1.Service{webService()}
	reads, writes := 0, 0
	c.on = func(r proto.Message) error {
		switch r.(type) {
		case *skepv1.ListServicesRequest:
			if reads++; reads < 3 {
				return fault.Unavailable("not the leader any more")
			}
		case *skepv1.UpdateNodeRequest:
			writes++
			return fault.Unavailable("the write was not acknowledged")
		}
		return nil
	}
	want(t, c.run("service", "ls", "-q"), 0, webID[:12], "")
	want(t, c.run("node", "update", "--label-add", "a=b", "w1"), 1, "", "not acknowledged")
	if writes != 1 {
		t.Errorf("a change that may have been made was asked for %d times", writes)
	}

	began := time.Now()
	env := c.env(&safeBuffer{}, &safeBuffer{})
	env.Patience = time.Second
	var errs safeBuffer
	env.Err = &errs
	if code := Main(t.Context(), env, []string{"context", "issue", "-o", filepath.Join(t.TempDir(), "x"), "late"}); code != 1 || !strings.Contains(errs.String(), "nobody answers skep.v1.api.user.issue") {
		t.Errorf("status %d: %s", code, errs.String())
	}
	if d := time.Since(began); d < time.Second {
		t.Errorf("gave up after %s", d)
	}

	// Even a change is asked for again when nobody heard it.
	done := make(chan int, 1)
	env.Patience, env.Err = time.Minute, &safeBuffer{}
	go func() {
		done <- Main(t.Context(), env, []string{"context", "issue", "-o", filepath.Join(t.TempDir(), "x"), "late"})
	}()
	for !strings.Contains(env.Err.(*safeBuffer).String(), "Waiting for a manager") {
		select {
		case code := <-done:
			t.Fatalf("it did not wait: status %d", code)
		case <-time.After(10 * time.Millisecond):
		}
	}
	c.withVault()
	if code := <-done; code != 0 {
		t.Errorf("status %d: %s", code, env.Err.(*safeBuffer).String())
	}
}
