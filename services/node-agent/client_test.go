package agent

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/stream"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// exec runs a command in a task and returns its output and exit code.
func (n *node) exec(task string, args ...string) (string, int32) {
	n.t.Helper()
	out, code, err := n.tryExec(&skepv1.ExecRequest{TaskId: task, Args: args}, "")
	if err != nil {
		n.t.Fatalf("exec %v: %v", args, err)
	}
	return out, code
}

func (n *node) tryExec(req *skepv1.ExecRequest, stdin string) (string, int32, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req.Stdin = stdin != ""
	sess, err := stream.Dial(ctx, n.nc, subject.Node(n.id, "exec.open"), n.id, req)
	if err != nil {
		return "", 0, err
	}
	defer sess.Close()
	var out, errs bytes.Buffer
	var wg sync.WaitGroup
	wg.Add(3)
	go func() {
		defer wg.Done()
		if stdin == "" {
			return
		}
		w := sess.Writer(stream.In)
		if _, err := w.Write([]byte(stdin)); err != nil {
			n.t.Errorf("write to exec: %v", err)
		}
		if err := w.Close(); err != nil {
			n.t.Errorf("write to exec: %v", err)
		}
	}()
	go func() { defer wg.Done(); _, _ = out.ReadFrom(sess.Reader(stream.Out)) }()
	go func() { defer wg.Done(); _, _ = errs.ReadFrom(sess.Reader(stream.Err)) }()
	wg.Wait()
	x, err := sess.Wait()
	if err != nil {
		return "", 0, err
	}
	if x.Err != "" {
		return out.String() + errs.String(), x.Code, fmt.Errorf("%s", x.Err)
	}
	return out.String() + errs.String(), x.Code, nil
}

// logs reads a task's log, all of it with tail < 0.
func (n *node) logs(task string, tail int64) []*skepv1.LogEntry {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	sess, err := stream.Dial(ctx, n.nc, subject.Node(n.id, "logs.open"), n.id, &skepv1.LogsRequest{TaskId: task, Tail: tail})
	if err != nil {
		n.t.Fatalf("logs: %v", err)
	}
	defer sess.Close()
	out, err := readEntries(sess.Reader(stream.Out), -1)
	if err != nil {
		n.t.Fatalf("logs: %v", err)
	}
	return out
}

// readEntries reads until the end, or max entries.
func readEntries(r io.Reader, limit int) ([]*skepv1.LogEntry, error) {
	br := bufio.NewReader(r)
	var out []*skepv1.LogEntry
	for limit < 0 || len(out) < limit {
		size, err := binary.ReadUvarint(br)
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		b := make([]byte, size)
		if _, err := io.ReadFull(br, b); err != nil {
			return out, err
		}
		e := &skepv1.LogEntry{}
		if err := proto.Unmarshal(b, e); err != nil {
			return out, err
		}
		out = append(out, e)
	}
	return out, nil
}

// awaitLogs follows a task's log until it has that many lines.
func (n *node) awaitLogs(task string, lines int) []*skepv1.LogEntry {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	sess, err := stream.Dial(ctx, n.nc, subject.Node(n.id, "logs.open"), n.id, &skepv1.LogsRequest{TaskId: task, Tail: -1, Follow: true})
	if err != nil {
		n.t.Fatalf("follow logs: %v", err)
	}
	defer sess.Close()
	out, err := readEntries(sess.Reader(stream.Out), lines)
	if err != nil || len(out) < lines {
		n.t.Fatalf("follow logs: %d of %d lines, %v; on the node: %s", len(out), lines, err, n.output(task))
	}
	return out
}

// output is what a node has of a task's output, and what its process has of signals: where a line was lost.
func (n *node) output(task string) string {
	var b strings.Builder
	_ = filepath.WalkDir(filepath.Join(n.cfg.DataDir, "agent/tasks", task), func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			text, err := os.ReadFile(path)
			fmt.Fprintf(&b, "\n%s: %q %v", path, text[:min(len(text), 1000)], err)
		}
		return nil
	})
	if st := n.told(task); st.GetPid() != 0 {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", st.Pid))
		fmt.Fprintf(&b, "\n%s %v", status, err)
	}
	return b.String()
}

// deadConn is a connection that nobody ever answers.
func deadConn(t testing.TB) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect("nats://127.0.0.1:1", nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// awaitGone waits until a path below /proc/PID is no more: the process has ended.
func awaitGone(t testing.TB, path string) {
	t.Helper()
	await(t, path+" to be gone", func() bool { _, err := os.Stat(path); return err != nil })
}

// await returns once done is true.
func await(t testing.TB, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited %v for %s", patience, what)
		}
	}
}
