package task

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"skep.dev/libs/atomicfile"
	"skep.dev/libs/partition"
	skepv1 "skep.dev/proto/skep/v1"
)

// SpecSource gives a service's revision. It blocks until it has it or ctx ends.
type SpecSource func(ctx context.Context, serviceID string, revision uint64) (*skepv1.Revision, error)

// Config is what a Set needs.
type Config struct {
	Dir     string // where the tasks' directories and the generation are
	Runtime Runtime
	Specs   SpecSource
	Probes  Probes // nil: tasks are not probed
	Log     *zap.Logger
	// Changed is called, without locks, whenever a status changed.
	Changed func()
	// Started, if set, is told of every container started and the work it took: image, network and container included,
	// waits not.
	Started func(took time.Duration)
	// Ended, if set, is told of every task that ended here, and how, in a word of Ends.
	Ended func(how string)
	// Forgotten, if set, is told of every task whose record is gone. What fails is the sweep's.
	Forgotten func(id string)
	// Backoff is the first wait after a temporary error (default 500 ms, doubled up to 30 s).
	Backoff time.Duration
	// Election is for how long managers may choose a leader: what ends meanwhile is told to them then (default
	// partition.Election).
	Election time.Duration
	// NoSpacePatience is how long a full disk is waited for before its tasks are rejected (default 15 s).
	NoSpacePatience time.Duration
}

// Set is every task of this node.
type Set struct {
	cfg   Config
	store *store

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu         sync.Mutex
	tasks      map[string]*worker
	generation uint64
	closed     bool
	alone      bool          // see Alone
	confirmed  chan struct{} // closed once a manager has said which tasks the node has, since this process began
}

// Open reads what is on disk. Nothing runs until Resume.
func Open(cfg Config) (*Set, error) {
	if cfg.NoSpacePatience <= 0 {
		cfg.NoSpacePatience = 15 * time.Second
	}
	if cfg.Election <= 0 {
		cfg.Election = partition.Election
	}
	if cfg.Backoff <= 0 {
		cfg.Backoff = 500 * time.Millisecond
	}
	if cfg.Changed == nil {
		cfg.Changed = func() {}
	}
	if cfg.Started == nil {
		cfg.Started = func(time.Duration) {}
	}
	if cfg.Ended == nil {
		cfg.Ended = func(string) {}
	}
	if cfg.Forgotten == nil {
		cfg.Forgotten = func(string) {}
	}
	st, err := openStore(filepath.Join(cfg.Dir, "tasks"))
	if err != nil {
		return nil, err
	}
	s := &Set{cfg: cfg, store: st, tasks: map[string]*worker{}, confirmed: make(chan struct{})}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	known, err := st.load()
	if err != nil {
		return nil, err
	}
	for _, k := range known {
		w := newWorker(s, k.record)
		if k.status != nil {
			w.status = k.status
		}
		w.revision, w.imageHealth, w.kept = k.revision, k.imageHealth, true
		s.tasks[k.record.Id] = w
	}
	if b, err := os.ReadFile(s.generationFile()); err == nil {
		s.generation, _ = strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64) // unreadable: 0, ask again
	}
	return s, nil
}

func (s *Set) generationFile() string { return filepath.Join(s.cfg.Dir, "generation") }

// Known reports whether the task is this node's.
func (s *Set) Known(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tasks[id] != nil
}

// Resume picks up the containers that run and goes on with every task. found is Runtime.List's answer.
func (s *Set) Resume(found map[string]Found) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, w := range s.tasks {
		f, ok := found[id]
		w.adopt(f, ok)
		s.goLocked(w)
	}
}

func (s *Set) goLocked(w *worker) {
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		w.run(s.ctx)
	}()
}

// Confirm says that a manager has told which tasks the node has. Until then a task from disk that would mount a volume with a
// single writer waits: while the node was away it may have been fenced, and its volume be another's.
func (s *Set) Confirm() {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.confirmed:
		return
	default:
	}
	close(s.confirmed)
	for _, w := range s.tasks {
		w.nudge()
	}
}

// Generation is the sequence of the task set acted on.
func (s *Set) Generation() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.generation
}

