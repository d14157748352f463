package cases

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
	"skep.dev/libs/pki"
)

type caState struct {
	Root     struct{ Digest, Certificate string }
	Rotation *struct {
		Phase, Text      string
		Nodes, Moved     int
		UserCertificates int `json:"user_certificates"`
		Waiting          []struct{ Hostname, Why string }
	}
}

func (c *cluster) ca() (s caState) {
	c.t.Helper()
	text := c.skep("ca", "--json")
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		c.t.Fatalf("skep ca --json: %v: %s", err, text)
	}
	return s
}

func (c *cluster) awaitRotated(limit time.Duration) time.Duration {
	c.t.Helper()
	return c.await("the rotation ends", limit, func() string {
		if r := c.ca().Rotation; r != nil {
			return r.Phase + ": " + r.Text
		}
		return ""
	})
}

// roots is what a node trusts: its certificate is signed by the first of them, or it would not be on disk.
func (c *cluster) roots(host string) string {
	c.t.Helper()
	return c.on(host, "cat", "/var/lib/skep/certs/ca.crt").Stdout
}

// TestRotateCA: the root is replaced under traffic. No request fails, no task is lost; a token and a user's context of before
// go on working; then a node that was away comes back by itself, and nothing of the old root works any more.
func TestRotateCA(t *testing.T) {
	c := up(t, lab.Options{})
	c.skep("service", "create", "--name", "web", "--replicas", "6", "--publish", "8080:80", "whoami:v1")
	c.awaitPort(8080)
	yesterday := c.skep("join-token", "-q", "worker")
	if r, err := c.RunInput(c.ctx, "client", c.skep("context", "issue", "-o", "-", "alice"), "skep", "context", "import", "--use", "-", "prod"); err != nil || r.Code != 0 {
		t.Fatal(err, r.Stderr)
	}
	w3, err := c.Add(c.ctx)
	if err != nil {
		t.Fatal(err)
	}
	ids := func() (out []string) {
		for _, tasks := range c.running("web") {
			for _, x := range tasks {
				out = append(out, x.ID)
			}
		}
		slices.Sort(out)
		return out
	}
	before, tasks := c.ca(), ids()
	var urls []string
	for _, m := range []string{"m1", "w1", "w2"} {
		urls = append(urls, "http://"+fabric[m]+":8080/")
	}
	end := c.hammer(4, urls...)

	// A session on a worker, meanwhile.
	c.skep("service", "create", "--name", "shell", "--constraint", "node.hostname==w1", "busybox", "sleep", "100000")
	session := make(chan lab.Result, 1)
	go func() {
		r, err := c.Run(c.ctx, "m1", "skep", "exec", "shell.1", "sh", "-c", "for i in $(seq 240); do echo $i; sleep 0.1; done")
		if err != nil {
			r.Stderr += err.Error()
		}
		session <- r
	}()

	began := time.Now()
	r := c.on("m1", "skep", "ca", "--rotate")
	if r.Code != 0 || !strings.Contains(r.Stderr, "1 users' certificates of the old one (alice)") {
		t.Fatalf("skep ca --rotate: %d\n%s", r.Code, r.Stderr)
	}
	t.Logf("three nodes moved after %.1f s:\n%s", time.Since(began).Seconds(), r.Stderr)
	if err := c.Join(c.ctx, w3, yesterday); err != nil {
		t.Fatalf("a token of yesterday: %v", err)
	}
	c.awaitNode("w3", "Ready", 30*time.Second)
	client := func(argv ...string) lab.Result { return c.on("client", append([]string{"skep"}, argv...)...) }
	if r := client("node", "ls"); r.Code != 0 || r.Stderr != "" {
		t.Errorf("a context of before: %d %s", r.Code, r.Stderr)
	}
	t.Logf("the old root was dropped %.1f s after the user's command", c.awaitRotated(time.Minute).Seconds())
	after := c.ca()
	if after.Root.Digest == before.Root.Digest || after.Root.Certificate == before.Root.Certificate {
		t.Error("the root is the old one")
	}
	for _, m := range []string{"m1", "w1", "w2", "w3"} {
		if got := c.roots(m); got != after.Root.Certificate {
			t.Errorf("%s trusts %d roots, or not the new one", m, strings.Count(got, "BEGIN"))
		}
	}
	if token := c.skep("join-token", "-q", "worker"); token == yesterday || !strings.Contains(token, after.Root.Digest) {
		t.Error("the join token names the old root")
	}
	if r := client("service", "ls"); r.Code != 0 {
		t.Errorf("the context after the rotation: %s", r.Stderr)
	}
	if r := <-session; r.Code != 0 || strings.Count(r.Stdout, "\n") != 240 {
		t.Errorf("a session during the rotation: exit status %d, %d of 240 lines: %s", r.Code, strings.Count(r.Stdout, "\n"), r.Stderr)
	}
	c.kill9("w1", "skep", false)
	if err := c.StartDaemon(c.ctx, "w1"); err != nil {
		t.Fatal(err)
	}
	c.awaitNode("w1", "Ready", 30*time.Second)
	asked, failed, first := end()
	t.Logf("%d requests, %d failed", asked, failed)
	if failed > 0 || asked == 0 {
		t.Errorf("%d of %d requests failed, such as %s", failed, asked, first)
	}
	if now := ids(); fmt.Sprint(now) != fmt.Sprint(tasks) {
		t.Errorf("tasks before %v, after %v", tasks, now)
	}

	// A node is away and the manager is killed in the middle; both come back, and it goes on by itself.
	if err := c.Cut(c.ctx, "w2"); err != nil {
		t.Fatal(err)
	}
	c.awaitNode("w2", "Down", 30*time.Second)
	c.skep("ca", "--rotate", "--detach")
	c.await("it waits for w2 alone", time.Minute, func() string {
		r := c.ca().Rotation
		if r == nil || r.Phase != "issue" || len(r.Waiting) != 1 || r.Waiting[0].Hostname != "w2" {
			return fmt.Sprintf("%+v", r)
		}
		return ""
	})
	c.kill9("m1", "skep", false)
	if err := c.StartDaemon(c.ctx, "m1"); err != nil {
		t.Fatal(err)
	}
	c.awaitAPI(time.Minute)
	if err := c.Heal(c.ctx, "w2"); err != nil {
		t.Fatal(err)
	}
	c.await("the late node moves", time.Minute, func() string {
		if r := c.ca().Rotation; r != nil && r.Phase == "issue" {
			return r.Text
		}
		return ""
	})
	c.skep("ca", "--rotate", "--force-finish")
	c.awaitRotated(time.Minute)
	if got, want := c.roots("w2"), c.ca().Root.Certificate; got != want {
		t.Error("the late node has another root")
	}
	if r := client("node", "ls"); r.Code == 0 || !strings.Contains(r.Stderr, "skep context issue alice") {
		t.Errorf("a certificate of a root that was dropped: %d %s", r.Code, r.Stderr)
	}

	// The node is away again, and nobody waits for it: it says so itself when it is back, and what to do works.
	if err := c.Cut(c.ctx, "w2"); err != nil {
		t.Fatal(err)
	}
	c.awaitNode("w2", "Down", 30*time.Second)
	c.skep("ca", "--rotate", "--detach")
	c.await("the others move", time.Minute, func() string {
		if r := c.ca().Rotation; r == nil || r.Phase != "issue" || len(r.Waiting) != 1 {
			return fmt.Sprintf("%+v", r)
		}
		return ""
	})
	c.skep("ca", "--rotate", "--force-finish")
	c.awaitRotated(time.Minute)
	if err := c.Heal(c.ctx, "w2"); err != nil {
		t.Fatal(err)
	}
	c.await("w2 says what is wrong", time.Minute, func() string {
		if r := c.on("w2", "grep", "-c", "the root of the cluster was rotated without it.*skep leave --force", "/var/lib/skep/skep.log"); r.Code != 0 {
			return "not yet"
		}
		return ""
	})
	c.skep("node", "rm", "--force", "w2")
	if r := c.on("w2", "skep", "leave", "--force"); r.Code != 0 {
		t.Fatal(r.Stderr)
	}
	w2, err := c.Host("w2")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Join(c.ctx, w2, c.skep("join-token", "-q", "worker")); err != nil {
		t.Fatal(err)
	}
	c.awaitNode("w2", "Ready", 30*time.Second)
}

