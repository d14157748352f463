package cases

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

// Every service in a process of its own: each is killed in turn while containers run, and each comes back alone.
func TestSeparateBinaries(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Hosts: 2, Separate: true})
	c.skep("service", "create", "--name", "still", "--replicas", "4", "--stop-signal", "SIGKILL", "busybox", "sleep", "200000")
	c.skep("service", "create", "--name", "web", "--replicas", "2", "--stop-signal", "SIGKILL", "busybox", "sleep", "100000")
	before := c.sleepers()
	if n := strings.Count(before, "\n"); n != 4 {
		t.Fatalf("4 replicas are these processes:\n%s", before)
	}

	// A node is one form or the other, and some services are alone on it.
	c.refusedOn("m1", 1, []string{"processes of their own", "skep-bus", "skep-agent"}, "skep", "node", "run")
	for _, name := range []string{"skep-bus", "skep-mesh", "skep-agent", "skep-engine"} {
		c.refusedOn("m1", 1, []string{name + " (pid", "runs on /var/lib/skep already"}, name)
	}
	c.refusedOn("w1", 1, []string{"runs on managers"}, "skep-state")
	c.refusedOn("w1", 1, []string{"processes of their own", "skep-agent", "skep-mesh"}, "skep", "leave")
	for _, name := range lab.Programs(lab.Manager) {
		if r := c.on("m1", name, "-help"); r.Code != 0 || !strings.Contains(r.Stderr, "Usage: "+name) {
			t.Errorf("%s -help: %d %s", name, r.Code, r.Stderr)
		}
	}

	// Those that scale: a second instance of each shares the work or stands by.
	for _, name := range []string{"skep-state", "skep-vault", "skep-scheduler", "skep-health", "skep-mesh-controller"} {
		c.start("m1", name)
		c.await("a second "+name, 30*time.Second, func() string {
			return c.on("m1", "sh", "-c", "kill -0 $(cat /var/lib/skep/lock/"+name+".2)").Stderr
		})
	}
	replicas := 2
	works := func(t *testing.T, what string, began time.Time) {
		t.Helper()
		c := &cluster{c.Lab, t, c.ctx}
		replicas = 5 - replicas // 2 and 3 by turns
		c.await("scaling after "+what, time.Minute, func() string {
			if r := c.on("m1", "skep", "service", "scale", "--detach", fmt.Sprint("web=", replicas)); r.Code != 0 {
				return r.Stderr
			}
			return ""
		})
		c.awaitRunning("web", replicas, time.Minute)
		for _, host := range c.members() {
			c.awaitNode(host, "Ready", 30*time.Second)
		}
		if now := c.sleepers(); now != before {
			t.Errorf("%s touched containers:\n%s\n%s", what, before, now)
		}
		t.Logf("%s: all as before after %.1f s", what, time.Since(began).Seconds())
	}
	for _, v := range []struct {
		host, name string
		instance   int
		restart    bool
	}{
		// The first instance leads or has half the work; the second does alone.
		{"m1", "skep-scheduler", 1, false}, {"m1", "skep-health", 1, false}, {"m1", "skep-state", 1, false}, {"m1", "skep-vault", 1, false}, {"m1", "skep-mesh-controller", 1, false},
		// And these come back.
		{"m1", "skep-scheduler", 2, true}, {"m1", "skep-health", 2, true}, {"m1", "skep-state", 2, true}, {"m1", "skep-vault", 2, true}, {"m1", "skep-mesh-controller", 2, true},
		{"m1", "skep-bus", 1, true}, {"m1", "skep-mesh", 1, true}, {"m1", "skep-agent", 1, true}, {"w1", "skep-mesh", 1, true}, {"w1", "skep-agent", 1, true},
		{"m1", "skep-engine", 1, true},
	} {
		t.Run(fmt.Sprint(v.host, " ", v.name, " ", v.instance), func(t *testing.T) {
			c := &cluster{c.Lab, t, c.ctx}
			began := time.Now()
			c.signal(v.host, v.name, v.instance, "KILL")
			if v.restart {
				c.start(v.host, v.name)
			}
			works(t, "the end of "+v.name, began)
			if v.name == "skep-engine" {
				c.await("Docker's API answers", 30*time.Second, func() string {
					r := c.on("m1", "docker", "-H", "unix:///run/skep/docker.sock", "service", "ls", "--format", "{{.Name}} {{.Replicas}}")
					if want := fmt.Sprintf("still 4/4\nweb %d/%[1]d\n", replicas); r.Stdout != want {
						return r.Stdout + r.Stderr
					}
					return ""
				})
			}
			if v.name == "skep-vault" {
				c.await("the vault answers", 30*time.Second, func() string { return c.on("m1", "skep", "join-token", "-q", "worker").Stderr })
			}
		})
	}

	// SIGTERM: each ends by itself, soon, and says so; containers stay. Then the node leaves in the other form.
	for _, name := range []string{"skep-agent", "skep-mesh", "skep-engine"} {
		c.signal("w1", name, 1, "TERM")
	}
	for _, name := range lab.Programs(lab.Manager) {
		if name != "skep-bus" {
			c.signal("m1", name, 1, "TERM")
		}
	}
	c.signal("m1", "skep-bus", 1, "TERM")
	for host, role := range map[string]string{"m1": lab.Manager, "w1": lab.Worker} {
		for _, name := range lab.Programs(role) {
			if r := c.on(host, "tail", "-n1", "/var/lib/skep/"+name+".log"); !strings.Contains(r.Stdout, `"stopped"`) || strings.Contains(r.Stdout, `"error"`) {
				t.Errorf("the last word of %s on %s: %s", name, host, r.Stdout)
			}
		}
	}
	if now := c.sleepers(); now != before {
		t.Errorf("stopping everything touched containers:\n%s\n%s", before, now)
	}
	if err := c.StartDaemon(c.ctx, "m1"); err != nil {
		t.Fatal(err)
	}
	c.awaitAPI(time.Minute)
	if r := c.on("w1", "skep", "leave"); r.Code != 0 {
		t.Fatalf("leave: %s%s", r.Stdout, r.Stderr)
	}
	c.awaitClean(time.Minute, "w1")
	c.awaitRunning("still", 4, time.Minute)
	c.skep("node", "rm", "--force", "w1")
	c.skep("service", "rm", "still", "web")
	c.awaitClean(time.Minute, "m1")
}

// sleepers are the processes of service still, by host.
func (c *cluster) sleepers() (out string) {
	c.t.Helper()
	for _, host := range c.members() {
		for _, pid := range strings.Fields(c.on(host, "pgrep", "-fx", "sleep 200000").Stdout) {
			out += host + " " + pid + "\n"
		}
	}
	return out
}

func (c *cluster) start(host, name string) {
	c.t.Helper()
	if err := c.StartProgram(c.ctx, host, name); err != nil {
		c.t.Fatal(err)
	}
}

// signal sends one instance of a service a signal that ends it, and returns when it has ended.
func (c *cluster) signal(host, name string, instance int, sig string) {
	c.t.Helper()
	script := fmt.Sprintf(`p=$(cat /var/lib/skep/lock/%s.%d) && kill -%s $p || exit 1; n=0; while kill -0 $p 2>/dev/null; do n=$((n+1)); [ $n -lt 1000 ] || exit 2; sleep 0.02; done`, name, instance, sig)
	if r := c.on(host, "sh", "-c", script); r.Code != 0 {
		c.t.Fatalf("signal %s to %s %d on %s: %d %s", sig, name, instance, host, r.Code, r.Stderr)
	}
}
