package cli

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/pki"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/golden"
)

func TestUserCreate(t *testing.T) {
	c := newCluster(t)
	c.withVault()
	h := &home{c: c, dir: t.TempDir()}
	file := filepath.Join(t.TempDir(), "alice.skepcontext")

	want(t, h.run("user", "create", "alice", "-o", file), ExitUsage, "", "--role is required: admin, operator, viewer")
	want(t, h.run("user", "create", "alice", "--role", "root", "-o", file), ExitUsage, "", `unknown role "root"`)
	for _, bad := range []string{"0d", "-1d", "d", "1.5d", "99999d", "3 days", "-2h", "0s"} {
		want(t, h.run("user", "create", "alice", "--role", "viewer", "--expiry", bad, "-o", file), ExitUsage, "", "")
	}
	want(t, h.run("user", "create", "alice", "--role", "operator", "-o", file), 0, file+"\n", "context import")
	if r := sent[*skepv1.IssueUserRequest](c); r.Name != "alice" || r.Role != pki.Operator || r.Expiry.AsDuration() != 90*24*time.Hour || !r.First {
		t.Errorf("asked for %v", r)
	}
	if !strings.Contains(string(private(t, file)), "PRIVATE KEY") {
		t.Error("the file has no key")
	}
	want(t, h.run("user", "create", "alice", "--role", "operator", "-o", file), 1, "", "exists already")
	want(t, h.run("user", "create", "alice", "--role", "operator", "--renew", "--expiry", "7d", "-o", "-"), 0, "PRIVATE KEY", "")
	if r := sent[*skepv1.IssueUserRequest](c); r.First || r.Expiry.AsDuration() != 7*24*time.Hour {
		t.Errorf("renewal: asked for %v", r)
	}
	want(t, h.run("context", "issue", "-o", "-", "bob"), 0, "PRIVATE KEY", "")
	if r := sent[*skepv1.IssueUserRequest](c); r.First || r.Role != pki.Admin {
		t.Errorf("context issue asks for %v", r)
	}
}

// usersOf serves a list of certificates; it returns what was asked to be revoked.
func usersOf(c *cluster) *[]string {
	at := func(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(testNow.Add(d)) }
	list := []*skepv1.UserCertificate{
		{Serial: "aa01", Name: "alice", Role: pki.Admin, IssuedAt: at(-48 * time.Hour), NotAfter: at(24 * time.Hour), IssuedBy: "root", IssuedFrom: "local"},
		{Serial: "aa02", Name: "alice", Role: pki.Viewer, IssuedAt: at(-time.Hour), NotAfter: at(24 * time.Hour), IssuedBy: "user-bob", IssuedFrom: "192.0.2.7", RevokedAt: at(-time.Minute), RevokedBy: "root", RevokedFrom: "local"},
		{Serial: "bb01", Name: "bob", Role: pki.Operator, IssuedAt: at(-time.Hour), NotAfter: at(48 * time.Hour), IssuedBy: "root", IssuedFrom: "local"},
	}
	var revoked []string
	serve(c, c.rs, api.UserIssued, func(*skepv1.Empty) (*skepv1.IssuedUsersReply, error) {
		return &skepv1.IssuedUsersReply{Certificates: list}, nil
	})
	serve(c, c.rs, api.UserRevoke, func(r *skepv1.RevokeUserRequest) (*skepv1.RevokeUserReply, error) {
		revoked = append(revoked, r.Ref)
		if r.Ref != "bob" {
			return nil, fault.NotFound("revoke %s: no certificate of that name is recorded", r.Ref)
		}
		return &skepv1.RevokeUserReply{Revoked: list[2:]}, nil
	})
	c.flush()
	return &revoked
}

func TestUsers(t *testing.T) {
	t.Setenv("TZ", "UTC")
	c := newCluster(t)
	revoked := usersOf(c)
	var b strings.Builder
	for _, args := range [][]string{{"user", "ls"}, {"user", "ls", "--filter", "status=good", "-q"}, {"user", "ls", "--filter", "name=al", "--filter", "role=viewer", "--format", "{{.Serial}} {{.IssuedBy}} {{.IssuedFrom}}"},
		{"user", "ls", "--filter", "serial=bb", "--json"}, {"user", "ls", "--filter", "colour=red"}, {"user", "rm", "bob", "eve"}} {
		r := c.run(args...)
		b.WriteString("$ skep " + strings.Join(args, " ") + "\n" + r.out + r.err + "\n")
	}
	golden.Check(t, "user", b.String())
	if strings.Join(*revoked, " ") != "bob eve" {
		t.Errorf("revoked %v", *revoked)
	}
}

func TestAudit(t *testing.T) {
	c := newCluster(t)
	at := func(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(testNow.Add(d)) }
	list := []*skepv1.Event{
		{Kind: "service", Id: "s1", Name: "web", Verb: "create", Time: at(-3 * time.Hour), Actor: "user-alice", Address: "192.0.2.7", Attributes: map[string]string{"name": "web"}},
		{Kind: "secret", Id: "x1", Name: "db", Verb: "update", Time: at(-2 * time.Hour), Actor: "root", Address: "local", Attributes: map[string]string{"name": "db", "version": "2"}},
		{Kind: "config", Id: "c1", Name: "nginx", Verb: "read", Time: at(-time.Hour), Actor: "user-bob", Address: "2001:db8::1", Attributes: map[string]string{"name": "nginx", "version": "1"}},
	}
	serve(c, c.rs, api.AuditList, func(r *skepv1.ListAuditRequest) (*skepv1.ListEventsReply, error) {
		if r.Kind == "none" {
			return &skepv1.ListEventsReply{}, nil
		}
		if r.Page.GetAfter() == "" { // two pages
			return &skepv1.ListEventsReply{Events: list[:2], Next: "2.0"}, nil
		}
		return &skepv1.ListEventsReply{Events: list[2:]}, nil
	})
	c.flush()
	var b strings.Builder
	for _, args := range [][]string{{"audit"}, {"audit", "-n", "2", "--format", "{{.Actor}} {{.Address}} {{.Verb}} {{.Kind}} {{.Name}} {{.ID}}"}, {"audit", "-n", "1", "--json"}, {"audit", "--kind", "none"},
		{"audit", "--since", "yesterday"}, {"audit", "-n", "-1"}} {
		r := c.run(args...)
		b.WriteString("$ skep " + strings.Join(args, " ") + "\n" + r.out + r.err + "\n")
	}
	golden.Check(t, "audit", b.String())
	want(t, c.run("audit", "--user", "alice", "--kind", "secret", "--since", "10m", "--until", "5m"), 0, "", "")
	if r := sent[*skepv1.ListAuditRequest](c); r.User != "alice" || r.Kind != "secret" || !r.Since.AsTime().Equal(testNow.Add(-10*time.Minute)) || !r.Until.AsTime().Equal(testNow.Add(-5*time.Minute)) {
		t.Errorf("asked for %v", r)
	}
}