// Apply makes the set as the record of that generation says. An older generation than the newest seen is
// ignored, and so reported. With keep, tasks that are not in the record go on as they are.
func (s *Set) Apply(generation uint64, tasks *skepv1.NodeTasks, keep bool) (applied bool, err error) {
	s.mu.Lock()
	if s.closed || generation <= s.generation {
		s.mu.Unlock()
		return false, nil
	}
	want := make(map[string]bool, len(tasks.GetTasks()))
	var failed error
	for _, rec := range tasks.GetTasks() {
		if rec.GetId() == "" || strings.ContainsAny(rec.Id, "/.") {
			failed = fmt.Errorf("task set %d holds a task with the impossible id %q", generation, rec.GetId())
			continue
		}
		want[rec.Id] = true
		w := s.tasks[rec.Id]
		if w == nil {
			w = newWorker(s, rec)
			if err := s.store.write(rec.Id, "record.pb", rec); err != nil {
				// A full disk: leave it out; the generation stays, so the next push or snapshot tries again.
				failed = err
				continue
			}
			s.tasks[rec.Id] = w
			s.goLocked(w)
			continue
		}
		if err := w.update(rec); err != nil {
			failed = err
		}
	}
	for id, w := range s.tasks {
		if !want[id] && !keep {
			w.leave()
		}
	}
	if failed == nil {
		s.generation = generation
		failed = atomicfile.Write(s.generationFile(), []byte(strconv.FormatUint(generation, 10)))
	}
	s.mu.Unlock()
	s.cfg.Changed()
	if failed != nil {
		return false, fmt.Errorf("apply task set %d: %w", generation, failed)
	}
	return true, nil
}

// Release ends the tasks that were kept and are not in the record, which must be of the generation acted on. A node that
// has no record (0) has no tasks.
func (s *Set) Release(generation uint64, tasks *skepv1.NodeTasks) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if generation != s.generation && generation != 0 {
		return
	}
	want := make(map[string]bool, len(tasks.GetTasks()))
	for _, rec := range tasks.GetTasks() {
		want[rec.GetId()] = true
	}
	for id, w := range s.tasks {
		if !want[id] && !w.leaving() {
			w.leave()
		}
	}
}

// Statuses is a copy of every task's status, by id.
func (s *Set) Statuses() []*skepv1.TaskStatus {
	s.mu.Lock()
	workers := make([]*worker, 0, len(s.tasks))
	for _, w := range s.tasks {
		workers = append(workers, w)
	}
	s.mu.Unlock()
	out := make([]*skepv1.TaskStatus, 0, len(workers))
	for _, w := range workers {
		out = append(out, w.snapshot())
	}
	sort.Slice(out, func(i, j int) bool { return out[i].TaskId < out[j].TaskId })
	return out
}

// Job returns a task's job and status, nil when it is not this node's.
func (s *Set) Job(id string) (*Job, *skepv1.TaskStatus) {
	s.mu.Lock()
	w := s.tasks[id]
	s.mu.Unlock()
	if w == nil {
		return nil, nil
	}
	return w.job(), w.snapshot()
}

// SetFiles notes which versions of secrets and configs a running task was given.
func (s *Set) SetFiles(id string, files []*skepv1.HeldFile) {
	s.mu.Lock()
	w := s.tasks[id]
	s.mu.Unlock()
	if w != nil {
		w.setStatus(func(st *skepv1.TaskStatus) { st.Files = files })
	}
}

// SetStaleBinds notes on which bind mounts a running task has something else than the node.
func (s *Set) SetStaleBinds(id string, sources []string) {
	s.mu.Lock()
	w := s.tasks[id]
	s.mu.Unlock()
	if w != nil {
		w.setStatus(func(st *skepv1.TaskStatus) {
			if st.State == skepv1.TaskState_TASK_STATE_RUNNING {
				st.StaleBinds = sources
			}
		})
	}
}

// StopAll asks every task to end and forgets the set: for a node that leaves its cluster.
func (s *Set) StopAll(ctx context.Context) error {
	s.mu.Lock()
	for _, w := range s.tasks {
		w.leave()
	}
	s.mu.Unlock()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		s.mu.Lock()
		n := len(s.tasks)
		s.mu.Unlock()
		if n == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("stop all tasks: %d did not end: %w", n, ctx.Err())
		case <-tick.C:
		}
	}
}

// Close ends the workers, not the containers.
func (s *Set) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.wg.Wait()
}

func (s *Set) drop(w *worker) {
	s.cfg.Forgotten(w.id)
	s.mu.Lock()
	delete(s.tasks, w.id)
	s.mu.Unlock()
	s.cfg.Changed()
}
