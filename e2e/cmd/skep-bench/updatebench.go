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

// updateRuns is how often a client hammers the service through an update of each order.
const updateRuns = 10

// updateRows measures updates of six replicas, two at a time: how long they take, and what a client at 500 requests a
// second sees of them, also while a node's daemon is killed in the middle.
func updateRows(ctx context.Context, rounds int, progress io.Writer) ([]row, error) {
	l, err := lab.Up(ctx, lab.Options{Name: "updatebench", Hosts: 4, Lifeline: true, Progress: progress})
	if err != nil {
		return nil, err
	}
	r := &rig{Lab: l, ctx: ctx, progress: progress, rounds: rounds}
	for _, step := range []func() error{r.updateTimes, r.updatesUnderLoad} {
		if err = step(); err != nil {
			break
		}
	}
	return r.rows, errors.Join(err, l.Down())
}

// nextImage makes each update one.
func (r *rig) nextImage() string {
	r.images++
	return fmt.Sprintf("whoami:v%d", 1+r.images%2)
}

func (r *rig) updateTimes() error {
	if _, err := r.skep("service", "create", "--name", "web", "--replicas", "6", "--publish", "8080:80", "--update-parallelism", "2", r.nextImage()); err != nil {
		return err
	}
	for _, c := range []struct {
		monitor, swarm string
		bar            time.Duration
	}{{"5s", "11.1 s", 8 * time.Second}, {"1ms", "5.3 s", 2 * time.Second}} {
		d, err := r.median(func() (time.Duration, error) {
			began := time.Now()
			_, err := r.skep("service", "update", "--update-monitor", c.monitor, "--image", r.nextImage(), "web")
			return time.Since(began), err
		})
		if err != nil {
			return err
		}
		r.note(atMost("6 replicas updated, parallelism 2, monitor "+c.monitor, c.bar, d, c.swarm))
	}
	return nil
}

func (r *rig) updatesUnderLoad() error {
	var urls []string
	for _, h := range r.Hosts {
		if slices.Contains(all, h.Name) { // not the client, nor the registry
			urls = append(urls, "http://"+h.IP+":8080/")
		}
	}
	const stop = "/run/bench-hammer-stop"
	for _, c := range []struct {
		what, order string
		kill        bool
	}{
		{"start-first", "start-first", false}, {"stop-first", "stop-first", false},
		{"start-first, a daemon killed in the middle", "start-first", true}, {"stop-first, a daemon killed in the middle", "stop-first", true},
	} {
		asked, failed, first := 0, 0, ""
		began := time.Now()
		for range updateRuns {
			a, f, one, err := r.hammered(urls, stop, func() error {
				done := make(chan error, 1)
				go func() {
					_, err := r.skep("service", "update", "--update-order", c.order, "--update-monitor", "1ms", "--image", r.nextImage(), "web")
					done <- err
				}()
				if c.kill {
					if err := r.KillProcess(r.ctx, "w1", "skep", true); err != nil {
						return errors.Join(err, <-done)
					}
					if err := r.StartDaemon(r.ctx, "w1"); err != nil {
						return errors.Join(err, <-done)
					}
				}
				return <-done
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
		r.note(row{what: "failed requests in 10 updates, " + c.what, bar: "0", met: &met,
			measured: fmt.Sprintf("%d of %s at %s/s", failed, thousands(float64(asked)), thousands(float64(asked)/time.Since(began).Seconds()))})
		if first != "" {
			fmt.Fprintln(r.progress, "such as", first)
		}
	}
	_, err := r.remove("web", all...)
	return err
}

// hammered asks the URLs 500 times a second while f works.
func (r *rig) hammered(urls []string, stop string, f func() error) (asked, failed int, first string, err error) {
	if _, err := r.on("client", "rm", "-f", stop); err != nil {
		return 0, 0, "", err
	}
	type outcome struct {
		out string
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		out, err := r.on("client", "skep-bench", "hammer", "-c", "16", "-rate", "500", "-until", stop, strings.Join(urls, ","))
		done <- outcome{out, err}
	}()
	err = f()
	_, serr := r.on("client", "touch", stop)
	o := <-done
	if err = errors.Join(err, serr, o.err); err != nil {
		return 0, 0, "", err
	}
	counts, first, _ := strings.Cut(o.out, "\n")
	if _, err := fmt.Sscan(counts, &asked, &failed); err != nil {
		return 0, 0, "", fmt.Errorf("read what hammer says, %q: %w", o.out, err)
	}
	return asked, failed, strings.TrimSpace(first), nil
}
