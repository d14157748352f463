package state

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/id"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/printable"
	"skep.dev/libs/rpc"
	"skep.dev/libs/spec"
	"skep.dev/libs/stack"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/state/internal/index"
)

var (
	errOtherAim  = fault.Conflict("something else is asked of the stack by now")
	errPlanAgain = fault.Conflict("the service was changed meanwhile")
)

// doFor bounds one step.
const doFor = 30 * time.Second

// aimed is what is being done to a stack.
type aimed struct {
	s   *Service
	id  string
	aim index.StackAim
}

// stack is the stack as it is, errOtherAim when something else is asked of it.
func (a aimed) stack() (*skepv1.Stack, error) {
	st := a.s.ix.Stack(a.id)
	if st == nil || st.Revision != a.aim.Revision || st.State != a.aim.State {
		return nil, errOtherAim
	}
	return st, nil
}

// with writes the stack, edited, together with an object: all or nothing, and only while the stack asks for the same. So
// nothing is made that the stack does not know of, nothing for a revision that is not the newest, nothing for a stack that goes.
func (a aimed) with(edit func(*skepv1.Stack)) also {
	return func(b *kv.Batch) error {
		st, err := a.stack()
		if err != nil {
			return err
		}
		over := st.Meta.Version
		edit(st)
		return putStack(b, st, over)
	}
}

// edit writes the stack alone.
func (a aimed) edit(ctx context.Context, edit func(*skepv1.Stack)) error {
	return a.s.retry(ctx, func() error {
		b := a.s.spec.Batch()
		var wrote *skepv1.Stack
		if err := a.with(func(st *skepv1.Stack) { edit(st); wrote = st })(b); err != nil {
			return err
		}
		return a.s.commit(ctx, b, func() bool {
			now := a.s.ix.Stack(a.id)
			if now == nil || now.Meta.Version == wrote.Meta.Version {
				return false
			}
			now.Meta.Version = wrote.Meta.Version
			return proto.Equal(now, wrote)
		})
	})
}

// by is ctx with who asked for what is being done.
func (a aimed) by(ctx context.Context, st *skepv1.Stack) context.Context {
	return rpc.WithActor(ctx, rpc.Actor{Name: st.Author, Address: st.AuthorAddress})
}

// planStack plans a revision of a stack (nil: it is to go) over what there is. was is what the lines of secrets compare with.
func (s *Service) planStack(st *skepv1.Stack, rev *skepv1.StackRevision, was *skepv1.StackSpec) ([]*stack.Op, error) {
	return stack.Plan(stack.Input{
		Want: rev.GetSpec(), Was: was, Members: st.GetMembers(), Exact: rev.GetRollbackTo() != 0, Prune: s.prunes(st, rev),
		Have: stack.Have{
			Service: func(name string) *skepv1.Service {
				id, _ := s.ix.ServiceByName(name)
				return s.ix.Service(id)
			},
			Network: func(name string) *skepv1.Network {
				id, _ := s.ix.NetworkByName(name)
				return s.ix.Network(id)
			},
			ServiceName: s.ix.ServiceName,
			NetworkName: func(id string) string { st, _ := s.ix.NetworkState(id); return st.Name },
		},
	})
}

// prunes says which members go that a revision does not have: all when it was asked for; on the way back to an older revision
// those that came after it. A secret or config stays as long as services that stay could go back to it.
func (s *Service) prunes(st *skepv1.Stack, rev *skepv1.StackRevision) func(*skepv1.StackMember) bool {
	if rev == nil {
		return func(*skepv1.StackMember) bool { return true }
	}
	later := map[string]bool{}
	for _, r := range s.ix.StackRevisions(rev.StackId) {
		if rev.RollbackTo == 0 || r.Number <= rev.RollbackTo || r.Number >= rev.Number {
			continue
		}
		sp := s.ix.StackRevision(rev.StackId, r.Number).GetSpec()
		for _, m := range memberNames(sp) {
			later[m] = true
		}
	}
	goes := func(m *skepv1.StackMember) bool { return rev.Prune || later[m.Kind+" "+m.Name] }
	wanted := memberNames(rev.Spec)
	return func(m *skepv1.StackMember) bool {
		if !goes(m) {
			return false
		}
		if m.Kind != stack.Secret && m.Kind != stack.Config {
			return true
		}
		return !slices.ContainsFunc(s.ix.Referring(m.Id), func(service string) bool {
			i := slices.IndexFunc(st.GetMembers(), func(o *skepv1.StackMember) bool { return o.Kind == stack.Service && o.Id == service })
			return i < 0 || !goes(st.Members[i]) || slices.Contains(wanted, stack.Service+" "+st.Members[i].Name)
		})
	}
}

