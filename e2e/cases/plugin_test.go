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

// plugins is a lab whose hosts run a volume plug-in that attaches each volume to one host at a time.
type plugins struct {
	*cluster
	web string // where the client finds the service
}

// attached are the hosts that volumes are attached to, as the storage has it, and not skep: "db@w1 web@m1".
func (p *plugins) attached() string {
	p.t.Helper()
	var out []string
	for _, line := range strings.Split(p.on("m1", "skep-volumed", "-store", p.VolumeStore(), "ls").Stdout, "\n") {
		if name, host, ok := strings.Cut(line, "\t"); ok && host != "" {
			out = append(out, name+"@"+host)
		}
	}
	return strings.Join(out, " ")
}

func (p *plugins) awaitAttached(want string, limit time.Duration) {
	p.t.Helper()
	p.await("attached: "+want, limit, func() string {
		if got := p.attached(); got != want {
			return "attached: " + got
		}
		return ""
	})
}

// uses counts for how many tasks the plug-in of a host has a volume mounted.
func (p *plugins) uses(host, volume string) int {
	p.t.Helper()
	return len(strings.Fields(p.on(host, "sh", "-c", "ls /run/volumed/rexray/ids/"+volume+" 2>/dev/null").Stdout))
}

// one is the only task of a service, once it runs.
func (p *plugins) one(service string) task {
	p.t.Helper()
	p.awaitRunning(service, 1, time.Minute)
	for _, ts := range p.running(service) {
		return ts[0]
	}
	return task{}
}

func (p *plugins) awaitPage(want string, limit time.Duration) {
	p.t.Helper()
	p.await("the page is "+want, limit, func() string {
		if out := p.on("client", "curl", "-sS", "--max-time", "2", p.web); !strings.Contains(out.Stdout, want) {
			return out.Stdout + out.Stderr
		}
		return ""
	})
}

// saysOf waits until the newest task of a service is not running and says these words.
func (p *plugins) awaitSays(service, words string, limit time.Duration) {
	p.t.Helper()
	p.await(service+" says "+words, limit, func() string {
		out := p.skep("service", "ps", "--no-trunc", "--format", "{{.Node}} {{.CurrentState}} {{.Error}}", service)
		if !strings.Contains(out, words) {
			return out
		}
		return ""
	})
}

func (p *plugins) fault(call, what string) {
	p.t.Helper()
	for _, h := range p.members() {
		if err := p.VolumeFault(h, call, what); err != nil {
			p.t.Fatal(err)
		}
	}
}

func (p *plugins) startPlugin(host string) {
	p.t.Helper()
	if err := p.StartVolumePlugin(p.ctx, host); err != nil {
		p.t.Fatal(err)
	}
}

func (p *plugins) volumeService(name string) {
	p.t.Helper()
	p.skep("service", "create", "--detach", "--name", name, "--restart-delay", "500ms", "--mount", "type=volume,volume-driver=rexray,source="+name+",target=/data", "busybox", "sleep", "100000")
}

