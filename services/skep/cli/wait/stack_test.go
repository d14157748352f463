package wait

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/golden"
)

// fakeStack is a cluster with one stack, whose state a test sets before each look.
type fakeStack struct {
	fake
	stack    *skepv1.Stack
	services []*skepv1.Service
	stacked  int
	next     func(f *fakeStack, n int)
	gone     error
}

func (f *fakeStack) Stack(context.Context) (*skepv1.Stack, error) {
	f.stacked++
	if f.next != nil {
		f.next(f, f.stacked)
	}
	return proto.CloneOf(f.stack), f.gone
}

func (f *fakeStack) Services(context.Context) ([]*skepv1.Service, error) { return f.services, nil }

func (f *fakeStack) TasksOf(_ context.Context, ids []string) ([]*skepv1.Task, error) {
	var out []*skepv1.Task
	for _, t := range f.tasks {
		for _, id := range ids {
			if t.ServiceId == id {
				out = append(out, t)
			}
		}
	}
	return out, nil
}

// ofShop is a service of the stack shop, with the tasks that one look finds.
func (f *fakeStack) ofShop(name string, revision uint64, status *skepv1.UpdateStatus) {
	s := service(1)
	s.Meta.Id, s.Spec.Name, s.Revision, s.UpdateStatus = "id-"+name, "shop_"+name, revision, status
	for i, old := range f.services {
		if old.Meta.Id == s.Meta.Id {
			f.services[i] = s
			return
		}
	}
	f.services = append(f.services, s)
}

func (f *fakeStack) has(name string, revision uint64, state skepv1.TaskState, why string) {
	t := task(1, int(revision), revision, running, state, why)
	t.Meta.Id, t.ServiceId, t.Name = name+fmt.Sprint(revision), "id-"+name, "shop_"+name+".1"
	for i, old := range f.tasks {
		if old.ServiceId == t.ServiceId {
			f.tasks[i] = t
			return
		}
	}
	f.tasks = append(f.tasks, t)
}

// shop is a stack of three services: web needs api, and that needs db.
func shop(state skepv1.StackState) *skepv1.Stack {
	needs := func(name string) []*skepv1.Dependency { return []*skepv1.Dependency{{Service: name}} }
	return &skepv1.Stack{Meta: &skepv1.Meta{Id: "stack"}, Name: "shop", Revision: 2, State: state, Spec: &skepv1.StackSpec{Name: "shop", Services: []*skepv1.ServiceSpec{
		{Name: "shop_api", DependsOn: needs("shop_db")}, {Name: "shop_db"}, {Name: "shop_web", DependsOn: needs("shop_api")},
	}}}
}

func (f *fakeStack) deployed(t *testing.T, change func(*StackOptions)) (string, error) {
	t.Helper()
	var b bytes.Buffer
	o := StackOptions{Stack: shop(deploying), Changed: map[string]bool{"shop_api": true, "shop_db": true, "shop_web": true},
		Watch:   func(_, _ *skepv1.Service) time.Duration { return 30 * time.Millisecond },
		Options: Options{Out: &b, Now: time.Now, Timeout: 20 * time.Second}}
	if change != nil {
		change(&o)
	}
	err := Deployed(t.Context(), f, o)
	return b.String(), err
}

const (
	deploying = skepv1.StackState_STACK_STATE_DEPLOYING
	deployed  = skepv1.StackState_STACK_STATE_DEPLOYED
)

func TestStackIsDeployed(t *testing.T) {
	f := &fakeStack{stack: shop(deploying)}
	f.next = func(f *fakeStack, n int) {
		switch n {
		case 2:
			f.ofShop("db", 1, nil)
			f.has("db", 1, preparing, "")
		case 3:
			f.stack.State = deployed
			f.ofShop("api", 1, nil)
			f.ofShop("web", 1, nil)
			f.has("api", 1, pending, "waits for shop_db")
			f.has("web", 1, pending, "waits for shop_api")
		case 4:
			f.has("db", 1, running, "")
		case 6:
			f.has("api", 1, running, "")
			f.has("web", 1, running, "")
		}
	}
	out, err := f.deployed(t, nil)
	if err != nil {
		t.Fatal(err)
	}
	golden.Check(t, "stack", out)
}

