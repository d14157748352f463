package task

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/record"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

const maxBackoff = 30 * time.Second

// worker drives one task from ACCEPTED to its end.
type worker struct {
	set  *Set
	id   string
	wake chan struct{}

	mu       sync.Mutex
	record   *skepv1.TaskRecord
	revision *skepv1.Revision
	status   *skepv1.TaskStatus
	gone     bool               // left the node's set: end it, then forget it
	alone    string             // why it ends although nobody told it to, see Set.Alone
	abort    context.CancelFunc // ends the work that a stop may interrupt

	// imageHealth is the HEALTHCHECK of the image. The worker alone reads and writes it.
	imageHealth *skepv1.HealthConfig
	kept        bool // it was on disk when this process began
	probing     probing

	released bool
	prepared bool
	made     bool          // Runtime.Make was tried since it was prepared
	found    *Found        // what Resume saw, until it was acted on
	took     time.Duration // spent on preparing and starting
	noSpace  time.Time     // since when the disk is too full to prepare; zero = it is not
	told     bool          // a manager has stored that it ended; of mu
	renewing time.Time     // when a task that ended may begin anew without a manager, see again; zero = it has not ended
	began    []int64       // when it began, and began anew: unix ms; of mu
}

func newWorker(s *Set, rec *skepv1.TaskRecord) *worker {
	return &worker{
		set: s, id: rec.Id, record: rec, wake: make(chan struct{}, 1),
		status: &skepv1.TaskStatus{TaskId: rec.Id, State: skepv1.TaskState_TASK_STATE_ACCEPTED, SinceUnixMs: time.Now().UnixMilli(), Message: "accepted"},
	}
}

func (w *worker) nudge() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// update takes a newer record. Only what may change is looked at: what is desired, and when.
func (w *worker) update(rec *skepv1.TaskRecord) error {
	w.mu.Lock()
	same := proto.Equal(w.record, rec)
	w.mu.Unlock()
	if same {
		return nil
	}
	if err := w.set.store.write(w.id, "record.pb", rec); err != nil {
		return err
	}
	w.mu.Lock()
	w.record = rec
	abort := w.abort
	stop := w.endingLocked()
	w.mu.Unlock()
	if stop && abort != nil {
		abort()
	}
	w.nudge()
	return nil
}

func (w *worker) leave() {
	w.mu.Lock()
	w.gone = true
	abort := w.abort
	w.mu.Unlock()
	if abort != nil {
		abort()
	}
	w.nudge()
}

func (w *worker) leaving() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.gone
}

func (w *worker) endingLocked() bool {
	return w.gone || w.alone != "" || w.record.Desired >= skepv1.TaskState_TASK_STATE_SHUTDOWN
}

func (w *worker) ending() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.endingLocked()
}

func (w *worker) snapshot() *skepv1.TaskStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	return proto.CloneOf(w.status)
}

func (w *worker) job() *Job {
	w.mu.Lock()
	defer w.mu.Unlock()
	return &Job{Record: w.record, Revision: w.revision, Dir: w.set.store.dir(w.id)}
}

// set changes the status, on disk first, then for the report.
func (w *worker) setStatus(f func(*skepv1.TaskStatus)) {
	w.mu.Lock()
	st := proto.CloneOf(w.status)
	before := st.State
	f(st)
	if st.State < before {
		st.State = before // states only grow
	}
	if st.ServedUnixMs == 0 && record.ConditionOf(st).Serves() {
		st.ServedUnixMs = time.Now().UnixMilli()
	}
	if proto.Equal(st, w.status) {
		w.mu.Unlock()
		return
	}
	if st.State != before {
		st.SinceUnixMs = time.Now().UnixMilli()
	}
	w.status = st
	w.mu.Unlock()
	if err := w.set.store.write(w.id, "status.pb", st); err != nil {
		// What runs, runs: the truth is told to the managers all the same and found again from the runtime.
		w.set.cfg.Log.Error("task status not kept on disk", zap.String("task", w.id), zap.Error(err))
	}
	w.set.cfg.Changed()
}

func (w *worker) state(s skepv1.TaskState, message string) {
	w.setStatus(func(st *skepv1.TaskStatus) { st.State, st.Message, st.Err = s, message, "" })
}