// Chapter 10: a service whose data is in a volume of a plug-in, in the tutorial's words.
func TestChapter10Volumes(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Race: true, VolumePlugin: "rexray"})
	p := &plugins{cluster: c}
	m1, err := c.Host("m1")
	if err != nil {
		t.Fatal(err)
	}
	p.web = "http://" + m1.IP + ":8080/"
	c.await("every node tells of its plug-in", 30*time.Second, func() string {
		for _, h := range c.members() {
			if out := c.skep("node", "inspect", "--format", "{{json .Description.Engine.Plugins}}", h); !strings.Contains(out, `{"Type":"Volume","Name":"rexray"}`) {
				return h + ": " + out
			}
		}
		return ""
	})
	c.skep("service", "create", "--name", "my_web", "--publish", "8080:80", "--mount", "type=volume,volume-driver=rexray,source=web_data,target=/usr/local/apache2/htdocs", "httpd")
	first := p.one("my_web")
	if out := c.skep("service", "ps", "my_web"); !strings.Contains(out, "my_web.1") || !strings.Contains(out, first.Node) {
		t.Errorf("service ps:\n%s", out)
	}
	if out := c.skep("service", "inspect", "my_web"); !strings.Contains(out, "rexray") || !strings.Contains(out, "web_data") || !strings.Contains(out, "/usr/local/apache2/htdocs") {
		t.Errorf("service inspect:\n%s", out)
	}
	p.awaitAttached("web_data@"+first.Node, 10*time.Second)
	if r := c.on("m1", "skep", "exec", first.ID, "sh", "-c", "echo '<h1>Hello from REX-Ray</h1>' > /usr/local/apache2/htdocs/index.html"); r.Code != 0 {
		t.Fatal(r.Stderr)
	}
	p.awaitPage("Hello from REX-Ray", 20*time.Second)
	if out := c.skep("volume", "ls"); !strings.Contains(out, "rexray") || !strings.Contains(out, "web_data") {
		t.Errorf("volume ls:\n%s", out)
	}

	// More of it: all on the node that has the volume.
	c.skep("service", "update", "--replicas=2", "my_web")
	c.awaitRunning("my_web", 2, time.Minute)
	if by := c.running("my_web"); len(by[first.Node]) != 2 {
		t.Errorf("a volume that one node can have, its tasks on %v", by)
	}
	if n := p.uses(first.Node, "web_data"); n != 2 {
		t.Errorf("mounted for %d tasks", n)
	}
	p.awaitPage("Hello from REX-Ray", 20*time.Second)

	// New content, and a task that is replaced: the new one has it.
	if r := c.on("m1", "skep", "exec", first.ID, "sh", "-c", "echo '<h1>Second edition</h1>' > /usr/local/apache2/htdocs/index.html"); r.Code != 0 {
		t.Fatal(r.Stderr)
	}
	c.skep("service", "update", "--replicas=1", "my_web")
	before := p.one("my_web")
	c.await("unmounted for the one that went", 20*time.Second, func() string {
		if n := p.uses(first.Node, "web_data"); n != 1 {
			return fmt.Sprintf("mounted for %d tasks", n)
		}
		return ""
	})
	c.skep("service", "update", "--force", "my_web")
	c.await("another task", time.Minute, func() string {
		if now := p.one("my_web"); now.ID == before.ID {
			return "still " + now.ID
		}
		return ""
	})
	p.awaitPage("Second edition", 20*time.Second)

	// Gone, the volume is attached to nobody, and its data is there for the next one, wherever that runs.
	c.skep("service", "rm", "my_web")
	p.awaitAttached("", 30*time.Second)
	c.awaitClean(time.Minute, c.members()...)
	for _, h := range c.members() {
		if out := c.on(h, "sh", "-c", "ls -A /var/lib/skep/agent/mounts; grep -c /run/volumed/rexray/mnt/ /proc/self/mountinfo").Stdout; strings.TrimSpace(out) != "0" {
			t.Errorf("left on %s: %s", h, out)
		}
	}
	if b, err := os.ReadFile(filepath.Join(c.VolumeStore(), "web_data", "data", "index.html")); err != nil || !strings.Contains(string(b), "Second edition") {
		t.Errorf("the volume holds %q (%v)", b, err)
	}
}

