package cases

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

// addresses of the lab's hosts, in the order of members.
var fabric = map[string]string{"m1": "10.90.1.1", "w1": "10.90.2.1", "w2": "10.90.2.2", "client": "10.90.0.200"}

// answer is what whoami says.
type answer struct{ host, version, client string }

func parseAnswer(s string) answer {
	var a answer
	for line := range strings.Lines(s) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), ": ")
		switch k {
		case "host":
			a.host = v
		case "version":
			a.version = v
		case "client":
			a.client, _, _ = cutLast(v, ":")
		}
	}
	return a
}

func cutLast(s, sep string) (before, after string, ok bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// ask makes one request from a host.
func (c *cluster) ask(from, url string) (answer, error) {
	c.t.Helper()
	r := c.on(from, "curl", "-sS", "--max-time", "3", url)
	if r.Code != 0 {
		return answer{}, fmt.Errorf("curl %s from %s: %d %s", url, from, r.Code, strings.TrimSpace(r.Stderr))
	}
	return parseAnswer(r.Stdout), nil
}

// awaitPort waits until every node answers on a port.
func (c *cluster) awaitPort(port int) {
	c.t.Helper()
	for _, h := range c.members() {
		c.await(fmt.Sprintf("port %d of %s", port, h), 20*time.Second, func() string {
			if _, err := c.ask("client", fmt.Sprintf("http://%s:%d/", fabric[h], port)); err != nil {
				return err.Error()
			}
			return ""
		})
	}
}

// Chapters 6 and 7: a port published on every node, with the client's address kept.
func TestChapter7RoutingMesh(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Race: true})
	c.skep("service", "create", "--name", "web_server", "--replicas=2", "whoami:v1")
	c.skep("service", "update", "--publish-add", "8080:80", "web_server")
	c.awaitRunning("web_server", 2, time.Minute)
	c.awaitPort(8080)
	c.refused(1, []string{"8080", "already in use", "web_server"}, "service", "create", "--name", "other", "--publish", "8080:80", "whoami:v1")
	c.refused(2, []string{"0"}, "service", "create", "--publish", "65536:80", "whoami:v1")

	// From outside: every node, one of which runs no replica; both replicas; the client's own address.
	seen := map[string]bool{}
	for _, h := range c.members() {
		for range 8 {
			a, err := c.ask("client", "http://"+fabric[h]+":8080/")
			if err != nil {
				t.Fatal(err)
			}
			if a.client != fabric["client"] {
				t.Errorf("through %s the service sees %s, want the client's %s", h, a.client, fabric["client"])
			}
			seen[a.host] = true
		}
	}
	if len(seen) != 2 {
		t.Errorf("%d replicas answer, want 2: %v", len(seen), seen)
	}
	if logs := c.skep("service", "logs", "web_server"); !strings.Contains(logs, fabric["client"]+":") {
		t.Errorf("the log does not show the client's address:\n%s", logs)
	}

	// From the nodes themselves, to any node, and to 127.0.0.1.
	for _, from := range c.members() {
		for _, to := range append([]string{"127.0.0.1"}, fabric["m1"], fabric["w1"], fabric["w2"]) {
			for range 3 {
				if _, err := c.ask(from, "http://"+to+":8080/"); err != nil {
					t.Error(err)
				}
			}
		}
	}
	// From a container, to its own node and to others.
	c.skep("service", "create", "--mode", "global", "--name", "probe", "busybox", "sleep", "100000")
	for host, tasks := range c.running("probe") {
		for _, to := range c.members() {
			for range 3 {
				if r := c.on("m1", "skep", "exec", tasks[0].ID, "timeout", "3", "wget", "-q", "-O", "-", "http://"+fabric[to]+":8080/"); r.Code != 0 {
					t.Errorf("a container on %s to %s: %s", host, to, r.Stderr)
				}
			}
		}
	}
	// UDP too.
	c.skep("service", "create", "--name", "udp", "--replicas", "2", "--publish", "published=9090,target=80,protocol=udp", "whoami:v1")
	for _, h := range c.members() {
		c.await("UDP through "+h, 20*time.Second, func() string {
			r := c.on("client", "sh", "-c", "echo hi | nc -u -w 1 "+fabric[h]+" 9090")
			if got := parseAnswer(r.Stdout).client; got != fabric["client"] {
				return fmt.Sprintf("the service sees %q: %s", got, r.Stderr)
			}
			return ""
		})
	}

	// Killing a replica loses no later connection.
	c.skep("service", "scale", "web_server=3")
	c.awaitRunning("web_server", 3, time.Minute)
	c.awaitPort(8080)
	victim := c.tasks("web_server")[0]
	if r := c.on(victim.Node, "ctr", "-a", "/run/skep/containerd.sock", "-n", "skep", "task", "kill", "-s", "KILL", victim.ID); r.Code != 0 { // no process kills its own init
		t.Fatal(r.Stderr)
	}
	c.await("the killed one to be replaced", time.Minute, func() string {
		for _, now := range c.only("web_server", 3) {
			if now.ID == victim.ID {
				return "it still runs"
			}
		}
		return ""
	})
	for range 30 {
		if _, err := c.ask("client", "http://"+fabric["w2"]+":8080/"); err != nil {
			t.Error(err)
		}
	}

	// A service without replicas refuses at once; rm leaves nothing.
	c.skep("service", "scale", "web_server=0")
	c.await("the port refuses", 10*time.Second, func() string {
		r := c.on("client", "curl", "-sS", "--max-time", "2", "http://"+fabric["w1"]+":8080/")
		if r.Code != 7 {
			return fmt.Sprintf("curl ends with %d, want 7 (refused): %s", r.Code, r.Stderr)
		}
		return ""
	})
	c.skep("service", "rm", "web_server", "udp", "probe")
	c.awaitClean(time.Minute, c.members()...)
}

