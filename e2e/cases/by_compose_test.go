//go:build compose

package cases

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"skep.dev/e2e/images"
	"skep.dev/e2e/lab"
)

// composed is a host that runs a node by deploy/compose.yaml.
type composed struct {
	*cluster
	host string
	file string
	env  []string
}

// argv is the command line of docker.
func (c *composed) argv(args ...string) []string {
	c.t.Helper()
	h, err := c.Host(c.host)
	if err != nil {
		c.t.Fatal(err)
	}
	return c.Docker(append([]string{"COMPOSE_FILE=" + c.file, "SKEP_ADDR=" + h.IP}, c.env...), args...)
}

func (c *composed) docker(args ...string) lab.Result {
	c.t.Helper()
	return c.on(c.host, c.argv(args...)...)
}

func (c *composed) must(args ...string) string {
	c.t.Helper()
	r := c.docker(args...)
	if r.Code != 0 {
		c.t.Fatalf("docker %s: exit status %d\n%s%s", strings.Join(args, " "), r.Code, r.Stdout, r.Stderr)
	}
	return strings.TrimSpace(r.Stdout)
}

// skepBy is skep as the file says that it is called.
func skepBy(args ...string) []string {
	return append([]string{"compose", "run", "--rm", "-T", "cli"}, args...)
}

// cli is skep, and what it printed; tryCLI whatever comes of it.
func (c *composed) cli(args ...string) string { c.t.Helper(); return c.must(skepBy(args...)...) }

func (c *composed) tryCLI(args ...string) lab.Result {
	c.t.Helper()
	return c.docker(skepBy(args...)...)
}

// healthy are the containers of each service that the engine finds healthy.
func (c *composed) healthy() map[string]int {
	c.t.Helper()
	out := map[string]int{}
	for line := range strings.Lines(c.must("ps", "--filter", "label=com.docker.compose.project=skep", "--filter", "health=healthy", "--format", `{{.Label "com.docker.compose.service"}}`)) {
		out[strings.TrimSpace(line)]++
	}
	return out
}

func (c *composed) awaitHealthy(want map[string]int, limit time.Duration) time.Duration {
	c.t.Helper()
	return c.await(fmt.Sprintf("healthy are %v", want), limit, func() string {
		if got := c.healthy(); !maps.Equal(got, want) {
			return fmt.Sprint(got)
		}
		return ""
	})
}

// engines are hosts with an engine each that has the images of the suite: m1, m2, ...
func engines(t *testing.T, n int) (out []*composed) {
	folder := os.Getenv("SKEP_IMAGES")
	archives, err := filepath.Glob(filepath.Join(folder, "*.tar"))
	if err != nil || len(archives) != 3 {
		t.Fatalf("the images of the suite in SKEP_IMAGES=%s: %v %v; run `make test-compose`", folder, archives, err)
	}
	file, err := filepath.Abs("../../deploy/compose.yaml")
	if err != nil {
		t.Fatal(err)
	}
	c := up(t, lab.Options{Hosts: n, Managers: n, NoCluster: true})
	for i := range n {
		e := &composed{cluster: c, host: fmt.Sprint("m", i+1), file: file}
		if err := c.StartEngine(c.ctx, e.host); err != nil {
			t.Fatal(err)
		}
		for _, a := range archives {
			e.must("load", "-q", "-i", a)
		}
		out = append(out, e)
	}
	return out
}

// image has the agent of the host load the lab's whoami.
func (c *composed) image() {
	c.t.Helper()
	in, err := lab.Inputs(c.Bin)
	if err != nil {
		c.t.Fatal(err)
	}
	imgs, err := images.Build(c.ctx, in, "whoami:v1")
	if err != nil {
		c.t.Fatal(err)
	}
	tar := filepath.Join(c.t.TempDir(), "whoami.tar")
	if err := images.WriteArchive(tar, imgs...); err != nil {
		c.t.Fatal(err)
	}
	if r := c.piped("<"+tar, "image", "load"); r.Code != 0 {
		c.t.Fatalf("load an image: %s%s", r.Stdout, r.Stderr)
	}
}

