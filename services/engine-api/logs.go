package engine

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/moby/moby/api/types"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/rpc"
	"skep.dev/libs/stream"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/engine-api/internal/wire"
)

const (
	// logsAtOnce is how many tasks' logs are merged by time; more are read in groups.
	logsAtOnce = 64
	// mostFollowed is how many tasks one client follows at once.
	mostFollowed = 1000
	// lookAgain is how often new tasks are looked for.
	lookAgain = 2 * time.Second
	// openWithin is how long a node may take to begin.
	openWithin = 5 * time.Second
	// longestLine is what is put together of a line that came in parts, bytes; a longer one is sent in pieces.
	longestLine = 1 << 20
)

// logQuery is what a client asks of logs.
type logQuery struct {
	req                 *skepv1.LogsRequest
	timestamps, details bool
	tty                 bool
}

func readLogQuery(r *wire.Request, c *skepv1.ContainerSpec) (*logQuery, error) {
	q := &logQuery{timestamps: r.Bool("timestamps"), details: r.Bool("details"), tty: c.GetTty(), req: &skepv1.LogsRequest{
		Follow: r.Bool("follow"), Stdout: r.Bool("stdout"), Stderr: r.Bool("stderr"), Tail: -1,
	}}
	if !q.req.Stdout && !q.req.Stderr {
		return nil, wire.Invalid("Bad parameters: you must choose at least one stream")
	}
	var err error
	if q.req.Since, err = when(r.Query.Get("since")); err != nil {
		return nil, err
	}
	if q.req.Until, err = when(r.Query.Get("until")); err != nil {
		return nil, err
	}
	if t := r.Query.Get("tail"); t != "" && t != "all" {
		if q.req.Tail, err = strconv.ParseInt(t, 10, 64); err != nil {
			q.req.Tail = -1 // as Docker: what is no number is all
		}
	}
	return q, nil
}

// serviceLogs is GET /services/{id}/logs: every task's output, in frames of whole lines.
func (s *Service) serviceLogs(w http.ResponseWriter, r *wire.Request) error {
	svc, err := s.service(r.Context(), r.Var("id"))
	if err != nil {
		return err
	}
	q, err := readLogQuery(r, svc.GetSpec().GetTask().GetContainer())
	if err != nil {
		return err
	}
	id := svc.GetMeta().GetId()
	return s.logs(w, r, q, false, func(ctx context.Context) ([]*skepv1.Task, error) {
		return s.tasks(ctx, &skepv1.Filter{Key: "service", Values: []string{id}})
	})
}

// taskLogs is GET /tasks/{id}/logs.
func (s *Service) taskLogs(w http.ResponseWriter, r *wire.Request) error {
	t, err := s.task(r.Context(), r.Var("id"))
	if err != nil {
		return err
	}
	q, err := readLogQuery(r, t.GetSpec().GetContainer())
	if err != nil {
		return err
	}
	id := t.GetMeta().GetId()
	return s.logs(w, r, q, true, func(ctx context.Context) ([]*skepv1.Task, error) {
		t, err := s.task(ctx, id)
		if err != nil {
			return nil, err
		}
		return []*skepv1.Task{t}, nil
	})
}

// logs writes what tasks have written; all says that the list grows no more, so that following ends with the last of them.
func (s *Service) logs(w http.ResponseWriter, r *wire.Request, q *logQuery, all bool, list func(context.Context) ([]*skepv1.Task, error)) error {
	ctx, cancel := s.streaming(r)
	defer cancel()
	tasks, err := list(ctx)
	if err != nil {
		return err
	}
	if q.req.Follow && len(tasks) > mostFollowed {
		return wire.Invalid("%d tasks are more than one client follows at once (%d): follow single tasks", len(tasks), mostFollowed)
	}
	kind := types.MediaTypeMultiplexedStream
	if q.tty || r.Version.Before(42) {
		kind = types.MediaTypeRawStream
	}
	w.Header().Set("Content-Type", kind)
	w.WriteHeader(http.StatusOK)
	out := &logWriter{w: w, ctl: http.NewResponseController(w), q: q, parts: map[string][]byte{}}
	if err := out.flush(); err != nil {
		return nil // the client is gone
	}
	l := &logReader{s: s, q: q, out: out}
	if q.req.Follow {
		return l.follow(ctx, all, list, tasks)
	}
	slices.SortFunc(tasks, func(a, b *skepv1.Task) int {
		return cmp.Or(cmp.Compare(a.Slot, b.Slot), cmp.Compare(a.GetMeta().GetCreatedAt().AsTime().UnixNano(), b.GetMeta().GetCreatedAt().AsTime().UnixNano()))
	})
	tasks = slices.DeleteFunc(tasks, func(t *skepv1.Task) bool { return t.NodeId == "" })
	for group := range slices.Chunk(tasks, logsAtOnce) {
		if err := l.merge(ctx, group); err != nil {
			return err
		}
	}
	return nil
}

