package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"skep.dev/e2e/lab"
)

// kills is how often the host that writes is killed. A node that falls more than three times in ten minutes is held back
// before it is ready again, so each host serves for three.
const (
	kills        = 20
	killsOfAHost = 3
)

// storageRows measures a plug-in's volume with one writer whose host is killed amid its writes, again and again, with a
// fencing command: how long until its task runs elsewhere, and whether a record is missing that had been confirmed. The
// hosts of a lab share one kernel, so what is shown is that no other writer came between, not that the disk kept its word.
func storageRows(ctx context.Context, progress io.Writer) ([]row, error) {
	l, err := lab.Up(ctx, lab.Options{Name: "storagebench", Hosts: 10, Lifeline: true, VolumePlugin: "rexray", Progress: progress})
	if err != nil {
		return nil, err
	}
	r := &rig{Lab: l, ctx: ctx, progress: progress, rounds: kills}
	return r.rows, errors.Join(r.writerKilled(), l.Down())
}

func (r *rig) writerKilled() error {
	script := fmt.Sprintf("#!/bin/sh\n%s/skep-volumed -store %s force-detach \"$1\"\n", r.Bin, r.VolumeStore())
	if _, err := r.on("m1", "sh", "-c", "printf '%s' '"+script+"' >/usr/local/bin/fence && chmod +x /usr/local/bin/fence"); err != nil {
		return err
	}
	if _, err := r.skep("swarm", "update", "--fence-cmd", "/usr/local/bin/fence"); err != nil {
		return err
	}
	if _, err := r.skep("service", "create", "-q", "--name", "db", "--constraint", "node.role==worker", "--restart-delay", "200ms",
		"--mount", "type=volume,volume-driver=rexray,source=db,target=/data", "--stop-signal", "SIGKILL", "busybox", "sleep", "100000"); err != nil {
		return err
	}
	confirmed, lost, falls := 0, 0, map[string]int{}
	round := 0
	took, err := r.median(func() (time.Duration, error) {
		round++
		id, node, err := r.writer("")
		if err != nil {
			return 0, err
		}
		n, began, err := r.writeUntilKilled(id, node, round)
		if err != nil {
			return 0, err
		}
		confirmed += n
		var next string
		d, err := r.await("the task runs elsewhere", began, func() (bool, error) {
			var err error
			next, _, err = r.writer(id)
			return next != "", err
		})
		if err != nil {
			return 0, err
		}
		out, err := r.skep("exec", next, "grep", "-c", fmt.Sprintf("^%d\\.", round), "/data/records")
		if err != nil {
			return 0, err
		}
		var have int
		fmt.Sscan(out, &have)
		lost += max(0, n-have)
		fmt.Fprintf(r.progress, "storagebench: kill %d: %d records confirmed, %d there, the task runs elsewhere after %s\n", round, n, have, short(d))
		if err := r.Start(r.ctx, node); err != nil {
			return 0, err
		}
		if falls[node]++; falls[node] == killsOfAHost {
			_, err := r.skep("node", "update", "--availability", "drain", node)
			return d, err
		}
		_, err = r.await(node+" is ready", time.Now(), func() (bool, error) {
			out, err := r.skep("node", "ls", "--format", "{{.Hostname}} {{.Status}}")
			return strings.Contains(out+"\n", node+" Ready\n"), err
		})
		return d, err
	})
	if err != nil {
		return err
	}
	r.note(atMost("volume with one writer: host killed → task runs elsewhere, by a fencing command", 8*time.Second, took, ""))
	met := lost == 0
	r.note(row{what: fmt.Sprintf("confirmed records that are missing after %d kills of the host that writes", kills), bar: "0", measured: fmt.Sprintf("%d of %d", lost, confirmed), met: &met})
	return nil
}

// writer is the task that runs and its node, "" while it is none or still the one of before.
func (r *rig) writer(before string) (id, node string, err error) {
	out, err := r.skep("service", "ps", "--no-trunc", "--filter", "desired-state=running", "--format", "{{.ID}} {{.Node}} {{.CurrentState}}", "db")
	if err != nil {
		return "", "", err
	}
	for _, line := range strings.Split(out, "\n") {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "Running" && f[0] != before {
			return f[0], f[1], nil
		}
	}
	return "", "", nil
}

// writeUntilKilled has the task write records, each confirmed once the disk has it, kills its host amid them, and returns how
// many were confirmed and when the host was killed.
func (r *rig) writeUntilKilled(id, node string, round int) (n int, at time.Time, err error) {
	ctx, cancel := context.WithTimeout(r.ctx, patience)
	defer cancel()
	loop := fmt.Sprintf("i=0; while :; do i=$((i+1)); echo %d.$i >>/data/records && sync && echo $i; done", round)
	cmd, err := r.Command(ctx, "m1", "skep", "exec", id, "sh", "-c", loop)
	if err != nil {
		return 0, at, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, at, err
	}
	if err := cmd.Start(); err != nil {
		return 0, at, err
	}
	killed := make(chan error, 1)
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if fmt.Sscan(lines.Text(), &n); n == 50 {
			go func() {
				killed <- r.Kill(r.ctx, node)
				time.AfterFunc(time.Second, cancel) // what was confirmed has come by then, and nobody ends it otherwise
			}()
			at = time.Now()
		}
	}
	_ = cmd.Wait() // its other end was killed
	if n < 50 {
		return n, at, fmt.Errorf("the writer of round %d ended after %d records", round, n)
	}
	return n, at, <-killed
}
