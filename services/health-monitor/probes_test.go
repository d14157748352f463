package health

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/kv"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/subject"
)

const (
	starting  = skepv1.HealthState_HEALTH_STATE_STARTING
	healthy   = skepv1.HealthState_HEALTH_STATE_HEALTHY
	unhealthy = skepv1.HealthState_HEALTH_STATE_UNHEALTHY
)

// ward is a node whose tasks have probes, and what is told of them.
type ward struct {
	*field
	status *kv.Bucket

	mu   sync.Mutex
	told []*skepv1.Event
}

func newWard(t *testing.T) *ward {
	w := &ward{field: newField(t)}
	w.status = kv.Open(w.js, subject.Status)
	sub, err := w.nc.Subscribe(subject.Event("task", "*", "*"), func(m *nats.Msg) {
		e := &skepv1.Event{}
		if err := protojson.Unmarshal(m.Data, e); err != nil {
			t.Error(err)
		}
		w.mu.Lock()
		w.told = append(w.told, e)
		w.mu.Unlock()
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sub.Unsubscribe() })
	w.put("service.s1", &skepv1.Service{Meta: &skepv1.Meta{Id: "s1"}, Spec: &skepv1.ServiceSpec{Name: "web"}})
	w.store(subject.NodeB, "desc.n1", &skepv1.NodeDescription{Hostname: "w1"})
	w.store(subject.Task, "n1", &skepv1.NodeTasks{Tasks: []*skepv1.TaskRecord{{Id: "t1", ServiceId: "s1", Slot: 3}, {Id: "t2", ServiceId: "s1"}, {Id: "t3", ServiceId: "s1"}}})
	return w
}