// logReader reads the logs of tasks, wherever they are.
type logReader struct {
	s   *Service
	q   *logQuery
	out *logWriter
}

// open begins a task's log; nil without an error means that there is none.
func (l *logReader) open(ctx context.Context, t *skepv1.Task, after int64) (*stream.Session, error) {
	nc, err := l.s.cluster.conn()
	if err != nil {
		return nil, err
	}
	req := &skepv1.LogsRequest{TaskId: t.GetMeta().GetId(), Follow: l.q.req.Follow, Tail: l.q.req.Tail, Since: l.q.req.Since, Until: l.q.req.Until, Stdout: l.q.req.Stdout, Stderr: l.q.req.Stderr}
	if after > 0 { // what came up to then was shown
		req.Since, req.Tail = timestamppb.New(time.Unix(0, after+1)), -1
	}
	e := api.LogsOpen.At(t.NodeId)
	s, err := stream.Dial(ctx, nc, e.Subject(), e.Node(), req, stream.WithOpenTimeout(openWithin))
	if fault.Is(err, fault.CodeNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	go func() { // what nobody reads would stop the node
		for range s.Control() {
		}
	}()
	return s, nil
}

// entries reads a log to its end.
func entries(s *stream.Session, each func(*skepv1.LogEntry) bool) error {
	defer s.Close()
	in := bufio.NewReader(s.Reader(stream.Out))
	for {
		e := &skepv1.LogEntry{}
		err := protodelim.UnmarshalFrom(in, e)
		switch {
		case errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return err
		case !each(e):
			return nil
		}
	}
}

// merge writes the logs of several tasks in the order of time. A task whose node does not answer is told of in its place, as a line
// of its error stream.
func (l *logReader) merge(ctx context.Context, tasks []*skepv1.Task) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	chans := make([]chan *skepv1.LogEntry, len(tasks))
	for i, t := range tasks {
		c := make(chan *skepv1.LogEntry, 16)
		chans[i] = c
		wg.Go(func() {
			defer close(c)
			send := func(e *skepv1.LogEntry) bool {
				select {
				case c <- e:
					return true
				case <-ctx.Done():
					return false
				}
			}
			s, err := l.open(ctx, t, 0)
			if err == nil && s != nil {
				err = entries(s, send)
			}
			if err != nil && ctx.Err() == nil {
				send(unread(t, err))
			}
		})
	}
	heads := make([]*skepv1.LogEntry, len(tasks))
	for i, c := range chans {
		heads[i] = <-c
	}
	for ctx.Err() == nil {
		first := -1
		for i, h := range heads {
			if h != nil && (first < 0 || h.TimeUnixNano < heads[first].TimeUnixNano) {
				first = i
			}
		}
		if first < 0 {
			return nil
		}
		if l.out.write(tasks[first], heads[first]) != nil {
			return nil // the client is gone
		}
		heads[first] = <-chans[first]
	}
	return nil
}

// unread is the line that says that a log is not here.
func unread(t *skepv1.Task, err error) *skepv1.LogEntry {
	return &skepv1.LogEntry{TimeUnixNano: time.Now().UnixNano(), Stderr: true, Line: fmt.Appendf(nil, "warning: no log of %s from node %s: %v\n", t.Name, cmp.Or(t.NodeHostname, t.NodeId), err)}
}