// piped is cli with its input: a redirection, or a command and a pipe.
func (c *composed) piped(input string, args ...string) lab.Result {
	c.t.Helper()
	before, after := input, ""
	if strings.HasPrefix(input, "<") {
		before, after = "", input
	}
	argv := c.argv(skepBy(args...)...)
	return c.on(c.host, "sh", "-c", before+" "+strings.Join(argv, " ")+" "+after)
}

// killEach kills each of the manager's services of the host in turn, and waits until it is back.
func (c *composed) killEach(services ...string) {
	c.t.Helper()
	for _, name := range services {
		id := strings.Fields(c.must("ps", "-q", "--filter", "label=com.docker.compose.project=skep", "--filter", "label=com.docker.compose.service="+name))[0]
		pid := c.must("inspect", "--format", "{{.State.Pid}}", id)
		c.on(c.host, "kill", "-9", pid)
		c.await(name+" is back", time.Minute, func() string {
			now := c.must("inspect", "--format", "{{.State.Pid}} {{.State.Health.Status}}", id)
			if p, health, _ := strings.Cut(now, " "); p == pid || health != "healthy" {
				return now
			}
			return ""
		})
	}
}

// composedServices are those of a manager's host that say whether they are well.
var composedServices = map[string]int{"bus": 1, "state": 1, "scheduler": 1, "health": 1, "vault": 1, "mesh-controller": 1, "mesh": 1, "agent": 1}

var managersServices = []string{"bus", "health", "mesh-controller", "scheduler", "state", "vault"}

