package cases

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
	"skep.dev/libs/spec"
)

// fabric6 are the IPv6 addresses of the lab's hosts.
func (c *cluster) fabric6(host string) string {
	h, err := c.Host(host)
	if err != nil {
		c.t.Fatal(err)
	}
	return h.IP6()
}

// What Swarm does not have: a port is published at every IPv6 address of every node, and the task sees the client's own.
func TestPublishedPortsOverIPv6(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Race: true})
	c.skep("service", "create", "--name", "web", "--replicas=2", "--publish", "8080:80", "--publish", "published=9090,target=80,protocol=udp", "whoami:v1")
	c.awaitRunning("web", 2, time.Minute)
	c.awaitPort(8080)

	client := c.fabric6("client")
	seen := map[string]bool{}
	for _, h := range c.members() { // one of them runs no replica
		url := fmt.Sprintf("http://[%s]:8080/", c.fabric6(h))
		c.await(url, 20*time.Second, func() string {
			if _, err := c.ask("client", url); err != nil {
				return err.Error()
			}
			return ""
		})
		for range 8 {
			a, err := c.ask("client", url)
			if err != nil {
				t.Fatal(err)
			}
			if strings.Trim(a.client, "[]") != client {
				t.Errorf("through %s the service sees %s, want the client's %s", h, a.client, client)
			}
			seen[a.host] = true
		}
		c.await("UDP through "+h, 20*time.Second, func() string {
			r := c.on("client", "sh", "-c", "echo hi | nc -6 -u -w 1 "+c.fabric6(h)+" 9090")
			if got := strings.Trim(parseAnswer(r.Stdout).client, "[]"); got != client {
				return fmt.Sprintf("the service sees %q: %s", got, r.Stderr)
			}
			return ""
		})
	}
	if len(seen) != 2 {
		t.Errorf("%d replicas answer, want 2: %v", len(seen), seen)
	}

	// From every node to every node, and from containers on every node.
	for _, from := range c.members() {
		for _, to := range c.members() {
			for range 3 {
				if _, err := c.ask(from, fmt.Sprintf("http://[%s]:8080/", c.fabric6(to))); err != nil {
					t.Error(err)
				}
			}
		}
		if _, err := c.ask(from, "http://localhost:8080/"); err != nil { // by [::1] or, where that is refused, by 127.0.0.1
			t.Error(err)
		}
	}
	c.skep("service", "create", "--mode", "global", "--name", "probe", "busybox", "sleep", "100000")
	c.awaitRunning("probe", len(c.members()), time.Minute)
	for host, tasks := range c.running("probe") {
		for _, to := range c.members() {
			for range 3 {
				if r := c.on("m1", "skep", "exec", tasks[0].ID, "timeout", "3", "wget", "-q", "-O", "-", fmt.Sprintf("http://[%s]:8080/", c.fabric6(to))); r.Code != 0 {
					t.Errorf("a container on %s to %s: %s", host, to, r.Stderr)
				}
			}
		}
	}

	// A rescue from an administrator's hand, and a node that has no IPv6 at all: its IPv4 ports go on.
	c.on("w1", "nft", "flush", "ruleset")
	c.await("the port after a flush of all rules", 20*time.Second, func() string {
		if _, err := c.ask("client", fmt.Sprintf("http://[%s]:8080/", c.fabric6("w1"))); err != nil {
			return err.Error()
		}
		return ""
	})
	c.on("w2", "sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6")
	c.skep("service", "update", "--force", "--detach=false", "web")
	for range 10 {
		if _, err := c.ask("client", "http://"+fabric["w2"]+":8080/"); err != nil {
			t.Error(err)
		}
	}

	// Without replicas it refuses at once.
	c.skep("service", "scale", "web=0")
	c.await("the port refuses", 10*time.Second, func() string {
		if r := c.on("client", "curl", "-sS", "--max-time", "2", fmt.Sprintf("http://[%s]:8080/", c.fabric6("w1"))); r.Code != 7 {
			return fmt.Sprintf("curl ends with %d, want 7 (refused): %s", r.Code, r.Stderr)
		}
		return ""
	})
}

// An encrypted network carries IPv6 from node to node; tasks see one another by their own addresses.
func TestEncryptedNetworkWithIPv6(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Race: true})
	c.skep("network", "create", "-o", "encrypted", "--ipv6", "vault")
	c.skep("service", "create", "--mode", "global", "--name", "web", "--network", "vault", "whoami:v1")
	c.awaitRunning("web", len(c.members()), time.Minute)
	running := c.running("web")
	addr6 := func(host string) string {
		out := c.skep("exec", running[host][0].ID, "ip", "-6", "addr", "show", "dev", "eth1", "scope", "global")
		_, rest, _ := strings.Cut(out, "inet6 ")
		a, _, _ := strings.Cut(rest, "/")
		return a
	}
	for _, from := range c.members() {
		for _, to := range c.members() {
			c.await("a task on "+from+" asks one on "+to, 30*time.Second, func() string {
				r := c.on("m1", "skep", "exec", running[from][0].ID, "timeout", "3", "wget", "-q", "-O", "-", fmt.Sprintf("http://[%s]/", addr6(to)))
				if got := strings.Trim(parseAnswer(r.Stdout).client, "[]"); r.Code != 0 || got != addr6(from) {
					return fmt.Sprintf("it sees %q, not %s: %s", got, addr6(from), r.Stderr)
				}
				return ""
			})
		}
	}
	for _, h := range c.members() {
		r := c.on(h, "ss", "-Hlun")
		if !slices.ContainsFunc(strings.Fields(r.Stdout), func(at string) bool {
			port, _ := strconv.Atoi(at[strings.LastIndexByte(at, ':')+1:])
			return spec.FirstEncryptedPort <= port && port <= spec.LastEncryptedPort
		}) {
			t.Errorf("%s has no WireGuard port:\n%s", h, r.Stdout)
		}
	}
}
