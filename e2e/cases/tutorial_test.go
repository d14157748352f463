package cases

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

// Chapters 1 and 2: a cluster is made by hand, as the tutorial does it, and guards its door.
func TestChapter1InitAndJoin(t *testing.T) {
	c := up(t, lab.Options{NoCluster: true})
	m1, w1 := "10.90.1.1", "10.90.2.1"
	if out := c.skep("init", "--advertise-addr", m1); !strings.Contains(out, "skep join --token") || !strings.Contains(out, m1+":2377") {
		t.Errorf("init does not say how to join:\n%s", out)
	}
	if out := c.skep("join-token", "worker"); !strings.Contains(out, "skep join --token") {
		t.Errorf("join-token worker prints no command:\n%s", out)
	}
	worker, manager := c.skep("join-token", "-q", "worker"), c.skep("swarm", "join-token", "-q", "manager")
	if worker == manager || worker == "" {
		t.Fatalf("tokens %q and %q", worker, manager)
	}

	t.Run("bad tokens", func(t *testing.T) {
		c := &cluster{c.Lab, t, c.ctx}
		wrong := worker[:len(worker)-4] + "zzzz"
		for name, token := range map[string]string{"malformed": "nonsense", "wrong secret": wrong} {
			r := c.on("w1", "skep", "join", "--token", token, "--advertise-addr", w1, m1+":2377")
			if r.Code == 0 || !strings.Contains(r.Stderr, "token") {
				t.Errorf("%s: exit status %d: %s", name, r.Code, r.Stderr)
			}
		}
		second := c.skep("join-token", "-q", "manager")
		c.refusedOn("w1", 1, []string{"one manager"}, "skep", "join", "--token", second, "--advertise-addr", w1, m1+":2377")
		c.refusedOn("w1", 1, []string{"10.90.0.77"}, "skep", "join", "--token", worker, "--advertise-addr", w1, "10.90.0.77:2377")
	})

	if out := c.on("w1", "skep", "join", "--token", worker, "--advertise-addr", w1, m1+":2377"); out.Code != 0 {
		t.Fatalf("join: %s%s", out.Stdout, out.Stderr)
	}
	c.refusedOn("w1", 1, []string{"already part of"}, "skep", "join", "--token", worker, m1+":2377")
	c.refusedOn("m1", 1, []string{"already part of"}, "skep", "init", "--advertise-addr", m1)

	rotated := c.skep("join-token", "--rotate", "-q", "worker")
	if rotated == worker {
		t.Error("--rotate gave the same token")
	}
	c.refusedOn("w2", 1, []string{"token"}, "skep", "join", "--token", worker, "--advertise-addr", "10.90.2.2", m1+":2377")
	if out := c.on("w2", "skep", "swarm", "join", "--token", rotated, "--advertise-addr", "10.90.2.2", m1+":2377"); out.Code != 0 {
		t.Fatalf("join with the new token: %s%s", out.Stdout, out.Stderr)
	}
	for _, h := range []string{"m1", "w1", "w2"} {
		c.awaitNode(h, "Ready Active", 20*time.Second)
	}
	if got := c.nodeStates()["m1"]; got != "Ready Active Leader" {
		t.Errorf("m1 is %q, want the leader", got)
	}
	c.refusedOn("m1", 1, []string{"one manager"}, "skep", "node", "promote", "w1")
	if r := c.on("w1", "skep", "node", "ls"); r.Code != 1 || !strings.Contains(r.Stderr, "manager") {
		t.Errorf("a worker asked for the cluster's nodes: %d %s", r.Code, r.Stderr)
	}

	if out := c.on("w2", "skep", "leave"); out.Code != 0 {
		t.Fatalf("leave: %s%s", out.Stdout, out.Stderr)
	}
	c.awaitNode("w2", "Down", 20*time.Second)
	c.skep("node", "rm", "w2")
	if _, still := c.nodeStates()["w2"]; still {
		t.Error("w2 is listed after node rm")
	}
	c.refusedOn("m1", 1, []string{"--force"}, "skep", "leave")
}

