package cases

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

// Volumes over a cluster: made on a node, filled from the image, used and shown, refused while in use, kept by a restart of the
// node's daemon, moved nowhere, and pruned.
func TestVolumes(t *testing.T) {
	c := up(t, lab.Options{})
	if got := c.skep("volume", "create", "--node", "w1", "--label", "team=x", "data"); got != "data" {
		t.Errorf("create prints %q", got)
	}
	c.skep("volume", "create", "--node", "all", "--opt", "type=tmpfs", "--opt", "device=tmpfs", "--opt", "o=size=1m", "scratch")
	c.refused(1, []string{"volume scratch is on node w1 already, with other options", `o is "size=2m" and is "size=1m" there`},
		"volume", "create", "--node", "w1", "--opt", "type=tmpfs", "--opt", "device=tmpfs", "--opt", "o=size=2m", "scratch")
	c.refused(1, []string{"the program mount.davfs is missing: install the package davfs2", "node w1"},
		"service", "create", "--name", "nas", "--constraint", "node.hostname==w1", "--restart-condition", "none",
		"--mount", "source=nas,target=/x,volume-opt=type=davfs,volume-opt=device=http://nas/", "busybox", "sleep", "100000")
	c.skep("service", "rm", "nas")

	c.skep("service", "create", "--name", "db", "--replicas", "2", "--constraint", "node.hostname==w1",
		"--mount", "source=data,target=/data", "--mount", "source={{ .Service.Name }}-{{ .Task.Slot }},target=/own", "--mount", "source=scratch,target=/scratch", "--mount", "target=/anon",
		"busybox", "sh", "-c", "echo written > /own/f; touch /anon/f /scratch/f; exec sleep 100000")
	rows := func() string { // whatever a node that is just coming back says
		r := c.on("m1", "skep", "volume", "ls", "--format", "{{.Name}} {{.Node}} {{.Tasks}} {{.Mounted}}", "--filter", "name=d", "--filter", "name=scratch")
		return r.Stdout + r.Stderr
	}
	has := func(when string, want ...string) {
		t.Helper()
		c.await("volume ls "+when, 20*time.Second, func() string {
			got := rows()
			for _, w := range want {
				if !strings.Contains("\n"+got+"\n", "\n"+w+"\n") {
					return fmt.Sprintf("no %q in\n%s", w, got)
				}
			}
			return ""
		})
	}
	running := []string{"data w1 db.1, db.2 no", "db-1 w1 db.1 no", "db-2 w1 db.2 no", "scratch w1 db.1, db.2 yes", "scratch m1 - no"}
	has("while it runs", running...)
	if out := c.skep("volume", "ls", "--size", "--node", "w1"); !strings.Contains(out, "SIZE") || !strings.Contains(out, "KiB") {
		t.Errorf("sizes:\n%s", out)
	}
	if out := c.skep("volume", "inspect", "data"); !strings.Contains(out, `"team": "x"`) || !strings.Contains(out, `"Hostname": "w1"`) || !strings.Contains(out, `"db.1"`) {
		t.Errorf("inspect:\n%s", out)
	}
	c.refused(1, []string{"volume is in use on node w1 by task db.1", "db.2"}, "volume", "rm", "--force", "data")
	c.refused(1, []string{"each has its own: say which is meant"}, "volume", "rm", "scratch")
	c.skep("volume", "rm", "--node", "m1", "scratch")

	// The daemon of the node is killed and comes back: tasks and mounts are there, and counted.
	c.kill9("w1", "skep", true)
	c.awaitNode("w1", "Ready", time.Minute)
	has("after the daemon was killed", running[:4]...)
	c.awaitRunning("db", 2, time.Minute)
	if out := c.skep("volume", "prune", "--all", "--force"); strings.Contains(out, "db-") || strings.Contains(out, "data") || strings.Contains(out, "w1: scratch") {
		t.Errorf("pruned what runs:\n%s", out)
	}
	for _, x := range c.running("db")["w1"] {
		if r := c.on("m1", "skep", "exec", x.ID, "sh", "-c", "cat /own/f; ls /scratch"); r.Stdout != "written\nf\n" {
			t.Errorf("in %s: %q %s", x.Name, r.Stdout, r.Stderr)
		}
	}

	// Gone with the service's records: what had no name. What has one stays until somebody says so.
	c.skep("service", "rm", "db")
	has("when the service is gone", "data w1 - no", "db-1 w1 - no", "scratch w1 - no")
	c.await("no anonymous volume", 30*time.Second, func() string {
		return c.on("w1", "sh", "-c", "ls -d /var/lib/skep/agent/volumes/_task.* 2>/dev/null; true").Stdout
	})
	if out := c.skep("volume", "prune", "--force"); !strings.HasSuffix(out, "reclaimed space: 0B") || strings.Contains(out, "data") {
		t.Errorf("prune without --all:\n%s", out)
	}
	out := c.skep("volume", "prune", "--all", "--force", "--filter", "label!=team")
	for _, w := range []string{"w1: db-1", "w1: db-2", "w1: scratch"} {
		if !strings.Contains(out, w) {
			t.Errorf("prune --all: no %s in\n%s", w, out)
		}
	}
	c.skep("volume", "update", "--label-rm", "team", "data")
	c.skep("volume", "rm", "data")
	if out := c.skep("volume", "ls", "-q"); out != "" {
		t.Errorf("left: %s", out)
	}
}
