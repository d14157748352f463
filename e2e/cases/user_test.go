package cases

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

// A user works from another host, is removed while he follows the events, and comes back never, also after the manager's
// restart. The audit shows who did what, and from where.
func TestUserIsRemoved(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Hosts: 2})
	give := func(context string, args ...string) {
		t.Helper()
		text := c.skep(append([]string{"user", "create", "-o", "-"}, args...)...)
		r, err := c.RunInput(c.ctx, "client", text, "skep", "context", "import", "-", context)
		if err != nil || r.Code != 0 {
			t.Fatalf("import %s: %v\n%s", context, err, r.Stderr)
		}
	}
	as := func(context string, args ...string) string {
		t.Helper()
		r := c.on("client", append([]string{"skep", "--context", context}, args...)...)
		if r.Code != 0 {
			t.Fatalf("%s: skep %s: %d\n%s%s", context, strings.Join(args, " "), r.Code, r.Stdout, r.Stderr)
		}
		return r.Stdout
	}
	give("op", "alice", "--role", "operator", "--expiry", "7d")
	give("look", "vic", "--role", "viewer")
	c.refused(1, []string{"user alice already exists", "--renew"}, "user", "create", "-o", "-", "--role", "admin", "alice")

	as("op", "service", "create", "--detach", "--name", "web", "--replicas", "1", "busybox", "sleep", "10000")
	as("op", "service", "scale", "--detach", "web=2")
	c.on("client", "sh", "-c", "printf value | skep --context op config create conf -")
	as("op", "config", "inspect", "conf")
	c.skep("service", "scale", "--detach", "web=1")
	c.awaitRunning("web", 1, 20*time.Second)
	if out := as("op", "exec", "web.1", "echo", "inside"); !strings.Contains(out, "inside") {
		t.Errorf("exec: %q", out)
	}
	c.refusedOn("client", 1, []string{"operator's"}, "skep", "--context", "op", "node", "update", "--availability", "drain", "w1")
	c.refusedOn("client", 1, []string{"operator's"}, "skep", "--context", "op", "user", "ls")
	c.refusedOn("client", 1, []string{"operator's"}, "skep", "--context", "op", "user", "create", "-o", "-", "--role", "admin", "eve")
	c.refusedOn("client", 1, []string{"viewer's"}, "skep", "--context", "look", "audit")

	// Events are written behind the back of who makes a change.
	c.await("the audit", 10*time.Second, func() string {
		type entry struct{ Kind, Verb, Name, Actor, Address string }
		got := map[entry]bool{}
		for line := range strings.Lines(as("op", "audit", "--json", "--since", "1h")) {
			var e entry
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			got[e] = true
		}
		for _, e := range []entry{
			{"service", "create", "web", "user-alice", "10.90.0.200"}, {"service", "update", "web", "user-alice", "10.90.0.200"}, {"service", "update", "web", "root", "local"},
			{"user", "issue", "alice", "root", "local"}, {"config", "create", "conf", "user-alice", "10.90.0.200"}, {"config", "read", "conf", "user-alice", "10.90.0.200"},
			{"task", "exec", "web.1", "user-alice", "10.90.0.200"},
		} {
			if !got[e] {
				return "missing " + strings.Join([]string{e.Actor, e.Address, e.Verb, e.Kind, e.Name}, " ")
			}
		}
		return ""
	})
	if out := c.skep("audit", "--user", "alice", "--kind", "service", "-n", "1"); !strings.Contains(out, "10.90.0.200") || strings.Contains(out, "config") {
		t.Errorf("audit of alice: %s", out)
	}
	if out := as("look", "events", "--json", "--since", "1h", "--until", "0s"); !strings.Contains(out, "web") || strings.Contains(out, "10.90.0.200") || strings.Contains(out, "user-alice") {
		t.Errorf("a viewer is told who did what: %s", out)
	}

	follow := make(chan lab.Result, 1)
	go func() {
		r, err := c.Run(c.ctx, "client", "skep", "--context", "op", "events")
		if err != nil {
			r.Stderr += err.Error()
		}
		follow <- r
	}()
	c.await("alice follows the events", 10*time.Second, func() string {
		if strings.Count(c.on("m1", "sh", "-c", "ss -Htn state established '( sport = :2377 )' src 10.90.1.1 dst 10.90.0.200 || true").Stdout, "10.90.0.200") == 0 {
			return "no connection from the client"
		}
		return ""
	})
	began := time.Now()
	c.skep("user", "rm", "alice")
	select {
	case r := <-follow:
		t.Logf("the one who follows is cut off after %s", time.Since(began).Round(time.Millisecond))
		if r.Code != 1 || !strings.Contains(r.Stderr, "refuses this context's certificate") {
			t.Errorf("cut off: exit status %d\n%s", r.Code, r.Stderr)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("a removed user still follows the events")
	}
	gone := []string{"refuses this context's certificate"}
	c.refusedOn("client", 1, gone, "skep", "--context", "op", "node", "ls")
	if out := c.skep("user", "ls", "--filter", "name=alice", "--format", "{{.Status}}"); !strings.Contains(out, "revoked") {
		t.Errorf("user ls: %s", out)
	}
	c.on("m1", "sh", "-c", "p=$(cat /var/lib/skep/skep.pid); kill -KILL $p; while kill -0 $p 2>/dev/null; do sleep 0.1; done")
	if err := c.StartDaemon(c.ctx, "m1"); err != nil {
		t.Fatal(err)
	}
	c.refusedOn("client", 1, gone, "skep", "--context", "op", "node", "ls")
	c.awaitAPI(time.Minute)
	as("look", "node", "ls")
	give("again", "alice", "--role", "operator")
	as("again", "node", "ls")
	c.refusedOn("client", 1, gone, "skep", "--context", "op", "node", "ls")
}

// With each service in a process of its own, too, a user's requests reach all that answer people, and name him.
func TestUserOfSeparateServices(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Hosts: 2, Separate: true})
	text := c.skep("user", "create", "-o", "-", "--role", "admin", "alice")
	if r, err := c.RunInput(c.ctx, "client", text, "skep", "context", "import", "--use", "-"); err != nil || r.Code != 0 {
		t.Fatalf("import: %v\n%s", err, r.Stderr)
	}
	for _, line := range []string{
		"skep service create --detach --name web busybox sleep 10000", "skep service explain web", "skep network create front", "skep network inspect -v front", "skep image ls --node m1",
		"skep image ls --node w1", "skep node update --label-add a=b w1", "skep mesh ls --node all", "skep user ls", "skep join-token worker",
	} {
		if r := c.on("client", strings.Fields(line)...); r.Code != 0 {
			t.Errorf("%s: %d\n%s%s", line, r.Code, r.Stdout, r.Stderr)
		}
	}
	c.await("the audit", 10*time.Second, func() string {
		out := c.on("client", "skep", "audit", "--user", "alice", "--format", "{{.Verb}} {{.Kind}} {{.Name}} {{.Address}}").Stdout
		for _, want := range []string{"create service web 10.90.0.200", "create network front 10.90.0.200", "update node w1 10.90.0.200", "token-read cluster default 10.90.0.200"} {
			if !strings.Contains(out, want) {
				return "no " + want + " in\n" + out
			}
		}
		return ""
	})
}
