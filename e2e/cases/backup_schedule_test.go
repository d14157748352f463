package cases

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

const phraseFile = "printf 'correct horse\\n' > /srv/pass; chmod 600 /srv/pass"

// shelf is the names of the scheduled backups that lie on a host, the oldest first; one that is being written is none.
func (c *cluster) shelf(host string) []string {
	c.t.Helper()
	return strings.Fields(c.on(host, "sh", "-c", "cd /var/lib/skep/backups 2>/dev/null && ls *.backup").Stdout)
}

// Every manager makes its own backup of each time, also while the leader is lost. When all managers are lost, one that was
// is restored from what lies on it, by its name; the worker's containers are not started again.
func TestScheduledBackups(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Hosts: 4, Managers: 3})
	c.awaitManagers(time.Minute, "m1", "m2", "m3")
	managers := []string{"m1", "m2", "m3"}
	c.skep("service", "create", "--name", "still", "--replicas", "2", "--constraint", "node.role==worker", "busybox", "sleep", "200000")
	c.refused(1, []string{"there is nothing to seal scheduled backups under", "--backup-passphrase-file"}, "swarm", "update", "--backup-schedule", "1m")
	c.on("m1", "sh", "-c", phraseFile)
	c.skep("swarm", "update", "--backup-schedule", "1m", "--backup-keep", "3", "--backup-passphrase-file", "/srv/pass")
	c.await("every manager has made one", 2*time.Minute, func() string {
		for _, host := range managers {
			if len(c.shelf(host)) == 0 {
				return host + " has none"
			}
		}
		return ""
	})
	first := c.shelf("m1")[0]
	c.await("all are listed", time.Minute, func() string {
		out := c.skep("backup", "ls")
		for _, host := range managers {
			if !strings.Contains(out, first+"   "+host) {
				return out
			}
		}
		return ""
	})
	if out := c.skep("backup", "inspect", "--passphrase-file", "/srv/pass", first); !strings.Contains(out, "whole, and unaltered") || !strings.Contains(out, "for the schedule") {
		t.Error(out)
	}
	if mode := c.must("m1", "stat -c %a /var/lib/skep/backups /var/lib/skep/backups/"+first); mode != "700\n600" && mode != "700\n600\n" {
		t.Errorf("modes %q", mode)
	}

	// The leader dies: those that stay make theirs all the same, one of each time, and it makes the newest when it is back.
	leader := ""
	for host, status := range c.managerStatus() {
		if status == "Leader" {
			leader = host
		}
	}
	had := c.shelf(leader)
	if err := c.Kill(c.ctx, leader); err != nil {
		t.Fatal(err)
	}
	others := slices.DeleteFunc(slices.Clone(managers), func(h string) bool { return h == leader })
	c.await("the others go on", 3*time.Minute, func() string {
		a, b := c.shelf(others[0]), c.shelf(others[1])
		if last := a[len(a)-1]; last <= had[len(had)-1] || last != b[len(b)-1] {
			return fmt.Sprint(had, a, b)
		}
		return ""
	})
	if err := c.Start(c.ctx, leader); err != nil {
		t.Fatal(err)
	}
	c.await("who was away makes the newest", 2*time.Minute, func() string {
		a, b := c.shelf(leader), c.shelf(others[0])
		if len(a) == 0 || a[len(a)-1] != b[len(b)-1] {
			return fmt.Sprint(a, b)
		}
		return ""
	})
	for _, host := range managers {
		if have := c.shelf(host); len(have) > 3 || !slices.IsSorted(have) || len(slices.Compact(slices.Clone(have))) != len(have) {
			t.Errorf("%s: %v", host, have)
		}
	}
	if n := strings.Count(c.on("m1", "skep", "events", "--since", "1h", "--until", "0s", "--json").Stdout, "backup-failed"); n != 0 {
		t.Errorf("%d backups failed", n)
	}

	// All are lost; m1's machine is emptied of what makes it a node.
	c.awaitRunning("still", 2, time.Minute)
	before := c.must("w1", "pgrep -fx 'sleep 200000' | sort")
	kept := c.shelf("m1")
	newest := kept[len(kept)-1]
	for _, host := range []string{"m2", "m3"} {
		if err := c.Kill(c.ctx, host); err != nil {
			t.Fatal(err)
		}
	}
	if r := c.on("m1", "skep", "leave", "--force"); r.Code != 0 {
		t.Fatalf("leave: %s%s", r.Stdout, r.Stderr)
	}
	if left := c.shelf("m1"); !slices.Contains(left, newest) {
		t.Fatalf("what lies there went with the node: %v", left)
	}
	if r := c.on("m1", "skep", "backup", "ls"); r.Code != 0 || !strings.Contains(r.Stdout, newest) {
		t.Errorf("on a machine that is no node: %d %s%s", r.Code, r.Stdout, r.Stderr)
	}
	m1, err := c.Host("m1")
	if err != nil {
		t.Fatal(err)
	}
	args := slices.Concat([]string{"skep", "backup", "restore", "--passphrase-file", "/srv/pass", "--advertise-addr", m1.IP}, c.Flags, []string{newest})
	if r := c.on("m1", args...); r.Code != 0 {
		t.Fatalf("restore: %d %s%s", r.Code, r.Stdout, r.Stderr)
	}
	c.awaitNode("w1", "Ready", time.Minute)
	c.awaitRunning("still", 2, time.Minute)
	if after := c.must("w1", "pgrep -fx 'sleep 200000' | sort"); after != before {
		t.Errorf("containers were started again: %q, %q", before, after)
	}
	if r := c.on("m1", "skep", "doctor"); !strings.Contains(r.Stdout, "the cluster was restored from a backup, and that is not settled") {
		t.Errorf("doctor:\n%s", r.Stdout)
	}
	// It goes on by the schedule it had, and what it was restored from stays until that is settled.
	c.await("a backup by the new node", 2*time.Minute, func() string {
		if have := c.shelf("m1"); have[len(have)-1] <= newest || !slices.Contains(have, newest) {
			return fmt.Sprint(have)
		}
		return ""
	})
	c.skep("backup", "settle", "--stop-unknown")
	if r := c.on("m1", "skep", "doctor"); strings.Contains(r.Stdout, "not settled") {
		t.Errorf("doctor:\n%s", r.Stdout)
	}
}

