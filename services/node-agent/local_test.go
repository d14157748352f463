package agent

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"skep.dev/libs/containers"
	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

// What the Docker API in the same process is told: which containers there are, what runs in them, what they write and how a command in
// them ends.
func TestLocal(t *testing.T) {
	n := up(t)
	l := n.svc.Local()
	if l == nil {
		t.Fatal("the agent serves, and is not to be asked")
	}
	sp := n.spec("sh", "-c", "echo one; echo two >&2; while [ ! -e /over ]; do sleep 0.05; done; echo three")
	sp.Task.Container.Env = []string{"COLOUR=blue"}
	id := n.put(1, sp)[0]
	n.state(running, id)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, ok := l.Container(id)
	if all := l.Containers(); !ok || len(all) != 1 || all[0].ID() != id || c.Status.GetStartedUnixMs() == 0 || c.Revision.GetSpec().GetName() != sp.Name {
		t.Fatalf("%+v %v", all, c)
	}
	p, err := l.Process(ctx, id)
	if err != nil || p.Args[0] != "sh" || !slices.Contains(p.Env, "COLOUR=blue") || p.Hostname != id[:12] {
		t.Errorf("%+v %v", p, err)
	}
	if pids, err := l.Processes(id); err != nil || len(pids) == 0 {
		t.Error(pids, err)
	}
	if st := l.Stats(id); st.GetTaskId() != id {
		t.Error(st)
	}

	lines := make(chan string, 10)
	read := make(chan error, 1)
	go func() {
		read <- l.Logs(ctx, &skepv1.LogsRequest{TaskId: id, Follow: true, Tail: -1, Stdout: true, Stderr: true}, func(e *skepv1.LogEntry) error {
			lines <- string(e.Line)
			return nil
		}, func() error { return nil })
		if _, st := n.svc.set.Job(id); st.GetState() == running { // who is told so follows again, and has lines twice
			t.Error("the log has ended, and its task runs")
		}
		close(lines)
	}()
	first := []string{<-lines, <-lines}
	if slices.Sort(first); first[0] != "one\n" || first[1] != "two\n" {
		t.Errorf("%q", first)
	}

	var out, errs bytes.Buffer
	code, err := l.Exec(ctx, &skepv1.ExecRequest{TaskId: id, Stdin: true, Args: []string{"sh", "-c", "cat; echo err >&2; exit 5"}}, containers.ExecIO{Stdin: strings.NewReader("typed"), Stdout: &out, Stderr: &errs})
	if err != nil || code != 5 || out.String() != "typed" || errs.String() != "err\n" {
		t.Errorf("%d %v %q %q", code, err, &out, &errs)
	}
	if code, err := l.Exec(ctx, &skepv1.ExecRequest{TaskId: id, Args: []string{"nothing"}}, containers.ExecIO{Stdout: &out, Stderr: &errs}); err == nil || code != 127 {
		t.Errorf("%d %v", code, err)
	}
	if _, err := l.Exec(ctx, &skepv1.ExecRequest{TaskId: "nothing", Args: []string{"true"}}, containers.ExecIO{}); !fault.Is(err, fault.CodeNotFound) {
		t.Error(err)
	}
	// A caller that goes takes its command with it.
	brief, leave := context.WithCancel(ctx)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = l.Exec(brief, &skepv1.ExecRequest{TaskId: id, Args: []string{"sleep", "4711"}}, containers.ExecIO{Stdout: &bytes.Buffer{}, Stderr: &bytes.Buffer{}})
	}()
	sleeps := func() bool {
		var found bytes.Buffer
		_, _ = l.Exec(ctx, &skepv1.ExecRequest{TaskId: id, Args: []string{"sh", "-c", "ps | grep 'sleep 471[1]'"}}, containers.ExecIO{Stdout: &found, Stderr: &errs})
		return found.Len() > 0
	}
	awaitLocal(t, "the command runs", sleeps)
	leave()
	<-gone
	awaitLocal(t, "the command is gone", func() bool { return !sleeps() })

	changed := l.Changed()
	if _, err := l.Exec(ctx, &skepv1.ExecRequest{TaskId: id, Args: []string{"touch", "/over"}}, containers.ExecIO{Stdout: &out, Stderr: &errs}); err != nil {
		t.Fatal(err)
	}
	<-changed
	if last, err := <-lines, <-read; last != "three\n" || err != nil {
		t.Errorf("%q %v", last, err)
	}
	if _, err := l.Exec(ctx, &skepv1.ExecRequest{TaskId: id, Args: []string{"true"}}, containers.ExecIO{}); !fault.Is(err, fault.CodeConflict) {
		t.Error(err)
	}
	if c, ok := l.Container(id); !ok || c.Status.GetState() != complete {
		t.Error("an ended task is kept and not told of", c)
	}
	n.halt()
	if n.svc.Local() != nil {
		t.Error("an agent that has ended is to be asked")
	}
}

func awaitLocal(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not yet: ", what)
		}
	}
}
