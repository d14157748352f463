package cases

import (
	"bufio"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

// sample is one line of /metrics.
type sample struct {
	name   string
	labels map[string]string
	value  float64
}

var (
	sampleLine = regexp.MustCompile(`^([a-z_]+)(?:\{(.*)\})? (\S+)$`)
	labelPair  = regexp.MustCompile(`([a-z_]+)="([^"]*)"`)
)

// scrape asks a host's metrics listener from outside, as Prometheus does.
func (c *cluster) scrape(host string, port int) []sample {
	c.t.Helper()
	r := c.on("client", "curl", "-sS", "--max-time", "10", fmt.Sprintf("http://%s:%d/metrics", fabric[host], port))
	if r.Code != 0 {
		c.t.Fatalf("scrape %s: %s", host, r.Stderr)
	}
	var out []sample
	for lines := bufio.NewScanner(strings.NewReader(r.Stdout)); lines.Scan(); {
		m := sampleLine.FindStringSubmatch(lines.Text())
		if m == nil {
			continue
		}
		s := sample{name: m[1], labels: map[string]string{}}
		var err error
		if s.value, err = strconv.ParseFloat(m[3], 64); err != nil {
			c.t.Fatalf("metrics of %s: %q: %v", host, lines.Text(), err)
		}
		for _, p := range labelPair.FindAllStringSubmatch(m[2], -1) {
			s.labels[p[1]] = p[2]
		}
		out = append(out, s)
	}
	return out
}

// sum adds up the samples of a metric that have these labels ("port=8080"); ok is false when there is none.
func sum(all []sample, name string, labels ...string) (total float64, ok bool) {
next:
	for _, s := range all {
		if s.name != name {
			continue
		}
		for _, l := range labels {
			if k, v, _ := strings.Cut(l, "="); s.labels[k] != v {
				continue next
			}
		}
		total, ok = total+s.value, true
	}
	return total, ok
}

func (c *cluster) awaitMetric(host string, want float64, name string, labels ...string) {
	c.t.Helper()
	c.await(fmt.Sprintf("%s%v on %s is %g", name, labels, host, want), 20*time.Second, func() string {
		if got, ok := sum(c.scrape(host, 9323), name, labels...); !ok || got != want {
			return fmt.Sprintf("it is %g (%v)", got, ok)
		}
		return ""
	})
}

// dataPaths is what `node ls` says of each node's data path.
func (c *cluster) dataPaths() map[string]string {
	c.t.Helper()
	out := map[string]string{}
	for line := range strings.Lines(c.skep("node", "ls", "--format", "{{.Hostname}}\t{{.Status}}\t{{.DataPath}}") + "\n") {
		if f := strings.Split(strings.TrimSpace(line), "\t"); len(f) == 3 && f[1] == "Ready" {
			out[f[0]] = f[2]
		}
	}
	return out
}

func (c *cluster) awaitPaths(limit time.Duration, want map[string]string) time.Duration {
	c.t.Helper()
	return c.await("the nodes' data paths", limit, func() string {
		if got := c.dataPaths(); fmt.Sprint(got) != fmt.Sprint(want) {
			return fmt.Sprintf("%v, want %v", got, want)
		}
		return ""
	})
}

// What a user did is what the numbers say, on every node that was asked to show them.
func TestMetrics(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Race: true, NodeFlags: []string{"--metrics-addr", "0.0.0.0:9323"}})
	c.skep("service", "create", "--name", "web", "--replicas=2", "--publish", "8080:80", "whoami:v1")
	c.awaitRunning("web", 2, time.Minute)
	c.awaitPort(8080)
	port := []string{"service=web", "port=8080", "protocol=tcp", "mode=ingress"}
	before, ok := sum(c.scrape("w1", 9323), "skep_mesh_port_connections_total", port...)
	if !ok {
		t.Fatal("w1 does not show its published port")
	}
	const asked = 25
	for range asked {
		if _, err := c.ask("client", "http://"+fabric["w1"]+":8080/"); err != nil {
			t.Fatal(err)
		}
	}
	c.awaitMetric("w1", before+asked, "skep_mesh_port_connections_total", port...)
	c.awaitMetric("w1", before+asked, "skep_mesh_backend_connections_total", "service=web")
	c.awaitMetric("w1", 2, "skep_mesh_port_backends", port...)
	c.awaitMetric("m1", 2, "skep_state_service_tasks_running", "service=web")
	c.awaitMetric("m1", 2, "skep_state_service_tasks_desired", "service=web")
	c.awaitMetric("m1", 1, "skep_state_requests_total", "verb=service-create", "code=ok")
	c.awaitMetric("m1", 2, "skep_scheduler_tasks_placed_total")
	c.awaitMetric("m1", 0, "skep_scheduler_tasks_pending")
	c.awaitMetric("m1", 3, "skep_health_nodes", "state=ready")
	c.awaitMetric("m1", 2, "skep_vault_certificates_issued_total", "for=join")

	// What is refused, what fails and what nobody can place is counted as such.
	c.refused(1, []string{"web"}, "service", "create", "--name", "web", "whoami:v1")
	if n, _ := sum(c.scrape("m1", 9323), "skep_state_requests_total", "verb=service-create"); n != 2 {
		t.Errorf("%g requests to create a service, want 2", n)
	}
	c.skep("service", "create", "--detach", "--name", "broken", "--restart-condition", "none", "busybox", "false")
	c.await("a failed task", 20*time.Second, func() string {
		total := 0.0
		for _, host := range c.members() {
			n, _ := sum(c.scrape(host, 9323), "skep_agent_task_exits_total", "reason=failed")
			total += n
		}
		if total != 1 {
			return fmt.Sprint(total)
		}
		return ""
	})
	c.skep("service", "rm", "broken")
	c.skep("service", "create", "--detach", "--name", "nowhere", "--replicas", "3", "--constraint", "node.labels.no==such", "whoami:v1")
	c.awaitMetric("m1", 3, "skep_scheduler_tasks_pending")
	c.skep("service", "rm", "nowhere")

	// top shows the rate of what comes in anywhere, and names a node that leaves its share out.
	rate := func(stdout string) (float64, bool) {
		m := regexp.MustCompile(`(?m)^\S+ +web .* ([0-9.]+)(\*?) *$`).FindStringSubmatch(stdout)
		if m == nil {
			t.Fatalf("no rate of web in\n%s", stdout)
		}
		n, _ := strconv.ParseFloat(m[1], 64)
		return n, m[2] == "*"
	}
	load, err := c.Command(c.ctx, "client", "sh", "-c", "while curl -s -o /dev/null --max-time 2 http://"+fabric["w2"]+":8080/; do sleep 0.05; done")
	if err != nil {
		t.Fatal(err)
	}
	if err := load.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = load.Process.Kill(); _ = load.Wait() }()
	c.awaitRunning("web", 2, time.Minute)
	out := c.skep("top", "--once")
	if n, partial := rate(out); n < 2 || n > 20 || partial {
		t.Errorf("a connection each 50 ms and more is %g a second:\n%s", n, out)
	}
}

