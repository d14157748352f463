package cases

import (
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

// Autolock is on and two of three managers are lost for good. The third was started again and is locked; one command with
// the key makes it the only manager and opens it. A wrong key leaves it locked, and it is the cluster's manager all the same.
func TestForceNewClusterUnderAutolock(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Hosts: 4, Managers: 3, InitFlags: []string{"--autolock"}})
	c.awaitManagers(time.Minute, "m1", "m2", "m3")
	key := c.skep("unlock-key", "-q")
	c.on("m1", "sh", "-c", "printf hidden | skep secret create kept -")
	c.skep("service", "create", "--name", "still", "--replicas", "2", "--constraint", "node.role==worker", "--secret", "kept", "busybox", "sleep", "200000")
	before := c.must("w1", "pgrep -fx 'sleep 200000' | sort")
	for _, host := range []string{"m2", "m3"} {
		if err := c.Kill(c.ctx, host); err != nil {
			t.Fatal(err)
		}
	}
	c.kill9("m1", "skep", true)
	if err := c.StartDaemon(c.ctx, "m1"); err != nil {
		t.Fatal(err)
	}
	var said string
	c.await("the cluster is founded anew", 2*time.Minute, func() string {
		r, err := c.RunInput(c.ctx, "m1", key+"\n", "skep", "init", "--force-new-cluster")
		if err != nil {
			t.Fatal(err)
		}
		if said = r.Stdout + r.Stderr; r.Code != 0 {
			return said
		}
		return ""
	})
	t.Log(said)
	if strings.Contains(said, key) {
		t.Error("the key is printed")
	}
	c.awaitManagers(time.Minute, "m1")
	if out := c.skep("secret", "ls", "--format", "{{.Name}}"); out != "kept" {
		t.Errorf("the secrets are %q", out)
	}
	if out := c.skep("unlock-key", "-q"); out != key {
		t.Error("the unlock key is another one")
	}
	c.awaitNode("w1", "Ready", time.Minute)
	if after := c.must("w1", "pgrep -fx 'sleep 200000' | sort"); after != before {
		t.Errorf("containers were started again: %q, %q", before, after)
	}
	// The secret reaches a new task: the vault is open.
	c.skep("service", "update", "--env-add", "A=b", "still")
	c.awaitRunning("still", 2, time.Minute)
	// And it rests sealed.
	if files := c.must("m1", "ls /var/lib/skep/vault"); strings.Contains(files, "master.key") {
		t.Errorf("in the vault's directory: %s", files)
	}
}

// While the majority is lost a worker leaves, a manager says what it costs and leaves with force; when the others are back
// they are the cluster, and one command forgets who left.
func TestLeaveWithoutAMajority(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Hosts: 5, Managers: 3})
	c.awaitManagers(time.Minute, "m1", "m2", "m3")
	c.skep("service", "create", "--name", "all", "--mode", "global", "busybox", "sleep", "200000")
	id := c.skep("node", "inspect", "--format", "{{.ID}}", "m3")
	for _, host := range []string{"m1", "m2"} {
		if err := c.Kill(c.ctx, host); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	r := c.on("w2", "skep", "leave")
	t.Logf("the worker left after %s: %s%s", time.Since(began).Round(time.Millisecond), r.Stdout, r.Stderr)
	if r.Code != 0 || !strings.Contains(r.Stdout, "Node left the swarm") {
		t.Errorf("the worker leaves: %d %s%s", r.Code, r.Stdout, r.Stderr)
	}
	if left := c.on("w2", "pgrep", "-fx", "sleep 200000").Stdout; left != "" {
		t.Errorf("its containers run on: %s", left)
	}
	c.await("the manager says what leaving costs", time.Minute, func() string {
		if r := c.on("m3", "skep", "leave"); r.Code != 1 || !strings.Contains(r.Stderr, "The managers have no majority now, so the others are not told that it leaves") {
			return r.Stdout + r.Stderr
		}
		return ""
	})
	began = time.Now()
	r = c.on("m3", "skep", "leave", "--force")
	t.Logf("the manager left after %s: %s%s", time.Since(began).Round(time.Millisecond), r.Stdout, r.Stderr)
	if r.Code != 0 || !strings.Contains(r.Stderr, "The other managers did not let this one go") || !strings.Contains(r.Stderr, "skep node rm --force "+id) {
		t.Errorf("the manager leaves: %d %s%s", r.Code, r.Stdout, r.Stderr)
	}
	if took := time.Since(began); took > 90*time.Second {
		t.Errorf("it took %s", took)
	}
	for _, host := range []string{"m1", "m2"} {
		if err := c.Start(c.ctx, host); err != nil {
			t.Fatal(err)
		}
	}
	c.awaitAPI(2 * time.Minute) // the two elect first
	c.awaitNode("m3", "Down", 2*time.Minute)
	c.skep("node", "rm", "--force", id)
	c.awaitManagers(2*time.Minute, "m1", "m2")
	c.awaitNode("w2", "Down", time.Minute)
	c.skep("node", "rm", "w2")
	c.awaitRunning("all", 3, time.Minute)
}

