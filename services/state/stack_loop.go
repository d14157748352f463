package state

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"go.uber.org/zap"

	"skep.dev/libs/id"
	"skep.dev/libs/keys"
	"skep.dev/libs/lease"
	"skep.dev/libs/stack"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/state/internal/index"
)

// One instance makes the cluster follow the stacks. The lease is for peace alone: what two of them do at once is as right,
// since every write to services, networks and stacks is conditional on the stack's own key (aim.with).

const (
	firstRetry = 250 * time.Millisecond
	lastRetry  = 15 * time.Second
)

// followStacks campaigns until ctx ends, and leads when it wins.
func (s *Service) followStacks(ctx context.Context) {
	holder := s.cfg.NodeID
	if holder == "" {
		holder = id.New()
	}
	l := lease.New(s.js, lease.Config{Name: keys.LeaseStacks.Key(), Holder: holder, TTL: s.cfg.LeaseTTL, Log: s.log})
	if err := l.Run(ctx, s.leadStacks); err != nil && ctx.Err() == nil {
		s.log.Error("nobody sees to the stacks on this manager any more", zap.Error(err))
	}
}

// stackWorker is the carrying out of what one stack asks for.
type stackWorker struct {
	aim  index.StackAim
	stop context.CancelFunc
	done chan struct{}
}

// leadStacks gives every stack that is not as asked a worker of its own, so that none waits for another's trouble, until ctx
// ends. What a stack asks for next ends the worker of what it asked for before.
func (s *Service) leadStacks(ctx context.Context, _ uint64) error {
	workers := map[string]*stackWorker{}
	ended := make(chan struct{}, 1)
	defer func() {
		for _, w := range workers {
			w.stop()
			<-w.done
		}
	}()
	for ctx.Err() == nil {
		changed := s.ix.Changed()
		maps.DeleteFunc(workers, func(_ string, w *stackWorker) bool {
			select {
			case <-w.done:
				w.stop()
				return true
			default:
				return false
			}
		})
		for id, aim := range s.ix.StackAims() {
			was := workers[id]
			if was != nil && was.aim == aim {
				continue
			}
			own, stop := context.WithCancel(ctx)
			w := &stackWorker{aim: aim, stop: stop, done: make(chan struct{})}
			workers[id] = w
			go func() {
				defer func() {
					close(w.done)
					select {
					case ended <- struct{}{}:
					default:
					}
				}()
				if was != nil {
					was.stop()
					<-was.done
				}
				s.carryOut(own, aimed{s, id, aim})
			}()
		}
		select {
		case <-changed:
		case <-ended:
		case <-ctx.Done():
		}
	}
	return nil
}

// carryOut brings a stack to what it asks for, until it is there, something else is asked for, or ctx ends.
func (s *Service) carryOut(ctx context.Context, a aimed) {
	wait := firstRetry
	done := map[string]int{} // how often each object was changed for this aim
	for ctx.Err() == nil {
		result, err := s.pass(ctx, a, done)
		switch {
		case errors.Is(err, errOtherAim):
			return
		case err != nil && ctx.Err() == nil:
			s.log.Warn("a stack is not as asked yet; trying again", zap.String("stack", a.id), zap.Error(err))
		case err == nil && result.finished:
			return
		case err == nil && result.moved:
			continue // look at once: what failed may have waited for what was done
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
		wait = min(2*wait, lastRetry)
	}
}

// passed is what a pass came to.
type passed struct {
	finished bool // the stack is as asked, or gone
	moved    bool // something was changed
}

// pass plans from what there is now and does what can be done.
func (s *Service) pass(ctx context.Context, a aimed, done map[string]int) (passed, error) {
	if err := s.stacksCurrent(ctx); err != nil {
		return passed{}, err
	}
	st, err := a.stack()
	if err != nil {
		return passed{}, err
	}
	removing := a.aim.State == skepv1.StackState_STACK_STATE_REMOVING
	rev := s.newest(st)
	if rev == nil && !removing {
		return passed{}, s.tellProblems(ctx, a, []*skepv1.StackProblem{{Kind: "stack", Name: st.Name, Text: "its newest revision is not stored any more: deploy it again"}})
	}
	ctx = a.by(ctx, st)
	if removing {
		rev = nil
	}
	s.stayWanted(ctx, st, rev)
	ops, err := s.planStack(st, rev, rev.GetSpec())
	if err != nil {
		return passed{}, err
	}
	var out passed
	var problems []*skepv1.StackProblem
	missing := map[string]bool{}
	trouble := func(kind, name, text string) {
		problems = append(problems, &skepv1.StackProblem{Kind: kind, Name: name, Text: text})
	}
	todo := false
	for _, o := range ops {
		if !o.Does() && o.Refused == "" {
			continue
		}
		todo = true
		err := s.mayDo(o, done, missing)
		if err == nil {
			err = s.do(ctx, a, o, rev)
		}
		switch {
		case errors.Is(err, errOtherAim), ctx.Err() != nil:
			return out, errors.Join(err, ctx.Err())
		case errors.Is(err, errPlanAgain):
			out.moved = true
		case err != nil:
			// One that is there already does not keep others waiting: it may want the port they are to give up.
			missing[o.Name] = o.Kind == stack.Service && o.Verb == skepv1.StackChange_VERB_CREATE
			trouble(o.Kind, o.Name, err.Error())
		default:
			done[o.Kind+" "+o.Name]++
			out.moved = true
		}
	}
	if !todo && !removing {
		problems = slices.Concat(problems, s.rollOutsiders(ctx, st, rev))
	}
	if !todo && len(problems) == 0 {
		out.finished = true
		return out, s.finish(ctx, a)
	}
	if len(problems) == 0 || out.moved {
		return out, nil
	}
	return out, s.tellProblems(ctx, a, problems)
}
