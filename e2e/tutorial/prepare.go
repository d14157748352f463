package tutorial

import (
	"fmt"
	"strings"
	"time"

	"skep.dev/e2e/lab"
)

// members are the hosts of the cluster; address is how another machine reaches one.
var members = []string{"m1", "w1", "w2"}

func (g *Guide) address(host string) string {
	h, err := g.Lab.Host(host)
	if err != nil {
		g.stop(err)
	}
	return h.IP
}

// prepare makes what a chapter begins with: three hosts, in a cluster unless the chapter founds it, with nothing of the chapter before.
func (g *Guide) prepare(ch Chapter) {
	for _, h := range g.Lab.Hosts {
		if !h.Running() {
			if err := g.Lab.Start(g.ctx, h.Name); err != nil {
				g.stop(err)
			}
		}
	}
	if ch.Founds {
		return
	}
	if g.Try("m1", "skep node ls").Code != 0 {
		g.Quietly("m1", "skep init --advertise-addr "+g.address("m1"))
		g.joined("m1")
		token := g.Quietly("m1", "skep join-token -q worker")
		for _, name := range []string{"w1", "w2"} {
			h, err := g.Lab.Host(name)
			if err == nil {
				err = g.Lab.Join(g.ctx, h, token)
			}
			if err != nil {
				g.stop(err)
			}
		}
	}
	g.clear()
	for _, h := range members {
		g.awaitNode(h, "Ready Active", time.Minute)
	}
}

// joined tells the lab that a host has a daemon to start again after a power-off.
func (g *Guide) joined(host string) {
	h, err := g.Lab.Host(host)
	if err != nil {
		g.stop(err)
	}
	h.Joined = true
}

// tidy removes what a chapter left beside its services; the cluster stays.
const tidy = `for n in $(skep network ls --format '{{.Name}}' --filter driver=overlay | grep -v '^ingress$'); do
	for i in $(seq 100); do skep network rm $n && break; sleep 0.1; done
done
s=$(skep secret ls -q); [ -z "$s" ] || skep secret rm $s
s=$(skep config ls -q); [ -z "$s" ] || skep config rm $s
skep volume prune --all --force
for n in m1 w1 w2; do
	skep node update --availability active $n || exit 1
	skep node update --label-rm env $n || true # most have none
done`

// clear removes what the chapter before left, also when that failed half-way.
func (g *Guide) clear() {
	g.Quietly("m1", `s=$(skep service ls -q); [ -z "$s" ] || skep service rm --detach $s`)
	for _, h := range members { // a shell that sleeps would take its whole grace period
		g.Try(h, "for t in $(ctr -a /run/skep/containerd.sock -n skep task ls -q); do ctr -a /run/skep/containerd.sock -n skep task kill -s KILL $t; done")
	}
	g.awaitNothing()
	g.Quietly("m1", tidy)
}

// awaitNothing waits until no host has a trace of any task.
func (g *Guide) awaitNothing() time.Duration {
	return g.Await("nothing left of the tasks", time.Minute, func() string {
		for _, h := range members {
			if out := g.Try(h, lab.TaskTraces).Text(); out != "" {
				return h + ":\n" + out
			}
		}
		return ""
	})
}

// awaitNode waits until `node ls` says so of a host: status, availability, and what it is among the managers.
func (g *Guide) awaitNode(host, state string, limit time.Duration) time.Duration {
	return g.Await("node "+host+" is "+state, limit, func() string {
		out := g.Quietly("m1", "skep node ls --format '{{.Hostname}} {{.Status}} {{.Availability}} {{.ManagerStatus}}'")
		for line := range strings.Lines(out) {
			if strings.HasPrefix(strings.TrimSpace(line), host+" "+state) {
				return ""
			}
		}
		return out
	})
}

// Task is a row of `service ps`.
type Task struct{ ID, Name, Node, Desired, State, Image, Error string }

// tasks are a service's, those that ended included.
func (g *Guide) tasks(service string) (ts []Task) {
	out := g.Quietly("m1", "skep service ps --no-trunc --format '{{.ID}}\t{{.Name}}\t{{.Node}}\t{{.DesiredState}}\t{{.CurrentState}}\t{{.Image}}\t{{.Error}}\t.' "+service)
	for line := range strings.Lines(out) {
		if f := strings.Split(strings.TrimRight(line, "\n"), "\t"); len(f) == 8 {
			short, _, _ := strings.Cut(f[5], "@")
			ts = append(ts, Task{f[0], strings.TrimLeft(f[1], `\_ `), f[2], f[3], f[4], short, f[6]})
		}
	}
	return ts
}

// running are those that are meant to run and do, by node.
func (g *Guide) running(service string) (by map[string][]Task) {
	by = map[string][]Task{}
	for _, t := range g.tasks(service) {
		if t.Desired == "Running" && strings.HasPrefix(t.State, "Running") {
			by[t.Node] = append(by[t.Node], t)
		}
	}
	return by
}

func count(by map[string][]Task) (n int) {
	for _, ts := range by {
		n += len(ts)
	}
	return n
}

// awaitRunning waits until a service runs n tasks, none on the nodes given.
func (g *Guide) awaitRunning(service string, n int, limit time.Duration, notOn ...string) time.Duration {
	return g.Await(fmt.Sprintf("%s runs %d times", service, n), limit, func() string {
		by := g.running(service)
		for _, h := range notOn {
			if len(by[h]) > 0 {
				return fmt.Sprintf("%d still on %s", len(by[h]), h)
			}
		}
		if count(by) != n {
			return g.Quietly("m1", "skep service ps "+service)
		}
		return ""
	})
}

// awaitContainers waits until the hosts together run n containers, as their containerd says.
func (g *Guide) awaitContainers(n int, limit time.Duration, hosts ...string) {
	g.Await(fmt.Sprintf("%d containers on %v", n, hosts), limit, func() string {
		total, each := 0, map[string]int{}
		for _, h := range hosts {
			each[h] = strings.Count(g.Quietly(h, "ctr -a /run/skep/containerd.sock -n skep task ls"), "RUNNING")
			total += each[h]
		}
		if total != n {
			return fmt.Sprint(each)
		}
		return ""
	})
}