// TestStackUnchanged: what is as it should be at the first look costs one look, and says nothing.
func TestStackUnchanged(t *testing.T) {
	f := &fakeStack{stack: shop(deployed)}
	for _, name := range []string{"api", "db", "web"} {
		// It was rolled back once, to what is asked for now.
		f.ofShop(name, 1, &skepv1.UpdateStatus{State: "rollback_completed", StartedAt: timestamppb.New(epoch)})
		f.has(name, 1, running, "")
	}
	out, err := f.deployed(t, func(o *StackOptions) { o.Changed = nil })
	if out != "" || err != nil || f.stacked != 1 {
		t.Errorf("%d looks: %q %v", f.stacked, out, err)
	}
}

// TestStackFails: the others are waited for, what failed and what waits for it are named.
func TestStackFails(t *testing.T) {
	rolled := &skepv1.UpdateStatus{State: "rollback_completed", Message: "task x failed", StartedAt: timestamppb.New(epoch)}
	f := &fakeStack{stack: shop(deployed)}
	f.ofShop("db", 1, nil)
	f.ofShop("api", 3, rolled)
	f.ofShop("web", 1, nil)
	f.has("api", 3, running, "")
	f.has("web", 1, pending, "waits for shop_api")
	f.has("db", 1, preparing, "")
	f.next = func(f *fakeStack, n int) {
		if n == 3 {
			f.has("db", 1, running, "")
		}
	}
	out, err := f.deployed(t, nil)
	var e *StackError
	if !errors.As(err, &e) || len(e.Failures) != 1 || !errors.Is(e.Failures[0].Err, ErrRolledBack) || e.Failures[0].Service.Spec.Name != "shop_api" || len(e.Blocked) != 1 || e.Blocked[0] != "shop_web" {
		t.Fatalf("%v %+v", err, e)
	}
	golden.Check(t, "stack_fails", out)
}

// TestStackNotBegun: while the cluster has not come to a service, what it was before is not taken for what was asked for.
func TestStackNotBegun(t *testing.T) {
	old := &skepv1.UpdateStatus{State: "paused", StartedAt: timestamppb.New(epoch)}
	f := &fakeStack{stack: shop(deploying)}
	was := map[string]*skepv1.Service{}
	for _, name := range []string{"api", "db", "web"} {
		f.ofShop(name, 1, old)
		f.has(name, 1, running, "")
		was["shop_"+name] = proto.CloneOf(f.services[len(f.services)-1])
	}
	f.next = func(f *fakeStack, n int) {
		if n == 4 {
			f.stack.State = deployed
			for _, name := range []string{"api", "db", "web"} {
				f.ofShop(name, 2, nil)
				f.has(name, 2, running, "")
			}
		}
	}
	if _, err := f.deployed(t, func(o *StackOptions) { o.Was = was }); err != nil || f.stacked < 4 {
		t.Errorf("%d looks: %v", f.stacked, err)
	}
}

// TestStackSchedule: a job with a schedule is done once it is there.
func TestStackSchedule(t *testing.T) {
	f := &fakeStack{stack: shop(deployed)}
	for _, name := range []string{"api", "db", "web"} {
		f.ofShop(name, 1, nil)
		f.services[len(f.services)-1].Spec.Schedule = &skepv1.Schedule{Cron: "@hourly"}
	}
	if _, err := f.deployed(t, nil); err != nil {
		t.Error(err)
	}
}

// TestStackOneShot: a task that was to end, and did, is no reason to wait for ever.
func TestStackOneShot(t *testing.T) {
	f := &fakeStack{stack: shop(deployed)}
	for _, name := range []string{"api", "db", "web"} {
		f.ofShop(name, 1, nil)
		f.has(name, 1, running, "")
	}
	f.services[0].Spec.Task.Restart.Condition = skepv1.RestartCondition_RESTART_CONDITION_ON_FAILURE
	f.has("api", 1, complete, "")
	if _, err := f.deployed(t, nil); err != nil {
		t.Error(err)
	}
}

