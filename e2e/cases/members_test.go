package cases

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

// Members whose health depends on one another's names: nobody is ever well while names lead to the well alone, explain
// names the option, and with it the same tasks become well. Published ports wait for the checks as ever.
func TestMembersThatNeedOneAnother(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{})
	c.skep("network", "create", "--subnet", "10.77.0.0/16", "back")
	// Well is who finds three members by name, its own among them.
	c.skep("service", "create", "--detach", "--name", "zoo", "--replicas", "3", "--network", "back", "--publish", "8080:80",
		"--health-cmd", `[ "$(nslookup tasks.zoo 127.0.0.11 | grep -c 'Address.*10[.]77[.]')" -ge 3 ]`,
		"--health-interval", "1s", "--health-retries", "1000", "busybox", "sh", "-c", "echo here >/tmp/index.html; exec httpd -f -h /tmp")
	c.skep("service", "create", "--name", "util", "--network", "back", "busybox", "sleep", "100000")

	var before []string
	c.await("three members that wait for one another", time.Minute, func() string {
		before = nil
		for _, x := range c.tasks("zoo") {
			if strings.HasSuffix(x.State, "(health: starting)") {
				before = append(before, x.ID)
			}
		}
		if len(before) != 3 {
			return fmt.Sprint(c.tasks("zoo"))
		}
		return ""
	})
	c.await("explain to name the option", time.Minute, func() string {
		if out := c.on("m1", "skep", "service", "explain", "zoo").Stdout; !strings.Contains(out, "skep service update --dns-starting zoo") {
			return out
		}
		return ""
	})
	if got := c.lookup("util.1", "tasks.zoo"); len(got) != 0 {
		t.Errorf("tasks.zoo leads to %v, and none is well", got)
	}
	if a, err := c.ask("client", fmt.Sprintf("http://%s:8080/", fabric["m1"])); err == nil {
		t.Errorf("port 8080 answers %v, and none is well", a)
	}

	c.skep("service", "update", "--detach", "--dns-starting", "zoo")
	c.await("all members to be well", time.Minute, func() string {
		var well []string
		for _, x := range c.tasks("zoo") {
			if strings.HasSuffix(x.State, "(healthy)") {
				well = append(well, x.ID)
			}
		}
		if len(well) != 3 {
			return fmt.Sprint(c.tasks("zoo"))
		}
		for _, id := range well {
			if !slices.Contains(before, id) {
				t.Fatalf("task %s is new: the option restarts none", id)
			}
		}
		return ""
	})
	c.await("their port to answer", time.Minute, func() string {
		if r := c.on("client", "curl", "-sS", "--max-time", "3", fmt.Sprintf("http://%s:8080/index.html", fabric["m1"])); strings.TrimSpace(r.Stdout) != "here" {
			return r.Stdout + r.Stderr
		}
		return ""
	})
	if got := c.lookup("util.1", "tasks.zoo"); len(got) != 3 {
		t.Errorf("tasks.zoo is %v", got)
	}
	c.refused(2, []string{"dns-starting", "it is on none"}, "service", "update", "--network-rm", "back", "zoo")
}
