package cases

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

// awaitWell waits until `skep doctor` finds nothing at all.
func (c *cluster) awaitWell(limit time.Duration) time.Duration {
	c.t.Helper()
	return c.await("doctor says that all is well", limit, func() string {
		r := c.on("m1", "skep", "doctor", "--format", "{{.Status}} {{.Check}}: {{.Text}}")
		var bad []string
		for line := range strings.Lines(r.Stdout) {
			if !strings.HasPrefix(line, "OK ") {
				bad = append(bad, strings.TrimSpace(line))
			}
		}
		if r.Code != 0 && len(bad) == 0 {
			return r.Stderr
		}
		return strings.Join(bad, "\n")
	})
}

// inTask runs a command in a task; ok says that it ended with 0.
func (c *cluster) inTask(id string, argv ...string) (out string, ok bool) {
	c.t.Helper()
	r := c.on("m1", append([]string{"skep", "exec", id}, argv...)...)
	return r.Stdout + r.Stderr, r.Code == 0
}

// resolves are the addresses a task gets for a name, in order.
func (c *cluster) resolves(task, name string) []string {
	c.t.Helper()
	out, ok := c.inTask(task, "nslookup", name, "127.0.0.11")
	if !ok {
		return nil
	}
	var addrs []string
	_, rest, _ := strings.Cut(out, "Name:")
	for line := range strings.Lines(rest) {
		if f := strings.Fields(line); len(f) >= 2 && strings.HasPrefix(f[0], "Address") {
			addrs = append(addrs, f[len(f)-1])
		}
	}
	slices.Sort(addrs)
	return addrs
}

var inet = regexp.MustCompile(`inet ([0-9.]+)/`)

// addresses are those that a service's running tasks really have on their first overlay network, in order.
func (c *cluster) addresses(service string) (addrs []string) {
	c.t.Helper()
	for _, ts := range c.running(service) {
		for _, t := range ts {
			out, _ := c.inTask(t.ID, "ip", "-o", "-4", "addr", "show", "eth1")
			if m := inet.FindStringSubmatch(out); m != nil {
				addrs = append(addrs, m[1])
			}
		}
	}
	slices.Sort(addrs)
	return addrs
}

// awaitNames waits until a task on every node resolves tasks.<service> to the n addresses its tasks have.
func (c *cluster) awaitNames(from, service string, n int, limit time.Duration) time.Duration {
	c.t.Helper()
	askers := c.running(from)
	if len(askers) != len(c.members()) {
		c.t.Fatalf("%s runs on %d of %d nodes", from, len(askers), len(c.members()))
	}
	want := c.addresses(service)
	return c.await(fmt.Sprintf("tasks.%s has %d addresses everywhere", service, n), limit, func() string {
		if len(want) != n {
			want = c.addresses(service)
			return fmt.Sprint("its tasks have ", want)
		}
		for host, ts := range askers {
			if got := c.resolves(ts[0].ID, "tasks."+service); !slices.Equal(got, want) {
				return fmt.Sprintf("%s has %v, want %v", host, got, want)
			}
		}
		return ""
	})
}