// showsAlone starts a service's own program again, now with metrics: it refuses a bad address, and shows what is its own.
func (c *cluster) showsAlone(host, name string) {
	c.t.Helper()
	c.refusedOn(host, 2, []string{"metrics address", "HOST:PORT"}, name, "-metrics-addr", "9324")
	c.signal(host, name, 1, "TERM")
	if err := c.StartProgram(c.ctx, host, name, "-metrics-addr", "0.0.0.0:9324"); err != nil {
		c.t.Fatal(err)
	}
	c.await("metrics of "+name, 30*time.Second, func() string {
		if r := c.on("client", "curl", "-sS", "http://"+fabric[host]+":9324/"); !strings.Contains(r.Stdout, "/metrics") {
			return r.Stderr
		}
		all := c.scrape(host, 9324)
		if n, ok := sum(all, "skep_mesh_converge_duration_seconds_count", "run=heal"); !ok || n < 1 {
			return fmt.Sprintf("%g rounds", n)
		}
		if _, others := sum(all, "skep_agent_tasks"); others {
			return "it shows the agent's"
		}
		return ""
	})
}

// A firewall between two hosts that drops the data path is told by `node ls`, on both, and its end too.
func TestDataPathBlocked(t *testing.T) {
	t.Parallel()
	for _, form := range []struct {
		name string
		o    lab.Options
	}{{"one", lab.Options{Race: true}}, {"separate", lab.Options{Separate: true}}} {
		t.Run(form.name, func(t *testing.T) {
			c := up(t, form.o)
			ok := map[string]string{"m1": "ok", "w1": "ok", "w2": "ok"}
			c.awaitPaths(30*time.Second, ok)
			if out := c.skep("node", "ls"); strings.Contains(out, "DATA PATH") {
				t.Errorf("with all well:\n%s", out)
			}
			// A host's own firewall, which concerns no container, is not a blocked path.
			if r := c.on("m1", "nft", "table inet strict { chain in { type filter hook input priority 0; tcp dport 9 drop; }; }"); r.Code != 0 {
				t.Fatal(r.Stderr)
			}
			rules := "table inet block { chain in { type filter hook prerouting priority -400; ip saddr " + fabric["w2"] + " udp dport 4789 drop; }; }"
			if r := c.on("w1", "nft", rules); r.Code != 0 {
				t.Fatal(r.Stderr)
			}
			took := c.awaitPaths(time.Minute, map[string]string{"m1": "ok", "w1": "blocked: w2", "w2": "blocked: w1"})
			t.Logf("told %.1f s after the block", took.Seconds())
			out := c.skep("node", "ls")
			if !regexp.MustCompile(`(?m)ENGINE VERSION +DATA PATH$`).MatchString(out) || !regexp.MustCompile(`(?m) w1 +Ready +Active .* blocked: w2$`).MatchString(out) {
				t.Errorf("node ls:\n%s", out)
			}
			if r := c.on("w1", "nft", "delete table inet block"); r.Code != 0 {
				t.Fatal(r.Stderr)
			}
			took = c.awaitPaths(time.Minute, ok)
			t.Logf("taken back %.1f s after its end", took.Seconds())

			if c.Separate {
				c.showsAlone("w1", "skep-mesh")
			}

			// A node that is down is not a blocked path of the others.
			if err := c.Kill(c.ctx, "w2"); err != nil {
				t.Fatal(err)
			}
			c.awaitNode("w2", "Down", 30*time.Second)
			for end := time.Now().Add(25 * time.Second); time.Now().Before(end); {
				if got := c.dataPaths(); got["m1"] != "ok" || got["w1"] != "ok" {
					t.Fatalf("with w2 down: %v", got)
				}
				time.Sleep(500 * time.Millisecond)
			}
		})
	}
}
