package cases

import (
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

// An address of a task's own: reached from every node, with the service's name and virtual address as ever, and it goes
// with the task wherever that goes: by an update, off a node that drains, off one that dies.
func TestTaskAddress(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Race: true})
	c.taskAddress("plain", "10.50.0.0/24")
	c.refused(1, []string{"10.50.0.7", "fix-plain"}, "service", "create", "--name", "thief", "--network", "name=plain,ip=10.50.0.7", "busybox", "sleep", "1000")
	c.refused(1, []string{"gateway"}, "service", "create", "--name", "thief", "--network", "name=plain,ip=10.50.0.1", "busybox", "sleep", "1000")
	c.refused(1, []string{"2 replicas", "one address"}, "service", "scale", "fix-plain=2")

	// Its node dies.
	host := c.sole("fix-plain")
	if host == "m1" {
		t.Fatalf("it is on %s, which leads the cluster", host)
	}
	if err := c.Kill(c.ctx, host); err != nil {
		t.Fatal(err)
	}
	took := c.awaitRunning("fix-plain", 1, time.Minute, host)
	t.Logf("on another node %s after its host died", took)
	c.answersAt("plain", "http://10.50.0.7/", "fix-plain", host)

	// Removed, its address is another's, also on a network of the same name.
	c.skep("service", "rm", "fix-plain", "probe-plain")
	c.await("the network goes", time.Minute, func() string {
		if r := c.on("m1", "skep", "network", "rm", "plain"); r.Code != 0 {
			return r.Stderr
		}
		return ""
	})
	c.skep("network", "create", "--subnet", "10.50.0.0/24", "plain")
	c.skep("service", "create", "--detach", "--name", "probe-plain", "--mode", "global", "--network", "plain", "busybox", "sleep", "100000")
	c.skep("service", "create", "--name", "heir-plain", "--network", "name=plain,ip=10.50.0.7", "whoami:v1")
	c.answersAt("plain", "http://10.50.0.7/", "heir-plain", host)
	if out := c.on("m1", "skep", "doctor").Stdout; strings.Contains(out, "10.50.0.7") { // it ends with 1: a host is down
		t.Errorf("doctor:\n%s", out)
	}
}

// On an encrypted network too, over IPv4 and IPv6.
func TestTaskAddressSecret(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Race: true})
	c.taskAddress("secret", "10.60.0.0/24", "--opt", "encrypted", "--ipv6", "--subnet", "fd00:60::/64")
}

// taskAddress makes a network with a task on every node and a service with an address on it, and moves that about.
func (c *cluster) taskAddress(network, subnet string, flags ...string) {
	c.t.Helper()
	addr := strings.TrimSuffix(subnet, "0/24") + "7"
	fixed := "name=" + network + ",ip=" + addr + ",alias=db.x_y"
	urls := []string{"http://" + addr + "/"}
	if len(flags) > 0 {
		fixed += ",ip6=fd00:60::17"
		urls = append(urls, "http://[fd00:60::17]/")
	}
	c.skep(append(append([]string{"network", "create", "--subnet", subnet}, flags...), network)...)
	c.skep("service", "create", "--name", "probe-"+network, "--mode", "global", "--network", network, "busybox", "sleep", "100000")
	fix := "fix-" + network
	c.skep("service", "create", "--name", fix, "--network", fixed, "--constraint", "node.hostname==w1", "whoami:v1")
	reached := func() {
		c.t.Helper()
		for _, url := range urls {
			c.answersAt(network, url, fix)
		}
	}
	probe := c.running("probe-" + network)["m1"][0].ID
	for name, want := range map[string]bool{"tasks." + fix: true, fix: false, "db.x_y": false} { // names lead to the virtual address
		if out := c.on("m1", "skep", "exec", probe, "nslookup", name).Stdout; strings.Contains(out, addr+"\n") != want || !strings.Contains(out, "Name:") {
			c.t.Errorf("%s is %v the address %s:\n%s", name, !want, addr, out)
		}
	}
	c.await("its name leads there", 20*time.Second, func() string {
		if r := c.on("m1", "skep", "exec", probe, "timeout", "3", "wget", "-q", "-O", "-", "http://db.x_y/"); !strings.Contains(r.Stdout, "host: ") {
			return r.Stderr
		}
		return ""
	})
	reached()
	c.skep("service", "update", "--constraint-rm", "node.hostname==w1", "--constraint-add", "node.hostname==w2", fix)
	reached()
	c.skep("service", "update", "--detach", "--constraint-rm", "node.hostname==w2", "--constraint-add", "node.role==worker", fix)
	c.skep("node", "update", "--availability", "drain", "w2")
	took := c.awaitRunning(fix, 1, time.Minute, "w2")
	c.t.Logf("%s: off a node that drains after %s", fix, took)
	reached()
	c.skep("node", "update", "--availability", "active", "w2")
}

