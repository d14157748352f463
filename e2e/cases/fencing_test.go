package cases

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

// record adds a line to the volume of a task and has the disk keep it.
func (p *plugins) record(id, line string) {
	p.t.Helper()
	if r := p.on("m1", "skep", "exec", id, "sh", "-c", "echo "+line+" >> /data/records && sync"); r.Code != 0 {
		p.t.Fatal(r.Stderr)
	}
}

func (p *plugins) records(id string) string {
	p.t.Helper()
	r := p.on("m1", "skep", "exec", id, "cat", "/data/records")
	if r.Code != 0 {
		p.t.Fatal(r.Stderr)
	}
	return strings.Join(strings.Fields(r.Stdout), " ")
}

// once checks that a service has one task with a container, on the nodes that live.
func (p *plugins) once(service string) {
	p.t.Helper()
	p.awaitRunning(service, 1, time.Minute)
	total := 0
	for _, h := range p.members() {
		if host, err := p.Host(h); err == nil && host.Running() {
			total += p.containers(h)
		}
	}
	if total != 1 {
		p.t.Errorf("%d containers on the hosts that run", total)
	}
}

// A host dies with a volume that one node may write: its task waits and says for what, until the node is fenced, by a person
// or by the cluster's command; in a partition it waits until the node has let go. The data is there each time, and never do two
// hosts have the volume.
func TestFencing(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{VolumePlugin: "rexray"})
	p := &plugins{cluster: c}
	host := func(what func() error) {
		t.Helper()
		if err := what(); err != nil {
			t.Fatal(err)
		}
	}
	c.skep("service", "create", "--detach", "--name", "db", "--constraint", "node.role==worker", "--restart-delay", "200ms", "--mount", "type=volume,volume-driver=rexray,source=db,target=/data", "busybox", "sleep", "100000")
	first := p.one("db")
	p.record(first.ID, "one")
	other := map[string]string{"w1": "w2", "w2": "w1"}
	c.refused(1, []string{"it is up and may be writing"}, "node", "fence", first.Node)
	c.refused(1, []string{"db.1 uses it on node " + first.Node}, "volume", "release", "db")
	c.refused(1, []string{"has one writer, so tasks of two revisions cannot run beside one another"}, "service", "update", "--detach", "--canary", "1", "--env-add", "A=1", "db")

	// By a person.
	host(func() error { return c.Kill(c.ctx, first.Node) })
	waits := "volume rexray/db is held by node " + first.Node + ", which is down: skep node fence " + first.Node + " once it is certainly off"
	p.awaitSays("db", waits, 20*time.Second)
	if out := c.skep("service", "explain", "db"); !strings.Contains(out, waits) {
		t.Errorf("explain:\n%s", out)
	}
	if out := c.skep("volume", "claims", "--format", "{{.Name}} {{.Node}} {{.State}} {{.Waiting}}"); strings.TrimSpace(out) != "db "+first.Node+" lost 1" {
		t.Errorf("claims: %s", out)
	}
	host(func() error { return c.ForceDetach(c.ctx, first.Node) }) // what the person did before saying so
	began := time.Now()
	c.skep("node", "fence", first.Node)
	second := p.one("db")
	t.Logf("fenced by a person: the task runs %.1f s later", time.Since(began).Seconds())
	if got := p.records(second.ID); got != "one" || second.Node != other[first.Node] {
		t.Fatalf("on %s the volume holds %q", second.Node, got)
	}
	p.record(second.ID, "two")
	if out := c.skep("node", "ls", "--format", "{{.Hostname}} {{.Status}}"); !strings.Contains(out, first.Node+" Down (fenced)") {
		t.Errorf("node ls:\n%s", out)
	}
	host(func() error { return c.Start(c.ctx, first.Node) })
	c.await("the fence ends", 40*time.Second, func() string {
		if out := c.skep("node", "ls", "--format", "{{.Hostname}} {{.Status}}"); strings.TrimSpace(out) == "" || strings.Contains(out, "fenced") || !strings.Contains(out, first.Node+" Ready") {
			return out
		}
		return ""
	})
	p.once("db")
	p.awaitAttached("db@"+second.Node, 5*time.Second)

	// By the cluster's command.
	script := fmt.Sprintf("#!/bin/sh\n%s/skep-volumed -store %s force-detach \"$1\"\n", c.Bin, c.VolumeStore())
	if r := c.on("m1", "sh", "-c", "printf '%s' '"+script+"' > /usr/local/bin/fence && chmod +x /usr/local/bin/fence"); r.Code != 0 {
		t.Fatal(r.Stderr)
	}
	c.refused(2, []string{"invalid fencing command"}, "swarm", "update", "--fence-cmd", "fence")
	c.skep("swarm", "update", "--fence-cmd", "/usr/local/bin/fence")
	began = time.Now()
	host(func() error { return c.Kill(c.ctx, second.Node) })
	third := p.one("db")
	for third.ID == "" || third.ID == second.ID {
		third = p.one("db")
	}
	took := time.Since(began)
	t.Logf("fenced by the command: the task runs %.1f s after its host died", took.Seconds())
	if got := p.records(third.ID); got != "one two" || third.Node != first.Node {
		t.Fatalf("on %s the volume holds %q", third.Node, got)
	}
	if took > 20*time.Second { // 8 on a machine of its own
		t.Errorf("the task runs %s after its host died", took)
	}
	host(func() error { return c.Start(c.ctx, second.Node) })
	c.awaitNode(second.Node, "Ready", time.Minute)
	p.once("db")

	// A partition: nobody can say what the node does, so its task waits; healed, the node lets go, and nothing ran twice.
	c.skep("swarm", "update", "--fence-cmd", "")
	p.record(third.ID, "three")
	host(func() error { return c.Cut(c.ctx, third.Node) })
	p.awaitSays("db", "volume rexray/db is held by node "+third.Node+", which is down", 20*time.Second)
	p.awaitAttached("db@"+third.Node, time.Second)
	host(func() error { return c.Heal(c.ctx, third.Node) })
	c.awaitNode(third.Node, "Ready", time.Minute)
	c.await("the task that waited runs", time.Minute, func() string {
		if now := p.one("db"); now.ID == "" || now.ID == third.ID {
			return "still " + now.ID
		}
		return ""
	})
	last := p.one("db")
	p.once("db")
	p.awaitAttached("db@"+last.Node, 5*time.Second)
	if got := p.records(last.ID); got != "one two three" {
		t.Fatalf("on %s the volume holds %q", last.Node, got)
	}
	c.skep("service", "rm", "db")
	c.await("no claim is left", 30*time.Second, func() string { return strings.TrimSpace(c.skep("volume", "claims", "-q")) })
	p.awaitAttached("", 20*time.Second)
}
