package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"skep.dev/e2e/lab"
)

const (
	memoryPort = 9323
	// quiet is within how long a node gives back what churn took.
	quiet = 5 * time.Minute
	// stays is what a node may keep above a fifth of what it had: deletions stay marked for 15 minutes, and pages are given back
	// whole.
	stays = 4 << 20
)

// churn is one cycle: a network, a service on it with a port, one that crashes, more tasks, an update, logs, and the removal of it
// all.
const churn = `set -e
skep network create -d overlay net >/dev/null
skep service create -q --name web --network net --publish 8080:80 --replicas 4 --stop-signal SIGKILL busybox sleep 100000 >/dev/null
skep service create -q -d --name crash --restart-delay 200ms busybox false >/dev/null
skep service scale web=7 >/dev/null
skep service update -q --env-add A=1 --update-parallelism 0 --update-monitor 1ms web >/dev/null
skep service logs web >/dev/null
skep service rm web crash >/dev/null
for i in $(seq 300); do skep network rm net >/dev/null 2>&1 && exit 0; sleep 0.1; done
echo "the network stays in use" >&2
exit 1`

// held is what a host's daemon takes.
type held struct {
	anon, heap, disk   int64 // bytes
	goroutines, files  int
	streams, consumers int
}

// memoryRows measures what is left of churn on three hosts: what each daemon takes before, after, and when it has been quiet.
func memoryRows(ctx context.Context, cycles int, progress io.Writer) ([]row, error) {
	l, err := lab.Up(ctx, lab.Options{Name: "memorybench", Hosts: 3, Lifeline: true, Progress: progress,
		NodeFlags: []string{"--metrics-addr", fmt.Sprintf("127.0.0.1:%d", memoryPort)}})
	if err != nil {
		return nil, err
	}
	r := &rig{Lab: l, ctx: ctx, progress: progress}
	return r.rows, errors.Join(r.churned(cycles), l.Down())
}

func (r *rig) churned(cycles int) error {
	hosts := []string{"m1", "w1", "w2"}
	if _, err := r.skep(busybox("warm", "--mode", "global")...); err != nil {
		return err
	}
	if _, err := r.remove("warm", hosts...); err != nil {
		return err
	}
	if _, err := r.on("m1", "sh", "-c", churn); err != nil { // what is made once is made
		return err
	}
	before, err := r.heldBy(hosts)
	if err != nil {
		return err
	}
	began := time.Now()
	for n := range cycles {
		if _, err := r.on("m1", "sh", "-c", churn); err != nil {
			return fmt.Errorf("cycle %d: %w", n+1, err)
		}
	}
	took := time.Since(began)
	after, err := r.heldBy(hosts)
	if err != nil {
		return err
	}
	fits := func(now, was held) bool { return now.anon <= was.anon/5*6+stays }
	// Nothing but the memory is looked at meanwhile: a profile would have the daemon collect.
	settled, err := r.awaitFor(quiet, func() (bool, error) {
		time.Sleep(5 * time.Second)
		for _, h := range hosts {
			anon, err := r.anon(h)
			if err != nil || !fits(held{anon: anon}, before[h]) {
				return false, err
			}
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	rested, err := r.heldBy(hosts)
	if err != nil {
		return err
	}
	for _, h := range hosts {
		b, a, n := before[h], after[h], rested[h]
		met := fits(n, b)
		figures := fmt.Sprintf("%.0f → %.0f → %.0f MB", mb(b.anon), mb(a.anon), mb(n.anon))
		r.note(row{what: fmt.Sprintf("%s: RssAnon before, after %d cycles of churn (%s), %s later", h, cycles, short(took), short(settled)),
			bar: "≤ 1.2 × before + 4 MB", measured: figures, met: &met})
		r.note(row{what: h + ": heap, goroutines, files, disk, streams, consumers", measured: fmt.Sprintf("%.0f→%.0f MB, %d→%d, %d→%d, %.0f→%.0f MB, %d→%d, %d→%d",
			mb(b.heap), mb(n.heap), b.goroutines, n.goroutines, b.files, n.files, mb(b.disk), mb(n.disk), b.streams, n.streams, b.consumers, n.consumers)})
	}
	return nil
}

// awaitFor polls until done, for a time at most, and returns how long it took.
func (r *rig) awaitFor(most time.Duration, done func() (bool, error)) (time.Duration, error) {
	for began := time.Now(); ; {
		if ok, err := done(); ok || err != nil || time.Since(began) > most {
			return time.Since(began), err
		}
	}
}

func (r *rig) heldBy(hosts []string) (map[string]held, error) {
	out := map[string]held{}
	for _, h := range hosts {
		x, err := r.held(h)
		if err != nil {
			return nil, err
		}
		out[h] = x
	}
	return out, nil
}

// anon is the pages of its own that a host's daemon has in memory.
func (r *rig) anon(host string) (n int64, err error) {
	text, err := r.on(host, "sh", "-c", `awk '/^RssAnon:/ {print $2 * 1024}' /proc/$(pgrep -xo skep)/status`)
	if err == nil {
		_, err = fmt.Sscan(text, &n)
	}
	if err != nil {
		return 0, fmt.Errorf("what the daemon of %s takes: %w", host, err)
	}
	return n, nil
}

// held reads the memory first: the profile has the daemon collect.
func (r *rig) held(host string) (out held, err error) {
	text, err := r.on(host, "sh", "-c", fmt.Sprintf(`p=$(pgrep -xo skep)
awk '/^RssAnon:/ {print "anon", $2 * 1024}' /proc/$p/status
echo files $(ls /proc/$p/fd | wc -l)
echo disk $(du -sB1 /var/lib/skep/bus 2>/dev/null | cut -f1)
curl -sS --unix-socket /run/skep/node.sock 'http://node/debug/pprof/heap?gc=1&debug=1' | awk '/^# HeapAlloc =/ {print "heap", $4}'
curl -sS --unix-socket /run/skep/node.sock 'http://node/debug/pprof/goroutine?debug=1' | awk 'NR == 1 {print "goroutines", $4}'
curl -sS http://127.0.0.1:%d/metrics | awk '/^skep_bus_jetstream_(streams|consumers) / {sub("skep_bus_jetstream_", ""); print}'`, memoryPort))
	if err != nil {
		return out, err
	}
	for line := range strings.Lines(text) {
		var name string
		var n int64
		if k, _ := fmt.Sscan(line, &name, &n); k < 2 {
			continue
		}
		switch name {
		case "anon":
			out.anon = n
		case "heap":
			out.heap = n
		case "disk":
			out.disk = n
		case "goroutines":
			out.goroutines = int(n)
		case "files":
			out.files = int(n)
		case "streams":
			out.streams = int(n)
		case "consumers":
			out.consumers = int(n)
		}
	}
	if out.anon == 0 || out.heap == 0 || out.goroutines == 0 {
		return out, fmt.Errorf("what the daemon of %s takes: %q", host, text)
	}
	return out, nil
}

func mb(n int64) float64 { return float64(n) / 1e6 }
