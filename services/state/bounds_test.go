package state

import (
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/limit"
	skepv1 "skep.dev/proto/skep/v1"
)

func TestDescriptionsNoMachineHas(t *testing.T) {
	labels := map[string]string{}
	for i := range maxLabels + 1 {
		labels[fmt.Sprint(i)] = "x"
	}
	var routes []string
	for i := range maxRoutes + 1 {
		routes = append(routes, fmt.Sprintf("10.%d.0.0/16", i))
	}
	for want, d := range map[string]*skepv1.NodeDescription{
		"129 routes":             {Routes: routes},
		"10.0.0.1/8\" is no":     {Routes: []string{"10.0.0.1/8"}},
		"route \"x\" is no":      {Routes: []string{"10.0.0.0/8", "x"}},
		"010.0.0.0/8\" is no":    {Routes: []string{"010.0.0.0/8"}},
		"":                       {Hostname: "w1.example.com", Addr: "10.0.0.1", DataPathAddr: "fd00::1", Resources: &skepv1.Resources{NanoCpus: 512e9, MemoryBytes: 32 << 40}},
		"bytes of memory":        {Resources: &skepv1.Resources{MemoryBytes: 91 << 40}},
		"claims -1 bytes":        {Resources: &skepv1.Resources{MemoryBytes: -1}},
		"nano CPUs":              {Resources: &skepv1.Resources{NanoCpus: 1 << 60}},
		"host name":              {Hostname: "w1\x1b[2J"},
		"at most 253":            {Hostname: strings.Repeat("a", 254)},
		"no IP address":          {Addr: "m1.example.com"},
		"labels":                 {EngineLabels: labels},
		"label":                  {EngineLabels: map[string]string{"k": "a\nb"}},
		"printable":              {EngineVersion: strings.Repeat("v", 300)},
		"description is 70":      {Hostname: strings.Repeat("a", 70_000)},
		`"\x1b" of itself`:       {Plugins: []*skepv1.Plugin{{Type: "Volume", Name: "\x1b"}}},
		"address \"10.0.0.256\"": {DataPathAddr: "10.0.0.256"},
	} {
		if err := checkDescription(d); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", want, err)
		}
	}
}

func TestReportsNoAgentMakes(t *testing.T) {
	long := &skepv1.TaskStatus{TaskId: "a", Message: strings.Repeat("é", maxText), Err: strings.Repeat("e", 1<<19), HealthOutput: strings.Repeat("o", 1<<18)}
	if err := boundStatus(&skepv1.NodeStatus{Tasks: []*skepv1.TaskStatus{long}}); err != nil {
		t.Fatal(err)
	}
	if len(long.Message) > maxText || len(long.Err) != maxText || len(long.HealthOutput) != maxOutput || !utf8.ValidString(long.Message) {
		t.Errorf("texts of %d, %d and %d bytes are left", len(long.Message), len(long.Err), len(long.HealthOutput))
	}
	for want, tasks := range map[string][]*skepv1.TaskStatus{
		"no task's id":               {{TaskId: "a.b"}},
		`names a task ""`:            {{}},
		"twice":                      {{TaskId: "a"}, {TaskId: "a"}},
		"state 99":                   {{TaskId: "a", State: 99}},
		"9 bind mounts that changed": {{TaskId: "a", StaleBinds: make([]string, 9)}},
		"501 secrets":                {{TaskId: "a", Files: make([]*skepv1.HeldFile, 501)}},
		"ids that are":               {{TaskId: "a", Files: []*skepv1.HeldFile{{Id: strings.Repeat("x", 65)}}}},
		"at most 10000":              make([]*skepv1.TaskStatus, maxTasksOfNode+1),
	} {
		if err := boundStatus(&skepv1.NodeStatus{Tasks: tasks}); !fault.Is(err, fault.CodeInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", want, err)
		}
	}
}

func TestHeldVolumesNoAgentTells(t *testing.T) {
	fine := &skepv1.HeldVolume{Driver: "rexray", Name: "web", TaskIds: []string{"a"}, Err: strings.Repeat("e", 1<<19)}
	if err := boundStatus(&skepv1.NodeStatus{Volumes: []*skepv1.HeldVolume{fine}}); err != nil || len(fine.Err) != maxText {
		t.Errorf("%d bytes of error, %v", len(fine.Err), err)
	}
	for want, volumes := range map[string][]*skepv1.HeldVolume{
		`volume "" of`:      {{Driver: "rexray"}},
		`of plug-in ""`:     {{Name: "web"}},
		"not printable":     {{Driver: "rexray", Name: "a\x1b"}},
		"ids that are none": {{Driver: "rexray", Name: "web", TaskIds: []string{strings.Repeat("x", 65)}}},
		"at most 10000":     make([]*skepv1.HeldVolume, maxVolumes+1),
	} {
		if err := boundStatus(&skepv1.NodeStatus{Volumes: volumes}); !fault.Is(err, fault.CodeInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", want, err)
		}
	}
}

