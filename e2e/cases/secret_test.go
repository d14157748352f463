package cases

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

// Chapter 14: secrets come from a pipe and from a file, stand in memory with the name, owner and mode that were asked for,
// change with their services, and go with their tasks.
func TestChapter14Secrets(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Race: true})
	pipe := func(value, cmd string) string {
		t.Helper()
		r := c.on("m1", "sh", "-c", "printf '"+value+"' | skep "+cmd)
		if r.Code != 0 {
			t.Fatalf("%s: %s", cmd, r.Stderr)
		}
		return strings.TrimSpace(r.Stdout)
	}
	id := pipe("PASSWD\\n", "secret create my_secret_data -")
	if len(id) != 25 {
		t.Errorf("id %q", id)
	}
	c.on("m1", "sh", "-c", "printf from-a-file > /tmp/password.txt")
	c.skep("secret", "create", "-l", "env=test", "my_password", "/tmp/password.txt")
	pipe("listen=80\\n", "config create web.conf -")
	c.refused(1, []string{"secret my_password already exists"}, "secret", "create", "my_password", "/tmp/password.txt")
	c.refused(1, []string{"secret not found: none"}, "service", "create", "-d", "--secret", "none", "busybox")
	c.refused(2, []string{"conflicting target"}, "service", "create", "-d", "--secret", "my_password", "--config", "source=web.conf,target=/run/secrets/my_password", "busybox")

	c.skep("service", "create", "--name", "db", "--replicas", "2", "--secret", "source=my_secret_data,target=mysql_root_password,uid=nobody,gid=1000,mode=0400",
		"--secret", "my_password", "--config", "source=web.conf,target=/etc/web/web.conf", "busybox", "sleep", "100000")
	see := func(service, cmd, want string) {
		t.Helper()
		for host, tasks := range c.running(service) {
			for _, task := range tasks {
				c.await(cmd+" on "+host, 10*time.Second, func() string {
					r := c.on("m1", "skep", "exec", task.ID, "sh", "-c", cmd)
					if r.Stdout != want {
						return fmt.Sprintf("%q %s, want %q", r.Stdout, r.Stderr, want)
					}
					return ""
				})
			}
		}
	}
	see("db", "cat /run/secrets/mysql_root_password /run/secrets/my_password /etc/web/web.conf", "PASSWD\nfrom-a-filelisten=80\n")
	see("db", "stat -c '%u %g %a' /run/secrets/mysql_root_password /run/secrets/my_password", "65534 1000 400\n0 0 444\n")
	see("db", "grep -c 'tmpfs.*noswap' /proc/mounts; grep /run/secrets /proc/mounts | cut -d' ' -f 2-3 | sort", "3\n/run/secrets/my_password tmpfs\n/run/secrets/mysql_root_password tmpfs\n")
	c.refused(1, []string{"secret 'my_secret_data' is in use by the following service: db"}, "secret", "rm", "my_secret_data")

	// A new version comes to the services that use it.
	before := c.tasks("db")
	pipe("two", "secret update my_secret_data -")
	c.await("both tasks with version 2", time.Minute, func() string {
		n := 0
		for _, tasks := range c.running("db") {
			for _, task := range tasks {
				if r := c.on("m1", "skep", "exec", task.ID, "cat", "/run/secrets/mysql_root_password"); r.Stdout == "two" && task.ID != before[0].ID && task.ID != before[1].ID {
					n++
				}
			}
		}
		if n != 2 {
			return fmt.Sprint(n)
		}
		return ""
	})
	if out := c.skep("secret", "inspect", "--pretty", "my_secret_data"); !strings.Contains(out, "db:\tversion 2") {
		t.Errorf("inspect:\n%s", out)
	}

	// Gone with its service.
	c.skep("service", "rm", "db")
	for _, h := range c.members() {
		c.await("nothing in memory on "+h, 20*time.Second, func() string { return c.on(h, "sh", "-c", "ls /run/skep/files").Stdout })
	}
	c.skep("secret", "rm", "my_secret_data", "my_password")
	c.skep("config", "rm", "web.conf")
	if out := c.skep("secret", "ls", "-q") + c.skep("config", "ls", "-q"); out != "" {
		t.Errorf("left: %s", out)
	}
}
