package cases

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

// What users get wrong. One lab for all: nothing here may leave a trace for the next.
func TestBadInput(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{NodeFlags: []string{"--max-tasks", "20"}})
	sub := func(name string, f func(c *cluster)) {
		t.Run(name, func(t *testing.T) { f(&cluster{c.Lab, t, c.ctx}) })
	}
	create := func(args ...string) []string { return append([]string{"service", "create", "--name", "bad"}, args...) }

	sub("refused as usage", func(c *cluster) {
		for _, bad := range []struct {
			words []string
			args  []string
		}{
			{[]string{"constraint"}, create("--constraint", "node.labels.env~test", "busybox")},
			{[]string{"constraint"}, create("--constraint", "nonsense", "busybox")},
			{[]string{"mount"}, create("--mount", "type=bind,source=/srv", "busybox")},
			{[]string{"mount"}, create("--mount", "type=floppy,target=/a", "busybox")},
			{[]string{"mount"}, create("--mount", "target", "busybox")},
			{[]string{"memory"}, create("--limit-memory", "lots", "busybox")},
			{[]string{"replicas"}, create("--replicas", "-1", "busybox")},
			{[]string{"replicas"}, create("--replicas", "many", "busybox")},
			{[]string{"unknown flag"}, create("--nosuchflag", "busybox")},
			{[]string{"requires"}, []string{"service", "create"}},
			{[]string{"scale"}, []string{"service", "scale", "web"}},
			{[]string{"label"}, []string{"node", "update", "--label-add", "=x", "w1"}},
			{[]string{"availability"}, []string{"node", "update", "--availability", "darin", "w1"}},
		} {
			r := c.on("m1", append([]string{"skep"}, bad.args...)...)
			if r.Code != 2 && r.Code != 1 {
				c.t.Errorf("%v: exit status %d, want a refusal\n%s%s", bad.args, r.Code, r.Stdout, r.Stderr)
			}
			for _, w := range bad.words {
				if !strings.Contains(strings.ToLower(r.Stderr), w) {
					c.t.Errorf("%v: want an error that names %q, got:\n%s", bad.args, w, r.Stderr)
				}
			}
		}
		if out := c.skep("service", "ls", "-q"); out != "" {
			c.t.Errorf("a refused create left a service: %s", out)
		}
	})

	sub("names", func(c *cluster) {
		c.refused(2, []string{"name"}, "service", "create", "--detach", "--name", strings.Repeat("n", 64), "busybox", "sleep", "1000")
		c.refused(2, []string{"name"}, "service", "create", "--detach", "--name", "a b", "busybox", "sleep", "1000")
		long := strings.Repeat("n", 63)
		c.skep("service", "create", "--name", long, "busybox", "sleep", "1000")
		c.awaitRunning(long, 1, 30*time.Second)
		c.skep("service", "rm", long)
		c.skep("service", "create", "--name", "web_server", "--replicas", "0", "busybox")
		r := c.on("m1", "skep", "service", "inspect", "web")
		if r.Code != 1 || !strings.Contains(r.Stderr, "web_server") {
			c.t.Errorf("no suggestion for a mistyped name: %d %s", r.Code, r.Stderr)
		}
		c.skep("service", "rm", "web_server")
		c.refused(1, []string{"w9"}, "node", "inspect", "w9")
	})

	sub("unknown image", func(c *cluster) {
		r := c.on("m1", "skep", "service", "create", "--detach", "--name", "bad", "nosuchimage:v9")
		if r.Code == 0 { // taken: then its tasks say why they do not run
			c.await("the reason is in service ps", 30*time.Second, func() string {
				if out := c.skep("service", "ps", "--no-trunc", "bad"); !strings.Contains(out, "nosuchimage") || !strings.Contains(out, "Rejected") {
					return out
				}
				return ""
			})
			c.skep("service", "rm", "bad")
		} else if !strings.Contains(r.Stderr, "nosuchimage:v9") {
			c.t.Errorf("the error does not name the image: %s", r.Stderr)
		}
	})

	sub("image for another platform", func(c *cluster) {
		r := c.on("m1", "skep", "service", "create", "--detach", "--name", "bad", "armonly")
		if r.Code != 0 {
			if !strings.Contains(r.Stderr, "arm64") && !strings.Contains(r.Stderr, "platform") {
				c.t.Errorf("the error does not name the platform: %s", r.Stderr)
			}
			return
		}
		c.await("the platform is the reason", 30*time.Second, func() string {
			out := c.skep("service", "ps", "--no-trunc", "bad")
			if !strings.Contains(out, "platform") {
				return out
			}
			return ""
		})
		if out := c.skep("service", "explain", "bad"); !strings.Contains(strings.ToLower(out), "platform") {
			c.t.Errorf("explain does not name the platform:\n%s", out)
		}
		c.skep("service", "rm", "bad")
	})

	sub("exits at once", func(c *cluster) {
		c.skep("service", "create", "--detach", "--name", "bad", "--restart-delay", "100ms", "--restart-max-attempts", "3", "whoami:crash")
		c.await("it was tried again and given up", time.Minute, func() string {
			failed := 0
			for _, t := range c.tasks("bad") {
				if strings.HasPrefix(t.State, "Failed") && strings.Contains(t.Error, "1") {
					failed++
				}
			}
			if failed < 4 {
				return c.skep("service", "ps", "bad")
			}
			return ""
		})
		c.skep("service", "rm", "bad")
	})

	sub("no replicas", func(c *cluster) {
		c.skep("service", "create", "--name", "none", "--replicas", "0", "busybox", "sleep", "1000")
		if out := c.skep("service", "ls"); !strings.Contains(out, "0/0") {
			c.t.Errorf("service ls:\n%s", out)
		}
		if ts := c.tasks("none"); len(ts) != 0 {
			c.t.Errorf("tasks of nothing: %v", ts)
		}
		c.skep("service", "rm", "none")
	})

	sub("impossible constraint", func(c *cluster) {
		c.skep("service", "create", "--detach", "--name", "nowhere", "--constraint", "node.labels.zone==mars", "busybox", "sleep", "1000")
		c.await("it is pending for a reason", 20*time.Second, func() string {
			if out := c.skep("service", "ps", "--no-trunc", "nowhere"); !strings.Contains(out, "no suitable node") || !strings.Contains(out, "Pending") {
				return out
			}
			return ""
		})
		if out := c.skep("service", "explain", "nowhere"); !strings.Contains(out, "node.labels.zone") {
			c.t.Errorf("explain does not name the constraint:\n%s", out)
		}
		c.skep("service", "rm", "nowhere")
	})

	sub("ten thousand replicas", func(c *cluster) {
		c.skep("service", "create", "--detach", "--name", "many", "--replicas", "10000", "busybox", "sleep", "1000")
		c.await("what fits runs", time.Minute, func() string {
			if out := c.skep("service", "ls"); !strings.Contains(out, "60/10000") {
				return out
			}
			return ""
		})
		if n := len(c.tasks("many")); n < 10000 {
			c.t.Errorf("service ps lists %d tasks, want all 10000", n)
		}
		c.awaitContainers(60, 30*time.Second, c.members()...)
		c.skep("service", "scale", "--detach", "many=1")
		c.await("scaled down", time.Minute, func() string {
			if out := c.skep("service", "ls"); !strings.Contains(out, "1/1") {
				return out
			}
			return ""
		})
		c.skep("service", "rm", "many")
	})

	sub("fifty clients, one name", func(c *cluster) {
		script := `for i in $(seq 50); do (skep service create --detach --name racer busybox sleep 1000 >/dev/null 2>/tmp/skep-race-$$-$i && echo won || { cat /tmp/skep-race-$$-$i; }; rm -f /tmp/skep-race-$$-$i) & done; wait`
		out := c.on("m1", "sh", "-c", script).Stdout
		won, named := strings.Count(out, "won\n"), strings.Count(out, "racer")
		if won != 1 || named != 49 {
			c.t.Errorf("%d won and %d were told the name is taken, want 1 and 49:\n%s", won, named, out)
		}
		if n := strings.Count(c.skep("service", "ls"), "racer"); n != 1 {
			c.t.Errorf("%d services named racer", n)
		}
		c.skep("service", "rm", "racer")
	})

	sub("nothing left", func(c *cluster) { c.awaitClean(time.Minute, c.members()...) })
}

