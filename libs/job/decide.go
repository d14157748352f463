package job

import (
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/cron"
	"skep.dev/libs/fault"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// maxRuns bounds the earlier runs a service's object lists while no scheduler is there to let them be forgotten.
const maxRuns = 2*cron.MaxKeep + 100

// Tasks gives a service's tasks when they are needed.
type Tasks func() []*skepv1.Task

// Decide carries out a scheduler's decision on v, if v still is what it was made from. Not changed without an error means
// that it was carried out before.
func Decide(v *skepv1.Service, d *skepv1.RunDecision, now time.Time, tasks Tasks) (changed bool, err error) {
	if v.JobIteration != d.Iteration || !proto.Equal(v.ScheduleDecided, d.Decided) {
		if d.Due != nil && proto.Equal(v.ScheduleDecided, d.Due) {
			return false, nil // a request repeated, or another leader's
		}
		return false, fault.Conflict("job %s has changed since its run was decided: look again", v.GetSpec().GetName())
	}
	kept := len(v.Runs)
	v.Runs = slices.DeleteFunc(v.Runs, func(r *skepv1.RunControl) bool { return slices.Contains(d.Forget, r.Iteration) })
	if d.Due == nil {
		return len(v.Runs) != kept, nil
	}
	schedule := v.GetSpec().GetSchedule()
	if schedule == nil {
		return false, fault.Conflict("job %s has no schedule any more", v.GetSpec().GetName())
	}
	v.ScheduleDecided = d.Due
	switch {
	case !d.Skip:
		Begin(v, d.Due, schedule.Concurrency == skepv1.Concurrency_CONCURRENCY_REPLACE, now, tasks)
	case v.Run != nil:
		v.Run.Skipped++
	}
	return true, nil
}

// Begin makes the next run of v. stop: those before it that still go end with that.
func Begin(v *skepv1.Service, due *timestamppb.Timestamp, stop bool, now time.Time, tasks Tasks) {
	if v.Run != nil {
		v.Runs = append(v.Runs, &skepv1.RunControl{Due: v.Run.Due, Started: v.Run.Started, Iteration: v.JobIteration, Skipped: v.Run.Skipped})
	}
	if stop && len(v.Runs) > 0 {
		list := tasks()
		for _, r := range v.Runs {
			r.Stopped = r.Stopped || !Judge(v, r, list).State.Over()
		}
	}
	if n := len(v.Runs) - maxRuns; n > 0 {
		v.Runs = v.Runs[n:]
	}
	v.JobIteration++
	v.Run = &skepv1.RunControl{Due: due, Started: timestamppb.New(now), Iteration: v.JobIteration}
}

// Revise is what making (was nil) or updating a service means for its runs: a job without a schedule runs, one with a
// schedule counts from now when the schedule is new and goes on as it was when it is not.
func Revise(was, v *skepv1.Service, now time.Time, tasks Tasks) {
	if !spec.IsJob(v.GetSpec()) {
		return
	}
	s, before := v.GetSpec().GetSchedule(), was.GetSpec().GetSchedule()
	switch {
	case s == nil:
		v.ScheduleDecided = nil
		Begin(v, nil, true, now, tasks)
	case v.ScheduleDecided == nil, s.GetCron() != before.GetCron(), s.GetTimeZone() != before.GetTimeZone():
		v.ScheduleDecided = timestamppb.New(now)
	}
}

// RunNow begins a run because somebody asks for one, unless the one before it still goes and may not be overlapped.
func RunNow(v *skepv1.Service, now time.Time, tasks Tasks) error {
	name, schedule := v.GetSpec().GetName(), v.GetSpec().GetSchedule()
	if !spec.IsJob(v.GetSpec()) {
		return fault.Invalid("service %s is not a job: only services of mode replicated-job or global-job have runs", name)
	}
	overlap := schedule.GetConcurrency()
	switch {
	case schedule == nil && goes(v, now, tasks):
		return fault.Conflict("run %d of job %s still goes: wait for it (skep service ps %s), or stop it and begin anew with skep service update --force %s", v.JobIteration, name, name, name)
	case schedule != nil && overlap == skepv1.Concurrency_CONCURRENCY_FORBID && goes(v, now, tasks):
		return fault.Conflict("run %d of job %s still goes and its schedule forbids two at once: wait for it (skep service ps %s), or allow it with skep service update --schedule-concurrency allow %s",
			v.JobIteration, name, name, name)
	}
	Begin(v, nil, overlap != skepv1.Concurrency_CONCURRENCY_ALLOW, now, tasks)
	return nil
}

// justBegun is how long a run without any task is believed to get some.
const justBegun = 5 * time.Second

// goes: the newest run has not ended. One on no node at all has nothing to wait for.
func goes(v *skepv1.Service, now time.Time, tasks Tasks) bool {
	if v.Run == nil {
		return false
	}
	run := Judge(v, &skepv1.RunControl{Iteration: v.JobIteration}, tasks())
	return !run.State.Over() && (run.Wanted > 0 || now.Sub(v.Run.Started.AsTime()) < justBegun)
}