func (w *ward) store(b subject.Bucket, key string, m proto.Message) {
	w.t.Helper()
	val, err := proto.Marshal(m)
	if err == nil {
		_, err = kv.Open(w.js, b).Put(context.Background(), key, val)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

func task(id string, h skepv1.HealthState, notReady bool, out string) *skepv1.TaskStatus {
	return &skepv1.TaskStatus{TaskId: id, State: skepv1.TaskState_TASK_STATE_RUNNING, Health: h, NotReady: notReady, HealthOutput: out}
}

func (w *ward) report(ts ...*skepv1.TaskStatus) {
	w.t.Helper()
	w.store(subject.Status, "n1", &skepv1.NodeStatus{NodeId: "n1", Tasks: ts})
}

// verbs are what was told of a task so far.
func (w *ward) verbs(task string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for _, e := range w.told {
		if e.Id == task {
			out = append(out, e.Verb)
		}
	}
	return strings.Join(out, " ")
}

func (w *ward) awaitVerbs(task, want string) {
	w.t.Helper()
	w.until(fmt.Sprintf("events of %s: %s", task, want), func() bool { return w.verbs(task) == want })
}

func TestHealthOfTasksIsTold(t *testing.T) {
	w := newWard(t)
	w.report(task("t2", unhealthy, false, "before anybody looked"))
	w.start("m1", w.n.Conn(t))
	w.until("it leads", func() bool { // t3 is told of once somebody leads
		w.report(task("t2", unhealthy, false, ""), task("t3", healthy, false, ""))
		return w.verbs("t3") == "healthy"
	})
	told := ""
	for _, c := range []struct {
		is    *skepv1.TaskStatus
		verbs string
	}{
		{task("t1", healthy, true, ""), "healthy"}, // seen for the first time: that it is not ready yet is no news
		{task("t1", healthy, false, ""), "ready"},
		{task("t1", healthy, false, "said again"), ""},
		{task("t1", unhealthy, false, strings.Repeat("x", 2000)+"\nconnection refused\n"), "unhealthy"},
		{task("t1", unhealthy, true, "gone"), "not-ready"},
		{task("t1", starting, true, ""), ""}, // its agent began anew
		{task("t1", healthy, false, "ok"), "healthy ready"},
	} {
		w.report(c.is) // one at a time: of a key written twice a feed may see the newer value alone
		if told = strings.TrimSpace(told + " " + c.verbs); c.verbs != "" {
			w.awaitVerbs("t1", told)
		}
	}
	// A node has no word on another node's tasks.
	w.store(subject.Task, "n2", &skepv1.NodeTasks{Tasks: []*skepv1.TaskRecord{{Id: "theirs", ServiceId: "s1"}}})
	w.report(task("t1", healthy, false, "ok"), task("theirs", unhealthy, false, "a lie"), task("nobodys", unhealthy, false, "a lie"))
	w.report(task("t1", unhealthy, false, "no:\nconnection refused"))
	told += " unhealthy"
	w.awaitVerbs("t1", told)
	if got := w.verbs("theirs") + w.verbs("nobodys"); got != "" {
		t.Errorf("of others' tasks it was told: %s", got)
	}
	if w.verbs("t2") != "" {
		t.Errorf("what was so before is no news: %s", w.verbs("t2"))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range w.told {
		if e.Id != "t1" || e.Verb != "unhealthy" {
			continue
		}
		if len(e.Message) > maxMessage || !strings.HasSuffix(e.Message, "\nconnection refused") {
			t.Errorf("message %q", e.Message)
		}
		got := fmt.Sprint(e.Name, e.Attributes)
		if want := fmt.Sprint("web.3", map[string]string{"node": "w1", "node.id": "n1", "service": "web", "service.id": "s1", "health.old": "healthy", "health.new": "unhealthy"}); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// One tells; the one after it tells what the first may not have told, and the stream keeps each change once.
func TestOneTellsAndNothingIsLost(t *testing.T) {
	w := newWard(t)
	w.report(task("t1", healthy, false, ""))
	nc1 := w.n.Conn(t)
	w.start("m1", nc1)
	w.start("m2", w.n.Conn(t))
	w.until("one leads", func() bool {
		w.report(task("t1", healthy, false, ""), task("t3", healthy, false, ""))
		return w.verbs("t3") == "healthy"
	})
	w.report(task("t1", unhealthy, false, "no"))
	w.awaitVerbs("t1", "unhealthy")
	nc1.Close() // as a crash
	w.report(task("t1", healthy, false, ""))
	w.until("the standby tells what the leader did not", func() bool {
		return strings.HasSuffix(w.verbs("t1"), "healthy") && !strings.HasSuffix(w.verbs("t1"), "unhealthy")
	})
	w.report(task("t1", unhealthy, false, "no"))
	w.until("it goes on", func() bool { return strings.HasSuffix(w.verbs("t1"), "unhealthy") })
	stream, err := w.js.Stream(context.Background(), subject.NodeEventStream)
	if err != nil {
		t.Fatal(err)
	}
	w.until("the stream has all", func() bool {
		info, err := stream.Info(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		var of []string
		for seq := info.State.FirstSeq; seq <= info.State.LastSeq; seq++ {
			m, err := stream.GetMsg(context.Background(), seq)
			if err != nil {
				t.Fatal(err)
			}
			var e skepv1.Event
			if err := protojson.Unmarshal(m.Data, &e); err != nil {
				t.Fatal(err)
			}
			if e.Id == "t1" {
				of = append(of, e.Verb)
			}
		}
		if len(of) > 3 {
			t.Fatalf("%d events of the task in the stream: %v", len(of), of)
		}
		return len(of) == 3
	})
}

func TestManyTurnsShareAnEvent(t *testing.T) {
	p := newProbes(&Service{js: kvtest.Server(t).JS(t)})
	put := func(rev uint64, st *skepv1.NodeStatus) {
		raw, err := proto.Marshal(st)
		if err == nil {
			err = p.report("n1", raw, rev, false)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	report := func(rev uint64, h skepv1.HealthState) {
		st := &skepv1.NodeStatus{}
		for i := range 100 {
			st.Tasks = append(st.Tasks, task(fmt.Sprint("t", i), h, false, ""))
		}
		put(rev, st)
	}
	report(1, starting)
	report(2, unhealthy)
	if n := len(p.turns); n != eventsPerReport+1 || p.turns[n-1].tasks != 100-eventsPerReport {
		t.Fatalf("%d events, the last for %d tasks", n, p.turns[n-1].tasks)
	}
	report(3, unhealthy)
	if n := len(p.turns); n != eventsPerReport+1 {
		t.Fatalf("%d", n)
	}
	p.forget(time.Now().Add(2 * remembered))
	if len(p.turns) != 0 || len(p.known["n1"]) != 100 {
		t.Fatal(len(p.turns), len(p.known["n1"]))
	}
	put(4, &skepv1.NodeStatus{})
	if len(p.known) != 0 {
		t.Fatal("tasks that are gone are kept")
	}
}
