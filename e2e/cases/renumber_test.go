package cases

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

// A worker's machine gets another address: told so at its start, it takes it, and its peers follow, with the tasks it has.
func TestRenumbered(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{})
	c.skep("network", "create", "net1")
	c.skep("network", "create", "--opt", "encrypted", "vault")
	c.skep("service", "create", "--name", "front", "--mode", "global", "--network", "net1", "--network", "vault", "--publish", "8080:80", "whoami:v1")
	c.skep("service", "create", "--name", "probe", "--mode", "global", "--network", "net1", "--stop-signal", "SIGKILL", "busybox", "sleep", "100000")
	c.skep("service", "create", "--name", "sealed", "--mode", "global", "--network", "vault", "--stop-signal", "SIGKILL", "busybox", "sleep", "100000")
	c.awaitPort(8080)
	c.awaitWell(30 * time.Second)
	old, now := fabric["w1"], "10.90.2.77"
	before := c.tasks("front")

	// Without a word to skep: who looks is told what to do. Its connection to the manager is made anew from the new address.
	c.must("w1", "ip addr add "+now+"/16 dev eth0 && ip addr del "+old+"/16 dev eth0 && ip addr add "+now+"/16 dev eth0 2>/dev/null; ip route replace default via 10.90.0.1; true")
	c.await("doctor names the address", 45*time.Second, func() string {
		r := c.on("m1", "skep", "doctor")
		if !strings.Contains(r.Stdout, old+", the data path address of this node, is no address of this machine any more") || !strings.Contains(r.Stdout, "--advertise-addr") {
			return r.Stdout
		}
		return ""
	})
	c.kill9("w1", "skep", true)
	c.refusedOn("w1", 2, []string{"nosuch"}, "skep", "node", "run", "--advertise-addr", "nosuch")
	c.must("w1", "setsid skep node run --advertise-addr "+now+" >>/var/lib/skep/skep.log 2>&1 </dev/null & true")
	began := time.Now()
	c.awaitNode("w1", "Ready", 30*time.Second)
	fabric["w1"] = now
	defer func() { fabric["w1"] = old }()
	c.await("node inspect has the new address", 20*time.Second, func() string {
		if out := c.skep("node", "inspect", "--format", "{{.Status.Addr}}", "w1"); out != now {
			return out
		}
		return ""
	})
	c.awaitPort(8080)
	for _, from := range []string{"probe", "sealed"} {
		for host, ts := range c.running(from) {
			for _, a := range c.resolves(ts[0].ID, "tasks.front") { // each task, by each node's way to it
				c.await(fmt.Sprintf("%s on %s reaches front at %s", from, host, a), 20*time.Second, func() string {
					if out, ok := c.inTask(ts[0].ID, "timeout", "3", "wget", "-q", "-O", "-", "http://"+a+"/"); !ok {
						return out
					}
					return ""
				})
			}
		}
	}
	c.awaitWell(30 * time.Second)
	for _, h := range []string{"m1", "w2"} {
		if out := c.must(h, "bridge fdb show dev skin0; nft list table inet skep; for f in /run/skep/overlays/*; do nsenter --net=$f bridge fdb; done"); strings.Contains(out, old+" ") || !strings.Contains(out, now) {
			t.Errorf("%s still goes by the old address:\n%s", h, out)
		}
	}
	t.Logf("all follow %.1f s after the start", time.Since(began).Seconds())
	// It stays so over a start that is told nothing.
	c.kill9("w1", "skep", true)
	if err := c.StartDaemon(c.ctx, "w1"); err != nil {
		t.Fatal(err)
	}
	c.awaitNode("w1", "Ready", 30*time.Second)
	c.awaitPort(8080)
	c.awaitWell(30 * time.Second)
	if after := c.tasks("front"); ids(after) != ids(before) {
		t.Errorf("tasks were replaced:\n%s\n%s", ids(before), ids(after))
	}
}