// Chapter 3: the first service.
func TestChapter3Service(t *testing.T) {
	c := up(t, lab.Options{})
	c.skep("service", "create", "--name", "web_server", "httpd")
	if out := c.skep("service", "ls"); !strings.Contains(out, "web_server") || !strings.Contains(out, "1/1") || !strings.Contains(out, "replicated") {
		t.Errorf("service ls:\n%s", out)
	}
	ts := c.tasks("web_server")
	if len(ts) != 1 || ts[0].Name != "web_server.1" || ts[0].Node == "" || !strings.HasPrefix(ts[0].State, "Running") {
		t.Fatalf("service ps: %+v", ts)
	}
	// It serves, and reaches the world outside through its interface on skep0.
	out := c.skep("exec", ts[0].ID, "curl", "-s", "http://127.0.0.1/")
	if !strings.Contains(out, "It works!") {
		t.Errorf("httpd says %q", out)
	}
	r := c.on("m1", "skep", "exec", ts[0].ID, "curl", "-s", "--max-time", "5", "http://"+lab.RegistryAddress+"/v2/")
	if r.Code != 0 {
		t.Errorf("no egress from the task: %d %s", r.Code, r.Stderr)
	}
	c.await("the request is in the log", 10*time.Second, func() string {
		if logs := c.skep("service", "logs", "web_server"); !strings.Contains(logs, "GET / HTTP") {
			return logs
		}
		return ""
	})
	if r := c.on("m1", "skep", "exec", ts[0].ID, "sh", "-c", "exit 7"); r.Code != 7 {
		t.Errorf("exec gave exit status %d, want 7: %s", r.Code, r.Stderr)
	}
}

// Chapter 4: up, down, and a drained node.
func TestChapter4ScaleAndDrain(t *testing.T) {
	c := up(t, lab.Options{Race: true})
	c.skep("service", "create", "--name", "web_server", "httpd")
	c.skep("service", "scale", "web_server=5")
	by := c.running("web_server")
	for _, h := range c.members() {
		if n := len(by[h]); n < 1 || n > 2 {
			t.Errorf("%d of 5 replicas on %s, want them spread: %v", n, h, by)
		}
	}
	c.skep("service", "scale", "web_server=3")
	c.awaitRunning("web_server", 3, 30*time.Second)
	c.awaitContainers(3, 30*time.Second, c.members()...)

	c.skep("node", "update", "--availability", "drain", "m1")
	c.awaitRunning("web_server", 3, 30*time.Second, "m1")
	c.awaitContainers(0, 30*time.Second, "m1")
	if got := c.nodeStates()["m1"]; got != "Ready Drain Leader" {
		t.Errorf("m1 is %q", got)
	}
	c.skep("node", "update", "--availability", "active", "m1")
	c.skep("service", "scale", "web_server=6")
	c.await("m1 takes new tasks", 30*time.Second, func() string {
		if by := c.running("web_server"); len(by["m1"]) == 0 {
			return fmt.Sprint(by)
		}
		return ""
	})
}

// Chapter 5: a host dies without a word and comes back.
func TestChapter5Failover(t *testing.T) {
	c := up(t, lab.Options{})
	c.skep("service", "create", "--name", "web_server", "--replicas", "6", "httpd")
	c.awaitRunning("web_server", 6, time.Minute)
	if err := c.Kill(c.ctx, "w1"); err != nil {
		t.Fatal(err)
	}
	took := c.awaitRunning("web_server", 6, time.Minute, "w1")
	t.Logf("replacements ran %.1f s after the power-off", took.Seconds())
	c.awaitNode("w1", "Down", 10*time.Second)
	c.awaitContainers(6, 30*time.Second, "m1", "w2")

	if err := c.Start(c.ctx, "w1"); err != nil {
		t.Fatal(err)
	}
	c.awaitNode("w1", "Ready", time.Minute)
	c.awaitContainers(6, time.Minute, c.members()...)
	c.awaitRunning("web_server", 6, 30*time.Second)
	c.skep("service", "scale", "web_server=9")
	c.await("the returned host takes tasks", time.Minute, func() string {
		if by := c.running("web_server"); len(by["w1"]) == 0 || count(by) != 9 {
			return fmt.Sprint(by)
		}
		return ""
	})
}

