package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"skep.dev/e2e/lab"
)

var threeManagers = []string{"m1", "m2", "m3"}

// leaderKills is how often the leader loses its power under a client that hammers a service.
const leaderKills = 10

// managerRows measures three managers and two workers: what a manager takes, and what is seen of the loss of one.
func managerRows(ctx context.Context, rounds int, progress io.Writer) ([]row, error) {
	l, err := lab.Up(ctx, lab.Options{Name: "managersbench", Hosts: 5, Managers: 3, Lifeline: true, Progress: progress})
	if err != nil {
		return nil, err
	}
	r := &rig{Lab: l, ctx: ctx, progress: progress, rounds: rounds}
	for _, step := range []func() error{r.idleManagers, r.create, r.managersLost, r.managersStopped, r.leadersUnderLoad} {
		if err = step(); err != nil {
			break
		}
	}
	return r.rows, errors.Join(err, l.Down())
}

func (r *rig) idleManagers() error {
	leader, err := r.leader("m1")
	if err != nil {
		return err
	}
	if _, err := r.skep(busybox("web", "--replicas", "10")...); err != nil {
		return err
	}
	select { // after elections, as when the group grew, its feeds look often for 15 s
	case <-time.After(30 * time.Second):
	case <-r.ctx.Done():
		return r.ctx.Err()
	}
	for _, h := range threeManagers {
		load, err := r.load(h, 10*time.Second)
		if err != nil {
			return err
		}
		pss, err := r.pss(h)
		if err != nil {
			return err
		}
		what := "one of three managers, PSS with containerd"
		if h == leader {
			what = "the leader of three managers, PSS with containerd"
		}
		met := pss <= 90
		r.note(row{what: what, bar: "≤ 90 MB", measured: fmt.Sprintf("%.0f MB, CPU %.2f %%", pss, load), met: &met})
	}
	return nil
}

// leader waits until all managers are there and one leads.
func (r *rig) leader(by string) (leader string, err error) {
	_, err = r.await("a leader of three", time.Now(), func() (bool, error) {
		out, err := r.on(by, "skep", "node", "ls", "--filter", "role=manager", "--format", "{{.Hostname}} {{.ManagerStatus}}")
		leader = ""
		for line := range strings.Lines(out) {
			name, status, _ := strings.Cut(strings.TrimSpace(line), " ")
			if status == "Leader" {
				leader = name
			}
		}
		return err == nil && leader != "" && strings.Count(out, "Reachable") == len(threeManagers)-1, nil // it may be without a leader now
	})
	return leader, err
}

// writer changes a service's label again and again, and notes when each change was acknowledged.
type writer struct {
	cancel context.CancelFunc
	done   chan struct{}
	acked  []time.Time
}

func (r *rig) write(host string) *writer {
	ctx, cancel := context.WithCancel(r.ctx)
	w := &writer{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(w.done)
		for n := 0; ctx.Err() == nil; n++ {
			res, err := r.Run(ctx, host, "skep", "service", "update", "--detach", "--label-add", fmt.Sprint("n=", n), "written")
			if err == nil && res.Code == 0 {
				w.acked = append(w.acked, time.Now())
			}
		}
	}()
	return w
}

// gap ends the writer and returns the longest time without an acknowledged change, from one acknowledgement to the next.
func (w *writer) gap() (time.Duration, error) {
	w.cancel()
	<-w.done
	var most time.Duration
	for i := 1; i < len(w.acked); i++ {
		most = max(most, w.acked[i].Sub(w.acked[i-1]))
	}
	if len(w.acked) < 3 {
		return 0, fmt.Errorf("only %d changes were acknowledged", len(w.acked))
	}
	return most, nil
}

// lose takes one manager away by f while changes are made at another, and returns the longest time without an acknowledged
// change and the time until f's host's tasks ran elsewhere.
func (r *rig) lose(host string, f func() error) (writes, tasks time.Duration, err error) {
	front := threeManagers[(slices.Index(threeManagers, host)+1)%len(threeManagers)]
	if _, err := r.leader(front); err != nil {
		return 0, 0, err
	}
	w := r.write(front)
	time.Sleep(time.Second) // some changes before
	began := time.Now()
	if err := f(); err != nil {
		w.cancel()
		<-w.done
		return 0, 0, err
	}
	var last time.Time
	_, err = r.await("its tasks elsewhere", began, func() (bool, error) {
		time.Sleep(100 * time.Millisecond)
		res, err := r.Run(r.ctx, front, "sh", "-c", `skep service ps --no-trunc --filter desired-state=running --format '{{.ID}} {{.Node}} {{.CurrentState}}' lost | awk -v h="$1" '$2 != h && $3 == "Running" {print $1}' | xargs skep task inspect --format '{{.Status.Timestamp}}'`, "sh", host)
		stamps := strings.Split(strings.TrimSpace(res.Stdout), "\n")
		if err != nil || res.Code != 0 || len(stamps) != 6 {
			return false, nil // the managers have nobody to lead them yet
		}
		for _, s := range stamps {
			at, err := time.Parse("2006-01-02 15:04:05.999999999 -0700 MST", s) // as a template prints a time
			if err != nil {
				return false, err
			}
			if at.After(last) {
				last = at
			}
		}
		return true, nil
	})
	time.Sleep(2 * time.Second) // some changes after
	writes, gapErr := w.gap()
	return writes, max(0, last.Sub(began)), errors.Join(err, gapErr)
}