// TestRotateCASeparate: the same where every service is a process of its own, to a root of one's own. The processes learn of
// the roots by their node's files; requests to the API go on.
func TestRotateCASeparate(t *testing.T) {
	c := up(t, lab.Options{Hosts: 2, Separate: true})
	c.skep("service", "create", "--name", "web", "--replicas", "2", "--publish", "8080:80", "whoami:v1")
	c.awaitPort(8080)
	yesterday := c.skep("join-token", "-q", "worker")
	w2, err := c.Add(c.ctx)
	if err != nil {
		t.Fatal(err)
	}
	own, err := pki.NewCA("example")
	if err != nil {
		t.Fatal(err)
	}
	key, err := own.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	if r, err := c.RunInput(c.ctx, "m1", string(own.CertPEM())+string(key), "sh", "-c", "umask 077; tee /run/root.pem >/run/root.key; sed -i '/PRIVATE/,$d' /run/root.pem; sed -i '1,/END CERT/d' /run/root.key"); err != nil || r.Code != 0 {
		t.Fatal(err, r.Stderr)
	}
	end := c.hammer(2, "http://"+fabric["m1"]+":8080/", "http://"+fabric["w1"]+":8080/")
	began := time.Now()
	if out := c.skep("ca", "--rotate", "--ca-cert", "/run/root.pem", "--ca-key", "/run/root.key"); out != strings.TrimSpace(string(own.CertPEM())) {
		t.Errorf("the new root: %s", out)
	}
	c.awaitRotated(time.Minute)
	t.Logf("rotated in %.1f s", time.Since(began).Seconds())
	for _, m := range []string{"m1", "w1"} {
		if got := c.roots(m); got != string(own.CertPEM()) {
			t.Errorf("%s trusts %d roots, or not the new one", m, strings.Count(got, "BEGIN"))
		}
	}
	if err := c.Join(c.ctx, w2, yesterday); err != nil {
		t.Fatalf("a token of yesterday: %v", err)
	}
	c.awaitNode("w2", "Ready", 30*time.Second)
	c.skep("service", "scale", "web=4")
	asked, failed, first := end()
	t.Logf("%d requests, %d failed", asked, failed)
	if failed > 0 || asked == 0 {
		t.Errorf("%d of %d requests failed, such as %s", failed, asked, first)
	}
}
