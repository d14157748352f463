package cases

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

// managerStatus is the last column of `node ls`, by host; a worker's is "".
func (c *cluster) managerStatus() map[string]string {
	c.t.Helper()
	out, why := c.managers("m1")
	if why != "" {
		c.t.Fatal(why)
	}
	return out
}

// awaitManagers waits until exactly these hosts are managers that are reached, one of them the leader.
func (c *cluster) awaitManagers(limit time.Duration, hosts ...string) time.Duration {
	c.t.Helper()
	return c.await(fmt.Sprint("managers ", hosts), limit, func() string {
		leaders, have := 0, []string{}
		now := c.managerStatus()
		for host, s := range now {
			switch s {
			case "":
				continue
			case "Leader":
				leaders++
			case "Reachable":
			default:
				return fmt.Sprint(now)
			}
			have = append(have, host)
		}
		slices.Sort(have)
		if leaders != 1 || !slices.Equal(have, hosts) {
			return fmt.Sprint(now)
		}
		return ""
	})
}

// awaitRole waits until a host's record has the role.
func (c *cluster) awaitRole(host, role string) {
	c.t.Helper()
	c.await(host+" is a "+role+" by its own word", time.Minute, func() string {
		r := c.on(host, "cat", "/var/lib/skep/node.json").Stdout
		if strings.Contains(r, fmt.Sprintf(`"role": %q`, role)) {
			return ""
		}
		return r
	})
}

// Managers come and go while services run: no container is started again.
func TestManagersComeAndGo(t *testing.T) {
	t.Parallel()
	for _, form := range []string{"one process", "separate"} {
		t.Run(form, func(t *testing.T) {
			c := up(t, lab.Options{Hosts: 4, Managers: 3, Separate: form == "separate"})
			c.awaitManagers(time.Minute, "m1", "m2", "m3")
			c.skep("service", "create", "--name", "still", "--mode", "global", "--stop-signal", "SIGKILL", "busybox", "sleep", "200000")
			before := c.sleepers()
			if n := strings.Count(before, "\n"); n != 4 {
				t.Fatalf("4 tasks are these processes:\n%s", before)
			}
			works := func(what string) {
				t.Helper()
				name := strings.ReplaceAll(what, " ", "-")
				c.skep("service", "create", "--name", name, "--replicas", "2", "--stop-signal", "SIGKILL", "busybox", "sleep", "100000")
				c.skep("service", "rm", name)
				for _, host := range c.members() {
					if c.nodeStates()[host] != "" {
						c.awaitNode(host, "Ready", 30*time.Second)
					}
				}
				if now := c.sleepers(); now != before {
					t.Fatalf("%s touched containers:\n%s\n%s", what, before, now)
				}
			}
			works("three managers")
			c.await("the worker knows three managers", time.Minute, func() string {
				r := c.on("w1", "cat", "/var/lib/skep/node.json").Stdout
				for _, ip := range []string{"10.90.1.1", "10.90.1.2", "10.90.1.3"} {
					if !strings.Contains(r, ip+":2377") {
						return r
					}
				}
				return ""
			})

			// One more.
			// Where services are processes of their own, somebody has to start the managers' before the promotion can end.
			c.skep("node", "promote", "--detach", "w1")
			c.awaitRole("w1", "manager")
			if err := c.SetRole(c.ctx, "w1", lab.Manager); err != nil {
				t.Fatal(err)
			}
			t.Logf("promoted in %s", c.awaitManagers(time.Minute, "m1", "m2", "m3", "w1"))
			works("a promotion")
			if r := c.on("w1", "skep", "node", "ls", "-q"); r.Code != 0 || strings.Count(r.Stdout, "\n") != 4 {
				t.Errorf("the new manager answers: %d %s%s", r.Code, r.Stdout, r.Stderr)
			}

			// And one less: it stays as a worker, with its containers.
			c.skep("node", "demote", "m2")
			if err := c.SetRole(c.ctx, "m2", lab.Worker); err != nil {
				t.Fatal(err)
			}
			t.Logf("demoted in %s", c.awaitManagers(time.Minute, "m1", "m3", "w1"))
			c.awaitRole("m2", "worker")
			works("a demotion")
			c.refusedOn("m2", 1, []string{"not a swarm manager"}, "skep", "node", "ls")
			if out := c.on("m2", "ls", "/var/lib/skep/bus").Stdout; strings.Contains(out, "main") || strings.Contains(out, "group.json") {
				t.Errorf("the store of a manager that was demoted: %s", out)
			}

			if form == "separate" {
				return // leaving is for the one process that can end all services
			}
			c.refusedOn("m3", 1, []string{"participating as a manager", "demoted first", "2 managers stay"}, "skep", "leave")
			if r := c.on("m3", "skep", "leave", "--force"); r.Code != 0 || r.Stderr != "" {
				t.Fatalf("leave: %d %s%s", r.Code, r.Stdout, r.Stderr)
			}
			c.awaitManagers(time.Minute, "m1", "w1")
			c.awaitClean(time.Minute, "m3")
			var rest strings.Builder
			for line := range strings.Lines(before) {
				if !strings.HasPrefix(line, "m3 ") {
					rest.WriteString(line)
				}
			}
			before = rest.String()
			c.await("m3 is down", time.Minute, func() string {
				if s := c.nodeStates()["m3"]; !strings.HasPrefix(s, "Down") {
					return s
				}
				return ""
			})
			c.skep("node", "rm", "m3")
			works("a manager that left")
		})
	}
}

// A manager that the others cannot reach is not let in, and its join leaves nothing.
func TestAManagerNobodyReachesIsRefused(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Hosts: 2})
	token := c.skep("join-token", "-q", "manager")
	h, err := c.Add(c.ctx)
	if err != nil {
		t.Fatal(err)
	}
	r := c.on(h.Name, "skep", "join", "--token", token, "--advertise-addr", "10.90.9.9", "10.90.1.1:2377")
	for _, w := range []string{"10.90.9.9", "Nothing of it stays", "skep node rm --force"} {
		if !strings.Contains(r.Stderr, w) {
			t.Errorf("want %q in: %d %s%s", w, r.Code, r.Stdout, r.Stderr)
		}
	}
	if out := c.on(h.Name, "sh", "-c", "ls -A /var/lib/skep /run/skep; ip -br link; pgrep -x containerd").Stdout; strings.Contains(out, "node.json") ||
		strings.Contains(out, "certs") || strings.Contains(out, "skep0") {
		t.Errorf("a refused manager left:\n%s", out)
	}
	fields := strings.Fields(r.Stderr)
	c.skep("node", "rm", "--force", fields[len(fields)-1])
	if r := c.on(h.Name, "skep", "join", "--token", token, "--advertise-addr", h.IP, "10.90.1.1:2377"); r.Code != 0 || !strings.Contains(r.Stderr, "2 managers are no safer than 1") {
		t.Errorf("join again: %d %s%s", r.Code, r.Stdout, r.Stderr)
	}
	c.awaitManagers(time.Minute, "m1", h.Name)
}
