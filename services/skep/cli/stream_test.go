package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/stream"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// onNode serves a stream of the test's node.
func (c *cluster) onNode(subj string, h func(ctx context.Context, s *stream.Session, body []byte)) {
	c.t.Helper()
	srv, err := stream.Serve(c.nc, subj, nodeID, h)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = srv.Close() })
	c.flush()
}

func logLine(w io.Writer, at int64, text string, stderr bool) {
	_, _ = protodelim.MarshalTo(w, &skepv1.LogEntry{TimeUnixNano: at, Line: []byte(text), Stderr: stderr})
}

func TestLogs(t *testing.T) {
	c := newCluster(t)
	c.services = []*skepv1.Service{webService()}
	lost := webTask("t3cccccccccccccccccccccccc", 3, running)
	lost.NodeId, lost.NodeHostname = "gone", "w9"
	c.tasks = []*skepv1.Task{webTask("t1aaaaaaaaaaaaaaaaaaaaaaa", 1, running), webTask("t2bbbbbbbbbbbbbbbbbbbbbbb", 2, running), lost}
	c.onNode(api.LogsOpen.At(nodeID).Subject(), func(_ context.Context, s *stream.Session, body []byte) {
		var r skepv1.LogsRequest
		if err := proto.Unmarshal(body, &r); err != nil {
			t.Error(err)
		}
		w := s.Writer(stream.Out)
		if strings.HasPrefix(r.TaskId, "t1") {
			logLine(w, 1e9, "first\n", false)
			logLine(w, 4e9, "fourth\n", false)
		} else {
			logLine(w, 2e9, "second\n", true)
			logLine(w, 3e9, "third", false)
		}
		_ = w.Close()
		_ = s.Exit(0, nil)
	})
	r := c.run("service", "logs", "web")
	want(t, r, 0, "web.1.t1aaaaaaaaaa@w1    | first\nweb.2.t2bbbbbbbbbb@w1    | third\nweb.1.t1aaaaaaaaaa@w1    | fourth\n", "web.2.t2bbbbbbbbbb@w1    | second\n")
	if !strings.Contains(r.err, "Warning: no log of web.3 from node w9: node gone does not answer") {
		t.Errorf("no warning about the silent node: %q", r.err)
	}
	want(t, c.run("logs", "--raw", "web"), 0, "first\nthird\nfourth\n", "")
	want(t, c.run("service", "logs", "-t", "--no-task-ids", "web"), 0, "1970-01-01T00:00:01.000000000Z web.1@w1    | first\n", "")
	want(t, c.run("service", "logs", "--no-resolve", "web.1"), 0, "webwebwebweb.1.t1aaaaaaaaaa@nodenodenode    | first\n", "")
	c.mu.Lock()
	c.services[0].Spec.Task.Container.Tty = true
	c.mu.Unlock()
	want(t, c.run("service", "logs", "web"), 2, "", "tty service logs only supported with --raw")
}

