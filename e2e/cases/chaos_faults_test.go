package cases

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"skep.dev/e2e/lab"
)

// nemesis makes hosts fail and mends them again.
type nemesis struct {
	c      *cluster
	rnd    *rand.Rand
	began  time.Time
	struck int
}

// failure is what may happen to a host, and how it is mended.
type failure struct {
	name       string
	managers   bool // only to a manager
	begin, end func(n *nemesis, host string) error
}

var failures = []failure{
	{"loses its power", false,
		func(n *nemesis, h string) error { return n.c.Kill(n.c.ctx, h) },
		func(n *nemesis, h string) error { return n.c.Start(n.c.ctx, h) }},
	{"loses its services", false,
		func(n *nemesis, h string) error { return n.killServices(h, n.services(h)...) },
		func(n *nemesis, h string) error { return n.startServices(h) }},
	{"loses a service", false, // where it is one process, that is all of them
		func(n *nemesis, h string) error {
			all := n.services(h)
			return n.killServices(h, all[n.rnd.IntN(len(all))])
		},
		func(n *nemesis, h string) error { return n.startServices(h) }},
	{"hangs", false,
		func(n *nemesis, h string) error { return n.c.Freeze(n.c.ctx, h) },
		func(n *nemesis, h string) error { return n.c.Thaw(n.c.ctx, h) }},
	{"is cut off", false,
		func(n *nemesis, h string) error { return n.c.Cut(n.c.ctx, h) },
		func(n *nemesis, h string) error { return n.c.Heal(n.c.ctx, h) }},
	{"loses its containerd", false,
		func(n *nemesis, h string) error { return n.c.KillProcess(n.c.ctx, h, "containerd", true) },
		func(*nemesis, string) error { return nil }},
	{"has a full disk", true,
		func(n *nemesis, h string) error { return n.c.FillDisk(n.c.ctx, h) },
		func(n *nemesis, h string) error { return n.c.FreeDisk(n.c.ctx, h) }},
	{"has a wrong clock", false,
		func(n *nemesis, h string) error {
			by := []time.Duration{-time.Hour, -time.Minute, time.Minute, time.Hour, 30 * time.Hour}
			return n.c.Clock(n.c.ctx, h, by[n.rnd.IntN(len(by))])
		},
		func(n *nemesis, h string) error { return n.c.Clock(n.c.ctx, h, 0) }},
}

// strike breaks one host, seldom two or all managers at once, mends them after a while and gives the cluster a rest.
func (n *nemesis) strike() {
	hosts := []string{[]string{"m1", "m2", "m3", "w1", "w2", "w3"}[n.rnd.IntN(6)]}
	f := failures[n.rnd.IntN(len(failures))]
	if f.managers {
		hosts = []string{fmt.Sprint("m", 1+n.rnd.IntN(3))}
	}
	switch n.rnd.IntN(12) {
	case 0:
		hosts = []string{"m1", "m2", "m3"}
	case 1, 2:
		if second := []string{"m1", "m2", "m3", "w1", "w2", "w3"}[n.rnd.IntN(6)]; !f.managers && second != hosts[0] {
			hosts = append(hosts, second)
		}
	}
	lasts, rest := time.Duration(2000+n.rnd.IntN(10_000))*time.Millisecond, time.Duration(2000+n.rnd.IntN(8000))*time.Millisecond
	n.struck++
	n.c.t.Logf("%6.1f s: %s %s for %.1f s", time.Since(n.began).Seconds(), strings.Join(hosts, ", "), f.name, lasts.Seconds())
	for _, h := range hosts {
		if err := f.begin(n, h); err != nil {
			n.c.t.Errorf("%s %s: %v", h, f.name, err)
		}
	}
	time.Sleep(lasts) // the fault lasts; nothing is waited for
	for _, h := range hosts {
		if err := f.end(n, h); err != nil {
			n.c.t.Errorf("%s %s, mend it: %v", h, f.name, err)
		}
	}
	time.Sleep(rest)
	n.revive()
}

// services are a host's processes: one for all, or one of each service.
func (n *nemesis) services(host string) []string {
	if !n.c.Separate {
		return []string{"node"}
	}
	h, err := n.c.Host(host)
	if err != nil {
		n.c.t.Errorf("%v", err)
		return []string{"node"}
	}
	return lab.Programs(h.Role)
}

// held prints the process that holds the lock of service $1: a node is one process, of a service there may be more, and here is one.
const held = `held() { f=/var/lib/skep/lock/$1; [ "$1" = node ] || f=$f.1; cat "$f" 2>/dev/null; }
`

// killServices ends services that run.
func (n *nemesis) killServices(host string, services ...string) error {
	script := held + `for s in "$@"; do p=$(held "$s") && kill -9 "$p" && while kill -0 "$p"; do sleep 0.01; done; done 2>/dev/null; true`
	_, err := n.c.Run(n.c.ctx, host, append([]string{"sh", "-c", script, "sh"}, services...)...)
	return err
}

// startServices starts what does not run.
func (n *nemesis) startServices(host string) error {
	script := held + `for s in "$@"; do p=$(held "$s") && kill -0 "$p" 2>/dev/null || echo "$s"; done`
	r, err := n.c.Run(n.c.ctx, host, append([]string{"sh", "-c", script, "sh"}, n.services(host)...)...)
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(r.Stdout) {
		if n.c.Separate {
			err = n.c.StartProgram(n.c.ctx, host, name)
		} else {
			err = n.c.StartDaemon(n.c.ctx, host)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// revive does what the init system does on a host that has one: it starts what ended by itself.
func (n *nemesis) revive() {
	for _, h := range n.c.members() {
		if err := n.startServices(h); err != nil {
			n.c.t.Errorf("revive %s: %v", h, err)
		}
	}
}