// A node by docker compose, on a host with Debian's Docker Engine: it comes up, runs a service with a port, a network, a volume and
// a secret, has more instances of services on demand, bears the death of each of the manager's services, and loses nothing when
// all of it goes down and comes up again.
func TestByCompose(t *testing.T) {
	c := engines(t, 1)[0]

	out := c.must("compose", "run", "--rm", "init")
	if !strings.Contains(out, "skep join --token SKEP-1-") {
		t.Errorf("init says\n%s", out)
	}
	began := time.Now()
	c.must("compose", "--profile", "manager", "up", "-d")
	c.await("the node is Ready", time.Minute, func() string {
		r := c.tryCLI("node", "ls", "--format", "{{.Status}}")
		if strings.TrimSpace(r.Stdout) != "Ready" {
			return r.Stdout + r.Stderr
		}
		return ""
	})
	t.Logf("from `up` to Ready: %.1f s", time.Since(began).Seconds())
	all := composedServices
	c.awaitHealthy(all, time.Minute)

	c.image()
	if r := c.piped("printf s3cret |", "secret", "create", "pw", "-"); r.Code != 0 {
		t.Fatalf("create a secret: %s%s", r.Stdout, r.Stderr)
	}
	c.cli("network", "create", "-d", "overlay", "back")
	c.cli("volume", "create", "data")
	c.cli("service", "create", "--name", "web", "--replicas", "2", "--network", "back", "--publish", "8080:80", "--secret", "pw",
		"--mount", "type=volume,source=data,target=/data", "whoami:v1")
	c.awaitPort(8080)
	pids := func() string {
		return c.on("m1", "sh", "-c", "pgrep -x whoami | sort").Stdout
	}
	tasks := pids()
	if len(strings.Fields(tasks)) != 2 {
		t.Fatalf("the tasks' processes are %q", tasks)
	}

	// More instances, and what the broker is told of them.
	c.must("compose", "--profile", "manager", "up", "-d", "--scale", "scheduler=2", "--scale", "state=3", "--scale", "vault=2")
	more := maps.Clone(all)
	more["scheduler"], more["state"], more["vault"] = 2, 3, 2
	c.awaitHealthy(more, time.Minute)

	// Each of the manager's services is killed in turn under a client, and nothing of what runs notices.
	stop := c.hammer(8080)
	c.killEach(managersServices...)
	ok, failed := stop()
	t.Logf("while each service was killed: %d requests, %d failed", ok+failed, failed)
	if failed > 0 || ok == 0 {
		t.Errorf("%d requests failed of %d", failed, ok+failed)
	}
	if now := pids(); now != tasks {
		t.Errorf("the tasks' processes were %q and are %q", tasks, now)
	}

	// Agent and mesh are replaced, as by a new image of theirs: tasks run on.
	c.must("compose", "up", "-d", "--force-recreate", "--no-deps", "agent", "mesh")
	c.awaitHealthy(more, time.Minute)
	if now := pids(); now != tasks {
		t.Errorf("with a new agent the tasks' processes were %q and are %q", tasks, now)
	}

	// Down and up: the cluster is what it was.
	before := c.cli("node", "ls", "-q")
	c.must("compose", "--profile", "manager", "down")
	c.must("compose", "--profile", "manager", "up", "-d")
	c.await("the node is Ready again", 2*time.Minute, func() string {
		r := c.tryCLI("node", "ls", "--format", "{{.ID}} {{.Status}}")
		if strings.TrimSpace(r.Stdout) != before+" Ready" {
			return r.Stdout + r.Stderr
		}
		return ""
	})
	c.await("two tasks run again", 2*time.Minute, func() string {
		var rows []struct{ Name, Replicas string }
		for line := range strings.Lines(c.cli("service", "ls", "--format", "{{json .}}")) {
			var row struct{ Name, Replicas string }
			if err := json.Unmarshal([]byte(line), &row); err != nil {
				return err.Error()
			}
			rows = append(rows, row)
		}
		if len(rows) != 1 || rows[0].Replicas != "2/2" {
			return fmt.Sprint(rows)
		}
		return ""
	})
	c.awaitPort(8080)

	// The machine loses its power. After a boot the engine starts all of it at once, in any order, and nobody calls compose.
	if err := c.Kill(c.ctx, "m1"); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(c.ctx, "m1"); err != nil {
		t.Fatal(err)
	}
	if err := c.StartEngine(c.ctx, "m1"); err != nil {
		t.Fatal(err)
	}
	began = time.Now()
	c.awaitPort(8080)
	t.Logf("after a boot the service answers %.1f s after the engine does", time.Since(began).Seconds())
	if out := c.cli("secret", "ls", "--format", "{{.Name}}"); out != "pw" {
		t.Errorf("the secrets are %q", out)
	}
	c.cli("service", "rm", "web")
	c.await("its tasks are gone", time.Minute, pids)
	c.must("compose", "--profile", "manager", "down")
}

// hammer asks a published port of m1 from the client until it is stopped.
func (c *composed) hammer(port int) (stop func() (ok, failed int)) {
	ctx, cancel := context.WithCancel(c.ctx)
	var wg sync.WaitGroup
	ok, failed := 0, 0
	wg.Go(func() {
		for ctx.Err() == nil {
			r, err := c.Run(c.ctx, "client", "curl", "-sS", "-o", "/dev/null", "--max-time", "5", fmt.Sprintf("http://10.90.1.1:%d/", port))
			if err == nil && r.Code == 0 {
				ok++
			} else {
				failed++
				c.t.Logf("a request failed: %v %s", err, r.Stderr)
			}
		}
	})
	return func() (int, int) {
		cancel()
		wg.Wait()
		return ok, failed
	}
}