// sole is the one node on which a service runs.
func (c *cluster) sole(service string) string {
	c.t.Helper()
	by := c.running(service)
	if count(by) != 1 {
		c.t.Fatalf("%s runs on %v", service, by)
	}
	for node := range by {
		return node
	}
	return ""
}

// answersAt asks from the probe of a network on every node, but those left out, and wants the one task of a service.
func (c *cluster) answersAt(network, url, service string, without ...string) {
	c.t.Helper()
	want := "host: " + c.running(service)[c.sole(service)][0].ID[:12]
	for host, tasks := range c.running("probe-" + network) {
		if len(without) > 0 && host == without[0] {
			continue
		}
		c.await(url+" from "+host, 20*time.Second, func() string {
			r := c.on("m1", "skep", "exec", tasks[0].ID, "timeout", "3", "wget", "-q", "-O", "-", url)
			if !strings.Contains(r.Stdout, want) {
				return "want " + want + ", got " + r.Stdout + r.Stderr
			}
			return ""
		})
	}
}

// A port at one address of its node: others have it at other addresses, and nobody at all of them beside it.
func TestHostIP(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Race: true})
	at := func(ip string) string { return "mode=host,published=8080,target=80,host_ip=" + ip }
	c.skep("service", "create", "--name", "inner", "--constraint", "node.hostname==w1", "--publish", at("127.0.0.1"), "whoami:v1")
	c.skep("service", "create", "--name", "outer", "--constraint", "node.hostname==w1", "--publish", at(fabric["w1"]), "whoami:v1")
	id := func(service string) string { return c.running(service)["w1"][0].ID[:12] }
	for url, from := range map[string]string{"http://127.0.0.1:8080/": "w1", "http://" + fabric["w1"] + ":8080/": "client"} {
		want := id("inner")
		if from == "client" {
			want = id("outer")
		}
		c.await(url, 20*time.Second, func() string {
			a, err := c.ask(from, url)
			switch {
			case err != nil:
				return err.Error()
			case a.host != want:
				return "task " + a.host + " answers, want " + want
			}
			return ""
		})
	}
	// All addresses meet each of them: it waits, and says why.
	c.skep("service", "create", "--detach", "--name", "all", "--constraint", "node.hostname==w1", "--publish", "mode=host,published=8080,target=80", "whoami:v1")
	c.await("the scheduler says why", 20*time.Second, func() string {
		if out := c.skep("service", "ps", "--no-trunc", "all"); !strings.Contains(out, "host-mode port already in use") {
			return out
		}
		return ""
	})
	// A node without the address is none for it: the task comes to the one that has it.
	c.skep("service", "create", "--detach", "--name", "there", "--restart-delay", "100ms", "--publish", at(fabric["w2"]), "whoami:v1")
	c.await("the node that has the address", time.Minute, func() string {
		if len(c.running("there")["w2"]) == 1 {
			return ""
		}
		return c.skep("service", "ps", "--no-trunc", "there")
	})
	if out := c.skep("service", "ps", "inner"); !strings.Contains(out, "127.0.0.1:8080->80/tcp") {
		t.Errorf("service ps:\n%s", out)
	}
	if out := c.skep("service", "inspect", "--pretty", "inner"); !strings.Contains(out, "HostIP = 127.0.0.1") {
		t.Errorf("service inspect:\n%s", out)
	}
	for _, publish := range []string{"127.0.0.1:8080:80", "published=8080,target=80,host_ip=127.0.0.1", "published=8080,target=80,mode=host,host_ip=nowhere"} {
		c.refused(2, nil, "service", "create", "--name", "bad", "--publish", publish, "whoami:v1")
	}
	// Its task is gone, and so is the port.
	c.skep("service", "rm", "inner")
	c.await("nothing at 127.0.0.1", 20*time.Second, func() string {
		if a, err := c.ask("w1", "http://127.0.0.1:8080/"); err == nil {
			return "task " + a.host + " answers"
		}
		return ""
	})
}
