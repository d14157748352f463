package state

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// changesOfPeople are the verbs of a service with which people change something.
func changesOfPeople(service string) (out []*api.Verb) {
	for _, v := range api.All() {
		if v.Service == service && v.Effect == api.Writes && (v.Callers == api.Operators || v.Callers == api.Admins) {
			out = append(out, v)
		}
	}
	return out
}

// TestEveryChangeNamesItsAuthor: each verb that changes something leaves an event with who asked and from where, and the audit
// has them in order. A verb that is new needs a line here.
func TestEveryChangeNamesItsAuthor(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	n := r.admit("w1", worker).Meta.Id
	job := must[*skepv1.ServiceReply](t)(r.create(jobSpec("job", 1, ""))).Service
	done := record(job, 1, complete)
	done.JobIteration = 1
	r.putTasks(n, done)
	must[*skepv1.StatusReply](t)(r.report(n, &skepv1.NodeStatus{Session: "s", Report: 1, Tasks: []*skepv1.TaskStatus{{TaskId: done.Id, State: complete}}}))
	r.admit("gone", worker)

	web := &skepv1.Service{}
	steps := []struct {
		verb *api.Verb
		do   func(nc *nats.Conn) error
	}{
		{api.NetworkCreate.Verb, func(nc *nats.Conn) error {
			_, err := api.Call(r.ctx(), nc, api.NetworkCreate, &skepv1.CreateNetworkRequest{Spec: &skepv1.NetworkSpec{Name: "front", Driver: "overlay"}})
			return err
		}},
		{api.NetworkRemove.Verb, func(nc *nats.Conn) error {
			_, err := api.Call(r.ctx(), nc, api.NetworkRemove, &skepv1.Ref{Ref: "front"})
			return err
		}},
		{api.ServiceCreate.Verb, func(nc *nats.Conn) error {
			reply, err := api.Call(r.ctx(), nc, api.ServiceCreate, &skepv1.CreateServiceRequest{Spec: webSpec("web", 3), NoResolveImage: true})
			web = reply.GetService()
			return err
		}},
		{api.ServiceScale.Verb, func(nc *nats.Conn) error {
			_, err := api.Call(r.ctx(), nc, api.ServiceScale, &skepv1.ScaleServiceRequest{Ref: "web", Replicas: 4})
			return err
		}},
		{api.ServiceUpdate.Verb, func(nc *nats.Conn) error {
			s := webSpec("web", 4)
			s.Task.Container.Image = "httpd:2"
			_, err := api.Call(r.ctx(), nc, api.ServiceUpdate, &skepv1.UpdateServiceRequest{Ref: "web", Spec: s, NoResolveImage: true})
			return err
		}},
		{api.ServiceRollout.Verb, func(nc *nats.Conn) error {
			r.putRollout(web.Meta.Id, &skepv1.Rollout{Revision: 2, Stable: 1, Status: &skepv1.UpdateStatus{State: "updating"}})
			_, err := api.Call(r.ctx(), nc, api.ServiceRollout, &skepv1.RolloutRequest{Ref: "web", Action: skepv1.RolloutRequest_ACTION_PAUSE})
			return err
		}},
		{api.ServiceRun.Verb, func(nc *nats.Conn) error {
			_, err := api.Call(r.ctx(), nc, api.ServiceRun, &skepv1.RunServiceRequest{Ref: "job"})
			return err
		}},
		{api.ServiceRemove.Verb, func(nc *nats.Conn) error {
			_, err := api.Call(r.ctx(), nc, api.ServiceRemove, &skepv1.RemoveServiceRequest{Ref: "web"})
			return err
		}},
		{api.StackDeploy.Verb, func(nc *nats.Conn) error {
			_, err := api.Call(r.ctx(), nc, api.StackDeploy, &skepv1.DeployStackRequest{Spec: &skepv1.StackSpec{Name: "s"}})
			return err
		}},
		{api.StackRollback.Verb, func(nc *nats.Conn) error {
			if _, err := r.deploy(&skepv1.StackSpec{Name: "s", Volumes: []*skepv1.StackVolume{{Name: "s_v"}}}, 1); err != nil {
				return err
			}
			_, err := api.Call(r.ctx(), nc, api.StackRollback, &skepv1.RollbackStackRequest{Ref: "s"})
			return err
		}},
		{api.StackRemove.Verb, func(nc *nats.Conn) error {
			_, err := api.Call(r.ctx(), nc, api.StackRemove, &skepv1.RemoveStackRequest{Ref: "s"})
			return err
		}},
		{api.NodeUpdate.Verb, func(nc *nats.Conn) error {
			_, err := api.Call(r.ctx(), nc, api.NodeUpdate, &skepv1.UpdateNodeRequest{Ref: "w1", LabelAdd: map[string]string{"a": "b"}})
			return err
		}},
		{api.NodeFence.Verb, func(nc *nats.Conn) error {
			_, err := api.Call(r.ctx(), nc, api.NodeFence, &skepv1.FenceNodeRequest{Ref: "w1"})
			return err
		}},
		{api.NodeRemove.Verb, func(nc *nats.Conn) error {
			_, err := api.Call(r.ctx(), nc, api.NodeRemove, &skepv1.RemoveNodeRequest{Ref: "gone", Force: true})
			return err
		}},
		{api.ClusterUpdate.Verb, func(nc *nats.Conn) error {
			_, err := api.Call(r.ctx(), nc, api.ClusterUpdate, &skepv1.UpdateClusterRequest{Spec: &skepv1.ClusterSpec{TaskHistoryLimit: 3}})
			return err
		}},
	}
	for _, v := range changesOfPeople("state") {
		if !slices.ContainsFunc(steps, func(s struct {
			verb *api.Verb
			do   func(nc *nats.Conn) error
		}) bool {
			return s.verb == v
		}) {
			t.Errorf("%s has no line here: nobody knows whether its event names who asked", v.Subject)
		}
	}
	ada, vic := r.n.As(t, subject.Person("ada")), r.n.As(t, subject.Person("vic"))
	audit := func(q *skepv1.ListAuditRequest) []*skepv1.Event {
		t.Helper()
		var out []*skepv1.Event
		for {
			l := must[*skepv1.ListEventsReply](t)(call(r, api.AuditList, q))
			out = append(out, l.Events...)
			if l.Next == "" {
				return out
			}
			q.Page = &skepv1.Page{After: l.Next, Size: 3}
		}
	}
	for i, s := range steps {
		if err := s.do(ada); err != nil {
			t.Fatalf("%s: %v", s.verb.Subject, err)
		}
		await(t, "an event of "+s.verb.Subject, func() bool { return len(audit(&skepv1.ListAuditRequest{User: "ada"})) == i+1 })
	}
	for _, e := range audit(&skepv1.ListAuditRequest{User: "user-ada", Page: &skepv1.Page{Size: 2}}) {
		if e.Actor != "user-ada" || e.Address == "" {
			t.Errorf("%s %s names %q from %q", e.Kind, e.Verb, e.Actor, e.Address)
		}
	}

	// Others' changes and those of the managers are told apart; the filters are held.
	if _, err := api.Call(r.ctx(), vic, api.ServiceCreate, &skepv1.CreateServiceRequest{Spec: webSpec("vics", 1), NoResolveImage: true}); err != nil {
		t.Fatal(err)
	}
	await(t, "vic's event", func() bool { return len(audit(&skepv1.ListAuditRequest{User: "vic"})) == 1 })
	if got := audit(&skepv1.ListAuditRequest{User: "vic", Kind: "network"}); len(got) != 0 {
		t.Errorf("networks of vic: %v", got)
	}
	if got := audit(&skepv1.ListAuditRequest{User: "ada", Kind: "network"}); len(got) != 2 {
		t.Errorf("networks of ada: %v", got)
	}
	if got := audit(&skepv1.ListAuditRequest{Since: timestamppb.New(time.Now().Add(time.Hour))}); len(got) != 0 {
		t.Errorf("from the future: %v", got)
	}
	for _, e := range audit(&skepv1.ListAuditRequest{}) {
		if e.Actor != "root" && !subject.IsPerson(e.Actor) {
			t.Errorf("the audit has what %q did", e.Actor)
		}
	}
	if _, err := call(r, api.AuditList, &skepv1.ListAuditRequest{Kind: "a.b"}); !fault.Is(err, fault.CodeUsage) {
		t.Errorf("a kind with a dot: %v", err)
	}

	// The revision has both, and a viewer is not told the address.
	revs := must[*skepv1.ListRevisionsReply](t)(call(r, api.ServiceRevisions, &skepv1.ListRevisionsRequest{Ref: "vics"})).Revisions
	if len(revs) != 1 || revs[0].Author != "user-vic" || revs[0].AuthorAddress == "" {
		t.Errorf("revisions %v", revs)
	}
}