// A node invents tasks and speaks of another node's: no event tells of them, and those of its own task stay.
func TestEventsOnlyOfTheNodesOwnTasks(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	liar, other := r.admit("w1", worker).Meta.Id, r.admit("w2", worker).Meta.Id
	web := r.mustCreate("web", 2)
	mine, theirs := record(web, 1, running), record(web, 2, running)
	r.putTasks(liar, mine)
	r.putTasks(other, theirs)
	st := &skepv1.NodeStatus{Session: "s", Report: 1, Tasks: []*skepv1.TaskStatus{{TaskId: theirs.Id, State: failed}}}
	for i := range 5000 {
		st.Tasks = append(st.Tasks, &skepv1.TaskStatus{TaskId: fmt.Sprint("invented", i), State: failed})
	}
	st.Tasks = append(st.Tasks, &skepv1.TaskStatus{TaskId: mine.Id, State: running})
	must[*skepv1.StatusReply](t)(r.report(liar, st))
	tasks := func() []*skepv1.Event {
		return must[*skepv1.ListEventsReply](t)(call(r, api.EventList,
			&skepv1.ListEventsRequest{Filters: []*skepv1.Filter{{Key: "kind", Values: []string{"task"}}}})).Events
	}
	await(t, "the event of its own task", func() bool { return len(tasks()) > 0 })
	if e := tasks(); len(e) != 1 || e[0].Id != mine.Id || e[0].Verb != "running" {
		t.Fatalf("events %v", e)
	}
}

// A node whose tasks flap without end has its share of events and no more.
func TestEventsOfOneNodeAreLimited(t *testing.T) {
	l := limit.New(nodeEventsPerSec, nodeEventsAtOnce)
	now := time.Unix(1000, 0)
	n := 0
	for range 100_000 {
		if l.Allow("liar", now) {
			n++
		}
	}
	if n != nodeEventsAtOnce || !l.Allow("good", now) {
		t.Fatalf("%d events of a flood are told, want %d, and all of the other node's", n, nodeEventsAtOnce)
	}
}

// A node cannot take the name of another: not when it joins, and not when it describes itself.
func TestNamesAreNotTaken(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	w1, w2 := r.admit("w1", worker).Meta.Id, r.admit("w2", worker).Meta.Id
	_, err := call(r, api.NodeAdmit, &skepv1.AdmitNodeRequest{NodeId: strings.Repeat("x", len(w1)), Hostname: "W1", Role: worker})
	if !fault.Is(err, fault.CodeConflict) || !strings.HasPrefix(err.Error(), "node "+w1+" is called W1 already") {
		t.Fatalf("joined under a taken name: %v", err)
	}
	describe := func(id, name string) string {
		t.Helper()
		must[*skepv1.DescribeReply](t)(call(r, api.StateDescribe.At(id), &skepv1.DescribeRequest{Description: &skepv1.NodeDescription{Hostname: name}}))
		return r.s.ix.Hostname(id)
	}
	if got := describe(w2, "w1"); got != "w2" {
		t.Fatalf("w2 is shown as %q", got)
	}
	await(t, "the event", func() bool {
		for _, e := range must[*skepv1.ListEventsReply](t)(call(r, api.EventList, &skepv1.ListEventsRequest{})).Events {
			if e.Id == w2 && e.Attributes["name.taken"] == "w1" {
				return true
			}
		}
		return false
	})
	if got := describe(w2, "w3"); got != "w3" {
		t.Fatalf("a free name is not given: %q", got)
	}
	r.putLive(w1, skepv1.NodeState_NODE_STATE_DOWN)
	if got := describe(w2, "w1"); got != "w1" {
		t.Fatalf("the name of a node that is down is not free: %q", got)
	}
}

// A request that repeats one revision has it once.
func TestSpecsAnswersAKeyOnce(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	n := r.admit("w1", worker).Meta.Id
	web := r.mustCreate("web", 1)
	r.putTasks(n, record(web, 1, running))
	q := &skepv1.SpecsRequest{}
	for range 1000 {
		q.Keys = append(q.Keys, &skepv1.RevisionKey{ServiceId: web.Meta.Id, Revision: 1})
	}
	l := must[*skepv1.SpecsReply](t)(call(r, api.StateSpecs.At(n), q))
	if len(l.Revisions) != 1 {
		t.Fatalf("%d copies of a revision, want 1", len(l.Revisions))
	}
}

func FuzzNodeReport(f *testing.F) {
	for _, m := range []proto.Message{
		&skepv1.NodeStatus{Session: "s", Tasks: []*skepv1.TaskStatus{{TaskId: "a", State: running, Message: strings.Repeat("é", maxText)}}},
		&skepv1.NodeDescription{Hostname: "w1", Addr: "10.0.0.1", Resources: &skepv1.Resources{MemoryBytes: 91 << 40}},
	} {
		body, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var st skepv1.NodeStatus
		if proto.Unmarshal(body, &st) == nil && boundStatus(&st) == nil {
			for _, s := range st.Tasks {
				if len(s.Message) > maxText || !utf8.ValidString(s.Message) || s.TaskId == "" {
					t.Fatalf("task %q keeps a message of %d bytes", s.TaskId, len(s.Message))
				}
			}
			if _, err := proto.Marshal(&st); err != nil {
				t.Fatalf("a report that is taken cannot be stored: %v", err)
			}
		}
		var d skepv1.NodeDescription
		if proto.Unmarshal(body, &d) == nil && checkDescription(&d) == nil {
			if d.Resources.GetMemoryBytes() > maxMemory || strings.ContainsAny(d.Hostname, "\x1b\n ") {
				t.Fatalf("description %v is believed", &d)
			}
		}
	})
}