// TestLogsFollowGoesOn: a stream that breaks while its task runs is taken up after the last line shown.
func TestLogsFollowGoesOn(t *testing.T) {
	c := newCluster(t)
	c.services = []*skepv1.Service{webService()}
	c.tasks = []*skepv1.Task{webTask("t1aaaaaaaaaaaaaaaaaaaaaaa", 1, running)}
	c.onNode(api.LogsOpen.At(nodeID).Subject(), func(ctx context.Context, s *stream.Session, body []byte) {
		var r skepv1.LogsRequest
		if err := proto.Unmarshal(body, &r); err != nil {
			t.Error(err)
		}
		w := s.Writer(stream.Out)
		if r.Since == nil {
			logLine(w, 5, "one\n", false)
			_ = w.Close()
			_ = s.Exit(1, fault.Unavailable("the other side is gone"))
			return
		}
		if r.Since.AsTime().UnixNano() != 6 || r.Tail != -1 {
			t.Errorf("taken up at %v, tail %d", r.Since.AsTime(), r.Tail)
		}
		logLine(w, 7, "two\n", false)
		<-ctx.Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out, errs safeBuffer
	done := make(chan int, 1)
	go func() { done <- Main(ctx, c.env(&out, &errs), []string{"service", "logs", "-f", "--tail", "3", "web"}) }()
	for end := time.Now().Add(30 * time.Second); !strings.Contains(out.String(), "two"); {
		if time.Now().After(end) {
			t.Fatalf("it did not go on: %q %q", out.String(), errs.String())
		}
		time.Sleep(10 * time.Millisecond)
	}
	cancel()
	if code := <-done; code != ExitCancelled || strings.Count(out.String(), "one") != 1 {
		t.Errorf("status %d: %q %q", code, out.String(), errs.String())
	}
}

// TestLogsFollow: output of a task that starts later is shown too, and Ctrl-C ends it.
func TestLogsFollow(t *testing.T) {
	c := newCluster(t)
	c.services = []*skepv1.Service{webService()}
	c.tasks = []*skepv1.Task{webTask("t1aaaaaaaaaaaaaaaaaaaaaaa", 1, running)}
	c.onNode(api.LogsOpen.At(nodeID).Subject(), func(ctx context.Context, s *stream.Session, body []byte) {
		var r skepv1.LogsRequest
		if err := proto.Unmarshal(body, &r); err != nil || !r.Follow {
			t.Errorf("request %v %v", &r, err)
		}
		logLine(s.Writer(stream.Out), 1e9, "hello of "+r.TaskId[:2]+"\n", false)
		<-ctx.Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out, errs safeBuffer
	done := make(chan int, 1)
	go func() { done <- Main(ctx, c.env(&out, &errs), []string{"logs", "-f", "web"}) }()
	await(t, func() bool { return strings.Contains(out.String(), "hello of t1") })
	c.mu.Lock()
	c.tasks = append(c.tasks, webTask("t2aaaaaaaaaaaaaaaaaaaaaaa", 1, running))
	c.mu.Unlock()
	c.publish(&skepv1.Event{Kind: "task", Id: "t2", Verb: "running", Attributes: map[string]string{"service.id": webID}})
	await(t, func() bool { return strings.Contains(out.String(), "hello of t2") })
	cancel()
	select {
	case code := <-done:
		if code != ExitCancelled {
			t.Errorf("exit status %d", code)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("follow does not end")
	}
	if strings.Count(out.String(), "hello of t1") != 1 {
		t.Errorf("output %q", out.String())
	}
}

func await(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); {
		if time.Now().After(end) {
			t.Fatal("it does not happen")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestExec(t *testing.T) {
	c := newCluster(t)
	old := webTask("t0aaaaaaaaaaaaaaaaaaaaaaa", 1, skepv1.TaskState_TASK_STATE_FAILED)
	c.tasks = []*skepv1.Task{old, webTask("t1aaaaaaaaaaaaaaaaaaaaaaa", 1, running)}
	c.onNode(api.ExecOpen.At(nodeID).Subject(), func(_ context.Context, s *stream.Session, body []byte) {
		var r skepv1.ExecRequest
		if err := proto.Unmarshal(body, &r); err != nil {
			t.Error(err)
		}
		if r.TaskId != c.tasks[1].Meta.Id {
			t.Errorf("task %s was picked", r.TaskId)
		}
		if r.Args[0] == "missing" {
			_ = s.Accept()
			_ = s.Exit(127, fault.Invalid("exec: missing: not found"))
			return
		}
		in := []byte("-")
		if r.Stdin {
			in, _ = io.ReadAll(s.Reader(stream.In))
		}
		_, _ = io.WriteString(s.Writer(stream.Out), strings.Join(r.Args, " ")+" "+strings.Join(r.Env, ",")+" "+r.User+" "+r.Dir+" "+string(in))
		_, _ = io.WriteString(s.Writer(stream.Err), "oops")
		_ = s.Writer(stream.Out).Close()
		_ = s.Writer(stream.Err).Close()
		_ = s.Exit(7, nil)
	})
	want(t, c.run("exec", "-e", "A=1", "-u", "web", "-w", "/srv", "web.1", "sh", "-c", "exit 7"), 7, "sh -c exit 7 A=1 web /srv -", "oops")
	want(t, c.run("exec", "t1a", "true"), 7, "true", "")
	want(t, c.run("exec", "web.1.t1aaaaaaaaaaaaaaaaaaaaaaa", "true"), 7, "true", "")
	want(t, c.run("exec", "web.1", "missing"), 127, "", "exec: missing: not found")
	want(t, c.run("exec", "t0a", "true"), 1, "", "does not run: it is failed")
	want(t, c.run("exec", "-it", "web.1", "sh"), 1, "", "the input device is not a TTY")
	want(t, c.run("exec", "web.1"), 2, "", "requires at least 2 arguments")

	var out, errs safeBuffer
	env := c.env(&out, &errs)
	env.In = strings.NewReader("typed")
	if code := Main(t.Context(), env, []string{"exec", "-i", "web.1", "cat"}); code != 7 || !strings.HasSuffix(out.String(), "typed") {
		t.Errorf("%d %q %q", code, out.String(), errs.String())
	}
}

func TestImageLoad(t *testing.T) {
	c := newCluster(t)
	archive := bytes.Repeat([]byte("layer"), 200_000)
	c.onNode(api.ImageOpen.At(nodeID).Subject(), func(_ context.Context, s *stream.Session, _ []byte) {
		got, err := io.ReadAll(s.Reader(stream.In))
		if err != nil || !bytes.Equal(got, archive) {
			t.Errorf("%d bytes arrived, %v", len(got), err)
		}
		w := s.Writer(stream.Out)
		_, _ = protodelim.MarshalTo(w, &skepv1.LoadImageReply{Names: []string{"httpd:latest"}})
		_ = w.Close()
		_ = s.Exit(0, nil)
	})
	for _, nodes := range []string{"self", "all", "w1"} {
		var out, errs safeBuffer
		env := c.env(&out, &errs)
		env.In = bytes.NewReader(archive)
		if code := Main(t.Context(), env, []string{"image", "load", "--node", nodes}); code != 0 || out.String() != "w1: loaded image httpd:latest\n" {
			t.Errorf("%s: %d %q %q", nodes, code, out.String(), errs.String())
		}
	}
	want(t, c.run("image", "load", "-i", "/nonexistent"), 1, "", "open the archive")
	want(t, c.run("image", "ls"), 1, "NODE", "node w1:")
}

func TestEventsFollow(t *testing.T) {
	c := newCluster(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out, errs safeBuffer
	done := make(chan int, 1)
	go func() {
		done <- Main(ctx, c.env(&out, &errs), []string{"events", "--filter", "type=task", "--format", "{{.Type}} {{.Action}} {{.Name}}"})
	}()
	stop := make(chan struct{})
	go func() { // until the command listens, nobody hears
		for {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
				c.publish(&skepv1.Event{Kind: "node", Id: "n1", Verb: "down", Name: "w1"})
				c.publish(&skepv1.Event{Kind: "task", Id: "t1", Verb: "running", Name: "web.1"})
			}
		}
	}()
	await(t, func() bool { return strings.Contains(out.String(), "task running web.1\n") })
	close(stop)
	cancel()
	if code := <-done; code != ExitCancelled || strings.Contains(out.String(), "node") {
		t.Errorf("%d %q %q", code, out.String(), errs.String())
	}
}

// A connection that is lost while events are followed comes back, and what happened meanwhile is shown: once, and nothing of
// what was before the command.
func TestEventsGoOn(t *testing.T) {
	c := newCluster(t)
	event := func(id string, at time.Time) *skepv1.Event {
		e := &skepv1.Event{Kind: "task", Id: id, Verb: "running", Name: id, Time: timestamppb.New(at)}
		c.mu.Lock()
		c.events = append(c.events, e)
		c.mu.Unlock()
		return e
	}
	now := time.Now()
	event("before", now.Add(-5*time.Second))
	looks := 0
	c.heard = func(_ context.Context, r proto.Message) {
		// It looks twice: this was on its way to the streams while it looked for the first time.
		if _, ok := r.(*skepv1.ListEventsRequest); ok {
			if looks++; looks == 2 {
				c.events = append(c.events, &skepv1.Event{Kind: "task", Id: "late", Verb: "running", Name: "late", Time: timestamppb.New(now.Add(1500 * time.Millisecond))})
			}
		}
	}
	line := &gate{}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out, errs safeBuffer
	env := c.env(&out, &errs)
	env.Connect = func(context.Context) (*nats.Conn, error) {
		return nats.Connect(c.url, nats.SetCustomDialer(line), nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond))
	}
	done := make(chan int, 1)
	go func() {
		done <- Main(ctx, env, []string{"events", "--filter", "type=task", "--format", "{{.Action}} {{.Name}}"})
	}()
	first := event("first", now)
	for end := time.Now().Add(time.Minute); !strings.Contains(out.String(), "running first\n"); { // until the command listens, nobody hears
		if time.Now().After(end) {
			t.Fatalf("no event: %q %q", out.String(), errs.String())
		}
		c.publish(first)
		time.Sleep(20 * time.Millisecond)
	}
	line.cut()
	c.publish(event("meanwhile", now.Add(time.Second)))
	c.flush()
	line.mend()
	await(t, func() bool { return strings.Contains(out.String(), "running meanwhile\n") })
	c.publish(event("after", now.Add(2*time.Second)))
	await(t, func() bool { return strings.Contains(out.String(), "running after\n") })
	await(t, func() bool { return strings.Contains(out.String(), "running late\n") })
	cancel()
	if code := <-done; code != ExitCancelled || errs.String() != "" {
		t.Errorf("%d %q", code, errs.String())
	}
	for name, times := range map[string]int{"first": 1, "meanwhile": 1, "after": 1, "late": 1, "before": 0} {
		if n := strings.Count(out.String(), "running "+name+"\n"); n != times {
			t.Errorf("%s is shown %d times: %q", name, n, out.String())
		}
	}
}

// gate is a way to the broker that can be cut.
type gate struct {
	mu     sync.Mutex
	closed bool
	conns  []net.Conn
}

func (g *gate) Dial(network, address string) (net.Conn, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, errors.New("cut")
	}
	nc, err := net.Dial(network, address)
	if err == nil {
		g.conns = append(g.conns, nc)
	}
	return nc, err
}

func (g *gate) cut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	for _, c := range g.conns {
		_ = c.Close()
	}
}

func (g *gate) mend() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = false
}

func TestTopOnce(t *testing.T) {
	c := newCluster(t)
	c.services = []*skepv1.Service{webService()}
	c.nodes[0].Description.Resources = &skepv1.Resources{NanoCpus: 2e9, MemoryBytes: 4 << 30}
	c.tasks = []*skepv1.Task{webTask("t1", 1, running), webTask("t2", 2, pending)}
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		for i := uint64(1); ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
				b, _ := proto.Marshal(&skepv1.Heartbeat{NodeId: nodeID, SentUnixMs: int64(i) * 1000, CpuNanos: i * 500_000_000, MemoryBytes: 1 << 30})
				_ = c.nc.Publish(subject.Heartbeat(nodeID), b)
			}
		}
	}()
	r := c.run("top", "--interval", "1s")
	want(t, r, 0, "nodes 1/1 ready  services 1  tasks 1/2 running", "")
	want(t, r, 0, "50% of 2", "")
	want(t, r, 0, "1GiB / 4GiB", "")
	want(t, r, 0, "web.2", "")
}