func (r *rig) setLost() error {
	for _, args := range [][]string{
		busybox("written", "--replicas", "0"),
		busybox("lost", "--replicas", "6", "--constraint", "node.role==manager"),
	} {
		if _, err := r.skep(args...); err != nil {
			return err
		}
	}
	return nil
}

// managersLost takes the power from every manager in turn: one of them leads the group, and one leads what is written to.
func (r *rig) managersLost() error {
	if err := r.setLost(); err != nil {
		return err
	}
	var writes, tasks []time.Duration
	for range r.rounds {
		for _, h := range threeManagers {
			w, t, err := r.lose(h, func() error { return r.Kill(r.ctx, h) })
			if err != nil {
				return fmt.Errorf("%s loses its power: %w", h, err)
			}
			fmt.Fprintf(r.progress, "%s lost its power: %s without a change taken, tasks elsewhere after %s\n", h, short(w), short(t))
			writes, tasks = append(writes, w), append(tasks, t)
			if err := r.again(h, func() error { return r.Start(r.ctx, h) }); err != nil {
				return err
			}
		}
	}
	slices.Sort(writes)
	slices.Sort(tasks)
	n := len(writes)
	r.note(atMost(fmt.Sprintf("a manager of three loses its power (each in turn, %d times): writes resume, worst", n), 7*time.Second, writes[n-1], "11.1 s"))
	r.note(row{what: "the same, median", measured: short(writes[n/2])})
	r.note(atMost("its tasks run elsewhere, worst", 7*time.Second, tasks[n-1], "46.3 s"))
	r.note(row{what: "the same, median", measured: short(tasks[n/2])})
	return nil
}

// again starts a host and waits until it has its share of the tasks.
func (r *rig) again(host string, start func() error) error {
	if err := start(); err != nil {
		return err
	}
	if _, err := r.leader(host); err != nil {
		return err
	}
	if err := r.awaitReady(host); err != nil {
		return err
	}
	for _, n := range []string{"1", "6"} {
		if _, err := r.skep("service", "scale", "lost="+n); err != nil {
			return err
		}
	}
	return nil
}

// managersStopped ends the daemon of every manager in turn, as systemctl stop does.
func (r *rig) managersStopped() error {
	var writes []time.Duration
	for range r.rounds {
		for _, h := range threeManagers {
			front := threeManagers[(slices.Index(threeManagers, h)+1)%len(threeManagers)]
			if _, err := r.leader(front); err != nil {
				return err
			}
			w := r.write(front)
			time.Sleep(time.Second) // some changes before
			_, err := r.on(h, "sh", "-c", `p=$(cat /var/lib/skep/lock/node); kill -TERM $p; while kill -0 $p 2>/dev/null; do sleep 0.05; done`)
			time.Sleep(3 * time.Second) // some changes after
			d, gapErr := w.gap()
			if err := errors.Join(err, gapErr); err != nil {
				return fmt.Errorf("%s is stopped: %w", h, err)
			}
			fmt.Fprintf(r.progress, "%s was stopped: %s without a change taken\n", h, short(d))
			writes = append(writes, d)
			if err := r.again(h, func() error { return r.StartDaemon(r.ctx, h) }); err != nil {
				return err
			}
		}
	}
	slices.Sort(writes)
	r.note(atMost(fmt.Sprintf("a manager of three is stopped (each in turn, %d times): longest time without a change taken, worst", len(writes)), 500*time.Millisecond, writes[len(writes)-1], ""))
	r.note(row{what: "the same, median", measured: short(writes[len(writes)/2])})
	for _, s := range []string{"lost", "written", "web"} {
		if _, err := r.skep("service", "rm", s); err != nil {
			return err
		}
	}
	return nil
}

// leadersUnderLoad takes the power from whoever leads, again and again, while a client asks a service through the workers.
func (r *rig) leadersUnderLoad() error {
	if _, err := r.skep("service", "create", "--name", "edge", "--replicas", "4", "--publish", "8080:80", "--constraint", "node.role==worker", "whoami:v1"); err != nil {
		return err
	}
	var urls []string
	for _, h := range r.Hosts {
		if h.Role == lab.Worker {
			urls = append(urls, "http://"+h.IP+":8080/")
		}
	}
	began, asked, failed, first := time.Now(), 0, 0, ""
	for range leaderKills { // a hammer each: it ends by itself after some minutes
		a, f, one, err := r.hammered(urls, "/run/bench-hammer-stop", func() error {
			leader, err := r.leader("m1")
			if err != nil {
				return err
			}
			if err := r.Kill(r.ctx, leader); err != nil {
				return err
			}
			front := threeManagers[(slices.Index(threeManagers, leader)+1)%len(threeManagers)]
			_, err = r.await("a change to be taken", time.Now(), func() (bool, error) {
				res, err := r.Run(r.ctx, front, "skep", "service", "update", "--detach", "--label-add", "killed="+leader, "edge")
				return res.Code == 0, err
			})
			if err != nil {
				return err
			}
			if err := r.Start(r.ctx, leader); err != nil {
				return err
			}
			_, err = r.leader(leader)
			return err
		})
		if err != nil {
			return err
		}
		asked, failed = asked+a, failed+f
		if first == "" {
			first = one
		}
	}
	met := failed == 0
	r.note(row{what: fmt.Sprintf("failed requests through the workers over %d losses of the leader", leaderKills), bar: "0", met: &met,
		measured: fmt.Sprintf("%d of %s at %s/s", failed, thousands(float64(asked)), thousands(float64(asked)/time.Since(began).Seconds()))})
	if first != "" {
		fmt.Fprintln(r.progress, "such as", first)
	}
	return nil
}