// Chapter 6, the part without networks: rm leaves nothing.
func TestChapter6RemoveLeavesNothing(t *testing.T) {
	c := up(t, lab.Options{})
	c.skep("service", "create", "--name", "web_server", "--replicas", "4",
		"--mount", "type=volume,source=data,target=/data", "--mount", "type=tmpfs,target=/scratch", "--mount", "type=bind,source=/srv,target=/host", "httpd")
	c.awaitRunning("web_server", 4, time.Minute)
	c.skep("service", "rm", "web_server")
	if out := c.skep("service", "ls", "-q"); out != "" {
		t.Errorf("service ls after rm: %s", out)
	}
	took := c.awaitClean(time.Minute, c.members()...)
	t.Logf("nothing left %.1f s after rm", took.Seconds())
	c.refused(1, []string{"web_server"}, "service", "ps", "web_server")
	c.skep("service", "create", "--name", "web_server", "--replicas=2", "httpd")
	c.awaitRunning("web_server", 2, 30*time.Second)
}

// Chapter 11: one on every node, also on one that joins later.
func TestChapter11Global(t *testing.T) {
	c := up(t, lab.Options{Hosts: 2})
	c.skep("service", "create", "--mode", "global", "--name", "logspout", "--mount", "type=bind,source=/srv,destination=/host", "busybox", "sleep", "100000")
	each := func() string {
		by := c.running("logspout")
		for _, h := range c.members() {
			if len(by[h]) != 1 {
				return fmt.Sprintf("%d on %s", len(by[h]), h)
			}
		}
		return ""
	}
	c.await("one task on every node", 30*time.Second, each)
	if out := c.skep("service", "inspect", "--pretty", "logspout"); !strings.Contains(out, "Global") {
		t.Errorf("inspect does not show the mode:\n%s", out)
	}
	if out := c.skep("service", "inspect", "logspout"); !strings.Contains(out, "/srv") {
		t.Errorf("inspect does not show the mount:\n%s", out)
	}
	h, err := c.Add(c.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Join(c.ctx, h, c.skep("join-token", "-q", "worker")); err != nil {
		t.Fatal(err)
	}
	c.await("one task on the new node too", 30*time.Second, each)
	for _, h := range c.members() {
		if n := c.containers(h); n != 1 {
			t.Errorf("%d containers on %s, want 1", n, h)
		}
	}
}

// Chapter 12: labels decide, and go on deciding.
func TestChapter12Labels(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Race: true})
	c.skep("node", "update", "--label-add", "env=test", "w1")
	c.skep("node", "update", "--label-add", "env=prod", "w2")
	c.skep("service", "create", "--constraint", "node.labels.env==test", "--replicas", "3", "--name", "my_web", "httpd")
	all := func(node string, n int) {
		t.Helper()
		c.await(fmt.Sprintf("all %d on %s", n, node), time.Minute, func() string {
			if by := c.running("my_web"); len(by[node]) != n || count(by) != n {
				return c.skep("service", "ps", "my_web")
			}
			return ""
		})
	}
	all("w1", 3)
	c.skep("service", "update", "--constraint-rm", "node.labels.env==test", "--constraint-add", "node.labels.env==prod", "my_web")
	all("w2", 3)

	// Taking the label away takes the tasks away; giving it to another node gives it the tasks.
	c.skep("node", "update", "--label-rm", "env", "w2")
	c.skep("node", "update", "--label-add", "env=prod", "w1")
	all("w1", 3)
	c.awaitContainers(0, 30*time.Second, "w2")

	c.skep("service", "create", "--mode", "global", "--constraint", "node.labels.env==prod", "--name", "logspout", "busybox", "sleep", "100000")
	if by := c.running("logspout"); len(by["w1"]) != 1 || count(by) != 1 {
		t.Errorf("global with a constraint: %v", by)
	}
}
