package cases

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

// born are the tasks of services that run, with the moments at which their processes began, by the kernel's word.
func (c *cluster) born(services ...string) map[string]string {
	c.t.Helper()
	out := map[string]string{}
	for _, s := range services {
		for node, tasks := range c.running(s) {
			for _, t := range tasks {
				r := c.on("m1", "skep", "exec", t.ID, "cut", "-d", " ", "-f", "22", "/proc/1/stat")
				out[s+" "+node+" "+t.ID] = strings.TrimSpace(r.Stdout + r.Stderr)
			}
		}
	}
	return out
}

// The only manager is lost with its disk. A backup makes its machine the manager again: workers come back by themselves, no
// container starts anew, what was begun after the backup runs on until somebody says otherwise, and the cluster goes on.
func TestBackup(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Hosts: 3, Race: true})
	c.on("m1", "sh", "-c", "printf 'correct horse\n' > /srv/pass; printf 'wrong horse\n' > /srv/wrong; chmod 600 /srv/pass /srv/wrong; printf s3cret | skep secret create pw -")
	c.skep("network", "create", "-d", "overlay", "net")
	c.skep("service", "create", "--name", "db", "--constraint", "node.role==worker", "--replicas", "2", "--network", "net", "--secret", "pw", "--mount", "type=volume,source=data,target=/data", "busybox", "sleep", "100000")
	c.skep("service", "create", "--name", "web", "--constraint", "node.role==worker", "--replicas", "2", "--network", "net", "--publish", "8080:80", "whoami:v1")
	db := c.tasks("db")[0]
	c.on("m1", "skep", "exec", db.ID, "sh", "-c", "echo kept > /data/file")
	r := c.on("m1", "skep", "backup", "create", "--passphrase-file", "/srv/pass", "/srv/b.skep")
	if r.Code != 0 || strings.TrimSpace(r.Stdout) != "/srv/b.skep" || !strings.Contains(r.Stderr, "2 services, 0 stacks") {
		t.Fatalf("%d %s%s", r.Code, r.Stdout, r.Stderr)
	}
	if out := c.skep("backup", "inspect", "--passphrase-file", "/srv/pass", "/srv/b.skep"); !strings.Contains(out, "whole, and unaltered") {
		t.Error(out)
	}
	// Begun after the backup.
	c.skep("service", "create", "--name", "late", "--constraint", "node.role==worker", "busybox", "sleep", "100000")
	before, late := c.born("db", "web"), c.born("late")
	if len(before) != 4 || len(late) != 1 {
		t.Fatal(before, late)
	}

	c.refused(1, []string{"This node is already part of a swarm"}, "backup", "restore", "--passphrase-file", "/srv/pass", "/srv/b.skep")
	c.skep("leave", "--force")
	c.on("m1", "sh", "-c", "head -c 3000 /srv/b.skep > /srv/cut.skep; cp /srv/b.skep /srv/bad.skep; printf x | dd of=/srv/bad.skep bs=1 seek=3000 conv=notrunc")
	m1, err := c.Host("m1")
	if err != nil {
		t.Fatal(err)
	}
	c.refused(1, []string{"it does not open the backup: the passphrase that was given on"}, "backup", "restore", "--passphrase-file", "/srv/wrong", "/srv/b.skep")
	for _, bad := range []string{"/srv/cut.skep", "/srv/bad.skep"} {
		c.refused(1, []string{"was altered, damaged or cut off"}, "backup", "restore", "--passphrase-file", "/srv/pass", bad)
	}
	if left := c.on("m1", "ls", "/var/lib/skep").Stdout; strings.Contains(left, "vault") || strings.Contains(left, "node.json") {
		t.Errorf("what is refused leaves something behind: %s", left)
	}

	began := time.Now()
	args := slices.Concat([]string{"skep", "backup", "restore", "--passphrase-file", "/srv/pass", "--advertise-addr", m1.IP}, c.Flags, []string{"/srv/b.skep"})
	if r := c.on("m1", args...); r.Code != 0 || !strings.Contains(r.Stdout, "this node") {
		t.Fatalf("restore: %d %s%s", r.Code, r.Stdout, r.Stderr)
	}
	t.Logf("restored and ready after %s", time.Since(began).Round(time.Millisecond))
	for _, host := range []string{"m1", "w1", "w2"} {
		c.awaitNode(host, "Ready", time.Minute)
	}
	t.Logf("all nodes ready after %s", time.Since(began).Round(time.Millisecond))
	c.awaitRunning("db", 2, time.Minute)
	c.awaitRunning("web", 2, time.Minute)
	if after := c.born("db", "web"); !maps.Equal(before, after) {
		t.Errorf("containers were started anew:\n%v\n%v", before, after)
	}
	if out := c.skep("exec", db.ID, "sh", "-c", "cat /run/secrets/pw /data/file"); out != "s3cretkept" {
		t.Errorf("the task's secret and volume: %q", out)
	}
	c.await("the published port", time.Minute, func() string {
		if r := c.on("m1", "curl", "-sS", "--max-time", "5", "http://127.0.0.1:8080"); r.Code != 0 {
			return r.Stderr
		}
		return ""
	})
	// What the backup does not know of.
	var id string
	for key := range late {
		id = key[strings.LastIndex(key, " ")+1:]
	}
	c.await("the unknown task is listed", time.Minute, func() string {
		if out := c.skep("backup", "unknown", "-q", "--no-trunc"); out != id {
			return fmt.Sprintf("%q instead of %q", out, id)
		}
		return ""
	})
	c.refused(1, []string{"1 tasks run that the cluster does not know of"}, "backup", "settle")
	c.skep("service", "create", "--name", "next", "--constraint", "node.role==worker", "--replicas", "2", "--secret", "pw", "busybox", "sleep", "100000")
	if n := c.containers("w1") + c.containers("w2"); n != 7 {
		t.Errorf("%d containers run on the workers, not 7", n)
	}
	c.skep("backup", "settle", "--stop-unknown")
	c.awaitContainers(6, time.Minute, "w1", "w2")
	c.skep("service", "update", "--env-add", "A=b", "web")
	c.awaitRunning("web", 2, time.Minute)
	// And again.
	if r := c.on("m1", "skep", "backup", "create", "--passphrase-file", "/srv/pass", "/srv/c.skep"); r.Code != 0 || !strings.Contains(r.Stderr, "3 services") {
		t.Errorf("%d %s%s", r.Code, r.Stdout, r.Stderr)
	}
}
