package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/stream"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

func TestLogs(t *testing.T) {
	n := up(t)

	t.Run("both streams, long and unfinished lines", func(t *testing.T) {
		ids := n.put(1, n.spec("sh", "-c", "echo out; echo err >&2; head -c 40000 /dev/zero | tr '\\0' x; echo; printf unfinished"))
		n.state(complete, ids...)
		var text, parts, errs int
		for _, l := range n.logs(ids[0], -1) {
			text += len(l.Line)
			if l.Partial {
				parts++
			}
			if l.Stderr {
				errs++
			}
		}
		if text != len("out\nerr\n")+40001+len("unfinished") || parts != 3 || errs != 1 {
			t.Errorf("%d bytes, %d parts, %d lines of stderr", text, parts, errs)
		}
	})

	t.Run("tail, since and until", func(t *testing.T) {
		ids := n.put(1, n.spec("sh", "-c", "for i in 1 2 3 4 5; do echo $i; sleep 0.05; done"))
		n.state(complete, ids...)
		all := n.logs(ids[0], -1)
		if got := n.logs(ids[0], 2); len(all) != 5 || len(got) != 2 || string(got[0].Line) != "4\n" {
			t.Fatalf("tail 2 of %d: %v", len(all), got)
		}
		if got := n.logs(ids[0], 0); len(got) != 0 {
			t.Errorf("tail 0: %v", got)
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		sess, err := stream.Dial(ctx, n.nc, subject.Node(n.id, "logs.open"), n.id, &skepv1.LogsRequest{
			TaskId: ids[0], Tail: -1, Since: timestamppb.New(time.Unix(0, all[1].TimeUnixNano)), Until: timestamppb.New(time.Unix(0, all[3].TimeUnixNano)),
		})
		if err != nil {
			t.Fatal(err)
		}
		defer sess.Close()
		got, err := readEntries(sess.Reader(stream.Out), -1)
		if err != nil || len(got) != 3 || string(got[0].Line) != "2\n" {
			t.Errorf("since and until: %v %v", got, err)
		}
	})

	t.Run("follow ends with the task", func(t *testing.T) {
		ids := n.put(1, n.spec("sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.2; done"))
		n.state(running, ids...)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		sess, err := stream.Dial(ctx, n.nc, subject.Node(n.id, "logs.open"), n.id, &skepv1.LogsRequest{TaskId: ids[0], Tail: -1, Follow: true})
		if err != nil {
			t.Fatal(err)
		}
		defer sess.Close()
		if got, err := readEntries(sess.Reader(stream.Out), -1); err != nil || len(got) != 3 {
			t.Errorf("%v %v", got, err)
		}
	})

	t.Run("rotation frees the disk and loses nothing", func(t *testing.T) {
		const lines = 60_000
		s := n.spec("sh", "-c", fmt.Sprintf("seq 1 %d; sleep 1000", lines))
		s.Task.LogDriver = &skepv1.LogDriver{Name: "json-file", Options: map[string]string{"max-size": "1m", "max-file": "20"}}
		ids := n.put(1, s)
		n.await("the task", func(m map[string]*skepv1.TaskStatus) bool { return m[ids[0]] != nil })
		got := n.awaitLogs(ids[0], lines)
		for i, l := range got {
			if string(l.Line) != fmt.Sprintf("%d\n", i+1) {
				t.Fatalf("line %d is %q", i+1, l.Line)
			}
		}
		dir := filepath.Join(n.cfg.DataDir, "agent/tasks", ids[0])
		if files, _ := filepath.Glob(filepath.Join(dir, "logs/*.log")); len(files) < 2 {
			t.Errorf("not rotated: %v", files)
		}
		st, err := os.Stat(filepath.Join(dir, "out.raw"))
		if err != nil {
			t.Fatal(err)
		}
		if used := st.Sys().(*syscall.Stat_t).Blocks * 512; used > st.Size() {
			t.Errorf("the raw file holds %d of %d bytes", used, st.Size())
		}
		s2 := n.spec("sh", "-c", "seq 1 60000")
		s2.Task.LogDriver = &skepv1.LogDriver{Options: map[string]string{"max-size": "100k", "max-file": "2"}}
		ids = n.put(1, s2)
		n.state(complete, ids...)
		last := n.logs(ids[0], -1)
		if len(last) == 0 || string(last[len(last)-1].Line) != "60000\n" {
			t.Fatalf("%d lines kept", len(last))
		}
		if files, _ := filepath.Glob(filepath.Join(n.cfg.DataDir, "agent/tasks", ids[0], "logs/*.log")); len(files) > 2 {
			t.Errorf("more files than max-file: %v", files)
		}
	})

	t.Run("driver none", func(t *testing.T) {
		s := n.spec("sh", "-c", "echo nothing; sleep 1000")
		s.Task.LogDriver = &skepv1.LogDriver{Name: "none"}
		ids := n.put(1, s)
		n.state(running, ids...)
		_, err := stream.Dial(t.Context(), n.nc, subject.Node(n.id, "logs.open"), n.id, &skepv1.LogsRequest{TaskId: ids[0]})
		if err == nil || !strings.Contains(err.Error(), "its log driver is none") {
			t.Errorf("%v", err)
		}
	})

	t.Run("a terminal", func(t *testing.T) {
		s := n.spec("sh", "-c", "echo on a tty; tty; sleep 1000")
		s.Task.Container.Tty = true
		ids := n.put(1, s)
		n.state(running, ids...)
		if got := n.awaitLogs(ids[0], 1); string(got[0].Line) != "on a tty\r\n" {
			t.Errorf("%v", got)
		}
	})
}
