// Package cron tells when the schedule of a job is due. It is pure: the time is an argument, nothing is read or kept.
// Cron expressions are parsed by robfig/cron; what clocks that are put forward or back mean for them is decided here.
package cron

import (
	"fmt"
	"strings"
	"time"
	_ "time/tzdata" // a node needs no zone files of its own

	robfig "github.com/robfig/cron/v3"

	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

// The defaults and limits of a schedule.
const (
	DefaultKeepCompleted = 3
	DefaultKeepFailed    = 1
	DefaultCatchUp       = time.Minute
	MaxKeep              = 100 // runs of each kind: each is a line of the service's object and holds its tasks
	MaxCatchUp           = 7 * 24 * time.Hour
)

// Schedule is a cron expression in a time zone, or a steady beat (@every).
//
// Where clocks are put forward, a time of day that does not exist is due when the gap ends; where they are put back, a
// time of day that comes twice is due the first time. A schedule of every hour (its second field lets all hours pass)
// follows elapsed time instead: it is due in both of two equal hours, and has nothing to make up for in a gap.
type Schedule struct {
	every time.Duration
	spec  *robfig.SpecSchedule // in UTC, of wall clocks
	fixed bool                 // at certain hours
	loc   *time.Location
}

var parser = robfig.NewParser(robfig.Minute | robfig.Hour | robfig.Dom | robfig.Month | robfig.Dow | robfig.Descriptor)

// Parse reads a schedule. The errors say what is wrong with it and what would be right.
func Parse(s *skepv1.Schedule) (*Schedule, error) {
	expr := strings.TrimSpace(s.GetCron())
	switch {
	case expr == "":
		return nil, fault.Invalid("a schedule needs a cron expression: five fields like \"*/5 * * * *\", @hourly, or @every 10m")
	case len(expr) > 256:
		return nil, fault.Invalid("the schedule's cron expression is %d characters long: at most 256", len(expr))
	case strings.HasPrefix(expr, "TZ=") || strings.HasPrefix(expr, "CRON_TZ="):
		return nil, fault.Invalid("invalid schedule %q: give the time zone with --schedule-timezone", expr)
	}
	loc, err := zone(s.GetTimeZone())
	if err != nil {
		return nil, err
	}
	if d, ok := strings.CutPrefix(expr, "@every"); ok {
		every, err := time.ParseDuration(strings.TrimSpace(d))
		if err != nil || every < time.Second || every%time.Second != 0 {
			return nil, fault.Invalid("invalid schedule %q: @every takes a duration of whole seconds, like @every 90s", expr)
		}
		return &Schedule{every: every, loc: loc}, nil
	}
	// The expression is evaluated on wall clocks, as if they were UTC's; see Next.
	parsed, err := parser.Parse(expr)
	if err != nil {
		return nil, fault.Invalid("invalid schedule %q: %v", expr, err)
	}
	spec, ok := parsed.(*robfig.SpecSchedule)
	if !ok {
		return nil, fault.Invalid("invalid schedule %q: use five fields, @hourly and the like, or @every", expr)
	}
	const allHours = 1<<24 - 1
	return &Schedule{spec: spec, fixed: spec.Hour&allHours != allHours, loc: loc}, nil
}

func zone(name string) (*time.Location, error) {
	switch name {
	case "":
		return time.UTC, nil
	case "Local":
		return nil, fault.Invalid("invalid time zone Local: managers may stand in different ones; use a name like Europe/Zurich")
	}
	loc, err := time.LoadLocation(name)
	if err != nil {
		return nil, fault.Invalid("unknown time zone %q: use a name of the IANA database like Europe/Zurich, or UTC", name)
	}
	return loc, nil
}

// Validate checks a whole schedule, with its defaults filled in or not.
func Validate(s *skepv1.Schedule, now time.Time) error {
	c, err := Parse(s)
	if err != nil {
		return err
	}
	if c.Next(now).IsZero() {
		return fault.Invalid("the schedule %q never comes: no day within five years fits it", s.GetCron())
	}
	if _, ok := skepv1.Concurrency_name[int32(s.GetConcurrency())]; !ok {
		return fault.Invalid("invalid schedule-concurrency %d: use allow, forbid or replace", s.GetConcurrency())
	}
	if n := max(s.GetKeepCompleted(), s.GetKeepFailed()); n > MaxKeep {
		return fault.Invalid("invalid schedule-keep %d: at most %d runs of each kind", n, MaxKeep)
	}
	if d := s.GetCatchUp().AsDuration(); d < 0 || d > MaxCatchUp {
		return fault.Invalid("invalid schedule-catch-up %s: use 0s to %s", d, MaxCatchUp)
	}
	return nil
}

// Next is the first time the schedule is due after t, zero when there is none within five years. A beat counts from t.
func (s *Schedule) Next(t time.Time) time.Time {
	if s.every > 0 {
		return t.Truncate(time.Second).Add(s.every)
	}
	if !s.fixed {
		spec := *s.spec
		spec.Location = s.loc
		return spec.Next(t.In(s.loc))
	}
	for w := wall(t.In(s.loc)); ; {
		w = s.clock(w)
		if w.IsZero() {
			return time.Time{}
		}
		if at := instant(w, s.loc); at.After(t) {
			return at
		}
	}
}

// clock is the next wall clock the expression fits, as UTC.
func (s *Schedule) clock(w time.Time) time.Time {
	spec := *s.spec
	spec.Location = time.UTC
	return spec.Next(w)
}

// Last is the newest time within (after, now] at which the schedule is due, zero when there is none. A beat counts from
// after.
func (s *Schedule) Last(after, now time.Time) time.Time {
	if s.every > 0 {
		from := after.Truncate(time.Second)
		n := now.Sub(from) / s.every
		if n < 1 {
			return time.Time{}
		}
		return from.Add(n * s.every)
	}
	// Look back further and further, so that a long pause of a dense schedule costs no more than a short one.
	for back := 2 * time.Minute; ; back *= 8 {
		from := now.Add(-back)
		far := from.Before(after) || back > 100*365*24*time.Hour
		if far {
			from = after
		}
		var last time.Time
		for at := s.Next(from); !at.IsZero() && !at.After(now); at = s.Next(at) {
			last = at
		}
		if far || !last.IsZero() {
			return last
		}
	}
}

// wall is what clocks show at t, as UTC.
func wall(t time.Time) time.Time {
	return time.Date(t.Year(), t.Month(), t.Day(), t.Hour(), t.Minute(), t.Second(), 0, time.UTC)
}

// instant is when clocks in loc first show w; for what they never show, when the gap that swallows it ends.
func instant(w time.Time, loc *time.Location) time.Time {
	t := time.Date(w.Year(), w.Month(), w.Day(), w.Hour(), w.Minute(), w.Second(), 0, loc)
	start, end := t.ZoneBounds()
	if !wall(t).Equal(w) {
		if !start.IsZero() && t.Sub(start) < 24*time.Hour {
			return start
		}
		return end
	}
	if start.IsZero() {
		return t
	}
	_, offset := start.Add(-time.Second).Zone()
	if first := time.Unix(w.Unix()-int64(offset), 0).In(loc); first.Before(start) && wall(first).Equal(w) {
		return first
	}
	return t
}

// Words is the schedule for people: "*/5 * * * * (Europe/Zurich)".
func Words(s *skepv1.Schedule) string {
	if s.GetTimeZone() == "" {
		return fmt.Sprintf("%s (UTC)", s.GetCron())
	}
	return fmt.Sprintf("%s (%s)", s.GetCron(), s.GetTimeZone())
}

// NextOf is when a stored service's schedule is due next, zero when it has none or it cannot be told.
func NextOf(v *skepv1.Service, now time.Time) time.Time {
	s := v.GetSpec().GetSchedule()
	if s == nil {
		return time.Time{}
	}
	c, err := Parse(s)
	if err != nil {
		return time.Time{}
	}
	from := Base(v.GetScheduleDecided().AsTime(), now)
	if last := c.Last(from, now); !last.IsZero() {
		from = last
	}
	return c.Next(from)
}

// Base is the time from which a schedule counts: what was decided last. One that lies more than a day ahead was written
// under a clock that has been put right since; to wait for it would stop the job for as long as that clock was wrong.
func Base(decided, now time.Time) time.Time {
	if decided.Sub(now) > 24*time.Hour {
		return now
	}
	return decided
}
