package engine

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/event"
	"skep.dev/libs/member"
	skepv1 "skep.dev/proto/skep/v1"
)

func TestContainerLogs(t *testing.T) {
	r, n := newNodeRig(t, member.RoleWorker)
	n.lines[taskID] = []string{"one\n", "err two\n", "par", "ted\n"}
	code, body := r.do("GET", "/v1.51/containers/"+taskID[:12]+"/logs?stdout=1&stderr=1", "")
	if want := "\x01\x00\x00\x00\x00\x00\x00\x04one\n\x02\x00\x00\x00\x00\x00\x00\x08err two\n\x01\x00\x00\x00\x00\x00\x00\x07parted"; code != 200 || body != want {
		t.Errorf("%d %q", code, body)
	}
	if _, body := r.do("GET", "/containers/"+webName+"/logs?stdout=1&stderr=1&tail=2&timestamps=1", ""); !strings.Contains(body, "2001-09-09T01:46:40.000000003Z parted") {
		t.Errorf("%q", body)
	}
	r.refused(400, "you must choose at least one stream", "GET", "/containers/"+taskID+"/logs", "")
	r.refused(404, "No such container: x", "GET", "/containers/x/logs?stdout=1", "")
	r.refused(400, "invalid time", "GET", "/containers/"+taskID+"/logs?stdout=1&since=yesterday", "")

	// A container with a terminal writes as it is.
	for i := range n.tasks {
		n.tasks[i].Revision.Spec.Task.Container.Tty = true
	}
	resp, err := r.http.Get("http://docker/containers/" + taskID + "/logs?stdout=1&stderr=1&tail=1")
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if string(b) != "parted\n" && string(b) != "ted\n" || resp.Header.Get("Content-Type") != "application/vnd.docker.raw-stream" {
		t.Errorf("%q %v", b, resp.Header)
	}
}

// Twenty follow one log, one of whom never reads: the others get every line, and none is left when they have gone.
func TestStuckFollower(t *testing.T) {
	r, n := newNodeRig(t, member.RoleWorker)
	path := "/containers/" + taskID + "/logs?stdout=1&stderr=1&follow=1"
	_, _, leave := r.open(path) // never read
	defer leave()
	var readers []*bufio.Reader
	for range 19 {
		in, resp, end := r.open(path)
		defer end()
		if resp.StatusCode != http.StatusOK {
			t.Fatal(resp.Status)
		}
		readers = append(readers, in)
	}
	r.await("all of them read", func() bool { return n.readers() == 20 })
	long := strings.Repeat("x", 1000)
	for i := range 2000 { // more than any buffer on the way holds
		n.write(taskID, fmt.Sprintf("%d %s\n", i, long))
	}
	for _, in := range readers {
		for i := range 2000 {
			if got := frame(t, in); !strings.HasPrefix(got, fmt.Sprintf("1 %d %s", i, long)) {
				t.Fatalf("line %d: %.40q", i, got)
			}
		}
	}
	leave()
	r.await("the stuck one is gone", func() bool { return n.readers() == 19 })
	n.end(taskID)
	for _, in := range readers {
		if rest, err := io.ReadAll(in); err != nil || len(rest) != 0 {
			t.Fatalf("%q %v", rest, err)
		}
	}
	r.await("none is left", func() bool { return n.readers() == 0 })
}

type told struct {
	Type, Action, Scope, Status, ID, From string
	Actor                                 struct {
		ID         string
		Attributes map[string]string
	}
	TimeNano int64
}

func nextEvent(t *testing.T, in *bufio.Reader) (e told) {
	t.Helper()
	line, err := in.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &e)
	}
	if err != nil {
		t.Fatalf("%s %v", line, err)
	}
	return e
}

// What collectors of logs wait for: a start when a container runs, with the fields of old clients, and its end with the exit code.
func TestContainerEvents(t *testing.T) {
	r, n := newNodeRig(t, member.RoleWorker)
	in, resp, end := r.open("/events")
	if resp.StatusCode != 200 {
		t.Fatal(resp.Status)
	}
	old, _, leave := r.open("/v1.40/events?filters=%7B%22type%22%3A%5B%22container%22%5D%2C%22event%22%3A%5B%22start%22%5D%7D")
	const id = "task9task9task9task9task99"
	n.add(id, "db", 1, nil)
	n.change(id, running(0))
	n.change(id, func(st *skepv1.TaskStatus) { st.Health = skepv1.HealthState_HEALTH_STATE_UNHEALTHY })
	n.change(id, func(st *skepv1.TaskStatus) {
		st.State, st.SinceUnixMs = skepv1.TaskState_TASK_STATE_FAILED, time.Now().UnixMilli()
		code := int32(3)
		st.ExitCode = &code
	})
	var got []string
	for len(got) == 0 || got[len(got)-1] != "destroy" {
		e := nextEvent(t, in)
		if e.Action == "die" {
			n.remove(id)
		}
		got = append(got, e.Action)
		if e.Type != "container" || e.Scope != "local" || e.Actor.ID != id || e.Actor.Attributes["name"] != "db.1."+id || e.Status != "" {
			t.Errorf("%+v", e)
		}
		if e.Action == "die" && e.Actor.Attributes["exitCode"] != "3" {
			t.Errorf("%+v", e)
		}
	}
	// Whoever looks seldom is told of the start and the end all the same; verdicts between two looks are not kept.
	if all := strings.Join(got, " "); strings.Replace(all, "health_status: unhealthy ", "", 1) != "create start die destroy" {
		t.Error(all)
	}
	if e := nextEvent(t, old); e.Status != "start" || e.ID != id || !strings.HasPrefix(e.From, "reg.lan/web:2") {
		t.Errorf("%+v", e)
	}
	end()
	leave()
	r.await("nobody looks any more", func() bool {
		r.s.onNode.mu.Lock()
		defer r.s.onNode.mu.Unlock()
		return len(r.s.onNode.subs) == 0
	})
	// What happened is told to who comes later, and ends where it was asked to.
	_, body := r.do("GET", fmt.Sprintf("/events?since=1&until=%d", time.Now().Add(-time.Second).Unix()), "")
	if strings.Count(body, `"Action":"start"`) != 2 || strings.Count(body, `"Action":"die"`) != 1 {
		t.Error(body)
	}
}

// On a manager both are told, each once.
func TestEventsOfNodeAndCluster(t *testing.T) {
	n := newPaperNode()
	r := newRigOn(t, n)
	in, _, end := r.open("/events")
	defer end()
	tell := func(e *skepv1.Event) {
		t.Helper()
		e.Time = timestamppb.Now()
		if err := event.Publish(r.nc, e); err != nil {
			t.Fatal(err)
		}
	}
	tell(&skepv1.Event{Kind: "service", Id: webID, Name: "web", Verb: "create"})
	if e := nextEvent(t, in); e.Type != "service" || e.Action != "create" {
		t.Errorf("%+v", e)
	}
	// Nobody but the node itself tells of its containers.
	forged, err := protojson.Marshal(&skepv1.Event{Kind: "container", Id: "forged", Name: "x", Verb: "start", Time: timestamppb.Now()})
	if err == nil {
		err = r.nc.Publish("skep.v1.event.container.forged", forged)
	}
	if err == nil {
		err = r.nc.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	n.add("task9task9task9task9task99", "db", 1, running(0))
	for _, want := range []string{"create", "start"} {
		if e := nextEvent(t, in); e.Type != "container" || e.Action != want || !strings.HasPrefix(e.Actor.ID, "task9") {
			t.Errorf("%+v", e)
		}
	}
}
