package cli

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/stream"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/plain"
	"skep.dev/services/skep/cli/render"
)

// mergeLimit is how many tasks' logs are opened at once and merged by time; more are read in groups.
const mergeLimit = 64

type logsFlags struct {
	follow, timestamps, noTaskIDs, noTrunc, raw, noResolve, details bool
	tail, since, until                                              string
}

func (a *app) logsCommand() *cobra.Command {
	var l logsFlags
	cmd := &cobra.Command{Use: "logs [OPTIONS] SERVICE|TASK", Short: "Show the output of a service's tasks, wherever they ran", Args: exactArgs(1),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			s, d := a.completeServices(cmd, args, word)
			t, _ := a.completeTasks(cmd, args, word)
			return append(s, t...), d
		},
		RunE: func(cmd *cobra.Command, args []string) error { return a.logs(cmd.Context(), args[0], &l) }}
	l.add(cmd)
	return cmd
}

func (l *logsFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVarP(&l.follow, "follow", "f", false, "Go on with new output, also of tasks that start later")
	f.StringVarP(&l.tail, "tail", "n", "all", "Lines to show from the end of each task's log")
	f.StringVar(&l.since, "since", "", "Show only what came after a time, or within a duration (10m)")
	f.StringVar(&l.until, "until", "", "Show only what came before a time")
	f.BoolVarP(&l.timestamps, "timestamps", "t", false, "Show when each line was written")
	f.BoolVar(&l.noTaskIDs, "no-task-ids", false, "Leave the task ids out of the prefix")
	f.BoolVar(&l.noTrunc, "no-trunc", false, "Do not cut ids short")
	f.BoolVar(&l.noResolve, "no-resolve", false, "Show ids instead of names")
	f.BoolVar(&l.raw, "raw", false, "Show the output as it is, without any prefix; also on a terminal, which it may then steer")
	f.BoolVar(&l.details, "details", false, "Show which service, task and node each line is from")
}

// logRun is one `logs` command under way.
type logRun struct {
	a        *app
	l        *logsFlags
	req      skepv1.LogsRequest
	replicas uint64
	mu       sync.Mutex
	partial  map[string]bool // task|stream whose last entry had no end of line
}

func (a *app) newLogRun(l *logsFlags) (*logRun, error) {
	r := &logRun{a: a, l: l, partial: map[string]bool{}}
	var err error
	if r.req.Since, err = parseWhen("since", l.since, a.Now()); err != nil {
		return nil, err
	}
	if r.req.Until, err = parseWhen("until", l.until, a.Now()); err != nil {
		return nil, err
	}
	r.req.Tail = -1
	if l.tail != "all" && l.tail != "" {
		if r.req.Tail, err = strconv.ParseInt(l.tail, 10, 64); err != nil {
			return nil, Usagef("invalid --tail %q: it must be a number of lines, or all", l.tail)
		}
	}
	r.req.Follow, r.req.Stdout, r.req.Stderr = l.follow, true, true
	return r, nil
}

func (a *app) logs(ctx context.Context, ref string, l *logsFlags) error {
	r, err := a.newLogRun(l)
	if err != nil {
		return err
	}
	s, err := a.service(ctx, ref)
	if fault.Is(err, fault.CodeNotFound) {
		t, terr := a.findTask(ctx, ref)
		if fault.Is(terr, fault.CodeNotFound) {
			return fault.NotFound("%s", strings.Replace(err.Error(), "no such service", "no such task or service", 1))
		}
		if terr != nil {
			return terr
		}
		if err := r.check(t.GetSpec().GetContainer()); err != nil {
			return err
		}
		if t.NodeId == "" {
			return fmt.Errorf("task %s has no log: it has no node yet (%s)", ref, orDash(t.GetStatus().GetErr()))
		}
		return r.finish(ctx, r.print(ctx, t, r.req.Follow))
	}
	if err != nil {
		return err
	}
	id := s.GetMeta().GetId()
	return r.services(ctx, func(ctx context.Context) ([]*skepv1.Service, error) {
		s, err := a.service(ctx, id)
		return []*skepv1.Service{s}, err
	})
}

