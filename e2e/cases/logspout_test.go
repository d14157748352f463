package cases

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

// collectors runs logspout as it comes on every node: a global service with the node's Docker socket at Docker's place. What it collects
// goes to a file beside it.
func (c *cluster) collectors() {
	c.t.Helper()
	tool, err := filepath.EvalSymlinks(filepath.Join(c.Bin, "tools", "logspout"))
	if err != nil {
		c.t.Fatalf("%v (make tools)", err)
	}
	if _, err := os.Stat(tool); err != nil {
		c.t.Fatalf("%v (make tools)", err)
	}
	// 1388 is port 5000, of the file's writer.
	script := `nc -l -p 5000 >/collected & until grep -qi ":1388 " /proc/net/tcp /proc/net/tcp6; do sleep 0.1; done
RAW_FORMAT="{{ .Container.Name }}|{{ .Data }}
" exec /tools/` + filepath.Base(tool) + ` raw+tcp://127.0.0.1:5000`
	c.skep("service", "create", "-d", "--name", "logspout", "--mode", "global", "--mount", "type=bind,source=/run/skep/docker.sock,destination=/var/run/docker.sock",
		"--mount", "type=bind,source="+filepath.Dir(tool)+",destination=/tools,readonly", "busybox", "sh", "-c", script)
}

// dockerOn runs the docker command with a node's own socket.
func (c *cluster) dockerOn(host string, args ...string) lab.Result {
	return c.on(host, append([]string{"docker", "-H", "unix:///run/skep/docker.sock"}, args...)...)
}

// Each line that a task writes is collected on its node exactly once, of tasks that come after the collector and of those that have
// ended; on workers too. (What was written before it came logspout leaves.) And the docker command shows, reads and enters a node's own containers.
func TestLogspoutByDocker(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Hosts: 2})
	hosts := []string{"m1", "w1"}
	c.collectors()
	c.awaitRunning("logspout", 2, time.Minute)
	talk := func(name string, lines int) {
		t.Helper()
		c.skep("service", "create", "-d", "--name", name, "--mode", "global", "--restart-condition", "none", "busybox", "sh", "-c",
			fmt.Sprintf("i=0; while [ $i -lt %d ]; do i=$((i+1)); echo %s out $i; echo %s err $i >&2; done; sleep 100000", lines, name, name))
		c.awaitRunning(name, 2, time.Minute)
	}
	collected := func(host string) (string, map[string]int) {
		task := c.running("logspout")[host][0].ID
		r := c.dockerOn(host, "exec", task, "cat", "/collected")
		if r.Code != 0 {
			t.Fatalf("docker exec on %s: %s%s", host, r.Stdout, r.Stderr)
		}
		count := map[string]int{}
		for line := range strings.Lines(r.Stdout) {
			if name, text, ok := strings.Cut(strings.TrimSpace(line), "|"); ok && !strings.HasPrefix(name, "/logspout.") {
				count[text]++
			}
		}
		return r.Stdout, count
	}
	each := func(name string, lines int) {
		t.Helper()
		for _, h := range hosts {
			c.await(fmt.Sprintf("the collector of %s has every line of %s", h, name), time.Minute, func() string {
				_, count := collected(h)
				for i := 1; i <= lines; i++ {
					for _, s := range []string{"out", "err"} {
						if text := fmt.Sprintf("%s %s %d", name, s, i); count[text] != 1 {
							return fmt.Sprintf("%q: %d times", text, count[text])
						}
					}
				}
				return ""
			})
		}
	}
	talk("one", 500)
	each("one", 500)
	talk("two", 500)
	c.skep("service", "rm", "one")
	each("two", 500)
	each("one", 500) // nothing came a second time

	for _, h := range hosts {
		task := c.running("two")[h][0].ID
		holds(t, "docker ps on "+h, c.dockerOn(h, "ps", "--format", "{{.Names}} {{.Image}} {{.State}} {{.Status}}").Stdout, task, "busybox:latest running Up ")
		if got := strings.TrimSpace(c.dockerOn(h, "ps", "-q", "--no-trunc", "--filter", "label=com.docker.swarm.service.name=two").Stdout); got != task {
			t.Errorf("docker ps on %s finds %q, want %s", h, got, task)
		}
		if got := c.dockerOn(h, "logs", "--tail", "1", task[:12]); got.Code != 0 || got.Stdout+got.Stderr != "two err 500\n" && got.Stdout+got.Stderr != "two out 500\n" {
			t.Errorf("docker logs on %s: %+v", h, got)
		}
		if got := c.dockerOn(h, "exec", task, "sh", "-c", "echo out; echo err >&2; exit 5"); got.Code != 5 || got.Stdout != "out\n" || got.Stderr != "err\n" {
			t.Errorf("docker exec on %s: %+v", h, got)
		}
		if got := c.on(h, "sh", "-c", "echo typed | docker -H unix:///run/skep/docker.sock exec -i "+task+" cat"); got.Code != 0 || got.Stdout != "typed\n" {
			t.Errorf("docker exec -i on %s: %+v", h, got)
		}
		if got := c.dockerOn(h, "exec", task, "nothing"); got.Code != 127 && got.Code != 126 {
			t.Errorf("docker exec of nothing on %s: %+v", h, got)
		}
		holds(t, "docker inspect on "+h, c.dockerOn(h, "inspect", task).Stdout, `"Name": "/two.`, `"com.docker.swarm.service.name": "two"`, `"Running": true`)
		holds(t, "docker stop on "+h, c.dockerOn(h, "stop", task).Stderr, "of service two, whose managers decide what runs")
		holds(t, "docker events on "+h, c.dockerOn(h, "events", "--since", "10m", "--until", "0s", "--filter", "type=container").Stdout, "container start "+task)
		holds(t, "docker images on "+h, c.dockerOn(h, "images").Stdout, "busybox")
	}
}
