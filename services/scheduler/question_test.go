package scheduler

import (
	"context"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/fault"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// Who may only look asks for a plan of far too much: it is refused before the planner sees it, in every form there is.
func TestPlanRefusesWhatNobodyCouldStore(t *testing.T) {
	f := newFake(t, kvtest.Server(t), 3)
	s, _ := f.start("a", nil)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	job := service("web", 0, "v1")
	job.Mode = &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_ReplicatedJob{ReplicatedJob: &skepv1.ReplicatedJobMode{MaxConcurrent: 1 << 40, TotalCompletions: 1 << 40}}}
	allowed := service("web", maxPlanned+1, "v1")
	nameless := service("", 1, "v1")
	for _, c := range []struct {
		spec *skepv1.ServiceSpec
		want string
	}{
		{service("web", 3_000_000, "v1"), "invalid replicas value 3000000: at most 1000000"},
		{job, "invalid replicas value 1099511627776: at most 1000000"},
		{allowed, "a plan looks at 100000 tasks at most, and the service has 100001: ask for fewer replicas"},
		{nameless, "name must be provided"},
	} {
		var p skepv1.PlanReply
		err := rpc.Call(ctx, s.cfg.NC, subject.API("plan", "service"), &skepv1.PlanRequest{Service: &skepv1.Service{Spec: c.spec}}, &p)
		if !fault.Is(err, fault.CodeInvalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
}

// A question that fails inside the planner leaves the leader's picture and the next question alone.
func TestQuestionsOneAtATime(t *testing.T) {
	s := &Service{question: make(chan struct{}, 1)}
	done, err := s.oneQuestion(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := s.oneQuestion(ended); !fault.Is(err, fault.CodeUnavailable) {
		t.Fatalf("a second question beside the first: %v", err)
	}
	done()
	if done, err = s.oneQuestion(context.Background()); err != nil {
		t.Fatal(err)
	}
	done()
}

func FuzzPlanRequest(f *testing.F) {
	for _, spec := range []*skepv1.ServiceSpec{service("web", 3, "v1"), service("web", 3_000_000, "v1")} {
		body, err := proto.Marshal(&skepv1.PlanRequest{Service: &skepv1.Service{Meta: &skepv1.Meta{Id: "svc1"}, Spec: spec, Revision: 2}})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body)
	}
	s, err := newIdle()
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var r skepv1.PlanRequest
		if proto.Unmarshal(body, &r) != nil {
			return
		}
		if n := tasksAtOnce(r.GetService().GetSpec()); n > 1000 && n <= maxPlanned {
			return // allowed, and slow
		}
		_, _ = s.dryRun(context.Background(), &r)
		if _, err := s.state.Find("svc1"); err == nil {
			t.Fatal("a question left a service behind")
		}
	})
}

// newIdle is a scheduler that follows nothing and answers from an empty picture.
func newIdle() (*Service, error) {
	return New(Config{NC: &nats.Conn{}})
}
