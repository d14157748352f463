package cases

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

// Every kind of process is killed while a service grows from 1 to 50; each time exactly 50 run in the end, and nothing else.
func TestKillEachProcessDuringScale(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Race: true})
	c.skep("service", "create", "--name", "web", "--stop-signal", "SIGKILL", "busybox", "sleep", "100000")
	for _, v := range []struct{ host, process string }{
		{"w1", "containerd"}, {"w1", "skep"}, {"w1", "containerd-shim"}, {"m1", "containerd"}, {"m1", "skep"},
	} {
		t.Run(v.host+" "+v.process, func(t *testing.T) {
			c := &cluster{c.Lab, t, c.ctx}
			c.skep("service", "scale", "--detach", "web=50")
			c.await("some run", time.Minute, func() string {
				if n := c.containers(v.host); n < 3 {
					return fmt.Sprint(n, " on ", v.host)
				}
				return ""
			})
			c.kill9(v.host, v.process, false)
			if v.process == "skep" {
				if err := c.StartDaemon(c.ctx, v.host); err != nil {
					t.Fatal(err)
				}
				c.awaitAPI(time.Minute)
			}
			took := c.awaitRunning("web", 50, 2*time.Minute)
			c.awaitContainers(50, time.Minute, c.members()...)
			t.Logf("50 run, %.1f s after the kill", took.Seconds())
			c.skep("service", "scale", "--detach", "web=1")
			c.awaitRunning("web", 1, time.Minute)
			c.awaitContainers(1, time.Minute, c.members()...)
		})
	}
	c.skep("service", "rm", "web")
	c.awaitClean(time.Minute, c.members()...)
}

// A cut-off node's tasks run elsewhere; after the heal nothing runs twice.
func TestCutAndHeal(t *testing.T) {
	c := up(t, lab.Options{})
	c.skep("service", "create", "--name", "web", "--replicas", "6", "--stop-signal", "SIGKILL", "busybox", "sleep", "100000")
	c.awaitRunning("web", 6, time.Minute)
	onW1 := c.containers("w1")
	if err := c.Cut(c.ctx, "w1"); err != nil {
		t.Fatal(err)
	}
	took := c.awaitRunning("web", 6, time.Minute, "w1")
	t.Logf("replacements ran %.1f s after the cut", took.Seconds())
	if n := c.containers("w1"); n != onW1 {
		t.Errorf("the cut-off node runs %d containers, want its %d to go on", n, onW1)
	}
	if err := c.Heal(c.ctx, "w1"); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	c.awaitNode("w1", "Ready", time.Minute)
	c.awaitContainers(6, time.Minute, c.members()...)
	t.Logf("no duplicates %.1f s after the heal", time.Since(began).Seconds())
	c.awaitRunning("web", 6, 10*time.Second)
}

// The only manager stops and starts: containers do not notice, and the cluster goes on where it was.
func TestManagerRestart(t *testing.T) {
	c := up(t, lab.Options{})
	c.skep("service", "create", "--name", "web", "--replicas", "6", "--stop-signal", "SIGKILL", "busybox", "sleep", "100000")
	c.awaitRunning("web", 6, time.Minute)
	before := ids(c.tasks("web"))

	c.kill9("m1", "skep", true)
	if n := c.containers("m1"); n != 2 {
		t.Errorf("%d containers on m1 after its daemon was killed, want 2", n)
	}
	if err := c.StartDaemon(c.ctx, "m1"); err != nil {
		t.Fatal(err)
	}
	took := c.awaitAPI(time.Minute)
	t.Logf("API back after %.1f s", took.Seconds())
	c.awaitRunning("web", 6, time.Minute)
	if after := ids(c.tasks("web")); after != before {
		t.Errorf("tasks changed over a restart of the manager:\n%s\n%s", before, after)
	}

	// A power-off of the manager: its own tasks come back with it, the others never stop.
	if err := c.Kill(c.ctx, "m1"); err != nil {
		t.Fatal(err)
	}
	c.awaitContainers(4, 20*time.Second, "w1", "w2")
	if err := c.Start(c.ctx, "m1"); err != nil {
		t.Fatal(err)
	}
	c.awaitAPI(time.Minute)
	c.awaitRunning("web", 6, time.Minute)
	c.awaitContainers(6, time.Minute, c.members()...)
	c.skep("service", "scale", "web=8")
}

func ids(ts []task) string {
	s := ""
	for _, t := range ts {
		s += t.ID + " " + t.Name + " " + t.Node + "\n"
	}
	return s
}

// awaitAPI waits until a manager answers.
func (c *cluster) awaitAPI(limit time.Duration) time.Duration {
	c.t.Helper()
	return c.await("the API answers", limit, func() string {
		if r := c.on("m1", "skep", "node", "ls"); r.Code != 0 {
			return r.Stderr
		}
		return ""
	})
}

// A full image store: the task says so, the node stays a node, and the cluster goes around it.
func TestFullDisk(t *testing.T) {
	c := up(t, lab.Options{Hosts: 2, SmallDisk: map[string]int64{"w1": 24 << 20}})
	c.skep("service", "create", "--detach", "--name", "big", "--constraint", "node.hostname==w1", "httpd")
	c.await("the reason is in service ps", time.Minute, func() string {
		if out := c.skep("service", "ps", "--no-trunc", "big"); !strings.Contains(out, "no space left") {
			return out
		}
		return ""
	})
	c.awaitNode("w1", "Ready", 10*time.Second)
	c.skep("service", "rm", "big")
	c.awaitClean(time.Minute, "w1")
	c.skep("service", "create", "--name", "small", "--constraint", "node.hostname==w1", "--stop-signal", "SIGKILL", "busybox", "sleep", "100000")
	c.awaitRunning("small", 1, 30*time.Second)
	c.skep("service", "create", "--name", "big", "httpd")
	c.awaitRunning("big", 1, time.Minute)
}

// The daemon of a worker stops and starts: its containers are the same ones after it.
func TestAgentRestartKeepsContainers(t *testing.T) {
	c := up(t, lab.Options{Hosts: 2})
	c.skep("service", "create", "--name", "web", "--replicas", "10", "--stop-signal", "SIGKILL", "busybox", "sleep", "100000")
	c.awaitRunning("web", 10, time.Minute)
	pids := func() string {
		return c.on("w1", "sh", "-c", "ctr -a /run/skep/containerd.sock -n skep task ls -q | sort; pgrep -x sleep | sort").Stdout
	}
	before := pids()
	for _, process := range []string{"skep", "containerd"} {
		c.kill9("w1", process, true)
		if process == "skep" {
			if err := c.StartDaemon(c.ctx, "w1"); err != nil {
				t.Fatal(err)
			}
		}
		c.await("containerd answers again", time.Minute, func() string {
			if n := c.containers("w1"); n < 0 {
				return "no answer"
			}
			return ""
		})
		c.awaitNode("w1", "Ready", 30*time.Second)
		if after := pids(); after != before {
			t.Errorf("containers changed when %s was killed:\n%s\n%s", process, before, after)
		}
	}
	c.awaitRunning("web", 10, 30*time.Second)
	// And one that dies is still noticed.
	c.on("w1", "sh", "-c", "pkill -9 -n -x sleep")
	c.await("a dead container is replaced", time.Minute, func() string {
		if n := c.containers("m1") + c.containers("w1"); n != 10 || pids() == before {
			return fmt.Sprint(n, " run")
		}
		return ""
	})
}