// adopt settles a task found on disk against what the runtime has. It runs before the worker does.
func (w *worker) adopt(f Found, ok bool) {
	if w.status.State >= skepv1.TaskState_TASK_STATE_COMPLETE {
		return
	}
	if ok && f.Phase != PhaseCreated {
		w.found = &f
		w.prepared = true
		return
	}
	if w.status.State >= skepv1.TaskState_TASK_STATE_RUNNING {
		w.found = &Found{Phase: PhaseStopped, Exit: Exit{Code: -1, WithNode: true, Lost: "the container ended while the node or its agent was down, and its exit code is not known"}}
	}
}

func (w *worker) run(ctx context.Context) {
	defer w.endProbes()
	if f := w.found; f != nil {
		switch {
		case f.Phase == PhaseStopped && w.ending():
			w.stopped(&f.Exit)
		case f.Phase == PhaseStopped:
			w.exited(f.Exit)
		case f.Pid != 0:
			w.running(ctx, f.Pid)
		}
	}
	backoff := w.set.cfg.Backoff
	for ctx.Err() == nil {
		err := w.step(ctx)
		switch {
		case err == nil:
			backoff = w.set.cfg.Backoff
			continue
		case errors.Is(err, errForgotten):
			return
		}
		// Only what may be cured by time comes here; a change of mind ends the wait.
		wait := backoff/2 + rand.N(backoff)
		if isSoon(err) {
			wait = w.set.cfg.Backoff/5 + rand.N(w.set.cfg.Backoff/5)
		} else {
			backoff = min(2*backoff, maxBackoff)
		}
		select {
		case <-ctx.Done():
		case <-w.wake:
		case <-time.After(wait):
		}
	}
}

var errForgotten = errors.New("task forgotten")

// step does one thing. An error means: the same again, later.
func (w *worker) step(ctx context.Context) error {
	w.mu.Lock()
	state, ending, gone := w.status.State, w.endingLocked(), w.gone
	w.mu.Unlock()
	switch {
	case state >= skepv1.TaskState_TASK_STATE_COMPLETE:
		return w.ended(ctx, gone)
	case ending:
		return w.stop(ctx)
	case state < skepv1.TaskState_TASK_STATE_READY || !w.prepared:
		return w.prepare(ctx)
	case state == skepv1.TaskState_TASK_STATE_READY:
		return w.hold(ctx)
	case state == skepv1.TaskState_TASK_STATE_STARTING:
		return w.start(ctx)
	default:
		return w.watch(ctx)
	}
}

// interruptible gives a context that a stop ends.
func (w *worker) interruptible(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	w.mu.Lock()
	w.abort = cancel
	if w.endingLocked() {
		cancel()
	}
	w.mu.Unlock()
	return ctx, func() {
		w.mu.Lock()
		w.abort = nil
		w.mu.Unlock()
		cancel()
	}
}

func (w *worker) prepare(ctx context.Context) error {
	ctx, done := w.interruptible(ctx)
	defer done()
	if w.job().Revision == nil {
		rec := w.job().Record
		rev, err := w.set.cfg.Specs(ctx, rec.ServiceId, rec.Revision)
		if err != nil {
			if ctx.Err() == nil {
				w.setStatus(func(st *skepv1.TaskStatus) { st.Message = "waiting for the service's spec: " + err.Error() })
			}
			return err
		}
		if err := w.set.store.write(w.id, "spec.pb", rev); err != nil {
			w.setStatus(func(st *skepv1.TaskStatus) {
				st.Message, st.Err = "keeping the service's spec on disk: trying again", err.Error()
			})
			return err
		}
		w.mu.Lock()
		w.revision = rev
		w.mu.Unlock()
	}
	if err := w.mayMount(); err != nil {
		return err
	}
	if w.snapshot().State < skepv1.TaskState_TASK_STATE_PREPARING { // a repetition keeps its reason on show
		w.state(skepv1.TaskState_TASK_STATE_PREPARING, "preparing")
	}
	began := time.Now()
	p, err := w.set.cfg.Runtime.Prepare(ctx, w.job(), func(msg string) {
		w.setStatus(func(st *skepv1.TaskStatus) { st.Message = msg })
	})
	w.took += time.Since(began)
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return nil // asked to stop, or the agent ends: the next step sees which
	case IsTemporary(err) && !w.noRoom(err):
		w.setStatus(func(st *skepv1.TaskStatus) {
			st.Message, st.Err = "preparing: trying again", err.Error()
		})
		return err
	case w.snapshot().State >= skepv1.TaskState_TASK_STATE_STARTING:
		w.fail(err)
		return nil
	default:
		w.reject(err)
		return nil
	}
	if err := w.keepImageHealth(p.Health); err != nil {
		w.setStatus(func(st *skepv1.TaskStatus) {
			st.Message, st.Err = "keeping the image's health check on disk: trying again", err.Error()
		})
		return err
	}
	w.prepared, w.made = true, false
	w.setStatus(func(st *skepv1.TaskStatus) {
		st.State = max(st.State, skepv1.TaskState_TASK_STATE_READY)
		st.Message, st.Err = "prepared", ""
		st.ContainerId, st.Addresses, st.Networks, st.Ports, st.Files = p.ContainerID, p.Addresses, p.Networks, p.Ports, p.Files
	})
	return nil
}

