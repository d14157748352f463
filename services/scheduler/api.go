package scheduler

import (
	"context"
	"errors"
	"time"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/reconcile"
	"skep.dev/libs/rpc"
	"skep.dev/libs/spec"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// replyOperations bounds a reply, which must fit into one message; the summary still counts them all.
const replyOperations = 2000

func (s *Service) serve(srv *rpc.Server) error {
	return errors.Join(
		api.Handle(srv, api.ServiceExplain, s.explain), api.Handle(srv, api.PlanService, s.dryRun), api.Handle(srv, api.VolumeClaims, s.listClaims),
	)
}

// maxPlanned bounds the tasks a question may make the planner think about: it holds up the leader's own plans meanwhile
// (100,000 take about 0.2 s).
const maxPlanned = 100_000

// oneQuestion admits one question at a time, so that the leader waits for one at most, however many are asked.
func (s *Service) oneQuestion(ctx context.Context) (done func(), err error) {
	select {
	case s.question <- struct{}{}:
		return func() { <-s.question }, nil
	case <-ctx.Done():
		return nil, fault.Unavailable("the scheduler answers other questions: ask again")
	}
}

// explain answers "why does it not run, and where could it": any instance can, leading or not.
func (s *Service) explain(ctx context.Context, r *skepv1.ExplainRequest) (*skepv1.ExplainReply, error) {
	out, about, err := s.explainLocked(ctx, r.GetRef())
	if err != nil {
		return nil, err
	}
	e, err := kv.Open(s.js, subject.Spec).Get(ctx, keys.Service.Key(about.id))
	if err != nil {
		return nil, fault.Unavailable("read service %s: %v", about.id, err)
	}
	out.Service = &skepv1.Service{}
	if err := proto.Unmarshal(e.Value, out.Service); err != nil {
		return nil, err
	}
	if out.Service.Meta == nil {
		out.Service.Meta = &skepv1.Meta{Id: about.id}
	}
	out.Service.Meta.Version = e.Revision
	if about.noneIsWell {
		out.Hints = append(out.Hints, nameHint(out.Service.Spec)...)
	}
	return out, nil
}

// explained is what an answer is about.
type explained struct {
	id         string
	noneIsWell bool
}

func (s *Service) explainLocked(ctx context.Context, ref string) (*skepv1.ExplainReply, explained, error) {
	done, err := s.oneQuestion(ctx)
	if err != nil {
		return nil, explained{}, err
	}
	defer done()
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.state.Find(ref)
	if err != nil {
		return nil, explained{}, err
	}
	now := time.Now()
	out := &skepv1.ExplainReply{Placing: bounded(s.state.Placing(v, now)), Waiting: s.state.Waiting(v)}
	if len(out.Waiting) > replyOperations {
		out.Waiting = out.Waiting[:replyOperations]
	}
	out.Next = operations(s.state.Plan(now, s.ids, []string{v.ID}))
	return out, explained{v.ID, s.state.NoneIsWell(v)}, nil
}

// dryRun plans a service that is not stored. Viewers may ask: it is checked like one that is to be stored.
func (s *Service) dryRun(ctx context.Context, r *skepv1.PlanRequest) (*skepv1.PlanReply, error) {
	if r.GetService().GetSpec() == nil && !r.GetRemoved() {
		return nil, fault.Invalid("a plan needs the service as it would be stored")
	}
	if !r.GetRemoved() {
		if err := spec.Validate(r.Service.Spec); err != nil {
			return nil, err
		}
		if n := tasksAtOnce(r.Service.Spec); n > maxPlanned {
			return nil, fault.Invalid("a plan looks at %d tasks at most, and the service has %d: ask for fewer replicas", maxPlanned, n)
		}
	}
	done, err := s.oneQuestion(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	s.mu.Lock()
	defer s.mu.Unlock()
	p, why := s.state.WhatIf(r.GetService(), r.GetRemoved(), time.Now(), s.ids)
	return &skepv1.PlanReply{Operations: operations(p), Placing: bounded(why)}, nil
}

// tasksAtOnce is how many tasks a service makes at most at one time; global ones have the nodes for a bound.
func tasksAtOnce(s *skepv1.ServiceSpec) uint64 {
	if j := s.GetMode().GetReplicatedJob(); j != nil {
		if n := j.GetMaxConcurrent(); n > 0 {
			return min(n, max(j.GetTotalCompletions(), 1))
		}
		return j.GetTotalCompletions()
	}
	return s.GetMode().GetReplicated().GetReplicas()
}

func operations(p *reconcile.Plan) []*skepv1.Operation {
	var out []*skepv1.Operation
	for i := range p.Changes {
		if len(out) == replyOperations {
			break
		}
		out = append(out, p.Changes[i].Operation())
	}
	return out
}

// bounded cuts the lists of nodes; the texts count all.
func bounded(p *skepv1.Placing) *skepv1.Placing {
	const most = 500
	for _, f := range p.GetFilters() {
		if len(f.Removed) > most {
			f.Removed = f.Removed[:most]
		}
	}
	if len(p.GetCandidates()) > most {
		p.Candidates = p.Candidates[:most]
	}
	return p
}
