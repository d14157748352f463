package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sort"
	"strconv"
	"strings"
	"time"

	"skep.dev/e2e/lab"
)

// rig is a lab being measured.
type rig struct {
	*lab.Lab
	ctx      context.Context
	progress io.Writer
	rounds   int
	rows     []row
	images   int // updates made so far
}

// patience bounds every wait: what takes longer is an error, not a figure.
const patience = 2 * time.Minute

func labRows(ctx context.Context, rounds int, progress io.Writer) ([]row, error) {
	l, err := lab.Up(ctx, lab.Options{Name: "bench", Hosts: 4, Lifeline: true, Progress: progress})
	if err != nil {
		return nil, err
	}
	r := &rig{Lab: l, ctx: ctx, progress: progress, rounds: rounds}
	for _, step := range []func() error{r.idle, r.startOne, r.startTwenty, r.startOnOneHost, func() error { return r.alone(20) }, func() error { return r.alone(100) }, r.create, r.nodeLoss, r.drain, r.agentRestart} {
		if err = step(); err != nil {
			break
		}
	}
	return r.rows, errors.Join(err, l.Down())
}

func (r *rig) note(row row) {
	r.rows = append(r.rows, row)
	fmt.Fprintf(r.progress, "%s: %s\n", row.what, row.measured)
}

func (r *rig) skep(args ...string) (string, error) {
	return r.on("m1", append([]string{"skep"}, args...)...)
}

func (r *rig) on(host string, argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(r.ctx, patience)
	defer cancel()
	res, err := r.Run(ctx, host, argv...)
	if err != nil {
		return "", err
	}
	if res.Code != 0 {
		return "", fmt.Errorf("on %s: %s: exit status %d: %s", host, strings.Join(argv, " "), res.Code, res.Stderr)
	}
	return strings.TrimSpace(res.Stdout), nil
}