// memberNames are the kinds and names of what a spec asks for.
func memberNames(sp *skepv1.StackSpec) (out []string) {
	for _, x := range sp.GetServices() {
		out = append(out, stack.Service+" "+x.Name)
	}
	for _, x := range sp.GetNetworks() {
		out = append(out, stack.Network+" "+x.Name)
	}
	for _, l := range fileLists(sp) {
		for _, f := range l.files {
			out = append(out, stack.Kind(l.kind)+" "+f.Name)
		}
	}
	return out
}

// mostDone is how often one object is changed for one revision before somebody is told that it does not stay.
const mostDone = 3

// mayDo refuses a step that cannot be done now.
func (s *Service) mayDo(o *stack.Op, done map[string]int, missing map[string]bool) error {
	if o.Refused != "" {
		return fault.Conflict("%s", o.Refused)
	}
	for _, n := range o.Needs {
		if missing[n] {
			return fault.Conflict("it waits for service %s, on which it depends", n)
		}
	}
	if done[o.Kind+" "+o.Name] >= mostDone {
		return fault.Conflict("it does not stay as the stack asks for, after %d times: something else changes it (%s)", mostDone, strings.Join(o.Fields, "; "))
	}
	return nil
}

// do does one step of a plan.
func (s *Service) do(ctx context.Context, a aimed, o *stack.Op, rev *skepv1.StackRevision) error {
	ctx, cancel := context.WithTimeout(ctx, doFor)
	defer cancel()
	if s.cfg.beforeStep != nil {
		s.cfg.beforeStep(ctx, o)
	}
	without := func(st *skepv1.Stack) { dropMember(st, o.Kind, o.Name) }
	gone := func(err error) error {
		if fault.Is(err, fault.CodeNotFound) {
			return a.edit(ctx, without)
		}
		return err
	}
	create := o.Verb == skepv1.StackChange_VERB_CREATE
	switch {
	case o.Gone:
		return a.edit(ctx, without)
	case o.Kind == stack.Network && create:
		nid := id.New()
		_, err := s.makeNetwork(ctx, nid, proto.CloneOf(o.Network), false, a.with(func(st *skepv1.Stack) {
			setMember(st, &skepv1.StackMember{Kind: o.Kind, Id: nid, Name: o.Name})
		}))
		return err
	case o.Kind == stack.Network:
		_, err := s.dropNetwork(ctx, o.ID, o.Name, a.with(without))
		if errors.Is(err, errOtherAim) {
			s.stayNetwork(ctx, o.ID)
		}
		return gone(err)
	case o.Kind == stack.Service && create:
		return s.doCreate(ctx, a, o, rev)
	case o.Kind == stack.Service && o.Verb == skepv1.StackChange_VERB_CHANGE:
		return s.doChange(ctx, a, o, rev)
	case o.Kind == stack.Service:
		_, err := s.drop(ctx, o.ID, o.Name, false, a.with(without))
		return gone(err)
	case o.Verb == skepv1.StackChange_VERB_REMOVE:
		return s.doDropFile(ctx, a, o)
	}
	return nil
}

// stayNetwork takes the mark off a network whose removal was begun and is not wanted any more.
func (s *Service) stayNetwork(ctx context.Context, id string) {
	ctx, cancel := undoContext(ctx)
	defer cancel()
	err := s.retry(ctx, func() error {
		n := s.ix.Network(id)
		if n == nil || !n.Removing {
			return nil
		}
		return s.markRemoving(ctx, n, false)
	})
	if err != nil {
		s.log.Warn("a network stays marked for removal for now", zap.String("network", id), zap.Error(err))
	}
}

// stayWanted does so for the networks that a revision wants: who began their removal may be dead.
func (s *Service) stayWanted(ctx context.Context, st *skepv1.Stack, rev *skepv1.StackRevision) {
	for _, n := range rev.GetSpec().GetNetworks() {
		id, _ := s.ix.NetworkByName(n.Name)
		if is, ok := s.ix.NetworkState(id); ok && is.Removing && isMember(st, stack.Network, id) {
			s.stayNetwork(ctx, id)
		}
	}
}

func (s *Service) doCreate(ctx context.Context, a aimed, o *stack.Op, rev *skepv1.StackRevision) error {
	want := proto.CloneOf(o.Service)
	called, err := s.references(ctx, want)
	if err != nil {
		return err
	}
	sid := id.New()
	_, err = s.store(ctx, newService{id: sid, spec: want, called: called, summary: fmt.Sprintf("created by revision %d of stack %s", rev.Number, rev.Spec.Name),
		with: a.with(func(st *skepv1.Stack) {
			setMember(st, &skepv1.StackMember{Kind: o.Kind, Id: sid, Name: o.Name})
		})})
	return err
}