var errUnconfirmed = errors.New("waiting for a manager: the volume may have been given to another node")

// mayMount holds up a task of an earlier process whose volumes may be another node's by now.
func (w *worker) mayMount() error {
	select {
	case <-w.set.confirmed:
		return nil
	default:
	}
	if !w.kept || !slices.ContainsFunc(w.job().Container().GetMounts(), spec.MayBeExclusive) {
		return nil
	}
	w.setStatus(func(st *skepv1.TaskStatus) { st.Message = errUnconfirmed.Error() })
	return errUnconfirmed
}

// noRoom reports whether the disk has been full for so long that the task is better off on another node.
func (w *worker) noRoom(err error) bool {
	if !isNoSpace(err) {
		w.noSpace = time.Time{}
		return false
	}
	if w.noSpace.IsZero() {
		w.noSpace = time.Now()
	}
	return time.Since(w.noSpace) > w.set.cfg.NoSpacePatience
}

func (w *worker) hold(ctx context.Context) error {
	w.mu.Lock()
	desired, notBefore := w.record.Desired, w.record.NotBeforeUnixMs
	w.mu.Unlock()
	wait := time.Until(time.UnixMilli(notBefore))
	if desired > skepv1.TaskState_TASK_STATE_READY && wait <= 0 {
		w.state(skepv1.TaskState_TASK_STATE_STARTING, "starting")
		return nil
	}
	if desired == skepv1.TaskState_TASK_STATE_READY && !w.made {
		w.made = true
		// Another task has to end first, which takes about as long as this. Start says what is wrong.
		if err := w.set.cfg.Runtime.Make(ctx, w.job()); err != nil && ctx.Err() == nil {
			w.set.cfg.Log.Debug("make the process of a held task", zap.String("task", w.id), zap.Error(err))
		}
		return nil
	}
	var due <-chan time.Time
	if desired > skepv1.TaskState_TASK_STATE_READY {
		t := time.NewTimer(wait)
		defer t.Stop()
		due = t.C
	}
	select {
	case <-ctx.Done():
	case <-w.wake:
	case <-due:
	}
	return nil
}

func (w *worker) start(ctx context.Context) error {
	began := time.Now()
	pid, err := w.set.cfg.Runtime.Start(ctx, w.job())
	w.took += time.Since(began)
	switch {
	case err == nil:
		w.set.cfg.Started(w.took)
		w.running(ctx, pid)
		return nil
	case ctx.Err() != nil:
		return nil
	case IsTemporary(err):
		w.setStatus(func(st *skepv1.TaskStatus) { st.Message, st.Err = "starting: trying again", err.Error() })
		return err
	}
	w.fail(err)
	return nil
}

func (w *worker) running(ctx context.Context, pid uint32) {
	checks := w.checks()
	w.setStatus(func(st *skepv1.TaskStatus) {
		first := st.State < skepv1.TaskState_TASK_STATE_RUNNING
		st.State, st.Message, st.Err, st.Pid = skepv1.TaskState_TASK_STATE_RUNNING, "started", "", pid
		if st.Restarts > 0 {
			st.Message = fmt.Sprintf("started, and again by its node while no manager was heard (%d times)", st.Restarts)
		}
		if first {
			st.StartedUnixMs = time.Now().UnixMilli()
		}
		checks.begin(st, first)
	})
	w.probe(ctx, checks)
}

func (w *worker) watch(ctx context.Context) error {
	wctx, done := w.interruptible(ctx)
	defer done()
	exit, err := w.set.cfg.Runtime.Wait(wctx, w.id)
	switch {
	case err == nil:
		if w.ending() {
			w.stopped(&exit)
		} else {
			w.exited(exit)
		}
		return nil
	case wctx.Err() != nil:
		return nil
	}
	return err
}

// Ends are the words for how a task ended: its container's exit, with which code or why nobody knows; one that could
// not be prepared or started; one that was told to stop.
var Ends = []string{"complete", "failed", "oom", "lost", "rejected", "start_failed", "shutdown"}

