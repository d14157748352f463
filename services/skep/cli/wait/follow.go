package wait

import (
	"context"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"
)

const (
	// gaveUpAfter is how long a slot must stay without a successor before that is believed.
	gaveUpAfter = 2 * time.Second
	// emptyAfter is how long a global service must stay without a task before "no node suits" is believed when the
	// scheduler does not say.
	emptyAfter = 3 * time.Second
)

// follower judges one service from look to look.
type follower struct {
	o        Options
	name     string
	run      uint64
	revision uint64
	fresh    map[uint64]bool // revisions whose tasks need no replacement
	steady   time.Time       // when everything was first seen to run
	gaveUp   time.Time
	empty    time.Time
	p        *Progress // of the last look
	told     string    // what the last look found to say besides
	canary   bool      // it waits for a word
}

func newFollower(o Options) *follower {
	f := &follower{o: o, name: o.Service.GetSpec().GetName(), run: o.Run, p: &Progress{}}
	if f.run == 0 {
		f.run = o.Service.GetJobIteration()
	}
	return f
}

// learn reads which revisions' tasks need no replacement, once for each revision of the service.
func (f *follower) learn(ctx context.Context, api API, s *skepv1.Service) error {
	if s.Revision == f.revision {
		return nil
	}
	fresh, err := freshRevisions(ctx, api, s)
	if err == nil {
		f.revision, f.fresh = s.Revision, fresh
	}
	return err
}

// see judges what a look found. done: the service has been as it was asked to be for as long as asked; left is what is
// still missing of that time. An error says that it will not be.
func (f *follower) see(ctx context.Context, api API, s *skepv1.Service, tasks []*skepv1.Task, now time.Time) (done bool, left time.Duration, err error) {
	f.told = ""
	status, fresh := newStatus(s.UpdateStatus, f.o.Before), f.fresh
	if f.o.AnyRevision {
		status, fresh = nil, revisionsOf(tasks, s.Revision)
	}
	p := assess(s, tasks, fresh)
	if p.Job {
		p = assessJob(s, tasks, f.run)
	}
	f.p = p
	if p.Job {
		if err := superseded(s, f.run, p); err != nil {
			return false, 0, err
		}
	}
	p.Status = status
	switch status.GetState() {
	case "paused":
		return false, 0, end(ErrPaused, "service update paused: %s", status.Message)
	case "rollback_paused":
		return false, 0, end(ErrPaused, "service rollback paused: %s", status.Message)
	case "rollback_completed":
		if p.Converged() && !f.o.Rollback {
			return false, 0, end(ErrRolledBack, "service rolled back: %s", orElse(s.RollbackReason, status.Message))
		}
	case "canary":
		f.told, f.canary = status.Message, true
		return true, 0, nil
	}
	busy := status.GetState() == "updating" || status.GetState() == "rollback_started"
	done = p.Converged() && !busy
	if done && p.Global && p.Want == 0 && len(p.Away) == 0 {
		if f.empty.IsZero() {
			f.empty = now
		}
		why, settled := nothingToRun(ctx, api, s.GetMeta().GetId(), now.Sub(f.empty))
		if done = settled; settled {
			f.told = why
		}
	} else {
		f.empty = time.Time{}
	}
	if !done {
		f.steady = time.Time{}
		if err := f.hopeless(p, busy, now); err != nil {
			return false, 0, err
		}
		return false, 0, f.rejected(ctx, api, p, busy)
	}
	if f.steady.IsZero() {
		f.steady = now
	}
	left = f.o.Hold - now.Sub(f.steady)
	finished := status.GetState() == "completed" || status.GetState() == "rollback_completed"
	if left <= 0 || p.Job || finished {
		return true, 0, f.elsewhere(p)
	}
	return false, left, f.hopeless(p, busy, now)
}

// elsewhere is the error of a service that is as asked on every node but some that are away.
func (f *follower) elsewhere(p *Progress) error {
	if len(p.Away) == 0 {
		return nil
	}
	var nodes, names []string
	for _, a := range p.Away {
		nodes, names = append(nodes, "node "+a.Node+" "+a.Why), append(names, a.Node)
	}
	what, hint := "service "+f.name+" is as asked", "It follows there when the node is back"
	if p.Job {
		what, hint = "job "+f.name+" is done", "It goes on there when the node is back"
	}
	if p.Away[0].Why == "is paused" {
		hint = "It follows there with `skep node update --availability active " + names[0] + "`"
	} else {
		hint += "; if it never will be: skep node rm " + names[0]
	}
	return end(ErrAway, "%s on %d of %d nodes: %s\n%s", what, p.Done, p.Want+len(p.Away), strings.Join(nodes, ", "), hint)
}

// hopeless is the error of a service that has slots which nothing will fill any more.
func (f *follower) hopeless(p *Progress, busy bool, now time.Time) error {
	g := p.GaveUp()
	if len(g) == 0 || busy {
		f.gaveUp = time.Time{}
		return nil
	}
	if f.gaveUp.IsZero() {
		f.gaveUp = now
	}
	if now.Sub(f.gaveUp) < gaveUpAfter || !allSettled(p) {
		return nil
	}
	if p.Job {
		return end(ErrGaveUp, "job %s failed: %d of %d tasks completed and no more will be started by its restart policy\n%s: %s\nSee `skep service ps %s` and `skep service logs %s`.",
			f.name, p.Done, p.Want, g[0].Name, orElse(g[0].Reason, "its command failed"), f.name, f.name)
	}
	return end(ErrGaveUp, "service %s does not converge: %d of %d tasks run and no more will be started by its restart policy\n%s: %s\nSee `skep service ps %s` and `skep service logs %s`.",
		f.name, p.Done, p.Want, g[0].Name, orElse(g[0].Reason, "its command ended"), f.name, f.name)
}

func freshRevisions(ctx context.Context, api API, s *skepv1.Service) (map[uint64]bool, error) {
	if s.Revision <= 1 {
		return map[uint64]bool{s.Revision: true}, nil
	}
	revs, err := api.Revisions(ctx, s.GetMeta().GetId())
	if err != nil {
		return nil, err
	}
	return current(s, revs), nil
}

// revisionsOf are all there are tasks of.
func revisionsOf(tasks []*skepv1.Task, newest uint64) map[uint64]bool {
	out := map[uint64]bool{newest: true}
	for _, t := range tasks {
		out[t.Revision] = true
	}
	return out
}

// newStatus hides the status of an update that was over before the change.
func newStatus(now, before *skepv1.UpdateStatus) *skepv1.UpdateStatus {
	// What paused, was resumed and paused again says the same of another beginning.
	if before != nil && proto.Equal(now.GetStartedAt(), before.GetStartedAt()) && now.GetState() == before.GetState() && now.GetResume() == before.GetResume() {
		return nil
	}
	return now
}

// nothingToRun tells why a global service has no task, once it is sure that it will not get one.
func nothingToRun(ctx context.Context, api API, id string, since time.Duration) (string, bool) {
	if since < settle {
		return "", false
	}
	r, err := api.Explain(ctx, id)
	if err == nil {
		return r.GetPlacing().GetSummary(), len(r.Next) == 0
	}
	return "the service has no task: no node suits it now", since >= emptyAfter
}

// allSettled: every slot either runs or is beyond hope.
func allSettled(p *Progress) bool {
	for _, s := range p.Slots {
		if !s.Done && !s.GaveUp {
			return false
		}
	}
	return !p.Job || len(p.Slots) >= p.Want
}