// What a plug-in can do to the tasks that need it: each time they say why they wait, nobody else waits with them, and nothing
// stays mounted.
func TestVolumePluginFaults(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Race: true, Hosts: 2, VolumePlugin: "rexray"})
	p := &plugins{cluster: c}
	gone := func(service string) {
		t.Helper()
		c.skep("service", "rm", service)
		p.awaitAttached("", time.Minute)
	}

	// Mount does not answer: its task waits, another one does not, and neither does the agent's end.
	p.fault("Mount", "hang")
	p.volumeService("hangs")
	p.awaitSays("hangs", "is mounting volume hangs and has not answered yet", time.Minute)
	c.skep("service", "create", "--detach", "--name", "other", "busybox", "sleep", "100000")
	c.awaitRunning("other", 1, 30*time.Second)
	for _, h := range c.members() {
		c.kill9(h, "skep", true)
		if err := c.StartDaemon(c.ctx, h); err != nil {
			t.Fatal(err)
		}
	}
	c.await("the cluster is back", time.Minute, func() string {
		if r := c.on("m1", "skep", "node", "ls"); r.Code != 0 || strings.Count(r.Stdout, "Ready") != 2 {
			return r.Stdout + r.Stderr
		}
		return ""
	})
	p.fault("Mount", "")
	task := p.one("hangs")
	c.await("mounted once", 10*time.Second, func() string {
		if n := p.uses(task.Node, "hangs"); n != 1 {
			return fmt.Sprintf("mounted for %d", n)
		}
		return ""
	})
	gone("hangs")

	// It dies when it has mounted, before it says so.
	p.fault("Mount", "crash-after")
	p.volumeService("dies")
	p.awaitSays("dies", "rexray", time.Minute)
	for _, h := range c.members() {
		if c.on(h, "pgrep", "-x", "skep-volumed").Code != 0 {
			p.startPlugin(h)
		}
	}
	p.fault("Mount", "")
	task = p.one("dies")
	c.await("mounted once", 10*time.Second, func() string {
		if n := p.uses(task.Node, "dies"); n != 1 {
			return fmt.Sprintf("mounted for %d", n)
		}
		return ""
	})
	gone("dies")

	for what, words := range map[string]string{"garbage": "cannot be understood", "empty": "the answer is empty", "error no room on the array": "it says: no room on the array"} {
		p.fault("Mount", what)
		p.volumeService("odd")
		p.awaitSays("odd", words, time.Minute)
		p.fault("Mount", "")
		p.one("odd")
		gone("odd")
	}

	// It is started again while a task runs, and so is the agent: the task is the same one, its data there.
	p.volumeService("keeps")
	task = p.one("keeps")
	if r := c.on("m1", "skep", "exec", task.ID, "sh", "-c", "echo kept > /data/file"); r.Code != 0 {
		t.Fatal(r.Stderr)
	}
	c.kill9(task.Node, "skep-volumed", true)
	p.startPlugin(task.Node)
	c.kill9(task.Node, "skep", true)
	if err := c.StartDaemon(c.ctx, task.Node); err != nil {
		t.Fatal(err)
	}
	c.await("the same task", time.Minute, func() string {
		r := c.on("m1", "skep", "exec", task.ID, "cat", "/data/file")
		if r.Stdout != "kept\n" {
			return r.Stdout + r.Stderr
		}
		return ""
	})
	p.awaitAttached("keeps@"+task.Node, time.Second)

	// It does not unmount, then it is not even there: the volume is told of, with the reason, until it is confirmed.
	if err := p.VolumeFault(task.Node, "Unmount", "error device is busy"); err != nil {
		t.Fatal(err)
	}
	c.skep("service", "rm", "keeps")
	c.await("volume ls tells that it is mounted still", time.Minute, func() string {
		out := c.skep("volume", "inspect", "--node", task.Node, "keeps")
		if !strings.Contains(out, "device is busy") {
			return out
		}
		return ""
	})
	c.kill9(task.Node, "skep-volumed", true)
	c.kill9(task.Node, "skep", true)
	if err := c.StartDaemon(c.ctx, task.Node); err != nil {
		t.Fatal(err)
	}
	if err := p.VolumeFault(task.Node, "Unmount", ""); err != nil {
		t.Fatal(err)
	}
	p.startPlugin(task.Node)
	p.awaitAttached("", time.Minute)

	// No node has it: the service waits and says so; where one has, it runs.
	for _, h := range c.members() {
		c.kill9(h, "skep-volumed", true)
		c.on(h, "rm", "/run/docker/plugins/rexray.sock")
	}
	c.await("the nodes tell that it is gone", 30*time.Second, func() string {
		for _, h := range c.members() {
			if out := c.skep("node", "inspect", "--format", "{{json .Description.Engine.Plugins}}", h); strings.Contains(out, "rexray") {
				return h + ": " + out
			}
		}
		return ""
	})
	p.volumeService("waits")
	p.awaitSays("waits", "missing plugin", 30*time.Second)
	p.startPlugin("w1")
	if task := p.one("waits"); task.Node != "w1" {
		t.Errorf("runs on %s, which has no plug-in", task.Node)
	}
	gone("waits")
	c.skep("service", "rm", "other")
	c.awaitClean(time.Minute, c.members()...)
}
