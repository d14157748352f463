package scheduler

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/fault"
	"skep.dev/libs/kv"
	"skep.dev/libs/reconcile"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// replyOperations bounds a reply, which must fit into one message; the summary still counts them all.
const replyOperations = 2000

func (s *Service) serve(srv *rpc.Server) error {
	if err := rpc.Handle(srv, subject.API("service", "explain"), s.explain); err != nil {
		return err
	}
	return rpc.Handle(srv, subject.API("plan", "service"), s.dryRun)
}

// explain answers "why does it not run, and where could it": any instance can, leading or not.
func (s *Service) explain(ctx context.Context, r *skepv1.ExplainRequest) (*skepv1.ExplainReply, error) {
	out, id, err := s.explainLocked(r.GetRef())
	if err != nil {
		return nil, err
	}
	e, err := kv.Open(s.js, subject.Spec).Get(ctx, "service."+id)
	if err != nil {
		return nil, fault.Unavailable("read service %s: %v", id, err)
	}
	out.Service = &skepv1.Service{}
	if err := proto.Unmarshal(e.Value, out.Service); err != nil {
		return nil, err
	}
	if out.Service.Meta == nil {
		out.Service.Meta = &skepv1.Meta{Id: id}
	}
	out.Service.Meta.Version = e.Revision
	return out, nil
}

func (s *Service) explainLocked(ref string) (*skepv1.ExplainReply, string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.state.Find(ref)
	if err != nil {
		return nil, "", err
	}
	now := time.Now()
	out := &skepv1.ExplainReply{Placing: bounded(s.state.Placing(v, now)), Waiting: s.state.Waiting(v)}
	if len(out.Waiting) > replyOperations {
		out.Waiting = out.Waiting[:replyOperations]
	}
	out.Next = operations(s.state.Plan(now, s.ids, []string{v.ID}))
	return out, v.ID, nil
}

// dryRun plans a service that is not stored.
func (s *Service) dryRun(_ context.Context, r *skepv1.PlanRequest) (*skepv1.PlanReply, error) {
	if r.GetService().GetSpec() == nil && !r.GetRemoved() {
		return nil, fault.Invalid("a plan needs the service as it would be stored")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p, why := s.state.WhatIf(r.GetService(), r.GetRemoved(), time.Now(), s.ids)
	return &skepv1.PlanReply{Operations: operations(p), Placing: bounded(why)}, nil
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
