package cases

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

const (
	// program is where each host of these cases has a skep of its own, which it may replace.
	program = "/var/lib/skep/program/skep"
	second  = "0.0.2-second"
	third   = "0.0.3-broken"
)

// brokenSource says that it is skep and which version, and does nothing else.
var brokenSource = `package main

import (
	"fmt"
	"os"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "version" {
		fmt.Println(` + "`[{\"Client\":{\"Version\":\"" + third + "\",\"Os\":\"linux\",\"Arch\":\"" + runtime.GOARCH + "\"}}]`" + `)
		return
	}
	fmt.Fprintln(os.Stderr, "this build does not start")
	os.Exit(1)
}
`

// goBuild builds a program of the tree with a version, or of a folder of its own.
func goBuild(t *testing.T, dir, out, version string, env ...string) {
	t.Helper()
	cmd := exec.Command("go", "build", "-ldflags", "-s -w -X skep.dev/libs/daemon.Version="+version, "-o", out, "./cmd/skep")
	cmd.Dir, cmd.Env = dir, append(append(os.Environ(), "CGO_ENABLED=0"), env...)
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", version, err, text)
	}
}

func brokenBuild(t *testing.T, out string) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"go.mod": "module skep.dev/services/skep\n\ngo 1.24\n", "cmd/skep/main.go": brokenSource} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	goBuild(t, dir, out, third, "GOWORK=off", "GOFLAGS=-mod=mod -buildvcs=false")
}

// ownProgram gives each node a copy of skep and starts its daemon anew from there.
func (c *cluster) ownProgram(hosts ...string) {
	c.t.Helper()
	for _, h := range hosts {
		if r := c.on(h, "sh", "-c", `mkdir -p "${1%/*}" && cp "$(command -v skep)" "$1" && kill $(cat /var/lib/skep/skep.pid) && while [ -e /var/lib/skep/skep.pid ]; do sleep 0.05; done
			setsid "$1" node run >>/var/lib/skep/skep.log 2>&1 </dev/null & :`, "sh", program); r.Code != 0 {
			c.t.Fatalf("start %s from a program of its own: %s", h, r.Stderr)
		}
		c.await(h+" runs its own program", time.Minute, func() string {
			if r := c.on(h, "sh", "-c", `readlink /proc/$(cat /var/lib/skep/skep.pid)/exe; curl -sS --max-time 5 --unix-socket /run/skep/node.sock http://node/info`); !strings.HasPrefix(r.Stdout, program+"\n") || !strings.Contains(r.Stdout, `"state":"ready"`) {
				return r.Stdout + r.Stderr
			}
			return ""
		})
	}
}

// nodeVersions are those of the nodes.
func (c *cluster) nodeVersions() map[string]string {
	c.t.Helper()
	out := map[string]string{}
	for _, line := range strings.Split(strings.TrimSpace(c.skep("node", "ls", "--format", "{{.Hostname}} {{.EngineVersion}}")), "\n") {
		host, version, _ := strings.Cut(line, " ")
		out[host] = version
	}
	return out
}

// containerStarts is when the processes of the tasks on hosts began: pid and start time.
func (c *cluster) containerStarts(hosts ...string) map[string]string {
	c.t.Helper()
	out := map[string]string{}
	for _, h := range hosts {
		r := c.on(h, "sh", "-c", `for p in $(pgrep -x whoami); do echo "$p $(awk '{print $22}' /proc/$p/stat)"; done | sort`)
		if r.Stdout == "" {
			c.t.Fatalf("no task runs on %s: %s", h, r.Stderr)
		}
		out[h] = r.Stdout
	}
	return out
}

// worksAcross makes, scales, changes and removes a service while nodes run different builds.
func (c *cluster) worksAcross(name string) {
	c.t.Helper()
	c.skep("service", "create", "--name", name, "--replicas", "2", "--constraint", "node.role==worker", "whoami:v1")
	c.skep("service", "scale", name+"=4")
	c.skep("service", "update", "--env-add", "A=1", "--update-delay", "0s", "--update-monitor", "1s", name)
	c.awaitRunning(name, 4, time.Minute)
	c.skep("service", "rm", name)
}

