package cases

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

// A private image runs on nodes that were never logged in: the password goes from a login to the vault, and from there to
// the nodes that pull. It is nowhere else.
func TestPrivateRegistry(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Hosts: 3, Race: true, Env: []string{"DOCKER_CONFIG=/var/lib/skep/login"}})
	password := random()
	start := func(password string) {
		t.Helper()
		if err := c.StartPrivate(c.ctx, "ci", password); err != nil {
			t.Fatal(err)
		}
	}
	login := func(password string) lab.Result {
		t.Helper()
		r, err := c.RunInput(c.ctx, "m1", password, "skep", "login", "--username", "ci", "--password-stdin", "--ca", lab.PrivateCA, lab.PrivateAddress)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	start(password)
	watch := c.watchArguments("m1")
	image := lab.PrivateAddress + "/library/whoami:v1"

	// Without a login nothing comes of it, and the reason is on show.
	r := c.on("m1", "skep", "service", "create", "-d", "--name", "none", "--with-registry-auth", "--restart-condition", "none", image)
	if r.Code != 0 || !strings.Contains(r.Stderr, "no credentials for "+lab.PrivateAddress) {
		t.Errorf("create without a login: %d %s", r.Code, r.Stderr)
	}
	c.await("the reason on show", time.Minute, func() string {
		for _, x := range c.tasks("none") {
			if strings.Contains(x.Error, "pull access denied") && strings.Contains(x.Error, "skep login") {
				return ""
			}
		}
		return c.skep("service", "ps", "none")
	})
	c.skep("service", "rm", "none")
	if r := login("not-" + password); r.Code != 1 || !strings.Contains(r.Stderr, "unauthorized") {
		t.Errorf("a wrong password: %+v", r)
	}
	if r := login(password); r.Code != 0 || !strings.Contains(r.Stdout, "Login Succeeded") {
		t.Fatalf("login: %+v", r)
	}

	// With it every node pulls, those that begin later too.
	c.skep("service", "create", "--name", "web", "--replicas", "2", "--constraint", "node.role==worker", "--replicas-max-per-node", "1", "--with-registry-auth", image)
	if by := c.running("web"); len(by["w1"]) != 1 || len(by["w2"]) != 1 {
		t.Errorf("it runs on %v", by)
	}
	if got := c.skep("service", "inspect", "-f", "{{.Spec.TaskTemplate.ContainerSpec.Image}}", "web"); !strings.Contains(got, "@sha256:") {
		t.Errorf("the image was not resolved: %s", got)
	}

	// The password changes at the registry: what the service has is no longer good for anything, and it goes on.
	next := random()
	start(next)
	c.skep("service", "update", "--env-add", "A=1", "web")
	if r := c.on("m1", "skep", "service", "update", "--env-add", "A=2", "--image", image, "web"); r.Code != 0 || !strings.Contains(r.Stderr, "keeps the one it has") {
		t.Errorf("an update whose image cannot be looked up: %d %s", r.Code, r.Stderr)
	}
	c.awaitRunning("web", 2, time.Minute)
	// A new image that nobody can pull: the rollout pauses at the first task, and every task there was serves (moby/moby#31819).
	if r := c.on("m1", "skep", "service", "update", "--timeout", "90s", "--image", lab.PrivateAddress+"/library/whoami:v2", "web"); r.Code == 0 {
		t.Errorf("an update to an image that nobody can pull: %+v", r)
	}
	if n := count(c.running("web")); n != 2 {
		t.Errorf("%d tasks serve after an update that nobody can pull", n)
	}
	c.skep("service", "rollback", "web")
	c.awaitRunning("web", 2, time.Minute)
	// It is not in place where the image is not. New credentials come to the tasks that are needed, and replace none.
	before := c.tasks("web")
	if r := login(next); r.Code != 0 {
		t.Fatalf("login: %+v", r)
	}
	c.skep("service", "update", "--with-registry-auth", "web")
	if after := c.tasks("web"); len(after) != len(before) {
		t.Errorf("new credentials replaced tasks: %v, before %v", after, before)
	}
	c.skep("service", "update", "--constraint-rm", "node.role==worker", "web")
	c.skep("service", "scale", "web=3")
	c.awaitRunning("web", 3, time.Minute)

	// The same credentials once more change nothing.
	history := c.skep("service", "history", "-q", "web")
	c.skep("service", "update", "--with-registry-auth", "web")
	if again := c.skep("service", "history", "-q", "web"); again != history {
		t.Errorf("the same credentials made a revision: %s, before %s", again, history)
	}
	if out := c.skep("secret", "ls", "-q") + c.skep("config", "ls", "-q"); out != "" {
		t.Errorf("credentials are listed: %s", out)
	}
	c.skep("logout", lab.PrivateAddress)
	watch()

	// Nowhere in clear: not in what the broker stored, not in logs, not in any answer.
	for _, p := range []string{password, next} {
		needles := []string{p, base64.StdEncoding.EncodeToString([]byte("ci:" + p)), base64.RawStdEncoding.EncodeToString([]byte(p))}
		for _, n := range needles {
			for _, h := range c.members() {
				r, err := c.RunInput(c.ctx, h, n+"\n", "grep", "-rlaF", "-f", "-", "--exclude-dir=containerd", "/var/lib/skep", "/run/skep")
				if err != nil {
					t.Fatal(err)
				}
				if r.Stdout != "" {
					t.Errorf("%s has the password in %s", h, r.Stdout)
				}
			}
			for _, args := range [][]string{{"service", "inspect", "web"}, {"service", "inspect", "--json", "web"}, {"service", "history", "--json", "web"}, {"events", "--since", "1h", "--until", "0s", "--json"}, {"service", "ps", "--json", "web"}} {
				if strings.Contains(c.skep(args...), n) {
					t.Errorf("skep %s shows the password", strings.Join(args, " "))
				}
			}
		}
	}
	events := c.skep("events", "--since", "1h", "--until", "0s")
	if !strings.Contains(events, "registry create") || !strings.Contains(events, "registry deliver") {
		t.Errorf("who was given credentials is not told:\n%s", events)
	}
}

// watchArguments notes the arguments of every process of a host until the returned function is called, in a file there.
func (c *cluster) watchArguments(host string) (stop func()) {
	c.t.Helper()
	cmd, err := c.Command(c.ctx, host, "sh", "-c", "while :; do cat /proc/[0-9]*/cmdline 2>/dev/null; sleep 0.03; done > /var/lib/skep/arguments")
	if err != nil {
		c.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	return func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
		if r := c.on(host, "grep", "-c", "-aF", "-e", "--password-stdin", "/var/lib/skep/arguments"); r.Code != 0 {
			c.t.Errorf("the watch saw no login: %+v", r)
		}
	}
}

func random() string {
	b := make([]byte, 12)
	rand.Read(b) // does not fail
	return "pw" + hex.EncodeToString(b)
}