// The cluster is restored on a machine of another address: the worker follows one command without a container being started
// again, tokens of before let in at the new address, and a context of before works once it names it.
func TestRestoreElsewhere(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Hosts: 4})
	c.skep("service", "create", "--name", "still", "--replicas", "2", "--constraint", "node.hostname==w1", "busybox", "sleep", "200000")
	token := c.skep("join-token", "-q", "worker")
	c.on("m1", "sh", "-c", phraseFile)
	c.must("m1", "skep context issue -o /srv/ann.context ann && skep backup create --passphrase-file /srv/pass /srv/b.skep")
	file := c.must("m1", "base64 -w0 /srv/b.skep")
	context := c.must("m1", "base64 -w0 /srv/ann.context")
	before := c.must("w1", "pgrep -fx 'sleep 200000' | sort")
	for _, host := range []string{"w2", "w3"} {
		if r := c.on(host, "skep", "leave"); r.Code != 0 {
			t.Fatalf("%s leaves: %s", host, r.Stderr)
		}
	}
	if err := c.Kill(c.ctx, "m1"); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"b.skep": file, "ann.context": context} {
		if r, err := c.RunInput(c.ctx, "w2", text, "sh", "-c", "base64 -d > /srv/"+name); err != nil || r.Code != 0 {
			t.Fatal(err, r.Stderr)
		}
	}
	c.must("w2", phraseFile)
	w2, err := c.Host("w2")
	if err != nil {
		t.Fatal(err)
	}
	restore := []string{"skep", "backup", "restore", "--passphrase-file", "/srv/pass", "--advertise-addr", w2.IP}
	c.refusedOn("w2", 1, []string{"a node in it is called w2, as this machine is: give this one another name with --node-name"}, append(restore, "/srv/b.skep")...)
	if left := c.on("w2", "ls", "/var/lib/skep").Stdout; strings.Contains(left, "vault") || strings.Contains(left, "node.json") {
		t.Errorf("what is refused leaves something behind: %s", left)
	}
	if r := c.on("w2", slices.Concat(restore, []string{"--node-name", "n1"}, c.Flags, []string{"/srv/b.skep"})...); r.Code != 0 || !strings.Contains(r.Stdout, "skep node managers "+w2.IP+":2377") {
		t.Fatalf("restore: %d %s%s", r.Code, r.Stdout, r.Stderr)
	}
	if r := c.on("w1", "skep", "node", "managers", w2.IP); r.Code != 0 {
		t.Fatalf("node managers: %s%s", r.Stdout, r.Stderr)
	}
	states := func() string { return c.on("w2", "skep", "node", "ls", "--format", "{{.Hostname}} {{.Status}}").Stdout }
	c.await("w1 is back", time.Minute, func() string {
		if out := states(); !strings.Contains(out, "w1 Ready") {
			return out
		}
		return ""
	})
	if after := c.must("w1", "pgrep -fx 'sleep 200000' | sort"); after != before || strings.Count(after, "\n") < 1 {
		t.Errorf("containers were started again: %q, %q", before, after)
	}
	// Yesterday's token, at the new address; the name is free once the node of then is removed.
	if r := c.on("w2", "skep", "node", "rm", "--force", "w3"); r.Code != 0 {
		t.Errorf("node rm: %s%s", r.Stdout, r.Stderr)
	}
	if r := c.on("w3", slices.Concat([]string{"skep", "join", "--token", token}, c.Flags, []string{w2.IP + ":2377"})...); r.Code != 0 {
		t.Errorf("join: %s%s", r.Stdout, r.Stderr)
	}
	if r := c.on("w2", "skep", "join-token", "worker"); !strings.Contains(r.Stdout, token) || !strings.Contains(r.Stdout, w2.IP+":2377") {
		t.Errorf("join-token: %s%s", r.Stdout, r.Stderr)
	}
	// Yesterday's context.
	old := fabric["m1"]
	c.must("w2", fmt.Sprintf("sed 's/%s/%s/g' /srv/ann.context > /srv/new.context && skep context import /srv/new.context ann", strings.ReplaceAll(old, ".", "[.]"), w2.IP))
	if r := c.on("w2", "skep", "--context", "ann", "service", "ls"); r.Code != 0 || !strings.Contains(r.Stdout, "still") {
		t.Errorf("the context: %d %s%s", r.Code, r.Stdout, r.Stderr)
	}
	// What is lost is begun elsewhere only after that was settled.
	if r := c.on("w2", "skep", "backup", "settle"); r.Code != 0 {
		t.Errorf("settle: %s%s", r.Stdout, r.Stderr)
	}
	if r := c.on("w2", "skep", "service", "update", "--env-add", "A=b", "still"); r.Code != 0 {
		t.Errorf("update: %s%s", r.Stdout, r.Stderr)
	}
}