// await polls until done, and returns how long that took from began.
func (r *rig) await(what string, began time.Time, done func() (bool, error)) (time.Duration, error) {
	for {
		ok, err := done()
		if ok || err != nil {
			return time.Since(began), err
		}
		if time.Since(began) > patience {
			return 0, fmt.Errorf("%s: not within %s", what, patience)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// started is how long a service took from its creation to its n-th task running, by the times that the nodes put into
// the tasks' states: looking every few milliseconds from outside would take the two cores away from what is measured, and
// of a crowd of tasks not every step is told as an event.
func (r *rig) started(service string, n int) (time.Duration, error) {
	_, err := r.await(service+" to run", time.Now(), func() (bool, error) {
		time.Sleep(300 * time.Millisecond)
		out, err := r.skep("service", "ls", "--filter", "name="+service, "--format", "{{.Replicas}}")
		return strings.HasPrefix(out, fmt.Sprintf("%d/%d", n, n)), err
	})
	if err != nil {
		return 0, err
	}
	var services []struct{ CreatedAt time.Time }
	if err := r.inspect(&services, "service", service); err != nil {
		return 0, err
	}
	ids, err := r.skep("service", "ps", "--quiet", "--no-trunc", "--filter", "desired-state=running", service)
	if err != nil {
		return 0, err
	}
	last, err := r.lastRan(n, strings.Fields(ids))
	if err != nil {
		return 0, fmt.Errorf("%s: %w", service, err)
	}
	if len(services) != 1 {
		return 0, fmt.Errorf("%d services are called %s", len(services), service)
	}
	return last.Sub(services[0].CreatedAt), nil
}

// lastRan is when the last of n tasks began to run, by the times that the nodes put into their states; all n must run.
func (r *rig) lastRan(n int, ids []string) (time.Time, error) {
	var tasks []struct {
		Status struct {
			State     string
			Timestamp time.Time
		}
	}
	var last time.Time
	if err := r.inspect(&tasks, "task", ids...); err != nil {
		return last, err
	}
	running := 0
	for _, t := range tasks {
		if t.Status.State == "running" {
			running++
			if t.Status.Timestamp.After(last) {
				last = t.Status.Timestamp
			}
		}
	}
	if running != n {
		return last, fmt.Errorf("%d of %d tasks run", running, n)
	}
	return last, nil
}

// inspect reads what skep says of objects of a kind.
func (r *rig) inspect(into any, kind string, refs ...string) error {
	out, err := r.skep(append([]string{kind, "inspect"}, refs...)...)
	if err != nil {
		return err
	}
	return json.Unmarshal([]byte(out), into)
}

func (r *rig) containers(hosts ...string) (int, error) {
	total := 0
	for _, h := range hosts {
		out, err := r.on(h, "ctr", "-a", "/run/skep/containerd.sock", "-n", "skep", "containers", "ls", "-q")
		if err != nil {
			return 0, err
		}
		total += len(strings.Fields(out))
	}
	return total, nil
}

var all = []string{"m1", "w1", "w2", "w3"}

func (r *rig) remove(service string, hosts ...string) (time.Duration, error) {
	began := time.Now()
	if _, err := r.skep("service", "rm", service); err != nil {
		return 0, err
	}
	return r.await("nothing left of "+service, began, func() (bool, error) {
		n, err := r.containers(hosts...)
		return n == 0, err
	})
}

// median runs one measurement several times.
func (r *rig) median(measure func() (time.Duration, error)) (time.Duration, error) {
	var all []time.Duration
	for range r.rounds {
		d, err := measure()
		if err != nil {
			return 0, err
		}
		all = append(all, d)
	}
	sort.Slice(all, func(i, j int) bool { return all[i] < all[j] })
	return all[len(all)/2], nil
}

// busybox is the service that is measured: no image to fetch twice, no work of its own, stops at once.
func busybox(name string, flags ...string) []string {
	args := append([]string{"service", "create", "--name", name, "--stop-signal", "SIGKILL"}, flags...)
	return append(args, "busybox", "sleep", "100000")
}

// warm brings the image to every host.
func (r *rig) warm() error {
	if _, err := r.skep(busybox("warm", "--mode", "global")...); err != nil {
		return err
	}
	_, err := r.remove("warm", all...)
	return err
}

func (r *rig) idle() error {
	if err := r.warm(); err != nil {
		return err
	}
	for _, h := range []struct {
		name, host string
		bar        float64
		swarm      string
	}{{"manager", "m1", 76, "77 MB"}, {"worker", "w1", 60, "62 MB"}} {
		load, err := r.load(h.host, 10*time.Second)
		if err != nil {
			return err
		}
		pss, err := r.pss(h.host)
		if err != nil {
			return err
		}
		met := pss <= h.bar
		r.note(row{what: "idle " + h.name + ", PSS with containerd", bar: fmt.Sprintf("≤ %.0f MB", h.bar), measured: fmt.Sprintf("%.0f MB", pss), met: &met, swarm: h.swarm})
		calm := load <= 1
		r.note(row{what: "idle " + h.name + ", CPU", bar: "≤ 1 %", measured: fmt.Sprintf("%.2f %%", load), met: &calm, swarm: map[string]string{"m1": "1.25 %", "w1": "0.34 %"}[h.host]})
	}
	return nil
}

// load is what the host's daemons take of one processor, in percent, during that time.
func (r *rig) load(host string, span time.Duration) (float64, error) {
	before, err := r.cpu(host)
	if err != nil {
		return 0, err
	}
	select { // idleness has to last to be measured
	case <-time.After(span):
	case <-r.ctx.Done():
		return 0, r.ctx.Err()
	}
	after, err := r.cpu(host)
	return 100 * (after - before).Seconds() / span.Seconds(), err
}

// pss adds up what the host's daemons take, shared pages counted by share.
func (r *rig) pss(host string) (float64, error) {
	out, err := r.on(host, "sh", "-c", `for p in $(pgrep -x 'skep|containerd'); do awk '/^Pss:/ {print $2}' /proc/$p/smaps_rollup; done | awk '{s += $1} END {print s}'`)
	if err != nil {
		return 0, err
	}
	kb, err := strconv.ParseFloat(out, 64)
	return kb / 1024, err
}

// cpu is the time the host's daemons have used.
func (r *rig) cpu(host string) (time.Duration, error) {
	out, err := r.on(host, "sh", "-c", `for p in $(pgrep -x 'skep|containerd'); do sed 's/.*) //' /proc/$p/stat | awk '{print $12 + $13}'; done | awk '{s += $1} END {print s}'`)
	if err != nil {
		return 0, err
	}
	ticks, err := strconv.ParseFloat(out, 64)
	return time.Duration(ticks * float64(time.Second) / 100), err
}

func (r *rig) startOne() error {
	d, err := r.median(func() (time.Duration, error) {
		if _, err := r.skep(busybox("one", "--detach")...); err != nil {
			return 0, err
		}
		d, err := r.started("one", 1)
		if err != nil {
			return 0, err
		}
		_, err = r.remove("one", all...)
		return d, err
	})
	if err == nil {
		r.note(atMost("1 replica, create → running", 150*time.Millisecond, d, "0.47 s"))
	}
	return err
}

func (r *rig) startTwenty() error {
	var gone []time.Duration
	d, err := r.median(func() (time.Duration, error) {
		if _, err := r.skep(busybox("twenty", "--detach", "--replicas", "20")...); err != nil {
			return 0, err
		}
		d, err := r.started("twenty", 20)
		if err != nil {
			return 0, err
		}
		g, err := r.remove("twenty", all...)
		gone = append(gone, g)
		return d, err
	})
	if err != nil {
		return err
	}
	sort.Slice(gone, func(i, j int) bool { return gone[i] < gone[j] })
	r.note(row{what: "20 replicas on 4 hosts start", measured: short(d)})
	r.note(atMost("20 replicas removed, nothing left", 1500*time.Millisecond, gone[len(gone)/2], "2.4–2.9 s"))
	return nil
}

func (r *rig) startOnOneHost() error {
	for _, c := range []struct {
		n     int
		bar   time.Duration
		swarm string
	}{{20, 1200 * time.Millisecond, "2.9 s"}, {100, 5 * time.Second, "12 s"}} {
		d, err := r.median(func() (time.Duration, error) {
			if _, err := r.skep(busybox("dense", "--detach", "--replicas", strconv.Itoa(c.n), "--constraint", "node.hostname==w1")...); err != nil {
				return 0, err
			}
			d, err := r.started("dense", c.n)
			if err != nil {
				return 0, err
			}
			_, err = r.remove("dense", "w1")
			return d, err
		})
		if err != nil {
			return err
		}
		r.note(atMost(fmt.Sprintf("%d replicas on one host start", c.n), c.bar, d, c.swarm))
	}
	return nil
}

// create measures the API's create in a loop: what the command line adds is in its own row.
func (r *rig) create() error {
	const n = 50
	var took []time.Duration
	for i := range n {
		began := time.Now()
		if _, err := r.skep("service", "create", "--detach", "--no-resolve-image", "--name", fmt.Sprintf("api%d", i), "--replicas", "0", "busybox"); err != nil {
			return err
		}
		took = append(took, time.Since(began))
	}
	sort.Slice(took, func(i, j int) bool { return took[i] < took[j] })
	r.note(row{what: "service create by the CLI, p50 (entering the host included)", measured: short(took[n/2]), swarm: "28 ms"})
	for i := range n {
		if _, err := r.skep("service", "rm", fmt.Sprintf("api%d", i)); err != nil {
			return err
		}
	}
	return nil
}

func (r *rig) nodeLoss() error {
	if _, err := r.skep(busybox("spread", "--replicas", "12")...); err != nil {
		return err
	}
	d, err := r.median(func() (time.Duration, error) {
		began := time.Now()
		if err := r.Kill(r.ctx, "w1"); err != nil {
			return 0, err
		}
		d, err := r.await("replacements", began, func() (bool, error) {
			out, err := r.skep("service", "ps", "--filter", "desired-state=running", "--format", "{{.Node}} {{.CurrentState}}", "spread")
			running := 0
			for _, l := range strings.Split(out, "\n") {
				if !strings.HasPrefix(l, "w1 ") && strings.Contains(l, " Running") {
					running++
				}
			}
			return running == 12, err
		})
		if err != nil {
			return 0, err
		}
		if err := r.Start(r.ctx, "w1"); err != nil {
			return 0, err
		}
		if err := r.awaitReady("w1"); err != nil {
			return 0, err
		}
		return d, r.rebalance()
	})
	if err != nil {
		return err
	}
	r.note(atMost("node dies → replacements running elsewhere", 5*time.Second, d, "19.0 s"))
	return nil
}

func (r *rig) awaitReady(host string) error {
	_, err := r.await(host+" ready", time.Now(), func() (bool, error) {
		out, err := r.skep("node", "ls", "--format", "{{.Hostname}} {{.Status}} {{.Availability}}")
		return strings.Contains(out, host+" Ready Active"), err
	})
	return err
}

// rebalance spreads the tasks over all hosts again.
func (r *rig) rebalance() error {
	for _, n := range []string{"1", "12"} {
		if _, err := r.skep("service", "scale", "spread="+n); err != nil {
			return err
		}
	}
	return nil
}

// drain is measured start-first: with stop-first it takes as long as the tasks take to stop.
func (r *rig) drain() error {
	if _, err := r.skep("service", "update", "--update-order", "start-first", "spread"); err != nil {
		return err
	}
	d, err := r.median(func() (time.Duration, error) {
		began := time.Now()
		if _, err := r.skep("node", "update", "--availability", "drain", "w2"); err != nil {
			return 0, err
		}
		d, err := r.await("drained", began, func() (bool, error) {
			n, err := r.containers("w2")
			if n > 0 || err != nil {
				return false, err
			}
			out, err := r.skep("service", "ls", "--filter", "name=spread", "--format", "{{.Replicas}}")
			return strings.HasPrefix(out, "12/12"), err
		})
		if err != nil {
			return 0, err
		}
		if _, err := r.skep("node", "update", "--availability", "active", "w2"); err != nil {
			return 0, err
		}
		return d, r.rebalance()
	})
	if err != nil {
		return err
	}
	r.note(atMost("drain a node with 3 tasks", time.Second, d, "2.3 s"))
	_, err = r.remove("spread", all...)
	return err
}

// agentRestart measures how long a node with 100 containers is without its agent.
func (r *rig) agentRestart() error {
	if _, err := r.skep(busybox("dense", "--replicas", "100", "--constraint", "node.hostname==w1")...); err != nil {
		return err
	}
	pss, err := r.pss("w1")
	if err != nil {
		return err
	}
	r.note(row{what: "100 containers on one host, PSS of skep and containerd", measured: fmt.Sprintf("%.0f MB", pss)})
	if err := r.KillProcess(r.ctx, "w1", "skep", true); err != nil {
		return err
	}
	began := time.Now()
	if err := r.StartDaemon(r.ctx, "w1"); err != nil {
		return err
	}
	d, err := r.await("the agent of w1", began, func() (bool, error) {
		res, err := r.Run(r.ctx, "w1", "curl", "-s", "--max-time", "1", "--unix-socket", "/run/skep/node.sock", "http://node/ready")
		return res.Code == 0 && strings.Contains(res.Stdout, `"ready"`), err
	})
	if err != nil {
		return err
	}
	r.note(row{what: "agent restart with 100 containers, until it serves", measured: short(d)})
	if n, err := r.containers("w1"); err != nil || n != 100 {
		return errors.Join(err, fmt.Errorf("%d containers after the restart, want 100", n))
	}
	_, err = r.remove("dense", "w1")
	return err
}