func (w *worker) exited(e Exit) {
	switch {
	case e.Lost != "":
		w.set.cfg.Ended("lost")
	case e.OOM:
		w.set.cfg.Ended("oom")
	case e.Code == 0:
		w.set.cfg.Ended("complete")
	default:
		w.set.cfg.Ended("failed")
	}
	w.setStatus(func(st *skepv1.TaskStatus) {
		st.Pid = 0
		st.OomKilled = e.OOM
		if e.Lost == "" {
			st.ExitCode = proto.Int32(e.Code)
		}
		if e.WithNode {
			st.State, st.Message, st.Err = skepv1.TaskState_TASK_STATE_ORPHANED, "ended with its node", e.Reason()
			return
		}
		if e.Lost == "" && e.Code == 0 {
			st.State, st.Message, st.Err = skepv1.TaskState_TASK_STATE_COMPLETE, "finished", ""
			return
		}
		st.State, st.Message, st.Err = skepv1.TaskState_TASK_STATE_FAILED, "started", e.Reason()
	})
}

// Reason is the exit in words, docker's where docker is right.
func (e Exit) Reason() string {
	switch {
	case e.Lost != "":
		return "task: " + e.Lost
	case e.OOM && e.Limit > 0:
		return fmt.Sprintf("task: out of memory (limit %s), exit %d", Bytes(e.Limit), e.Code)
	case e.OOM:
		return fmt.Sprintf("task: out of memory (the node's), exit %d", e.Code)
	case e.Code == 0:
		return ""
	}
	return fmt.Sprintf("task: non-zero exit (%d)", e.Code)
}

// Bytes renders a size as a person would have written it: 32MiB.
func Bytes(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	f, i := float64(n), 0
	for f >= 1024 && i < len(units)-1 {
		f /= 1024
		i++
	}
	if f == float64(int64(f)) {
		return fmt.Sprintf("%d%s", int64(f), units[i])
	}
	return fmt.Sprintf("%.1f%s", f, units[i])
}

func (w *worker) reject(err error) {
	w.set.cfg.Ended("rejected")
	w.set.cfg.Log.Warn("task rejected", zap.String("task", w.id), zap.Error(err))
	w.setStatus(func(st *skepv1.TaskStatus) {
		st.State, st.Message, st.Err = skepv1.TaskState_TASK_STATE_REJECTED, "preparing", err.Error()
	})
}

func (w *worker) fail(err error) {
	w.set.cfg.Ended("start_failed")
	w.set.cfg.Log.Warn("task failed to start", zap.String("task", w.id), zap.Error(err))
	w.setStatus(func(st *skepv1.TaskStatus) {
		st.State, st.Message, st.Err = skepv1.TaskState_TASK_STATE_FAILED, "starting", err.Error()
	})
}

func (w *worker) stop(ctx context.Context) error {
	var exit *Exit
	w.cancelProbes()
	// Without a spec nothing was ever made of it.
	if j := w.job(); j.Revision != nil {
		var err error
		if exit, err = w.set.cfg.Runtime.Stop(ctx, j); err != nil {
			w.set.cfg.Log.Warn("stop task", zap.String("task", w.id), zap.Error(err))
			return err
		}
	}
	w.stopped(exit)
	return nil
}

func (w *worker) stopped(exit *Exit) {
	w.set.cfg.Ended("shutdown")
	w.setStatus(func(st *skepv1.TaskStatus) {
		st.State, st.Message, st.Err, st.Pid = skepv1.TaskState_TASK_STATE_SHUTDOWN, "shutdown", w.aloneLocked(), 0
		if exit != nil && exit.Lost == "" {
			st.ExitCode, st.OomKilled = proto.Int32(exit.Code), exit.OOM
		}
	})
}

// ended clears away what an ended task still holds, and the task itself once it left the set.
func (w *worker) ended(ctx context.Context, gone bool) error {
	if !w.released {
		w.endProbes()
		if done, err := w.again(ctx); done {
			return err
		}
		if err := w.set.cfg.Runtime.Release(ctx, w.id); err != nil {
			if ctx.Err() == nil {
				w.set.cfg.Log.Warn("release task", zap.String("task", w.id), zap.Error(err))
			}
			return err
		}
		w.released = true
	}
	if gone {
		if err := w.set.store.remove(w.id); err != nil {
			w.set.cfg.Log.Warn("remove task", zap.String("task", w.id), zap.Error(err))
			return err
		}
		w.set.drop(w)
		return errForgotten
	}
	select {
	case <-ctx.Done():
	case <-w.wake:
	}
	return nil
}
