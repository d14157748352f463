package cases

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

// Machines come back from a reboot with other addresses: one manager of three, then all of them at once. Nodes whose address
// nobody gave take up the new one by themselves; containers run on.
func TestManagersMove(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Hosts: 4, Managers: 3, NoCluster: true})
	run := func(host string, argv ...string) string {
		t.Helper()
		r := c.on(host, slices.Concat(argv[:2], c.Flags, argv[2:])...)
		if r.Code != 0 {
			t.Fatalf("%s on %s: %d %s%s", argv, host, r.Code, r.Stdout, r.Stderr)
		}
		return r.Stdout
	}
	run("m1", "skep", "init")
	for _, host := range []string{"m2", "m3", "w1"} {
		role := "manager"
		if host == "w1" {
			role = "worker"
		}
		run(host, "skep", "join", "--token", strings.TrimSpace(c.skep("join-token", "-q", role)), fabric["m1"]+":2377")
	}
	for _, h := range c.Hosts {
		h.Joined = h.Role == lab.Manager || h.Role == lab.Worker
	}
	c.awaitManagers(time.Minute, "m1", "m2", "m3")
	c.skep("service", "create", "--name", "still", "--mode", "global", "--stop-signal", "SIGKILL", "busybox", "sleep", "200000")
	before := c.sleepers()

	// move gives machines that are down addresses that end in 100 more.
	now := map[string]string{}
	for _, h := range c.Hosts {
		now[h.Name] = h.IP
	}
	move := func(hosts ...string) {
		t.Helper()
		for _, host := range hosts {
			c.kill9(host, "skep", true)
		}
		for _, host := range hosts {
			was := now[host]
			at := strings.LastIndex(was, ".")
			var last int
			if _, err := fmt.Sscan(was[at+1:], &last); err != nil {
				t.Fatal(err)
			}
			now[host] = fmt.Sprintf("%s.%d", was[:at], last+100)
			c.must(host, "ip addr del "+was+"/16 dev eth0; ip addr add "+now[host]+"/16 dev eth0")
		}
		for _, host := range hosts {
			if err := c.StartDaemon(c.ctx, host); err != nil {
				t.Fatal(err)
			}
		}
	}
	addressed := func(hosts ...string) {
		t.Helper()
		for _, host := range hosts {
			c.await("node inspect has the new address of "+host, 30*time.Second, func() string {
				if out := c.skep("node", "inspect", "--format", "{{.Status.Addr}} {{.ManagerStatus.Addr}}", host); out != now[host]+" "+now[host]+":2377" {
					return out
				}
				return ""
			})
		}
		if got := c.sleepers(); got != before {
			t.Errorf("containers were touched:\n%s\n%s", before, got)
		}
		c.skep("service", "create", "--name", "new", "busybox", "sleep", "100000")
		c.skep("service", "rm", "new")
	}

	was := now["m2"]
	move("m2")
	t.Logf("one moved: all managers reached after %s", c.awaitManagers(time.Minute, "m1", "m2", "m3"))
	addressed("m2")
	c.await("the worker knows the new address", time.Minute, func() string {
		r := c.on("w1", "cat", "/var/lib/skep/node.json").Stdout
		if strings.Contains(r, now["m2"]+":2377") && !strings.Contains(r, was+":2377") {
			return ""
		}
		return r
	})

	// All at once: nobody knows anybody. One address that a person gives is enough for each.
	move("m1", "m2", "m3")
	for _, host := range []string{"m2", "m3"} {
		c.refusedOn(host, 2, []string{"this manager's own address"}, "skep", "node", "managers", now[host])
		c.await(host+" is told where m1 is", time.Minute, func() string { // which waits a while for its old address
			if r := c.on(host, "skep", "node", "managers", now["m1"]); r.Code != 0 {
				return r.Stderr
			}
			return ""
		})
	}
	t.Logf("all moved: all managers reached after %s", c.awaitManagers(time.Minute, "m1", "m2", "m3"))
	c.on("w1", "skep", "node", "managers", now["m3"])
	c.awaitNode("w1", "Ready", 30*time.Second)
	addressed("m1", "m2", "m3")
	if out := c.on("m2", "cat", "/var/lib/skep/node.json").Stdout; strings.Contains(out, "told") {
		t.Errorf("what it was told stays:\n%s", out)
	}
}