// Two `skep init` at once on one machine: one makes a cluster, the other is told.
func TestTwoInits(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Hosts: 1, NoCluster: true})
	out := c.on("m1", "sh", "-c", `for i in 1 2; do (skep init --advertise-addr 10.90.1.1 >/dev/null 2>/srv/err$i; echo "exit $?") & done; wait; cat /srv/err*`).Stdout
	if strings.Count(out, "exit 0") != 1 || strings.Count(out, "exit 1") != 1 {
		t.Errorf("want one to succeed and one to be refused:\n%s", out)
	}
	c.awaitNode("m1", "Ready Active Leader", 20*time.Second)
	c.skep("service", "create", "--name", "works", "busybox", "sleep", "1000")
}

// A clock an hour off, either way: a clear refusal or a member that works.
func TestJoinWithWrongClock(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Hosts: 1})
	token := c.skep("join-token", "-q", "worker")
	for _, offset := range []string{"1h", "-1h"} {
		h, err := c.Add(c.ctx)
		if err != nil {
			t.Fatal(err)
		}
		r := c.on(h.Name, "env", "SKEP_CLOCK_OFFSET="+offset, "skep", "join", "--token", token, "--advertise-addr", h.IP, "10.90.1.1:2377")
		if r.Code != 0 {
			if !strings.Contains(r.Stderr, "clock") {
				t.Errorf("clock %s off: the error does not name the clock: %s", offset, r.Stderr)
			}
			continue
		}
		c.awaitNode(h.Name, "Ready", 30*time.Second)
		c.skep("service", "create", "--name", "on-"+h.Name, "--constraint", fmt.Sprintf("node.hostname==%s", h.Name), "busybox", "sleep", "1000")
	}
}
