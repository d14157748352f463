package cases

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"skep.dev/e2e/lab"
)

// corpusRuns are files of libs/compose's corpus that a small cluster has room for.
var corpusRuns = []string{
	"configs-inline", "gitea", "haproxy-templated", "matrix", "microservices", "monitoring", "portainer", "postgres", "redis-rabbitmq", "voting-app",
}

// TestCorpus deploys files in the style of real ones with everything they ask for but their programs: each service runs one
// image of the lab that waits. All tasks run, the same file again changes nothing, and nothing is left of it.
func TestCorpus(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Hosts: 2})
	dir := filepath.Join("..", "..", "libs", "compose", "testdata", "corpus")
	c.copyTree(dir, "/srv/corpus")
	for _, h := range c.members() { // what binds have for a source
		c.on(h, "mkdir", "-p", "/srv/corpus/gitea", "/srv/corpus/postgres", "/var/lib/docker/volumes")
		c.on(h, "touch", "/var/run/docker.sock", "/etc/timezone")
	}
	c.skep("node", "update", "--label-add", "monitor=true", "--label-add", "db=true", "m1")
	for _, name := range corpusRuns {
		t.Run(name, func(t *testing.T) {
			file := "/srv/corpus/" + name + ".yml"
			env := []string{"env", "DB_PASSWORD=hunter2", "RABBIT_PASS=rabbit", "CIFS_PASS=cifs-pass", "MOTD=welcome", "TZ=Etc/UTC", "skep", "stack"}
			stack := func(args ...string) string {
				t.Helper()
				r := c.on("m1", append(env[:len(env):len(env)], args...)...)
				if r.Code != 0 {
					t.Fatalf("stack %s: exit status %d\n%s\n%s", strings.Join(args, " "), r.Code, r.Stdout, r.Stderr)
				}
				return r.Stdout
			}
			var over strings.Builder
			over.WriteString("services:\n")
			services := 0
			for _, line := range strings.Split(stack("deploy", "--dry-run", "-c", file, "demo"), "\n") {
				if s, ok := strings.CutPrefix(line, "create service demo_"); ok {
					services++
					fmt.Fprintf(&over, "  %s:\n    image: busybox\n    entrypoint: [sleep]\n    command: ['100000']\n    stop_signal: SIGKILL\n    healthcheck: {disable: true}\n", s)
				}
			}
			c.write("/srv/corpus/over.yml", over.String())
			t.Cleanup(func() { c.on("m1", "skep", "stack", "rm", "-q", "demo") })
			both := []string{"-c", file, "-c", "/srv/corpus/over.yml", "demo"}
			stack(append([]string{"deploy", "-q", "--timeout", "40s"}, both...)...)
			if got := len(strings.Fields(stack("services", "-q", "demo"))); got != services {
				t.Errorf("%d services, want %d", got, services)
			}
			for _, line := range strings.Fields(stack("services", "--format", "{{.Replicas}}", "demo")) {
				if n, of, _ := strings.Cut(line, "/"); n != of {
					t.Errorf("replicas %s", line)
				}
			}
			if out := stack(append([]string{"deploy"}, both...)...); !strings.Contains(out, "unchanged") {
				t.Errorf("the same again:\n%s", out)
			}
		})
	}
	if out := c.skep("service", "ls", "-q") + c.skep("secret", "ls", "-q") + c.skep("config", "ls", "-q") + c.skep("stack", "ls", "-q"); strings.TrimSpace(out) != "" {
		t.Errorf("left: %s", out)
	}
}

// copyTree copies the files of a folder of this machine to m1.
func (c *cluster) copyTree(from, to string) {
	c.t.Helper()
	err := filepath.WalkDir(from, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		c.write(filepath.Join(to, rel), string(b))
		return nil
	})
	if err != nil {
		c.t.Fatal(err)
	}
}