func TestStackEnds(t *testing.T) {
	for name, x := range map[string]struct {
		change func(f *fakeStack)
		is     error
		text   string
	}{
		"another deploy": {func(f *fakeStack) { f.stack.Revision, f.stack.Author, f.stack.AuthorAddress = 3, "alice", "10.0.0.9" }, ErrStopped, "revision 3 of stack shop, by alice (10.0.0.9), took the place of this one, 2"},
		"removed":        {func(f *fakeStack) { f.gone = fault.NotFound("no such stack") }, nil, "stack shop was removed meanwhile"},
		"being removed":  {func(f *fakeStack) { f.stack.State = skepv1.StackState_STACK_STATE_REMOVING }, ErrStopped, "stack shop was removed meanwhile"},
		"another stack":  {func(f *fakeStack) { f.stack.Meta.Id = "other" }, ErrStopped, "stack shop was removed meanwhile"},
	} {
		f := &fakeStack{stack: shop(deploying)}
		f.next = func(f *fakeStack, n int) {
			if n == 2 {
				x.change(f)
			}
		}
		_, err := f.deployed(t, nil)
		if err == nil || x.is != nil && !errors.Is(err, x.is) || !strings.Contains(err.Error(), x.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A limit says what it waited for.
	f := &fakeStack{stack: shop(deploying)}
	f.stack.Problems = []*skepv1.StackProblem{{Kind: "service", Name: "shop_db", Text: "port 80 is taken"}}
	out, err := f.deployed(t, func(o *StackOptions) { o.Timeout = 300 * time.Millisecond })
	if !errors.Is(err, ErrTimeout) || !strings.Contains(err.Error(), "shop_db: port 80 is taken") || !strings.Contains(out, "shop_db: port 80 is taken") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestStackIsStuck: a problem that nobody solves ends the wait, and is named.
func TestStackIsStuck(t *testing.T) {
	f := &fakeStack{stack: shop(deploying)}
	f.stack.Problems = []*skepv1.StackProblem{{Kind: "network", Name: "shop_net", Text: "no addresses are left"}}
	at := epoch
	_, err := f.deployed(t, func(o *StackOptions) {
		o.Now = func() time.Time { at = at.Add(5 * time.Second); return at }
	})
	if !errors.Is(err, ErrStuck) || !strings.Contains(err.Error(), "network shop_net: no addresses are left") {
		t.Error(err)
	}
}

func TestStackTable(t *testing.T) {
	rows := []row{
		{name: "shop_db", progress: &Progress{Done: 1, Want: 1}, done: true, text: "converged"},
		{name: "shop_web", progress: &Progress{Done: 0, Want: 3}, text: "3 preparing", reason: "pulling\x1b[2J"},
		{name: "shop_worker", text: "not created yet"},
	}
	var b strings.Builder
	for _, l := range table(rows, 4*time.Second, "note", 80) {
		b.WriteString(l + "\n")
	}
	for range 40 {
		rows = append(rows, row{name: "shop_more", text: "not created yet"})
	}
	lines := table(rows, 0, "", 30)
	if len(lines) > 24 || len(lines[1]) > 40 {
		t.Errorf("%d lines, %q", len(lines), lines)
	}
	golden.Check(t, "stack_table", b.String()+strings.Join(lines, "\n")+"\n")
}

func TestStackGone(t *testing.T) {
	f := &fakeStack{stack: shop(skepv1.StackState_STACK_STATE_REMOVING)}
	f.stack.Members = []*skepv1.StackMember{{Kind: "service", Id: "id-db", Name: "shop_db"}, {Kind: "network", Id: "n", Name: "shop_net"}}
	f.has("db", 1, running, "")
	f.next = func(f *fakeStack, n int) {
		switch n {
		case 2:
			f.stack.Problems = []*skepv1.StackProblem{{Kind: "network", Name: "shop_net", Text: "service other uses it"}}
		case 3:
			f.gone = fault.NotFound("no such stack")
		case 4:
			f.tasks = nil
		}
	}
	var b bytes.Buffer
	o := StackOptions{Stack: proto.CloneOf(f.stack), Options: Options{Out: &b, Now: time.Now, Timeout: 20 * time.Second}}
	if err := StackGone(t.Context(), f, o); err != nil || f.stacked != 4 {
		t.Errorf("%d looks: %v", f.stacked, err)
	}
	golden.Check(t, "stack_gone", b.String())
	f.gone, f.next, f.stack.State, f.stack.Author = nil, nil, deploying, "bob"
	if err := StackGone(t.Context(), f, o); !errors.Is(err, ErrStopped) || !strings.Contains(err.Error(), "by bob") {
		t.Error(err)
	}
}
