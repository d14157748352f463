package task

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/node-agent/internal/probe"
)

// Probes runs checks of tasks; *probe.Prober does.
type Probes interface {
	// Run probes until ctx ends and leaves nothing of a probe behind.
	Run(ctx context.Context, w probe.Watch)
}

// probing is what asks a task how it is while it runs.
type probing struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// checks are what a running task is asked.
type checks struct {
	health, ready *probe.Check
	opens         bool // without a readiness check: that its published ports accept connections
}

func (w *worker) checks() checks {
	var c checks
	if w.set.cfg.Probes != nil {
		spec := w.job().Container()
		c.health, c.ready = probe.HealthCheck(spec.GetHealth(), w.imageHealth), probe.ReadyCheck(spec.GetReady())
	}
	c.opens = c.ready == nil && w.opensPorts()
	return c
}

// begin is what a task's status says when it begins to run (first), and when an agent takes it over: then what was known
// of it stays known.
func (c checks) begin(st *skepv1.TaskStatus, first bool) {
	const none, starting = skepv1.HealthState_HEALTH_STATE_NONE, skepv1.HealthState_HEALTH_STATE_STARTING
	if c.health == nil && st.Health == starting {
		st.NotReady = true // an agent before this one said so of ports that do not answer yet
	}
	switch {
	case c.health == nil:
		st.Health = none
	case st.Health <= none:
		st.Health = starting
	}
	st.NotReady = (c.ready != nil || c.opens) && (first || st.NotReady)
}

// probe asks a task that runs until its stop begins, its end, or the agent's.
func (w *worker) probe(ctx context.Context, c checks) {
	ctx, w.probing.cancel = context.WithCancel(ctx)
	st := w.snapshot()
	if c.opens && st.NotReady {
		w.probing.wg.Go(func() { w.awaitOpen(ctx) })
	}
	watch := probe.Watch{Target: probe.Target{TaskID: w.id, Pid: st.Pid}, Started: time.UnixMilli(st.StartedUnixMs)}
	for _, a := range st.Addresses {
		if p, err := netip.ParsePrefix(a); err == nil {
			watch.Target.Addresses = append(watch.Target.Addresses, p.Addr())
		}
	}
	if c.health != nil {
		h := watch
		h.Kind, h.Check, h.Report = probe.Health, c.health, w.healthVerdict
		switch st.Health {
		case skepv1.HealthState_HEALTH_STATE_HEALTHY:
			h.Verdict = probe.Pass
		case skepv1.HealthState_HEALTH_STATE_UNHEALTHY:
			h.Verdict = probe.Fail
		}
		w.probing.wg.Go(func() { w.set.cfg.Probes.Run(ctx, h) })
	}
	if c.ready != nil {
		r := watch
		r.Kind, r.Check, r.Report = probe.Ready, c.ready, w.readyVerdict
		switch {
		case !st.NotReady:
			r.Verdict = probe.Pass
		case st.ServedUnixMs != 0:
			r.Verdict = probe.Fail
		}
		w.probing.wg.Go(func() { w.set.cfg.Probes.Run(ctx, r) })
	}
}

// cancelProbes ends the probes without waiting for them: a stop is not held up by what they have to clear away.
func (w *worker) cancelProbes() {
	if w.probing.cancel != nil {
		w.probing.cancel()
	}
}

func (w *worker) endProbes() {
	w.cancelProbes()
	w.probing.wg.Wait()
}

// healthVerdict reports a verdict and nothing else: the scheduler replaces what is unhealthy.
func (w *worker) healthVerdict(v probe.Verdict, output string) {
	w.verdict(func(st *skepv1.TaskStatus) {
		st.HealthOutput = output
		switch v {
		case probe.Pass:
			st.Health = skepv1.HealthState_HEALTH_STATE_HEALTHY
		case probe.Fail:
			st.Health = skepv1.HealthState_HEALTH_STATE_UNHEALTHY
		}
	})
}

func (w *worker) readyVerdict(v probe.Verdict, output string) {
	w.verdict(func(st *skepv1.TaskStatus) {
		if st.Health != skepv1.HealthState_HEALTH_STATE_UNHEALTHY { // what makes it unhealthy is what people look for
			st.HealthOutput = output
		}
		st.NotReady = v != probe.Pass
	})
}

// verdict changes the status of a task that still runs.
func (w *worker) verdict(f func(*skepv1.TaskStatus)) {
	w.setStatus(func(st *skepv1.TaskStatus) {
		if st.State == skepv1.TaskState_TASK_STATE_RUNNING {
			f(st)
		}
	})
}

// keepImageHealth notes what the image says of its health: an agent that takes the task over does not read the image.
func (w *worker) keepImageHealth(h *skepv1.HealthConfig) error {
	if w.imageHealth = h; h == nil {
		return nil
	}
	if err := w.set.store.write(w.id, "health.pb", h); err != nil {
		return fmt.Errorf("keep the image's health check: %w", err)
	}
	return nil
}