// services prints the logs of several services. list says which they are now; with NotFound there will be none any more.
func (r *logRun) services(ctx context.Context, list func(context.Context) ([]*skepv1.Service, error)) error {
	services, err := list(ctx)
	if err != nil {
		return err
	}
	for _, s := range services {
		if err := r.check(s.GetSpec().GetTask().GetContainer()); err != nil {
			if len(services) > 1 {
				err = Usagef("%w; service %s has one", err, s.GetSpec().GetName())
			}
			return err
		}
		r.replicas = max(r.replicas, s.GetSpec().GetMode().GetReplicated().GetReplicas())
	}
	if r.req.Follow {
		return r.finish(ctx, r.follow(ctx, list, idsOf(services)))
	}
	if len(services) == 0 {
		return nil
	}
	tasks, err := r.a.tasks(ctx, filter("service", idsOf(services)...))
	if err != nil {
		return err
	}
	render.SortTasks(tasks)
	var ran []*skepv1.Task
	for _, t := range tasks {
		if t.NodeId != "" {
			ran = append(ran, t)
		}
	}
	for len(ran) > 0 {
		n := min(mergeLimit, len(ran))
		if err := r.merge(ctx, ran[:n]); err != nil {
			return r.finish(ctx, err)
		}
		ran = ran[n:]
	}
	return nil
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// finish: Ctrl-C is how a follow ends; it is no error worth a message.
func (r *logRun) finish(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return &Failure{Code: ExitCancelled}
	}
	return err
}

func (r *logRun) check(c *skepv1.ContainerSpec) error {
	if c.GetTty() && !r.l.raw {
		return Usagef("tty service logs only supported with --raw")
	}
	return nil
}

// open starts a task's log stream; nil without an error means that there is none.
func (r *logRun) open(ctx context.Context, t *skepv1.Task, follow bool, after ...int64) (*stream.Session, error) {
	nc, err := r.a.conn(ctx)
	if err != nil {
		return nil, err
	}
	req := &skepv1.LogsRequest{TaskId: t.GetMeta().GetId(), Follow: follow, Tail: r.req.Tail, Since: r.req.Since, Until: r.req.Until, Stdout: true, Stderr: true}
	if len(after) > 0 && after[0] > 0 { // what came up to then was shown
		req.Since, req.Tail = timestamppb.New(time.Unix(0, after[0]+1)), -1
	}
	s, err := dial(ctx, r.a, nc, api.LogsOpen.At(t.NodeId), req, stream.WithOpenTimeout(5*time.Second))
	if fault.Is(err, fault.CodeNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	go drain(s)
	return s, nil
}

// drain keeps the channels nobody reads from stopping the node.
func drain(s *stream.Session) {
	for range s.Control() {
	}
}

// entries reads a log stream to its end.
func entries(s *stream.Session, each func(*skepv1.LogEntry) bool) error {
	defer s.Close()
	in := bufio.NewReader(s.Reader(stream.Out))
	for {
		e := &skepv1.LogEntry{}
		if err := protodelim.UnmarshalFrom(in, e); err != nil {
			if isEOF(err) {
				return nil
			}
			return err
		}
		if !each(e) {
			return nil
		}
	}
}

// print copies one task's log.
func (r *logRun) print(ctx context.Context, t *skepv1.Task, follow bool) error {
	s, err := r.open(ctx, t, follow)
	if err != nil || s == nil {
		return err
	}
	return entries(s, func(e *skepv1.LogEntry) bool { r.write(t, e); return true })
}

func (r *logRun) warn(t *skepv1.Task, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	host := t.NodeHostname
	if host == "" {
		host = t.NodeId
	}
	r.a.warnf("no log of %s from node %s: %v", t.Name, host, err)
}

// merge prints the logs of several tasks in the order of time.
func (r *logRun) merge(ctx context.Context, tasks []*skepv1.Task) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	chans := make([]chan *skepv1.LogEntry, len(tasks))
	for i, t := range tasks {
		c := make(chan *skepv1.LogEntry, 16)
		chans[i] = c
		go func() {
			defer close(c)
			s, err := r.open(ctx, t, false)
			if err == nil && s != nil {
				err = entries(s, func(e *skepv1.LogEntry) bool {
					select {
					case c <- e:
						return true
					case <-ctx.Done():
						return false
					}
				})
			}
			switch {
			case fault.Is(err, fault.CodeDenied):
				cancel(err) // of every task it would be the same
			case err != nil && ctx.Err() == nil:
				r.warn(t, err)
			}
		}()
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
			break
		}
		r.write(tasks[first], heads[first])
		heads[first] = <-chans[first]
	}
	return context.Cause(ctx)
}

