package cases

import (
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

// A user on a host outside the cluster: a certificate from a manager, one file, and everything the command can do.
func TestRemoteUser(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Hosts: 2})
	// give hands a file over as a person would; the hosts do not share their home.
	give := func(name string, flags ...string) string {
		t.Helper()
		return c.skep(append(append([]string{"context", "issue", "-o", "-"}, flags...), name)...)
	}
	client := func(argv ...string) lab.Result { return c.on("client", append([]string{"skep"}, argv...)...) }
	ok := func(argv ...string) string {
		t.Helper()
		r := client(argv...)
		if r.Code != 0 {
			t.Fatalf("skep %s: exit status %d\n%s%s", strings.Join(argv, " "), r.Code, r.Stdout, r.Stderr)
		}
		return r.Stdout
	}
	take := func(text, name string) {
		t.Helper()
		r, err := c.RunInput(c.ctx, "client", text, "skep", "context", "import", "-", name)
		if err != nil || r.Code != 0 {
			t.Fatalf("import %s: %v\n%s", name, err, r.Stderr)
		}
	}
	refused := func(context string, words []string, argv ...string) {
		t.Helper()
		began := time.Now()
		c.refusedOn("client", 1, words, append([]string{"skep", "--context", context}, argv...)...)
		if d := time.Since(began); d > 20*time.Second {
			t.Errorf("%v: the refusal took %s", argv, d)
		}
	}

	take(give("alice"), "prod")
	ok("context", "use", "prod")
	if out := ok("node", "ls"); !strings.Contains(out, "m1") || !strings.Contains(out, "w1") {
		t.Errorf("node ls: %s", out)
	}
	ok("service", "create", "--name", "shell", "--replicas", "2", "busybox", "sh", "-c", "echo here I am; exec sleep 10000")
	c.await("the logs from afar", 20*time.Second, func() string {
		if out := ok("service", "logs", "shell"); strings.Count(out, "here I am") != 2 {
			return out
		}
		return ""
	})
	r := c.on("client", "timeout", "60", "script", "-qec", "stty rows 33 cols 111; skep exec -it shell.1 sh -c 'stty size; exit 7'", "/dev/null")
	if r.Code != 7 || !strings.Contains(r.Stdout, "33 111") {
		t.Errorf("exec -it: exit status %d: %q %q", r.Code, r.Stdout, r.Stderr)
	}

	take(give("bob", "--role", "viewer"), "look")
	if r := client("--context", "look", "service", "ps", "shell"); r.Code != 0 {
		t.Errorf("a viewer may look: %s", r.Stderr)
	}
	c.skep("service", "create", "--name", "secretive", "--detach", "--env", "DB_PASSWORD=hunter2", "--replicas", "0", "busybox", "sleep", "10000")
	c.skep("service", "update", "--detach", "--env-add", "DB_PASSWORD=hunter3", "secretive")
	for _, args := range [][]string{
		{"service", "inspect", "secretive"}, {"service", "inspect", "--pretty", "secretive"}, {"service", "ls", "--json"}, {"service", "history", "--json", "secretive"},
		{"service", "diff", "secretive"}, {"service", "explain", "--json", "secretive"}, {"events", "--json", "--since", "1h", "--until", "0s"},
	} {
		r := client(append([]string{"--context", "look"}, args...)...)
		if r.Code != 0 || strings.Contains(r.Stdout, "hunter") {
			t.Errorf("a viewer runs %q: %d %s%s", args, r.Code, r.Stdout, r.Stderr)
		}
	}
	if r := client("--context", "look", "service", "diff", "secretive"); !strings.Contains(r.Stdout, "env DB_PASSWORD changed") {
		t.Errorf("a viewer does not see that a value changed: %s", r.Stdout)
	}
	if out := c.skep("service", "inspect", "secretive"); !strings.Contains(out, "hunter3") {
		t.Errorf("an admin sees no value: %s", out)
	}
	c.skep("service", "rm", "secretive")
	viewer := []string{"user bob is a viewer's"}
	refused("look", viewer, "service", "scale", "shell=5")
	refused("look", viewer, "service", "rm", "shell")
	refused("look", viewer, "service", "logs", "shell")
	refused("look", viewer, "exec", "shell.1", "ls")
	refused("look", viewer, "join-token", "manager")
	refused("look", viewer, "context", "issue", "-o", "-", "eve")
	if got := c.skep("service", "ls", "--format", "{{.Replicas}}"); strings.TrimSpace(got) != "2/2" {
		t.Errorf("after what a viewer tried: %s", got)
	}

	short := give("short", "--expiry", "1ms")
	take(short, "short")
	refused("short", []string{"expired on", "skep context issue short"}, "node", "ls")

	// Not a manager at all; and a worker, asked on its own.
	take(give("lost", "--addr", "10.90.0.200:1"), "lost")
	refused("lost", []string{"nothing answers there"}, "node", "ls")
	c.refusedOn("w1", 1, []string{"not a swarm manager"}, "skep", "node", "ls")

	// The manager is away for a moment: neither a read nor a change fails.
	c.on("m1", "sh", "-c", "p=$(cat /var/lib/skep/skep.pid); kill -KILL $p; while kill -0 $p 2>/dev/null; do sleep 0.1; done")
	back := make(chan error, 1)
	go func() { back <- c.StartDaemon(c.ctx, "m1") }()
	defer func() {
		if err := <-back; err != nil {
			t.Errorf("restart the daemon: %v", err)
		}
	}()
	ok("node", "ls")
	ok("service", "scale", "shell=3")
}
