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
	stackServices = 20
	stackReplicas = 3
)

// stackRows measures a stack of 20 services with 3 replicas each on three hosts that have the image: until all of them
// run, and how long the same file takes again, which must touch no task.
func stackRows(ctx context.Context, rounds int, progress io.Writer) ([]row, error) {
	l, err := lab.Up(ctx, lab.Options{Name: "stackbench", Hosts: 3, Lifeline: true, Progress: progress})
	if err != nil {
		return nil, err
	}
	r := &rig{Lab: l, ctx: ctx, progress: progress, rounds: rounds}
	for _, step := range []func() error{r.warmStack, r.stackDeploys} {
		if err = step(); err != nil {
			break
		}
	}
	return r.rows, errors.Join(err, l.Down())
}

func (r *rig) warmStack() error {
	if _, err := r.skep(busybox("warm", "--mode", "global")...); err != nil {
		return err
	}
	if _, err := r.remove("warm", "m1", "w1", "w2"); err != nil {
		return err
	}
	var file strings.Builder
	file.WriteString("services:\n")
	for i := range stackServices {
		fmt.Fprintf(&file, "  s%d:\n    image: busybox\n    command: [sleep, '100000']\n    stop_signal: SIGKILL\n    deploy: {replicas: %d}\n", i, stackReplicas)
	}
	_, err := r.RunInput(r.ctx, "m1", file.String(), "sh", "-c", "cat >/srv/stack.yaml")
	return err
}

func (r *rig) stackDeploys() error {
	again := []time.Duration{}
	touched := 0
	first, err := r.median(func() (time.Duration, error) {
		began := time.Now()
		if _, err := r.skep("stack", "deploy", "-q", "-c", "/srv/stack.yaml", "big"); err != nil {
			return 0, err
		}
		ran, err := r.stackStarted(began)
		if err != nil {
			return 0, err
		}
		before, err := r.skep("stack", "ps", "-q", "--no-trunc", "big")
		if err != nil {
			return 0, err
		}
		began = time.Now()
		out, err := r.skep("stack", "deploy", "-c", "/srv/stack.yaml", "big")
		again = append(again, time.Since(began))
		if err != nil || !strings.Contains(out, "unchanged") {
			return 0, errors.Join(err, fmt.Errorf("the same file again: %s", out))
		}
		after, err := r.skep("stack", "ps", "-q", "--no-trunc", "big")
		if err != nil {
			return 0, err
		}
		if before != after {
			touched++
		}
		_, err = r.skep("stack", "rm", "-q", "big")
		return ran, err
	})
	if err != nil {
		return err
	}
	r.note(atMost(fmt.Sprintf("stack of %d services × %d replicas on 3 hosts: all run", stackServices, stackReplicas), 6*time.Second, first, ""))
	n := 0
	unchanged, err := r.median(func() (time.Duration, error) { n++; return again[n-1], nil })
	if err != nil {
		return err
	}
	r.note(atMost("the same file again", time.Second, unchanged, ""))
	met := touched == 0
	r.note(row{what: "deploys of the same file that touched a task", bar: "0", measured: fmt.Sprint(touched), met: &met})
	return nil
}

// stackStarted is how long after began the last task of the stack ran, by the times that the nodes put into their states.
func (r *rig) stackStarted(began time.Time) (time.Duration, error) {
	ids, err := r.skep("stack", "ps", "-q", "--no-trunc", "--filter", "desired-state=running", "big")
	if err != nil {
		return 0, err
	}
	last, err := r.lastRan(stackServices*stackReplicas, strings.Fields(ids))
	return last.Sub(began), err
}