// must runs a shell script on a host and wants it to succeed.
func (c *cluster) must(host, script string) string {
	c.t.Helper()
	r := c.on(host, "sh", "-c", script)
	if r.Code != 0 {
		c.t.Fatalf("%s: %s: exit status %d\n%s%s", host, script, r.Code, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

// logged is what a host's daemon has said.
func (c *cluster) logged(host string) string {
	c.t.Helper()
	files, err := c.LogFiles(host)
	if err != nil {
		c.t.Fatal(err)
	}
	b, err := os.ReadFile(files["skep"])
	if err != nil {
		c.t.Fatal(err)
	}
	return string(b)
}

// What goes wrong in the network between hosts, and in the kernel of one: users lose what is lost and nothing more.
func TestNetworkFaults(t *testing.T) {
	c := up(t, lab.Options{})
	c.skep("network", "create", "net1")
	c.skep("service", "create", "--name", "web", "--replicas", "2", "--network", "net1", "--stop-signal", "SIGKILL", "busybox", "sleep", "100000")
	c.skep("service", "create", "--name", "front", "--mode", "global", "--network", "net1", "--publish", "8080:80", "whoami:v1")
	c.skep("service", "create", "--name", "probe", "--mode", "global", "--network", "net1", "--stop-signal", "SIGKILL", "busybox", "sleep", "100000")
	c.awaitPort(8080)
	c.awaitWell(30 * time.Second)
	for _, f := range []struct {
		name string
		run  func(*cluster)
	}{{"loss", packetLoss}, {"full table", fullTable}, {"race", raceByCLI}, {"partition", partitionDuringScale}} {
		ok := t.Run(f.name, func(t *testing.T) { f.run(&cluster{c.Lab, t, c.ctx}) })
		if !ok {
			return // what it left would only confuse the next
		}
	}
	c.await("the log of w1 says that its table has room again", 90*time.Second, func() string {
		if !strings.Contains(c.logged("w1"), "the conntrack table has room again") {
			return "nothing of it"
		}
		return ""
	})
}

// Every tenth packet of a node is lost, in both directions: TCP mends that, so nobody is declared down.
func packetLoss(c *cluster) {
	c.must("w1", `nft -f - <<'X'
table inet lossy {
	chain in { type filter hook prerouting priority -400; iifname eth0 ip saddr { `+fabric["m1"]+`, `+fabric["w2"]+` } numgen random mod 10 0 counter drop; }
	chain out { type filter hook output priority -400; oifname eth0 ip daddr { `+fabric["m1"]+`, `+fabric["w2"]+` } numgen random mod 10 0 counter drop; }
}
X`)
	healed := false
	heal := func() {
		if !healed {
			c.must("w1", "nft delete table inet lossy")
		}
		healed = true
	}
	defer heal()
	began := time.Now()
	ready := func() {
		c.t.Helper()
		for host, state := range c.nodeStates() {
			if !strings.HasPrefix(state, "Ready") {
				c.t.Fatalf("%s is %q after %s of loss", host, state, time.Since(began))
			}
		}
	}
	// twice tries again once: three lost packets of one connection are rare and happen.
	twice := func(what string, try func() string) {
		c.t.Helper()
		why := ""
		for range 2 {
			if why = try(); why == "" {
				return
			}
		}
		c.t.Errorf("%s: %s", what, why)
	}
	before := c.tasks("front")
	c.skep("service", "scale", "--detach", "web=5")
	took := c.awaitRunning("web", 5, 20*time.Second)
	took += c.awaitNames("probe", "web", 5, 20*time.Second)
	c.t.Logf("5 tasks run and are known everywhere %.1f s after the scale", took.Seconds())
	probes := c.running("probe")
	for time.Since(began) < 6*time.Second {
		ready()
		for _, h := range c.members() {
			twice("port 8080 of "+h, func() string {
				if r := c.on("client", "curl", "-sS", "--max-time", "5", "-o", "/dev/null", "http://"+fabric[h]+":8080/"); r.Code != 0 {
					return r.Stderr
				}
				return ""
			})
			twice("front from "+h, func() string {
				if out, ok := c.inTask(probes[h][0].ID, "timeout", "5", "wget", "-q", "-O", "-", "http://front/"); !ok {
					return out
				}
				return ""
			})
		}
	}
	ready()
	dropped := c.must("w1", "nft list table inet lossy | grep -o 'packets [0-9]*'")
	c.t.Logf("dropped in %.0f s: %s", time.Since(began).Seconds(), strings.Join(strings.Fields(dropped), " "))
	heal()
	c.skep("service", "scale", "web=2")
	c.awaitNames("probe", "web", 2, 10*time.Second)
	c.t.Logf("all is well %.1f s after the end", c.awaitWell(30*time.Second).Seconds())
	if after := c.tasks("front"); ids(after) != ids(before) {
		c.t.Errorf("tasks were replaced:\n%s\n%s", ids(before), ids(after))
	}
}

// A node is cut off while a service grows, short of being declared down and longer: in the end each node knows the same,
// and that is what runs.
func partitionDuringScale(c *cluster) {
	for _, v := range []struct {
		name     string
		from, to int
		down     bool
	}{{"longer", 2, 9, true}, {"short", 9, 4, false}} {
		if err := c.Cut(c.ctx, "w2"); err != nil {
			c.t.Fatal(err)
		}
		c.skep("service", "scale", "--detach", fmt.Sprint("web=", v.to))
		if v.down {
			c.awaitNode("w2", "Down", 30*time.Second)
			c.awaitRunning("web", v.to, 30*time.Second, "w2")
		}
		if err := c.Heal(c.ctx, "w2"); err != nil {
			c.t.Fatal(err)
		}
		began := time.Now()
		c.awaitNode("w2", "Ready", 30*time.Second)
		for _, s := range []string{"probe", "front"} {
			c.awaitRunning(s, 3, 30*time.Second)
		}
		c.awaitRunning("web", v.to, 30*time.Second)
		c.awaitContainers(v.to+6, 30*time.Second, c.members()...)
		c.awaitNames("probe", "web", v.to, 20*time.Second)
		c.awaitWell(30 * time.Second)
		c.awaitPort(8080)
		c.t.Logf("%s: %d to %d, all agree %.1f s after the heal", v.name, v.from, v.to, time.Since(began).Seconds())
	}
}

// A node's table of tracked connections is full: nothing new goes through it, skep says so and what to do, nothing
// crashes, and when there is room again all is as before.
func fullTable(c *cluster) {
	before := c.tasks("front")
	most := strings.TrimSpace(c.must("w1", "cat /proc/sys/net/netfilter/nf_conntrack_max"))
	// Flows that have seen both directions: the kernel would throw others out for new ones. The table is this host's own.
	began := time.Now()
	c.must("w1", `awk -v n=`+most+` 'BEGIN { for (i = 0; i < n + 500; i++) { s = "10.200." int(i / 65536) "." int(i / 256) % 256; p = 1024 + i % 256
		printf "-A -p udp -s %s -d 10.201.0.1 --sport %d --dport 9 --reply-src 10.201.0.1 --reply-dst %s --reply-port-src 9 --reply-port-dst %d --timeout 12 --status ASSURED,SEEN_REPLY\n", s, p, s, p } }' >/srv/flows
		conntrack -R /srv/flows >/dev/null 2>&1; rm /srv/flows; true`)
	c.t.Logf("%s of %s entries after %.1f s", strings.TrimSpace(c.must("w1", "cat /proc/sys/net/netfilter/nf_conntrack_count")), most, time.Since(began).Seconds())
	url := "http://" + fabric["w1"] + ":8080/"
	failed := 0
	c.await("new connections through w1 fail", 5*time.Second, func() string {
		if r := c.on("client", "curl", "-sS", "--max-time", "1", "-o", "/dev/null", url); r.Code != 0 {
			failed++
			return ""
		}
		return "they do not"
	})
	took := c.await("doctor names the table", 15*time.Second, func() string {
		r := c.on("m1", "skep", "doctor")
		for _, w := range []string{"mesh of w1: connection tracking", "conntrack table full: ", " of " + most, "sysctl -w net.netfilter.nf_conntrack_max="} {
			if !strings.Contains(r.Stdout, w) {
				return r.Stdout
			}
		}
		if r.Code != 1 {
			return fmt.Sprint("exit status ", r.Code)
		}
		return ""
	})
	c.t.Logf("told after %.1f s", took.Seconds())
	c.await("the log names the table", 10*time.Second, func() string {
		if !strings.Contains(c.logged("w1"), "conntrack table full: ") {
			return "it does not"
		}
		return ""
	})
	if state := c.nodeStates()["w1"]; !strings.HasPrefix(state, "Ready") {
		c.t.Errorf("w1 is %q while its table is full: connections that are there go on", state)
	}
	// Those that are led to a task on w1 fail too, whichever node is asked.
	c.await("an answer by another node", 15*time.Second, func() string {
		if _, err := c.ask("client", "http://"+fabric["w2"]+":8080/"); err != nil {
			return err.Error()
		}
		return ""
	})
	took = c.await("w1 answers again", time.Minute, func() string {
		if r := c.on("client", "curl", "-sS", "--max-time", "1", "-o", "/dev/null", url); r.Code != 0 {
			return r.Stderr
		}
		return ""
	})
	c.t.Logf("answers again after %.1f s", took.Seconds())
	c.awaitPort(8080)
	if after := c.tasks("front"); ids(after) != ids(before) {
		c.t.Errorf("tasks were replaced:\n%s\n%s", ids(before), ids(after))
	}
}

// Fifty people publish one port, and make one network, at the same moment: one does, the others hear who was first.
func raceByCLI(c *cluster) {
	const clients = 50
	race := func(command string) (won []string, errs []string) {
		c.t.Helper()
		out := c.must("m1", fmt.Sprintf(`d=$(mktemp -d /srv/race.XXXX); for i in $(seq %d); do (if %s >$d/out.$i 2>$d/err.$i; then touch $d/won.$i; fi) & done; wait
			cd $d; for i in $(seq %d); do if [ -e won.$i ]; then echo "won $i"; else echo "lost $(cat err.$i | tr '\n' ' ')"; fi; done; rm -rf $d`, clients, command, clients))
		for line := range strings.Lines(out) {
			verdict, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
			if verdict == "won" {
				won = append(won, rest)
			} else {
				errs = append(errs, rest)
			}
		}
		if len(won) != 1 || len(errs) != clients-1 {
			c.t.Fatalf("%d won and %d lost, want one winner of %d: %v", len(won), len(errs), clients, errs)
		}
		return won, errs
	}
	began := time.Now()
	won, errs := race("skep service create --detach --name racer$i --publish 8088:80 --no-resolve-image whoami:v1")
	id := c.skep("service", "inspect", "--format", "{{.ID}}", "racer"+won[0])
	want := fmt.Sprintf("port '8088' is already in use by service 'racer%s' (%s) as an ingress port", won[0], id)
	for _, e := range errs {
		if !strings.Contains(e, want) {
			c.t.Errorf("a loser hears %q, want %q", e, want)
		}
	}
	if n := strings.Count(c.skep("service", "ls", "--format", "{{.Name}}"), "racer"); n != 1 {
		c.t.Errorf("%d services were made, want one", n)
	}
	c.skep("service", "rm", "racer"+won[0])
	c.t.Logf("fifty publish one port: %.1f s", time.Since(began).Seconds())

	began = time.Now()
	_, errs = race("skep network create --subnet 10.77.0.0/24 raced")
	for _, e := range errs {
		if !strings.Contains(e, "network with name raced already exists") {
			c.t.Errorf("a loser hears %q", e)
		}
	}
	if n := strings.Count(c.skep("network", "ls", "--format", "{{.Name}}"), "raced"); n != 1 {
		c.t.Errorf("%d networks were made, want one", n)
	}
	c.skep("network", "rm", "raced")
	c.t.Logf("fifty make one network: %.1f s", time.Since(began).Seconds())

	// What the cluster itself lives by is nobody's, and port 22 is not taken unnoticed.
	c.refused(1, []string{"2377", "skep itself uses 2377/tcp"}, "service", "create", "--publish", "2377:80", "whoami:v1")
	c.refused(1, []string{"4789", "skep itself uses 4789/udp"}, "service", "create", "--publish", "4789:80/udp", "whoami:v1")
	if r := c.on("m1", "skep", "service", "create", "--dry-run", "--publish", "22:80", "whoami:v1"); r.Code != 0 || !strings.Contains(r.Stderr, "SSH") {
		c.t.Errorf("port 22: exit status %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
}
