package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"skep.dev/e2e/lab"
)

// secretRows measures how long it takes until a secret that was just made is a file in a running container, compared with
// the same service without one, and a crowd of tasks that come up with a crowd of secrets.
func secretRows(ctx context.Context, rounds int, progress io.Writer) ([]row, error) {
	l, err := lab.Up(ctx, lab.Options{Name: "secretbench", Hosts: 4, Lifeline: true, Progress: progress})
	if err != nil {
		return nil, err
	}
	r := &rig{Lab: l, ctx: ctx, progress: progress, rounds: rounds}
	for _, step := range []func() error{r.warm, r.oneSecret, r.thousandSecrets} {
		if err = step(); err != nil {
			break
		}
	}
	return r.rows, errors.Join(err, l.Down())
}

// oneSecret takes the time of both commands to the end of the second, which waits until the task runs.
func (r *rig) oneSecret() error {
	n := 0
	measure := func(secret bool) func() (time.Duration, error) {
		return func() (time.Duration, error) {
			n++
			name := fmt.Sprint("one", n)
			script := "skep service create -q --update-monitor 1ms --name " + name + " --stop-signal SIGKILL"
			if secret {
				script = "printf value | skep secret create " + name + " - && " + script + " --secret " + name
			}
			began := time.Now()
			if _, err := r.on("m1", "sh", "-c", script+" --detach busybox sleep 100000"); err != nil {
				return 0, err
			}
			made := time.Since(began) // of the commands; the rest by the node's clock
			d, err := r.started(name, 1)
			if err != nil {
				return 0, err
			}
			_, err = r.remove(name, all...)
			return made + d, err
		}
	}
	without, err := r.median(measure(false))
	if err != nil {
		return err
	}
	with, err := r.median(measure(true))
	if err != nil {
		return err
	}
	r.note(row{what: "1 replica without a secret: command → running", measured: short(without)})
	r.note(atMost("secret created → file in a running container, above that", 300*time.Millisecond, max(0, with-without), ""))
	return nil
}

// thousandSecrets: ten services of ten tasks, each with a hundred secrets of its own of 1 KiB.
func (r *rig) thousandSecrets() error {
	const services, tasks, each = 10, 10, 100
	began := time.Now()
	if _, err := r.on("m1", "sh", "-c", fmt.Sprintf(
		`head -c 1024 /dev/urandom >/dev/shm/value; for s in $(seq %d); do for i in $(seq %d); do skep secret create s$s-$i /dev/shm/value >/dev/null || exit 1; done; done; rm /dev/shm/value`, services, each)); err != nil {
		return err
	}
	r.note(row{what: "1,000 secrets created, one command each", measured: short(time.Since(began))})
	crowd := func(prefix string, secrets bool) (time.Duration, error) {
		began := time.Now()
		for s := 1; s <= services; s++ {
			flags := []string{"--detach", "--replicas", fmt.Sprint(tasks)}
			for i := 1; secrets && i <= each; i++ {
				flags = append(flags, "--secret", fmt.Sprintf("s%d-%d", s, i))
			}
			if _, err := r.skep(busybox(fmt.Sprint(prefix, s), flags...)...); err != nil {
				return 0, err
			}
		}
		took, err := r.await("100 tasks", began, func() (bool, error) {
			n := 0
			for _, h := range all {
				out, err := r.on(h, "pgrep", "-cfx", "sleep 100000")
				if err != nil {
					out = "0" // none yet
				}
				var there int
				_, _ = fmt.Sscan(out, &there)
				n += there
			}
			return n == services*tasks, nil
		})
		if err != nil {
			return 0, err
		}
		for s := 1; s <= services; s++ {
			if _, err := r.skep("service", "rm", fmt.Sprint(prefix, s)); err != nil {
				return 0, err
			}
		}
		_, err = r.await("nothing left", time.Now(), func() (bool, error) {
			n, err := r.containers(all...)
			return n == 0, err
		})
		return took, err
	}
	without, err := crowd("plain", false)
	if err != nil {
		return err
	}
	with, err := crowd("with", true)
	if err != nil {
		return err
	}
	r.note(row{what: "10 services, 100 tasks on 4 hosts, without secrets", measured: short(without)})
	r.note(row{what: "the same with 1,000 secrets, 100 a task", measured: short(with)})
	return nil
}