// Chapter 8: an overlay network, its names, and what is not on it.
func TestChapter8Overlay(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Race: true})
	c.skep("network", "create", "--driver", "overlay", "myapp_net")
	c.skep("network", "create", "--driver", "overlay", "other_net")
	if out := c.skep("network", "ls"); !strings.Contains(out, "myapp_net") || !strings.Contains(out, "overlay") || !strings.Contains(out, "ingress") {
		t.Errorf("network ls:\n%s", out)
	}
	c.refused(1, []string{"nonet"}, "service", "create", "--network", "nonet", "busybox")
	c.refused(2, []string{"ingress"}, "service", "create", "--network", "ingress", "busybox")
	c.skep("service", "create", "--name", "my_web", "--replicas", "3", "--network", "myapp_net", "whoami:v1")
	c.skep("service", "create", "--name", "util", "--network", "myapp_net", "busybox", "sleep", "100000")
	c.skep("service", "create", "--name", "stranger", "--network", "other_net", "busybox", "sleep", "100000")
	util, stranger := c.tasks("util")[0].ID, c.tasks("stranger")[0].ID

	in := func(task string, argv ...string) (string, bool) {
		r := c.on("m1", append([]string{"skep", "exec", task}, argv...)...)
		return r.Stdout + r.Stderr, r.Code == 0
	}
	if out, ok := in(util, "ping", "-c", "2", "-W", "2", "my_web"); !ok {
		t.Errorf("ping my_web: %s", out)
	}
	lookup := func(name string) []string {
		out, ok := in(util, "nslookup", name, "127.0.0.11")
		if !ok {
			return nil
		}
		var addrs []string
		_, rest, _ := strings.Cut(out, "Name:")
		for _, line := range strings.Split(rest, "\n") {
			if f := strings.Fields(line); len(f) >= 2 && strings.HasPrefix(f[0], "Address") {
				addrs = append(addrs, f[len(f)-1])
			}
		}
		slices.Sort(addrs)
		return addrs
	}
	vip := lookup("my_web")
	if len(vip) != 1 {
		t.Fatalf("my_web has the addresses %v, want one", vip)
	}
	if out := c.skep("service", "inspect", "my_web"); !strings.Contains(out, vip[0]) {
		t.Errorf("inspect does not show the virtual address %s:\n%s", vip[0], out)
	}
	for _, n := range []int{3, 5} {
		c.skep("service", "scale", fmt.Sprint("my_web=", n))
		took := c.await(fmt.Sprint("tasks.my_web has ", n, " addresses"), 20*time.Second, func() string {
			if got := lookup("tasks.my_web"); len(got) != n {
				return fmt.Sprint(got)
			}
			return ""
		})
		t.Logf("%d addresses %.2f s after the scale", n, took.Seconds())
	}
	// The VIP reaches all of them, on every host, and they see the asker's own address.
	seen := map[string]bool{}
	var self string
	for range 40 {
		out, ok := in(util, "timeout", "3", "wget", "-q", "-O", "-", "http://my_web/")
		if !ok {
			t.Fatalf("wget my_web: %s", out)
		}
		a := parseAnswer(out)
		seen[a.host], self = true, a.client
	}
	if len(seen) != 5 {
		t.Errorf("the VIP reaches %d of 5 tasks", len(seen))
	}
	if out, _ := in(util, "ip", "addr", "show", "eth1"); !strings.Contains(out, self+"/") {
		t.Errorf("tasks see %s, which is not the asker's address:\n%s", self, out)
	}
	// Every task reaches the VIP, itself included.
	for _, tasks := range c.running("my_web") {
		for _, task := range tasks {
			for range 3 {
				if out, ok := in(task.ID, "timeout", "3", "wget", "-q", "-O", "-", "http://my_web/"); !ok {
					t.Errorf("%s on %s: %s", task.Name, task.Node, out)
				}
			}
		}
	}
	// Who is not on the network neither finds nor reaches it.
	if out, ok := in(stranger, "nslookup", "my_web", "127.0.0.11"); ok && strings.Contains(out, vip[0]) {
		t.Errorf("a stranger resolves my_web: %s", out)
	}
	for _, a := range append(lookup("tasks.my_web"), vip...) {
		if out, ok := in(stranger, "timeout", "1", "wget", "-q", "-O", "-", "http://"+a+"/"); ok {
			t.Errorf("a stranger reaches %s: %s", a, out)
		}
	}
	// A network in use stays; one that is not goes, and so does all it had.
	c.refused(1, []string{"myapp_net", "in use", "my_web"}, "network", "rm", "myapp_net")
	if out := c.skep("network", "inspect", "-v", "myapp_net"); !strings.Contains(out, "my_web") || !strings.Contains(out, vip[0]) {
		t.Errorf("network inspect -v:\n%s", out)
	}
	c.skep("service", "rm", "my_web", "util", "stranger")
	c.skep("network", "rm", "myapp_net", "other_net")
	c.awaitClean(time.Minute, c.members()...)
	for _, h := range c.members() {
		c.await("no overlay left on "+h, 40*time.Second, func() string {
			return c.on(h, "sh", "-c", "ls /run/skep/overlays 2>/dev/null").Stdout
		})
	}
}

