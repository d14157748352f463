package render

import (
	"fmt"
	"strings"
	"time"

	"skep.dev/libs/cron"
	skepv1 "skep.dev/proto/skep/v1"
)

// serviceMode is the MODE column: jobs that have a schedule say so.
func serviceMode(s *skepv1.ServiceSpec) string {
	if s.GetSchedule() != nil {
		return Mode(s.GetMode()) + " (cron)"
	}
	return Mode(s.GetMode())
}

// Runs is `service runs`, newest first as given.
func Runs(list []*skepv1.JobRun, now time.Time) *Table {
	t := &Table{Key: "Run", Columns: []Column{{"Run", "RUN"}, {"Due", "DUE"}, {"Started", "STARTED"}, {"State", "STATE"}, {"Completed", "COMPLETED"}, {"Failed", "FAILED"},
		{"ExitCodes", "EXIT CODES"}, {"Skipped", "SKIPPED"}}}
	for _, r := range list {
		due, started, state := "-", "-", r.State
		if r.Run.GetDue() != nil {
			due = r.Run.Due.AsTime().UTC().Format(time.RFC3339)
		}
		if r.Run.GetStarted() != nil {
			started = Ago(r.Run.Started.AsTime(), now)
		}
		if r.Ended != nil {
			state += " " + Ago(r.Ended.AsTime(), now)
		}
		var codes []string
		for _, c := range r.ExitCodes {
			codes = append(codes, fmt.Sprint(c))
		}
		t.Rows = append(t.Rows, Row{"Run": fmt.Sprint(r.Run.GetIteration()), "Due": due, "Started": started, "State": state,
			"Completed": fmt.Sprintf("%d/%d", r.Completed, r.Wanted), "Failed": fmt.Sprint(r.Failed), "ExitCodes": dash(strings.Join(codes, ",")), "Skipped": fmt.Sprint(r.Run.GetSkipped())})
	}
	return t
}

// Due is a time to come, as the clocks of the schedule show it: "in 4 minutes (2026-11-25 10:05:00 Europe/Zurich)".
func Due(at time.Time, s *skepv1.Schedule, now time.Time) string {
	zone := s.GetTimeZone()
	loc, err := time.LoadLocation(zone)
	if err != nil || zone == "" {
		loc, zone = time.UTC, "UTC"
	}
	in := "now"
	if d := at.Sub(now); d > 0 {
		in = "in " + strings.TrimSuffix(Ago(now.Add(-d), now), " ago")
	}
	return fmt.Sprintf("%s (%s %s)", in, at.In(loc).Format(time.DateTime), zone)
}

// job is the part of `service inspect --pretty` about runs, schedules and what is waited for.
func (p page) job(s *skepv1.Service, now time.Time) {
	if r := s.GetRun(); r != nil {
		p.line(0, "Run:\t\t%d, started %s", s.JobIteration, Ago(r.GetStarted().AsTime(), now))
	}
	if c := s.GetSpec().GetSchedule(); c != nil {
		p.line(0, "Schedule:\t%s", cron.Words(c))
		if next := cron.NextOf(s, now); !next.IsZero() {
			p.line(1, "Next:\t\t%s", Due(next, c, now))
		}
		p.line(1, "Concurrency:\t%s", enumWord(c.GetConcurrency().String(), "CONCURRENCY_"))
		p.line(1, "Keep:\t\t%d completed, %d failed", c.GetKeepCompleted(), c.GetKeepFailed())
		p.line(1, "Catch-up:\t%s", c.GetCatchUp().AsDuration())
	}
	if on := s.GetSpec().GetDependsOn(); len(on) > 0 {
		p.line(0, "Depends on:")
		for _, d := range on {
			p.line(1, "%s (%s)", d.Service, enumWord(d.Condition.String(), "CONDITION_"))
		}
	}
}