// A new build goes over three managers and two workers, a service under traffic: no request fails and no container is
// restarted. A build that does not start is taken back on the first node, and the cluster stays as it is.
func TestUpgrade(t *testing.T) {
	dir := t.TempDir()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	next, broken, notSkep := filepath.Join(dir, "skep-next"), filepath.Join(dir, "skep-broken"), "/bin/sh"
	goBuild(t, filepath.Join(root, "services", "skep"), next, second)
	brokenBuild(t, broken)

	c := up(t, lab.Options{Managers: 3, Hosts: 5})
	nodes := c.members()
	c.awaitLeader("m1", 3, time.Minute)
	c.ownProgram(nodes...)
	c.awaitLeader("m1", 3, time.Minute)
	for _, n := range nodes {
		c.awaitNode(n, "Ready", time.Minute)
	}
	c.skep("service", "create", "--name", "web", "--replicas", "10", "--publish", "8080:80", "whoami:v1")
	c.awaitRunning("web", 10, time.Minute)
	began := c.containerStarts(nodes...)

	c.refused(1, []string{"/bin/sh is not skep"}, "upgrade", "--to", notSkep)
	c.skep("upgrade", "--to", next, "--dry-run")

	// Workers first, against the order: they work with older managers too.
	c.skep("upgrade", "--to", next, "--node", "w1", "--node", "w2")
	if out := c.skep("doctor"); !strings.Contains(out, "nodes run different versions of skep") {
		t.Errorf("doctor does not tell of two versions:\n%s", out)
	}
	if out := c.skep("version"); !strings.Contains(out, second+": w1, w2") {
		t.Errorf("version does not tell of two versions:\n%s", out)
	}
	c.worksAcross("older-managers")

	var urls []string
	for _, h := range c.Hosts {
		if h.Role == lab.Worker || h.Role == lab.Manager {
			urls = append(urls, "http://"+h.IP+":8080/")
		}
	}
	leader := c.awaitLeader("m1", 3, time.Minute)
	end := c.hammer(2, urls...)
	since := time.Now()
	r := c.on("m1", "skep", "upgrade", "--to", next)
	took := time.Since(since)
	asked, failed, why := end()
	t.Logf("three managers upgraded in %.1f s, %d requests, %d failed (%s)\n%s", took.Seconds(), asked, failed, why, r.Stderr)
	if r.Code != 0 {
		t.Fatalf("upgrade: status %d: %s%s", r.Code, r.Stdout, r.Stderr)
	}
	if failed > 0 || asked == 0 {
		t.Errorf("%d of %d requests failed: %s", failed, asked, why)
	}
	if at := strings.LastIndex(r.Stderr, ": it takes the new program"); at < 0 || !strings.HasSuffix(r.Stderr[:at], leader) {
		t.Errorf("the leader %s was not the last:\n%s", leader, r.Stderr)
	}
	for n, v := range c.nodeVersions() {
		if v != second {
			t.Errorf("%s runs %s", n, v)
		}
	}
	if now := c.containerStarts(nodes...); !maps.Equal(now, began) {
		t.Errorf("containers were restarted: %v, before %v", now, began)
	}

	// Back on the workers alone: they work with newer managers.
	c.skep("upgrade", "--to", program+".old", "--node", "w1", "--node", "w2")
	c.worksAcross("newer-managers")
	c.skep("upgrade", "--to", next)

	// And one that does not start.
	end = c.hammer(1, urls...)
	r = c.on("m1", "skep", "upgrade", "--to", broken)
	asked, failed, why = end()
	t.Logf("a build that does not start: %d requests, %d failed\n%s", asked, failed, r.Stderr)
	if r.Code != 1 || !strings.Contains(r.Stderr, "does not come up with version "+third) || !strings.Contains(r.Stderr, "Not touched: ") {
		t.Errorf("status %d: %s", r.Code, r.Stderr)
	}
	if failed > 0 {
		t.Errorf("%d of %d requests failed: %s", failed, asked, why)
	}
	for n, v := range c.nodeVersions() {
		if v != second {
			t.Errorf("%s runs %s", n, v)
		}
	}
	if now := c.containerStarts(nodes...); !maps.Equal(now, began) {
		t.Errorf("containers were restarted: %v, before %v", now, began)
	}
	c.awaitLeader("m1", 3, time.Minute)
	c.await("it is told that the upgrade was undone", time.Minute, func() string {
		if out := c.skep("audit", "--since", "10m"); !strings.Contains(out, "upgrade-undone") {
			return out
		}
		return ""
	})
	c.worksAcross("after-all")
}