func (s *Service) doChange(ctx context.Context, a aimed, o *stack.Op, rev *skepv1.StackRevision) error {
	want := proto.CloneOf(o.Service)
	called, err := s.references(ctx, want)
	if err != nil {
		return err
	}
	_, err = s.change(ctx, o.ID, false, func(cur *skepv1.Service) (step, error) {
		if _, err := a.stack(); err != nil {
			return step{}, err
		}
		if cur.Meta.Version != o.Over {
			return step{}, errPlanAgain
		}
		text := fmt.Sprintf("revision %d of stack %s", rev.Number, rev.Spec.Name)
		if d := spec.Diff(s.withNames(cur.Spec), s.withNames(want)); d != "" {
			text += ": " + d
		}
		return step{spec: proto.CloneOf(want), summary: text, called: called, with: a.with(func(*skepv1.Stack) {})}, mayBecome(cur, want)
	})
	return err
}

// doDropFile has the vault remove a secret or config that was the stack's own.
func (s *Service) doDropFile(ctx context.Context, a aimed, o *stack.Op) error {
	kind := skepv1.SecretKind_SECRET_KIND_SECRET
	if o.Kind == stack.Config {
		kind = skepv1.SecretKind_SECRET_KIND_CONFIG
	}
	if _, err := a.stack(); err != nil {
		return err
	}
	who := rpc.ActorOf(ctx)
	_, err := api.Call(ctx, s.cfg.NC, api.FilesDrop, &skepv1.DropFileRequest{Kind: kind, Id: o.ID, Author: who.Name, AuthorAddress: who.Address})
	if err != nil && !fault.Is(err, fault.CodeNotFound) {
		return err
	}
	return a.edit(ctx, func(st *skepv1.Stack) { dropMember(st, o.Kind, o.Name) })
}

// rollOutsiders gives services of others, which use the stack's secrets and configs, the versions of its newest revision.
func (s *Service) rollOutsiders(ctx context.Context, st *skepv1.Stack, rev *skepv1.StackRevision) (out []*skepv1.StackProblem) {
	for _, l := range fileLists(rev.GetSpec()) {
		for _, f := range l.files {
			r := &skepv1.RollSecretRequest{Id: f.Id, Name: f.Name, Kind: l.kind, Version: f.Version, Author: st.Author, AuthorAddress: st.AuthorAddress}
			if !slices.ContainsFunc(s.ix.Referring(f.Id), func(id string) bool {
				svc := s.ix.Service(id)
				return svc != nil && !isMember(st, stack.Service, id) && s.wantsVersion(svc, r)
			}) {
				continue
			}
			if _, err := s.rollSecret(ctx, r); err != nil {
				out = append(out, &skepv1.StackProblem{Kind: stack.Kind(l.kind), Name: f.Name, Text: "services of others do not have its newest version yet: " + err.Error()})
			}
		}
	}
	return out
}

// mostProblems bounds what a stack tells of.
const mostProblems = 20

// tellProblems writes down what keeps a stack from being as asked.
func (s *Service) tellProblems(ctx context.Context, a aimed, list []*skepv1.StackProblem) error {
	list = list[:min(len(list), mostProblems)]
	for _, p := range list {
		p.Text = printable.Cut(strings.ToValidUTF8(p.Text, "?"), maxText)
	}
	st, err := a.stack()
	same := func(x, y *skepv1.StackProblem) bool { return proto.Equal(x, y) }
	if err != nil || slices.EqualFunc(st.Problems, list, same) {
		return err
	}
	return a.edit(ctx, func(st *skepv1.Stack) { st.Problems = list })
}

// finish writes down that a stack is as asked, or removes one that has nothing left.
func (s *Service) finish(ctx context.Context, a aimed) error {
	st, err := a.stack()
	if err != nil {
		return err
	}
	if a.aim.State == skepv1.StackState_STACK_STATE_DEPLOYING {
		err := a.edit(ctx, func(st *skepv1.Stack) {
			st.State, st.Problems, st.Meta.UpdatedAt = skepv1.StackState_STACK_STATE_DEPLOYED, nil, timestamppb.Now()
		})
		if err == nil {
			s.events.send(ctx, stackEvent(st, "deployed"))
		}
		return err
	}
	batch := s.spec.Batch()
	batch.Delete(keys.Stack.Key(a.id), st.Meta.Version)
	name := keys.Name(keys.StackName, st.Name)
	if k, ok := s.ix.Key(name); ok && k.Value == a.id {
		batch.Delete(name, k.Revision)
	}
	err = s.commit(ctx, batch, func() bool { return s.ix.Stack(a.id) == nil })
	if errors.Is(err, kv.ErrConflict) {
		return errPlanAgain
	}
	if err != nil {
		return err
	}
	s.events.send(ctx, stackEvent(st, "remove"))
	if err := s.dropStackRevisions(ctx, a.id); err != nil {
		s.log.Warn("revisions of a removed stack left for the sweep", zap.String("stack", st.Name), zap.Error(err))
	}
	return nil
}