// TestANodeTellsWhoAskedIt: what a person did on a node is in the audit, as far as the node's word goes.
func TestANodeTellsWhoAskedIt(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	n, other := r.admit("w1", worker).Meta.Id, r.admit("w2", worker).Meta.Id
	web := r.mustCreate("web", 2)
	mine, theirs := record(web, 1, running), record(web, 2, running)
	r.putTasks(n, mine)
	r.putTasks(other, theirs)
	good := &skepv1.ToldRequest{Verb: "exec", Actor: "user-ada", Address: "192.0.2.7", TaskId: mine.Id, Subject: "sh"}
	must[*skepv1.Empty](t)(call(r, api.StateTold.At(n), good))
	must[*skepv1.Empty](t)(call(r, api.StateTold.At(n), &skepv1.ToldRequest{Verb: "image-remove", Actor: "root", Address: "local", Subject: "httpd"}))
	must[*skepv1.Empty](t)(call(r, api.StateTold.At(n), &skepv1.ToldRequest{Verb: "upgrade-undone", Actor: "user-ada", Address: "192.0.2.7", Subject: "0.2.0: it does not start"}))
	var got []*skepv1.Event
	await(t, "both events", func() bool {
		got = must[*skepv1.ListEventsReply](t)(call(r, api.AuditList, &skepv1.ListAuditRequest{})).Events
		return slices.ContainsFunc(got, func(e *skepv1.Event) bool {
			return e.Kind == "task" && e.Verb == "exec" && e.Actor == "user-ada" && e.Address == "192.0.2.7" && e.Id == mine.Id && e.Name == "web.1" && e.Attributes["node"] == "w1"
		}) && slices.ContainsFunc(got, func(e *skepv1.Event) bool {
			return e.Kind == "node" && e.Verb == "image-remove" && e.Actor == "root" && e.Address == "local" && e.Id == n
		}) && slices.ContainsFunc(got, func(e *skepv1.Event) bool {
			return e.Kind == "node" && e.Verb == "upgrade-undone" && e.Actor == "user-ada" && e.Id == n && e.Attributes["version"] == "0.2.0: it does not start"
		})
	})
	// Tasks that come and go do not hide who was at them; a node that tells without end is not heard without end.
	for r.s.events.nodes.Allow(n, time.Now()) {
	}
	must[*skepv1.Empty](t)(call(r, api.StateTold.At(n), good))
	for name, bad := range map[string]*skepv1.ToldRequest{
		"another node's task": {Verb: "exec", Actor: "user-ada", Address: "local", TaskId: theirs.Id},
		"no person":           {Verb: "exec", Actor: "scheduler", Address: "local", TaskId: mine.Id},
		"nobody":              {Verb: "exec", Address: "local", TaskId: mine.Id},
		"a long name":         {Verb: "exec", Actor: "user-" + strings.Repeat("x", 100), Address: "local", TaskId: mine.Id},
		"a terminal's title":  {Verb: "exec", Actor: "user-\x1b]0;x", Address: "local", TaskId: mine.Id},
		"no address":          {Verb: "exec", Actor: "user-ada", Address: "home", TaskId: mine.Id},
		"no such verb":        {Verb: "remove", Actor: "user-ada", Address: "local", TaskId: mine.Id},
	} {
		if _, err := call(r, api.StateTold.At(n), bad); err == nil {
			t.Errorf("%s is noted", name)
		}
	}
	for i := 0; ; i++ {
		_, err := call(r, api.StateTold.At(n), good)
		if fault.Is(err, fault.CodeExhausted) {
			break
		}
		if err != nil || i > 10*toldAtOnce {
			t.Fatalf("a flood, request %d: %v", i, err)
		}
	}
}
