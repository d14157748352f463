package cases

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

// managers are the last column of `node ls` on a manager, by host: Leader, Reachable, Unreachable; a worker's is "". err is
// what the command said when it failed.
func (c *cluster) managers(by string) (out map[string]string, err string) {
	c.t.Helper()
	r := c.on(by, "skep", "node", "ls", "--format", "{{.Hostname}}\t{{.ManagerStatus}}\t.")
	if r.Code != 0 {
		return nil, r.Stderr
	}
	out = map[string]string{}
	for _, line := range strings.Split(r.Stdout, "\n") {
		if f := strings.Split(line, "\t"); len(f) == 3 {
			out[f[0]] = f[1]
		}
	}
	return out, ""
}

// awaitLeader waits until a manager sees so many, all of them there and one of them leading, and returns the leader.
func (c *cluster) awaitLeader(by string, n int, limit time.Duration) (leader string) {
	c.t.Helper()
	c.await(fmt.Sprintf("%d managers", n), limit, func() string {
		leader = ""
		all, err := c.managers(by)
		if err != "" {
			return err
		}
		have := 0
		for host, status := range all {
			if status == "" {
				continue
			}
			have++
			switch status {
			case "Leader":
				leader = host
			case "Reachable":
			default:
				return fmt.Sprint(all)
			}
		}
		if have != n || leader == "" {
			return fmt.Sprint(all)
		}
		return ""
	})
	return leader
}

// The manager that leads loses its power, again and again: changes are taken soon after, its tasks run elsewhere, and who
// asks a service through the other nodes notices nothing.
func TestLeaderLosesItsPower(t *testing.T) {
	c := up(t, lab.Options{Managers: 3, Hosts: 5})
	c.awaitLeader("m1", 3, time.Minute)
	c.skep("service", "create", "--name", "edge", "--replicas", "2", "--publish", "8080:80", "--constraint", "node.role==worker", "whoami:v1")
	c.skep("service", "create", "--name", "web", "--replicas", "5", "--stop-signal", "SIGKILL", "busybox", "sleep", "100000")
	var urls []string
	for _, h := range c.Hosts {
		if h.Role == lab.Worker {
			urls = append(urls, "http://"+h.IP+":8080/")
		}
	}
	end := c.hammer(1, urls...)
	for round := range 3 {
		front := "m1"
		dead := c.awaitLeader(front, 3, time.Minute)
		if dead == front {
			front = "m2"
		}
		if err := c.Kill(c.ctx, dead); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		// One command is enough: what is on its way when the power goes is asked of the manager where it is typed, and that
		// one sees to it that the store takes it, once.
		c.await("a change is taken", time.Minute, func() string {
			if r := c.on(front, "skep", "service", "update", "--detach", "--label-add", fmt.Sprint("round=", round), "edge"); r.Code != 0 {
				return r.Stderr
			}
			return ""
		})
		wrote := time.Since(began)
		c.await("its tasks run elsewhere", time.Minute, func() string {
			r := c.on(front, "skep", "service", "ps", "--no-trunc", "--format", taskFormat, "web")
			if r.Code != 0 {
				return r.Stderr
			}
			n := 0
			for _, v := range parseTasks(r.Stdout) {
				if v.Desired == "Running" && strings.HasPrefix(v.State, "Running") && v.Node != dead {
					n++
				}
			}
			if n != 5 {
				return fmt.Sprint(n, " run")
			}
			return ""
		})
		t.Logf("%s, which led, lost its power: changes taken after %.1f s, its tasks elsewhere after %.1f s", dead, wrote.Seconds(), time.Since(began).Seconds())
		if err := c.Start(c.ctx, dead); err != nil {
			t.Fatal(err)
		}
	}
	c.awaitLeader("m1", 3, time.Minute)
	if asked, failed, first := end(); failed > 0 || asked < 100 {
		t.Errorf("%d of %d requests through the workers failed: %s", failed, asked, first)
	}
}

// All managers lose their power at once and come back in another order: nothing that was acknowledged is lost, and no
// container of a worker was touched.
func TestAllManagersLoseTheirPower(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Managers: 3, Hosts: 4, Race: true})
	c.awaitLeader("m1", 3, time.Minute)
	c.skep("service", "create", "--name", "web", "--replicas", "2", "--constraint", "node.role==worker", "--stop-signal", "SIGKILL", "busybox", "sleep", "100000")
	before := ids(c.tasks("web"))
	for i := range 20 {
		c.skep("config", "create", fmt.Sprint("c", i), "/etc/hostname")
	}
	for _, m := range []string{"m1", "m2", "m3"} {
		if err := c.Kill(c.ctx, m); err != nil {
			t.Fatal(err)
		}
	}
	if n := c.containers("w1"); n != 2 {
		t.Errorf("%d containers on the worker without managers, want 2", n)
	}
	for _, m := range []string{"m3", "m1", "m2"} {
		if err := c.Start(c.ctx, m); err != nil {
			t.Fatal(err)
		}
	}
	c.awaitAPI(time.Minute)
	c.awaitLeader("m1", 3, time.Minute)
	if n := strings.Count(c.skep("config", "ls", "-q"), "\n") + 1; n != 20 {
		t.Errorf("%d of 20 configs are there", n)
	}
	c.awaitRunning("web", 2, time.Minute)
	if after := ids(c.tasks("web")); after != before {
		t.Errorf("tasks changed:\n%s\n%s", before, after)
	}
	c.skep("service", "scale", "web=3")
}
