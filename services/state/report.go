package state

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/fault"
	"skep.dev/libs/kv"
	"skep.dev/libs/printable"
	"skep.dev/libs/spec"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/state/internal/index"
)

// reportWriter stores the nodes' status reports. While one commit is on its way the reports that come in gather and
// make the next one: alone a report is written at once, in a storm hundreds share one atomic batch and its fsync.
type reportWriter struct {
	s    *Service
	wake chan struct{}

	mu      sync.Mutex
	waiting []*pending

	commits atomic.Int64
}

type pending struct {
	node   string
	status *skepv1.NodeStatus
	done   chan error
}

// maxBatchBytes keeps a batch of large reports from holding up everybody.
const maxBatchBytes = 8 << 20

func newReportWriter(s *Service) *reportWriter {
	return &reportWriter{s: s, wake: make(chan struct{}, 1)}
}

func (s *Service) reportStatus(ctx context.Context, node string, r *skepv1.NodeStatus) (*skepv1.StatusReply, error) {
	if err := s.ownNode(ctx, node, r.NodeId); err != nil {
		return nil, err
	}
	if err := s.sole(ctx, node, r.Session); err != nil {
		return nil, err
	}
	r.NodeId = node
	if err := boundStatus(r); err != nil {
		return nil, err
	}
	if err := s.reports.submit(ctx, node, r); err != nil {
		return nil, err
	}
	return &skepv1.StatusReply{Generation: s.ix.Generation(node)}, nil
}