// Two of three managers are away. What runs goes on: a container that ends is started again by its node, names, virtual
// addresses and published ports work; every command says soon what is lost. When they are back the task is the same one.
func TestNodesGoOnWithoutAMajority(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Hosts: 5, Managers: 3})
	c.awaitManagers(time.Minute, "m1", "m2", "m3")
	c.skep("network", "create", "-d", "overlay", "net")
	on := []string{"--network", "net", "--constraint", "node.role==worker", "--mode", "global"}
	c.skep(append(append([]string{"service", "create", "--name", "web", "--publish", "8080:80"}, on...), "whoami:v1")...)
	c.skep(append(append([]string{"service", "create", "--name", "ask"}, on...), "busybox", "sleep", "300000")...)
	before := ids(c.tasks("web"))
	pid := func() string { return strings.TrimSpace(c.on("w1", "pgrep", "-x", "whoami").Stdout) }
	first := pid()
	for _, host := range []string{"m2", "m3"} {
		if err := c.Kill(c.ctx, host); err != nil {
			t.Fatal(err)
		}
	}
	took := c.await("a command says what is lost", time.Minute, func() string {
		if r := c.on("m1", "skep", "service", "scale", "--detach", "web=1"); r.Code == 0 || !strings.Contains(r.Stderr, "majority") {
			return r.Stdout + r.Stderr
		}
		return ""
	})
	t.Logf("said after %s", took)

	c.must("w1", "kill -9 "+first)
	took = c.await("the container is started again", time.Minute, func() string {
		if now := pid(); now == "" || now == first {
			return "process " + now
		}
		return ""
	})
	t.Logf("started again after %s", took)
	for _, url := range []string{"http://10.90.2.1:8080/", "http://10.90.2.2:8080/"} {
		c.await("the published port of "+url, time.Minute, func() string {
			if r := c.on("client", "curl", "-sS", "--max-time", "5", url); r.Code != 0 {
				return r.Stderr
			}
			return ""
		})
	}
	for _, host := range []string{"w1", "w2"} {
		for _, name := range []string{"web", "tasks.web"} {
			c.await(name+" is found from a container of "+host, time.Minute, func() string {
				r := c.on(host, "sh", "-c", `exec nsenter -t "$(pgrep -fox 'sleep 300000')" -m -n /bin/busybox wget -T 5 -qO- http://"$1"/`, "sh", name)
				if r.Code != 0 {
					return r.Stdout + r.Stderr
				}
				return ""
			})
		}
	}

	for _, host := range []string{"m2", "m3"} {
		if err := c.Start(c.ctx, host); err != nil {
			t.Fatal(err)
		}
	}
	c.awaitAPI(2 * time.Minute)
	c.awaitManagers(time.Minute, "m1", "m2", "m3")
	c.awaitRunning("web", 2, time.Minute)
	if after := ids(c.tasks("web")); after != before {
		t.Errorf("the tasks before: %s, now: %s", before, after)
	}
	c.await("the managers know that it was started again", time.Minute, func() string {
		out := c.skep("service", "ps", "-q", "--no-trunc", "web")
		for _, id := range strings.Fields(out) {
			if strings.Contains(c.skep("task", "inspect", "--format", "{{.Status.Message}}", id), "again by its node") {
				return ""
			}
		}
		return out
	})
	c.awaitContainers(2, time.Minute, "w1")
}