// What an administrator breaks by hand comes back within seconds, and who uses it does not notice more than that.
func TestNetworkHeals(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{})
	c.skep("network", "create", "net1")
	c.skep("service", "create", "--name", "web", "--mode", "global", "--network", "net1", "--publish", "8080:80", "whoami:v1")
	c.skep("service", "create", "--name", "util", "--mode", "global", "--network", "net1", "busybox", "sleep", "100000")
	c.awaitPort(8080)
	works := func(what string) {
		t.Helper()
		c.awaitPort(8080)
		for host, tasks := range c.running("util") {
			c.await(what+": from "+host+" to all", 20*time.Second, func() string {
				seen := map[string]bool{}
				for range 10 {
					r := c.on("m1", "skep", "exec", tasks[0].ID, "timeout", "3", "wget", "-q", "-O", "-", "http://web/")
					if r.Code != 0 {
						return r.Stderr
					}
					seen[parseAnswer(r.Stdout).host] = true
				}
				if len(seen) < 2 { // 10 times one of three: once in 6,000 runs
					return fmt.Sprint(len(seen), " of 3 answer")
				}
				return ""
			})
		}
	}
	works("before")
	for what, script := range map[string]string{
		"nft flush ruleset":   "nft flush ruleset",
		"the fabric's FDB":    "bridge fdb show dev skin0 | awk '{print $1}' | while read m; do bridge fdb del $m dev skin0; done; true",
		"an overlay's FDB":    "for f in /run/skep/overlays/*; do nsenter --net=$f sh -c 'for d in $(ls /sys/class/net); do :; done; ip -o link show type vxlan | sed \"s/^[0-9]*: \\([^:@]*\\).*/\\1/\" | while read d; do bridge fdb show dev $d | awk \"{print \\$1}\" | while read m; do bridge fdb del $m dev $d; done; done'; done; true",
		"the rule and routes": "ip rule del pref 100; ip route flush table 4000; true",
		"iptables -F":         "iptables -F; iptables -P FORWARD DROP",
		"skin0":               "ip link del skin0",
		"the daemon, killed":  "pkill -9 -x skep; sleep 0.3; setsid skep node run >>/var/lib/skep/skep.log 2>&1 </dev/null & true",
	} {
		if r := c.on("w1", "sh", "-c", script); r.Code != 0 {
			t.Fatalf("%s: %s", what, r.Stderr)
		}
		began := time.Now()
		works(what)
		t.Logf("%s: all well after %.1f s", what, time.Since(began).Seconds())
	}
}

