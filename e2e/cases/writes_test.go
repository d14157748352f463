package cases

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"skep.dev/e2e/lab"
)

// writing has services without tasks made at hosts, at each one after the other, while a test does something to the cluster.
type writing struct {
	c    *cluster
	stop context.CancelFunc
	all  sync.WaitGroup

	mu    sync.Mutex
	began time.Time
	acked map[string][]ack // by host
	why   map[string]int   // what was said instead
}

// ack is a service that was acknowledged.
type ack struct {
	name string
	at   time.Duration // since the beginning
}

// writes begins to make services, each with a name of its own, until end is called.
func (c *cluster) writes(prefix string, hosts ...string) *writing {
	ctx, cancel := context.WithCancel(c.ctx)
	w := &writing{c: c, stop: cancel, began: time.Now(), acked: map[string][]ack{}, why: map[string]int{}}
	for _, host := range hosts {
		w.all.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				name := fmt.Sprintf("%s-%s-%d", prefix, host, n)
				r, err := c.Run(c.ctx, host, "timeout", "30", "skep", "service", "create", "--detach", "--no-resolve-image", "--replicas", "0", "--name", name, "busybox")
				w.note(host, name, r, err)
				if err != nil || r.Code != 0 {
					select { // a refusal takes no time, and a thousand of them tell no more than one
					case <-ctx.Done():
					case <-time.After(300 * time.Millisecond):
					}
				}
			}
		})
	}
	c.t.Cleanup(func() { cancel(); w.all.Wait() })
	return w
}

func (w *writing) note(host, name string, r lab.Result, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case err != nil:
		w.why[host+": "+err.Error()]++
	case r.Code != 0:
		w.why[host+": "+strings.ReplaceAll(strings.TrimSpace(r.Stderr), name, "NAME")]++
	default:
		w.acked[host] = append(w.acked[host], ack{name, time.Since(w.began)})
	}
}

// since is how many were acknowledged at a host after a moment.
func (w *writing) since(host string, at time.Time) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range w.acked[host] {
		if w.began.Add(a.at).After(at) {
			n++
		}
	}
	return n
}

// end ends it, and wants everything that was acknowledged to be there, by the word of each host. pause is the longest time in
// which no host had a write acknowledged.
func (w *writing) end(hosts ...string) (n int, pause time.Duration) {
	w.c.t.Helper()
	w.stop()
	w.all.Wait()
	var all []ack
	for host, as := range w.acked {
		w.c.t.Logf("%d writes were acknowledged at %s", len(as), host)
		all = append(all, as...)
	}
	for why, n := range w.why {
		w.c.t.Logf("%d times %s", n, why)
	}
	slices.SortFunc(all, func(a, b ack) int { return int(a.at - b.at) })
	last := time.Duration(0)
	for _, a := range all {
		pause, last = max(pause, a.at-last), a.at
	}
	for _, host := range hosts {
		w.c.await("every acknowledged write is there, by "+host, 2*time.Minute, func() string {
			r := w.c.on(host, "skep", "service", "ls", "--format", "{{.Name}}")
			if r.Code != 0 {
				return r.Stderr
			}
			have := map[string]bool{}
			for _, name := range strings.Fields(r.Stdout) {
				have[name] = true
			}
			var lost []string
			for _, a := range all {
				if !have[a.name] {
					lost = append(lost, a.name)
				}
			}
			if len(lost) > 0 {
				return fmt.Sprintf("%d of %d are lost: %v", len(lost), len(all), lost)
			}
			return ""
		})
	}
	return len(all), pause
}

// downs are the nodes that the managers took for down since a moment, by the events they wrote.
func (c *cluster) downs(since time.Time) string {
	c.t.Helper()
	out := c.skep("events", "--since", since.UTC().Format(time.RFC3339Nano), "--until", "0s", "--filter", "type=node")
	var down []string
	for line := range strings.Lines(out) {
		if strings.Contains(line, " down ") || strings.Contains(line, "unknown") {
			down = append(down, strings.TrimSpace(line))
		}
	}
	return strings.Join(down, "\n")
}

// leaders counts how often another host leads the group of managers, by one host's word, while do goes on.
func (c *cluster) leaders(by string, lasts time.Duration) (changes int, seen []string) {
	c.t.Helper()
	last := ""
	for began := time.Now(); time.Since(began) < lasts; time.Sleep(500 * time.Millisecond) { // the fault lasts; nothing is waited for
		all, why := c.managers(by)
		leader := "nobody: " + why
		for host, status := range all {
			if status == "Leader" {
				leader = host
				if last != "" && last != host { // nobody, for a moment, is nobody else
					changes++
				}
				last = host
			}
		}
		if len(seen) == 0 || seen[len(seen)-1] != leader {
			seen = append(seen, leader)
		}
	}
	return changes, seen
}

// awaitSettled waits until no change of the managers is under way, and every stream has its copies: while the second server of a
// lone manager goes there are four voters, one of which has stopped, and none of the others can be missed.
func (c *cluster) awaitSettled(copies int, limit time.Duration) {
	c.t.Helper()
	c.await("managers that do not change", limit, func() string {
		r := c.on("m1", "skep", "node", "ls")
		if r.Code != 0 || strings.Contains(r.Stderr, "are changing") {
			return r.Stderr
		}
		if out := c.copies(); !strings.HasSuffix(out, fmt.Sprintf("(%d copies each)", copies)) {
			return out
		}
		return ""
	})
}

// awaitNoError waits until doctor, asked at a host, finds no error.
func (c *cluster) awaitNoError(host string, limit time.Duration) {
	c.t.Helper()
	c.await("doctor finds no error", limit, func() string {
		if r := c.on(host, "skep", "doctor"); r.Code != 0 {
			return r.Stdout + r.Stderr
		}
		return ""
	})
}