// Three managers by compose alone: init on one, join on two, up on all. Each of the leader's services is killed in turn without a
// failed request, and the hosts' addresses are all that anybody has to know.
func TestByComposeThreeManagers(t *testing.T) {
	all := engines(t, 3)
	m1 := all[0]
	began := time.Now()
	m1.must("compose", "run", "--rm", "init")
	m1.must("compose", "--profile", "manager", "up", "-d")
	token := ""
	m1.await("m1 gives a token", time.Minute, func() string {
		r := m1.tryCLI("join-token", "-q", "manager")
		if token = strings.TrimSpace(r.Stdout); !strings.HasPrefix(token, "SKEP-") {
			return r.Stdout + r.Stderr
		}
		return ""
	})
	for _, m := range all[1:] {
		m.env = []string{"SKEP_TOKEN=" + token, "SKEP_MANAGER=10.90.1.1:2377"}
		m.must("compose", "run", "--rm", "join")
		m.must("compose", "--profile", "manager", "up", "-d")
	}
	m1.await("three managers", 2*time.Minute, func() string {
		out := m1.cli("node", "ls", "--format", "{{.Status}} {{.ManagerStatus}}")
		if strings.Count(out, "Ready Reachable") != 2 || strings.Count(out, "Ready Leader") != 1 {
			return out
		}
		return ""
	})
	t.Logf("three managers from nothing, images at hand: %.1f s", time.Since(began).Seconds())
	for _, m := range all {
		m.image()
	}
	m1.cli("service", "create", "--name", "web", "--replicas", "3", "--publish", "8080:80", "whoami:v1")
	for _, ip := range []string{"10.90.1.1", "10.90.1.2", "10.90.1.3"} {
		m1.await("port 8080 of "+ip, time.Minute, func() string {
			if _, err := m1.ask("client", "http://"+ip+":8080/"); err != nil {
				return err.Error()
			}
			return ""
		})
	}
	leader := m1
	out := m1.cli("node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}")
	for _, m := range all {
		if strings.Contains(out, m.host+" Leader") {
			leader = m
		}
	}
	stop := m1.hammer(8080)
	leader.killEach(managersServices...)
	ok, failed := stop()
	t.Logf("while each service of the leader was killed: %d requests, %d failed", ok+failed, failed)
	if failed > 0 || ok == 0 {
		t.Errorf("%d requests failed of %d", failed, ok+failed)
	}
	m1.await("three managers again", 2*time.Minute, func() string {
		if out := m1.cli("node", "ls", "--format", "{{.Status}} {{.ManagerStatus}}"); strings.Count(out, "Ready Reachable") != 2 {
			return out
		}
		return ""
	})
	// Images of another version are rolled over the hosts, one after the other. containerd's has its own version: tasks run on.
	tasks := func() (out string) {
		for _, m := range all {
			out += m.host + " " + strings.Join(strings.Fields(m.on(m.host, "pgrep", "-x", "whoami").Stdout), " ") + "\n"
		}
		return out
	}
	before := tasks()
	stop = m1.hammer(8080)
	for _, m := range all {
		for _, image := range []string{"skep-suite", "skep-node"} {
			m.must("tag", image+":latest", image+":next")
		}
		m.env = []string{"SKEP_VERSION=next"}
		m.must("compose", "--profile", "manager", "up", "-d")
		m.awaitHealthy(composedServices, 2*time.Minute)
		m.await("it is a manager again", 2*time.Minute, func() string {
			r := m.tryCLI("node", "ls", "--format", "{{.Status}} {{.ManagerStatus}}")
			if out := r.Stdout; strings.Count(out, "Ready Reachable") != 2 || strings.Count(out, "Ready Leader") != 1 {
				return out + r.Stderr
			}
			return ""
		})
	}
	ok, failed = stop()
	t.Logf("while other images were rolled over the hosts: %d requests, %d failed", ok+failed, failed)
	if failed > 0 || ok == 0 {
		t.Errorf("%d requests failed of %d", failed, ok+failed)
	}
	// Each agent said that it is started again: nobody took its node for lost.
	if after := tasks(); after != before {
		t.Errorf("tasks moved:\n%sto\n%s", before, after)
	}
	m1.cli("service", "rm", "web")
	for _, m := range all {
		m.await("its tasks are gone", time.Minute, func() string { return m.on(m.host, "pgrep", "-x", "whoami").Stdout })
		m.must("compose", "--profile", "manager", "down")
	}
}