// hammer asks ports over and over from the client, a connection each time, until end is called, which says how many
// requests there were and how many failed.
func (c *cluster) hammer(clients int, urls ...string) (end func() (asked, failed int, first string)) {
	c.t.Helper()
	const stop = "/run/hammer-stop"
	c.on("client", "rm", "-f", stop)
	type outcome struct {
		r   lab.Result
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		r, err := c.Run(c.ctx, "client", "skep-bench", "hammer", "-c", fmt.Sprint(clients), "-until", stop, strings.Join(urls, ","))
		done <- outcome{r, err}
	}()
	return func() (asked, failed int, first string) {
		c.t.Helper()
		c.on("client", "touch", stop)
		o := <-done
		if o.err != nil || o.r.Code != 0 {
			c.t.Fatalf("hammer: %v %s", o.err, o.r.Stderr)
		}
		counts, first, _ := strings.Cut(o.r.Stdout, "\n")
		if _, err := fmt.Sscan(counts, &asked, &failed); err != nil {
			c.t.Fatalf("hammer says %q", o.r.Stdout)
		}
		return asked, failed, first
	}
}

// Scaling, updating and restarting the mesh under load fails no request.
func TestNoRequestFails(t *testing.T) {
	c := up(t, lab.Options{})
	c.skep("service", "create", "--name", "web", "--replicas", "6", "--publish", "8080:80",
		"--update-parallelism", "2", "--update-order", "start-first", "whoami:v1")
	c.awaitPort(8080)
	var urls []string
	for _, m := range c.members() {
		urls = append(urls, "http://"+fabric[m]+":8080/")
	}
	end := c.hammer(4, urls...)
	step := func(what string) { t.Log(time.Now().UTC().Format("15:04:05.000"), what) } // to find a failed request's cause
	step("update, start-first")
	c.skep("service", "update", "--image", "whoami:v2", "web")
	step("update, stop-first")
	c.skep("service", "update", "--update-order", "stop-first", "--image", "whoami:v1", "web")
	step("scale to 9")
	c.skep("service", "scale", "web=9")
	step("scale to 3")
	c.skep("service", "scale", "web=3")
	step("kill the daemon of w1")
	if r := c.on("w1", "sh", "-c", "pkill -9 -x skep; sleep 0.3; setsid skep node run >>/var/lib/skep/skep.log 2>&1 </dev/null & true"); r.Code != 0 {
		t.Fatal(r.Stderr)
	}
	c.awaitNode("w1", "Ready", 30*time.Second)
	step("update, stop-first")
	c.skep("service", "update", "--image", "whoami:v2", "web")
	step("end")
	asked, failed, first := end()
	t.Logf("%d requests, %d failed", asked, failed)
	if failed > 0 || asked == 0 {
		t.Errorf("%d of %d requests failed, such as %s", failed, asked, first)
	}
}