func (w *reportWriter) submit(ctx context.Context, node string, r *skepv1.NodeStatus) error {
	p := &pending{node: node, status: r, done: make(chan error, 1)}
	w.mu.Lock()
	w.waiting = append(w.waiting, p)
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
	select {
	case err := <-p.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (w *reportWriter) run(ctx context.Context) {
	for {
		select {
		case <-w.wake:
		case <-ctx.Done():
			w.mu.Lock()
			defer w.mu.Unlock()
			for _, p := range w.waiting {
				p.done <- fault.Unavailable("this manager is stopping: send the report again")
			}
			w.waiting = nil
			return
		}
		for {
			w.mu.Lock()
			take := w.waiting
			w.waiting = nil
			w.mu.Unlock()
			if len(take) == 0 {
				break
			}
			w.process(ctx, take)
		}
	}
}

// process writes what is news and answers everybody.
func (w *reportWriter) process(ctx context.Context, take []*pending) {
	newest := map[string]*pending{}
	var rest []*pending
	for _, p := range take {
		old := newest[p.node]
		if old != nil && old.status.Session == p.status.Session && old.status.Report > p.status.Report {
			rest = append(rest, p) // requests are served side by side: the newer one was here first
			continue
		}
		if old != nil {
			rest = append(rest, old) // superseded before it was written
		}
		newest[p.node] = p
	}
	var round []*pending
	size := 0
	flush := func() {
		if len(round) > 0 {
			w.write(ctx, round)
		}
		round, size = nil, 0
	}
	for _, p := range take {
		if newest[p.node] != p {
			continue
		}
		n := proto.Size(p.status)
		if len(round) == kv.MaxBatch || size+n > maxBatchBytes {
			flush()
		}
		round, size = append(round, p), size+n
	}
	flush()
	for _, p := range rest {
		p.done <- nil
	}
}

// news decides whether a report says anything that is not stored: one of an older session or with a number that was
// passed is late, one with the same tasks is a repetition.
func news(cur index.Report, r *skepv1.NodeStatus) bool {
	if cur.Revision == 0 {
		return true
	}
	if r.Session == cur.Session && r.Report <= cur.Number {
		return false
	}
	if r.Session != cur.Session {
		return r.Session != cur.Previous || cur.Previous == ""
	}
	if r.AppliedGeneration != cur.Status.AppliedGeneration || len(r.Tasks) != len(cur.Status.Tasks) {
		return true
	}
	if !slices.EqualFunc(r.Volumes, cur.Status.Volumes, func(a, b *skepv1.HeldVolume) bool { return proto.Equal(a, b) }) {
		return true
	}
	for i, t := range r.Tasks {
		if !proto.Equal(t, cur.Status.Tasks[i]) {
			return true
		}
	}
	return false
}

// item is one report on its way into the bucket.
type item struct {
	p    *pending
	was  index.Report
	body []byte
	// tell are the events of it, made before the write: the scheduler may drop the record of a task as soon as it reads
	// that the task has ended.
	tell []taskStep
}

func (w *reportWriter) write(ctx context.Context, round []*pending) {
	var items []item
	for _, p := range round {
		cur := w.s.ix.Report(p.node)
		if !news(cur, p.status) {
			p.done <- nil
			continue
		}
		body, err := proto.Marshal(p.status)
		if err != nil {
			p.done <- fault.Invalid("encode the report of node %s: %v", p.node, err)
			continue
		}
		items = append(items, item{p, cur, body, w.s.taskEvents(p.node, cur.Status, p.status)})
	}
	if len(items) == 0 {
		return
	}
	if len(items) > 1 {
		b := w.s.status.Batch()
		for _, it := range items {
			if it.was.Revision == 0 {
				b.Create(it.p.node, it.body)
			} else {
				b.Update(it.p.node, it.body, it.was.Revision)
			}
		}
		w.commits.Add(1)
		last, err := b.Commit(ctx)
		if err == nil {
			err = seen(ctx, w.s.feeds.Of(subject.Status), last)
			for _, it := range items {
				it.p.done <- err
				w.s.events.sendTasks(it.p.node, it.tell)
			}
			return
		}
		if !errors.Is(err, kv.ErrConflict) {
			for _, it := range items {
				it.p.done <- fault.Unavailable("store the reports of %d nodes: %v", len(items), err)
			}
			return
		}
	}
	// One of many met another instance's write: find out which, one by one.
	for _, it := range items {
		it.p.done <- w.writeOne(ctx, it)
	}
}

func (w *reportWriter) writeOne(ctx context.Context, it item) error {
	first := true
	return w.s.retry(ctx, func() error {
		if !first {
			it.was = w.s.ix.Report(it.p.node)
			if !news(it.was, it.p.status) {
				return nil
			}
			it.tell = w.s.taskEvents(it.p.node, it.was.Status, it.p.status)
		}
		first = false
		w.commits.Add(1)
		rev, err := w.s.status.Set(ctx, it.p.node, it.body, it.was.Revision)
		switch {
		case errors.Is(err, kv.ErrConflict):
			return err
		case err != nil:
			return fault.Unavailable("store the report of node %s: %v", it.p.node, err)
		}
		w.s.events.sendTasks(it.p.node, it.tell)
		return seen(ctx, w.s.feeds.Of(subject.Status), rev)
	})
}

const (
	// eventsPerReport is how many changes of one report are told one by one; beyond it those of the same service
	// and state share an event.
	eventsPerReport = 32
)

// taskEvents are the changes between two reports of a node, of tasks the scheduler gave to it: what a node says of
// others is nobody's news.
func (s *Service) taskEvents(node string, was, now *skepv1.NodeStatus) []taskStep {
	old := map[string]skepv1.TaskState{}
	for _, t := range was.GetTasks() {
		old[t.TaskId] = t.State
	}
	var changed []*skepv1.TaskStatus
	for _, t := range now.GetTasks() {
		if state, known := old[t.TaskId]; !known || state != t.State {
			changed = append(changed, t)
		}
	}
	if len(changed) == 0 {
		return nil // as of most reports: then the records need not be read
	}
	records, _, _ := s.ix.Tasks(node)
	byID := make(map[string]*skepv1.TaskRecord, len(records))
	for _, r := range records {
		byID[r.Id] = r
	}
	var out []taskStep
	together := map[string]*skepv1.Event{}
	count := map[string]int{}
	host := s.ix.Hostname(node)
	for _, t := range changed {
		rec := byID[t.TaskId]
		if rec == nil {
			continue
		}
		if len(out) < eventsPerReport {
			out = append(out, taskStep{s.taskEvent(node, host, rec, t), t.State < skepv1.TaskState_TASK_STATE_RUNNING})
			continue
		}
		key := rec.ServiceId + spec.Word(t.State)
		if together[key] == nil {
			together[key] = s.taskEvent(node, host, rec, t)
		}
		count[key]++
	}
	for key, e := range together {
		if n := count[key]; n > 1 {
			e.Attributes["tasks"] = fmt.Sprint(n)
			e.Message = fmt.Sprintf("%d tasks of %s on %s are %s", n, e.Attributes["service"], host, e.Verb)
		}
		out = append(out, taskStep{e: e})
	}
	return out
}

func (s *Service) taskEvent(node, host string, rec *skepv1.TaskRecord, t *skepv1.TaskStatus) *skepv1.Event {
	svc := s.ix.ServiceName(rec.ServiceId)
	attr := map[string]string{"node": host, "node.id": node, "service.id": rec.ServiceId, "service": svc}
	name := svc + "." + node
	if rec.Slot != 0 {
		name = fmt.Sprintf("%s.%d", svc, rec.Slot)
	}
	if t.ExitCode != nil {
		attr["exitCode"] = fmt.Sprint(*t.ExitCode)
	}
	if t.Err != "" {
		attr["error"] = printable.Cut(t.Err, eventText)
	}
	return &skepv1.Event{Kind: "task", Id: t.TaskId, Name: name, Verb: spec.Word(t.State), Attributes: attr, Message: printable.Cut(t.Message, eventText)}
}
