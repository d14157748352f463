package cases

import (
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

// Containers that want more of their host than they were given.
func TestStrangersStayInside(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Hosts: 1})
	sub := func(name string, f func(c *cluster)) {
		t.Run(name, func(t *testing.T) { f(&cluster{c.Lab, t, c.ctx}) })
	}

	sub("the host's cgroups from the host's network", func(c *cluster) {
		c.skep("service", "create", "--name", "hostnet", "--network", "host", "busybox", "sleep", "100000")
		c.awaitRunning("hostnet", 1, 30*time.Second)
		out, _ := c.inTask(c.only("hostnet", 1)[0].ID, "sh", "-c",
			`for f in $(find /sys -name cgroup.procs); do (echo $$ > $f) 2>/dev/null && echo "written: $f"; done; ls /sys/class/net; echo done`)
		if strings.Contains(out, "written") || !strings.Contains(out, "lo") || !strings.Contains(out, "done") {
			c.t.Errorf("%s", out)
		}
		c.skep("service", "rm", "hostnet")
	})

	sub("a subpath that is a link to the host's root", func(c *cluster) {
		c.skep("service", "create", "--name", "neighbour", "--mount", "type=volume,source=v,target=/v", "busybox", "sh", "-c",
			"mkdir /v/real; ln -s / /v/sub; ln -s /real /v/inside; sleep 100000")
		c.awaitRunning("neighbour", 1, 30*time.Second)
		c.skep("service", "create", "--name", "other", "--mount", "type=volume,source=v,target=/s,volume-subpath=sub", "busybox", "sleep", "100000")
		c.awaitRunning("other", 1, 30*time.Second)
		if out, ok := c.inTask(c.only("other", 1)[0].ID, "ls", "/s"); !ok || strings.Join(strings.Fields(out), " ") != "inside real sub" {
			c.t.Errorf("it sees %s", out)
		}
		c.skep("service", "rm", "other", "neighbour")
	})

	sub("a pipe for an account file", func(c *cluster) {
		c.skep("service", "create", "--name", "pipe", "busybox", "sh", "-c", "rm -f /etc/passwd; mkfifo /etc/passwd; sleep 100000")
		c.awaitRunning("pipe", 1, 30*time.Second)
		id := c.only("pipe", 1)[0].ID
		r := c.on("m1", "skep", "exec", "--user", "nobody", id, "id")
		if r.Code == 0 || !strings.Contains(r.Stderr, "no regular file") {
			c.t.Errorf("exec by name: %d %s%s", r.Code, r.Stdout, r.Stderr)
		}
		c.skep("service", "rm", "pipe")
	})

	c.awaitClean(time.Minute, c.members()...)
}