// follow writes what tasks write, of new ones too, until the client or the service is gone, or, if there are all of them, until they
// are over and read to their end.
func (l *logReader) follow(ctx context.Context, all bool, list func(context.Context) ([]*skepv1.Task, error), tasks []*skepv1.Task) error {
	ctx, cancel := context.WithCancel(ctx)
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		open  = map[string]bool{}
		shown = map[string]int64{} // when the last line was written that was shown
		told  = map[string]bool{}
		busy  = 0 // logs that are being read
	)
	defer wg.Wait()
	defer cancel()
	every := time.NewTicker(lookAgain)
	defer every.Stop()
	for {
		left := 0
		for _, t := range tasks {
			id := t.GetMeta().GetId()
			alive := t.GetStatus().GetState() <= skepv1.TaskState_TASK_STATE_RUNNING
			if alive {
				left++
			}
			mu.Lock()
			skip := open[id] || t.NodeId == "" || t.GetStatus().GetState() < skepv1.TaskState_TASK_STATE_STARTING || len(open) >= mostFollowed
			if !skip {
				open[id] = true
				busy++
			}
			after := shown[id]
			mu.Unlock()
			if skip {
				continue
			}
			left++
			wg.Go(func() {
				defer func() {
					mu.Lock()
					busy--
					mu.Unlock()
				}()
				s, err := l.open(ctx, t, after)
				opened := s != nil
				if err == nil && opened {
					err = entries(s, func(e *skepv1.LogEntry) bool {
						after = e.TimeUnixNano
						if l.out.write(t, e) != nil {
							cancel() // the client is gone
							return false
						}
						return true
					})
				}
				mu.Lock()
				shown[id] = after
				if alive {
					delete(open, id) // it ended, or was lost, or is out of reach, or has no log yet: ask again
				}
				say := err != nil && !opened && ctx.Err() == nil && !told[id]
				told[id] = told[id] || say
				mu.Unlock()
				if say && l.out.write(t, unread(t, err)) != nil {
					cancel()
				}
			})
		}
		mu.Lock()
		over := all && left == 0 && busy == 0
		mu.Unlock()
		if over {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-every.C:
		}
		next, err := list(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case fault.Is(err, fault.CodeNotFound), err == nil && len(next) == 0 && left == 0:
			return nil // the service is gone with its tasks
		case err == nil:
			tasks = next
		case !fault.Is(err, fault.CodeUnavailable) && !errors.Is(err, rpc.ErrNobody):
			return err
		}
	}
}

// logWriter writes lines in Docker's frames. One client that does not read holds up its own tasks' logs and nobody else's.
type logWriter struct {
	w   http.ResponseWriter
	ctl *http.ResponseController
	q   *logQuery

	mu    sync.Mutex
	parts map[string][]byte // task|stream whose last entry had no end of line
}

func (o *logWriter) flush() error { return o.ctl.Flush() }

// write writes an entry: a frame for each whole line.
func (o *logWriter) write(t *skepv1.Task, e *skepv1.LogEntry) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	key := t.GetMeta().GetId() + "|" + strconv.FormatBool(e.Stderr)
	rest := e.Line
	if had := o.parts[key]; had != nil {
		rest = append(had, rest...)
		delete(o.parts, key)
	}
	if e.Partial && !bytes.HasSuffix(rest, []byte("\n")) && len(rest) < longestLine {
		o.parts[key] = slices.Clone(rest)
		return nil
	}
	for more := true; more; more = len(rest) > 0 {
		var line []byte
		line, rest, _ = bytes.Cut(rest, []byte("\n"))
		if err := o.frame(t, e, line); err != nil {
			return err
		}
	}
	if o.q.req.Follow {
		return o.flush()
	}
	return nil
}

func (o *logWriter) frame(t *skepv1.Task, e *skepv1.LogEntry, line []byte) error {
	var b []byte
	if !o.q.tty {
		b = make([]byte, 8, 8+len(line)+200)
		b[0] = 1
		if e.Stderr {
			b[0] = 2
		}
	}
	if o.q.timestamps {
		b = time.Unix(0, e.TimeUnixNano).UTC().AppendFormat(b, "2006-01-02T15:04:05.000000000Z07:00")
		b = append(b, ' ')
	}
	if o.q.details {
		b = fmt.Appendf(b, "com.docker.swarm.node.id=%s,com.docker.swarm.service.id=%s,com.docker.swarm.task.id=%s ", t.NodeId, t.ServiceId, t.GetMeta().GetId())
	}
	b = append(append(b, line...), '\n')
	if !o.q.tty {
		binary.BigEndian.PutUint32(b[4:8], uint32(len(b)-8))
	}
	_, err := o.w.Write(b)
	return err
}
