package cases

import (
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

// What a node was given stays with its tasks while managers are away and agents come and go; and what cannot be taken
// back is named.
func TestSecretFaults(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Race: true})
	if r, err := c.RunInput(c.ctx, "m1", "value", "skep", "secret", "create", "key", "-"); err != nil || r.Code != 0 {
		t.Fatalf("%v %s", err, r.Stderr)
	}
	c.skep("service", "create", "--name", "user", "--constraint", "node.hostname==w2", "--secret", "key", "--restart-delay", "0s", "--stop-signal", "SIGKILL", "busybox", "sleep", "100000")
	c.awaitRunning("user", 1, time.Minute)
	held := func(host string) string { return c.on(host, "sh", "-c", "cat /run/skep/files/*/0 2>/dev/null").Stdout }
	if got := held("w2"); got != "value" {
		t.Fatalf("in memory: %q", got)
	}

	// The managers are away, and the agent is killed: its tasks go on with what they have, and the agent asks nobody.
	c.kill9("m1", "skep", false)
	c.kill9("w2", "skep", false)
	if err := c.StartDaemon(c.ctx, "w2"); err != nil {
		t.Fatal(err)
	}
	c.await("the agent is back", 30*time.Second, func() string {
		return c.on("w2", "sh", "-c", "curl -sS --max-time 5 --unix-socket /run/skep/node.sock http://node/ready | grep -q state").Stderr
	})
	pid := strings.TrimSpace(c.on("w2", "pgrep", "-fx", "sleep 100000").Stdout)
	if got := c.on("w2", "cat", "/proc/"+pid+"/root/run/secrets/key").Stdout; got != "value" || held("w2") != "value" {
		t.Errorf("after the agent's restart the container has %q", got)
	}
	if err := c.StartDaemon(c.ctx, "m1"); err != nil {
		t.Fatal(err)
	}
	c.awaitAPI(time.Minute)
	c.awaitNode("w2", "Ready", time.Minute)

	// A node that cannot be reached keeps its task, and with it the secret. Who removes the secret is told, the event says it.
	id := c.only("user", 1)[0].ID
	if err := c.Cut(c.ctx, "w2"); err != nil {
		t.Fatal(err)
	}
	c.awaitNode("w2", "Down", 2*time.Minute)
	c.skep("service", "rm", "user")
	r := c.on("m1", "skep", "secret", "rm", "key")
	if r.Code != 0 || !strings.Contains(r.Stderr, id+" on w2") {
		t.Errorf("removed: %d %s%s", r.Code, r.Stdout, r.Stderr)
	}
	if out := c.skep("events", "--since", "5m", "--until", "0s", "--filter", "type=secret", "--json"); !strings.Contains(out, "not.taken.back") || !strings.Contains(out, id+" on w2") {
		t.Errorf("events:\n%s", out)
	}
	if held("w2") != "value" {
		t.Error("the task that goes on lost its secret")
	}
	if err := c.Heal(c.ctx, "w2"); err != nil {
		t.Fatal(err)
	}
	c.await("nothing in memory of w2", time.Minute, func() string { return c.on("w2", "sh", "-c", "ls /run/skep/files").Stdout })
	c.awaitClean(time.Minute, c.members()...)
}