// follow prints what the services' tasks write, of new services and tasks too, until ctx ends or there will be no more.
func (r *logRun) follow(ctx context.Context, list func(context.Context) ([]*skepv1.Service, error), ids []string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	wake, stop, err := r.a.watch(ctx, ids...)
	if err != nil {
		return err
	}
	defer stop()
	var (
		wg    sync.WaitGroup
		open  = map[string]bool{}
		shown = map[string]int64{} // when the last line was written that was shown
		mu    sync.Mutex
		told  = map[string]bool{}
	)
	defer wg.Wait()
	every := time.NewTicker(2 * time.Second)
	defer every.Stop()
	for {
		services, lerr := list(ctx)
		for _, id := range idsOf(services) {
			if lerr == nil && !slices.Contains(ids, id) {
				ids = append(ids, id)
			}
		}
		var tasks []*skepv1.Task
		var err error
		if len(ids) > 0 {
			tasks, err = r.a.tasks(ctx, filter("service", ids...))
		}
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil && !fault.Is(err, fault.CodeUnavailable):
			return err
		}
		render.SortTasks(tasks)
		for _, t := range tasks {
			id := t.GetMeta().GetId()
			mu.Lock()
			skip := open[id] || t.NodeId == "" || t.GetStatus().GetState() < skepv1.TaskState_TASK_STATE_STARTING
			if !skip {
				open[id] = true
			}
			mu.Unlock()
			if skip {
				continue
			}
			wg.Add(1)
			go func() {
				defer wg.Done()
				mu.Lock()
				after := shown[id]
				mu.Unlock()
				s, err := r.open(ctx, t, true, after)
				alive, opened := t.GetStatus().GetState() <= skepv1.TaskState_TASK_STATE_RUNNING, s != nil
				if err == nil && s != nil {
					err = entries(s, func(e *skepv1.LogEntry) bool { r.write(t, e); after = e.TimeUnixNano; return true })
				}
				if alive {
					mu.Lock()
					shown[id] = after
					delete(open, id) // it ended, or was lost, or is out of reach, or has no log yet: ask again
					mu.Unlock()
					if opened {
						return // what broke it is told if it cannot be opened again
					}
				}
				if fault.Is(err, fault.CodeDenied) {
					cancel(err) // of every task it would be the same
				}
				mu.Lock()
				say := err != nil && ctx.Err() == nil && !told[id]
				told[id] = told[id] || say
				mu.Unlock()
				if say {
					r.warn(t, err)
				}
			}()
		}
		if err == nil && len(tasks) == 0 && fault.Is(lerr, fault.CodeNotFound) {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-wake:
		case <-every.C:
		}
	}
}

// write prints one entry behind its prefix.
func (r *logRun) write(t *skepv1.Task, e *skepv1.LogEntry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.a.Out
	if e.Stderr {
		p = r.a.Err
	}
	var w io.Writer = p
	_, terminal := terminalOf(p)
	if !terminal || r.l.raw {
		w = p.Raw() // the task's own bytes
	}
	key := fmt.Sprintf("%s|%t", t.GetMeta().GetId(), e.Stderr)
	prefix, out, rest := plain.Cell(r.prefix(t, e)), []byte(nil), e.Line
	for more := true; more; more = len(rest) > 0 {
		line, after, ended := bytes.Cut(rest, []byte("\n"))
		rest = after
		if !r.partial[key] {
			out = append(out, prefix...)
		}
		if terminal && !r.l.raw {
			line = []byte(plain.Line(colours.ReplaceAllString(strings.TrimSuffix(string(line), "\r"), "")))
		}
		out = append(out, line...)
		if r.partial[key] = !ended && e.Partial; !r.partial[key] {
			out = append(out, '\n')
		}
	}
	_, _ = w.Write(out) // output that is gone ends the command by SIGPIPE
}

// colours are the sequences that only colour text. On a terminal they are left out instead of written out: many programs
// colour what they log, and a colour that is not ended would go on in the next task's line.
var colours = regexp.MustCompile("\x1b\\[[0-9;:]*m")

func (r *logRun) prefix(t *skepv1.Task, e *skepv1.LogEntry) string {
	var b strings.Builder
	if r.l.timestamps {
		b.WriteString(timestamppb.New(time.Unix(0, e.TimeUnixNano)).AsTime().UTC().Format("2006-01-02T15:04:05.000000000Z07:00") + " ")
	}
	if r.l.details {
		plain.Fprintf(&b, "skep.node.id=%s,skep.service.id=%s,skep.task.id=%s ", t.NodeId, t.ServiceId, t.GetMeta().GetId())
	}
	if r.l.raw {
		return b.String()
	}
	id, name, node := t.GetMeta().GetId(), t.Name, t.NodeHostname
	nodeID := t.NodeId
	if !r.l.noTrunc {
		id, nodeID = render.ShortID(id), render.ShortID(nodeID)
	}
	if r.l.noResolve {
		service := t.ServiceId
		if !r.l.noTrunc {
			service = render.ShortID(service)
		}
		name, node = fmt.Sprintf("%s.%d", service, t.Slot), nodeID
	}
	if node == "" {
		node = nodeID
	}
	if !r.l.noTrunc {
		node = plain.Cut(node, render.MaxName)
	}
	if !r.l.noTaskIDs {
		name += "." + id
	}
	pad := max(0, len(strconv.FormatUint(r.replicas, 10))-len(strconv.FormatUint(t.Slot, 10)))
	b.WriteString(name + "@" + node + strings.Repeat(" ", pad) + "    | ")
	return b.String()
}

func isEOF(err error) bool { return errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) }
