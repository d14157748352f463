package cron

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	skepv1 "skep.dev/proto/skep/v1"
)

func parse(t fataler, expr, zone string) *Schedule {
	t.Helper()
	s, err := Parse(&skepv1.Schedule{Cron: expr, TimeZone: zone})
	if err != nil {
		t.Fatalf("%v", err)
	}
	return s
}

type fataler interface {
	Helper()
	Fatalf(string, ...any)
}

func at(t *testing.T, s string) time.Time {
	t.Helper()
	v, err := time.Parse(time.RFC3339, s)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestRefused(t *testing.T) {
	for _, c := range []struct{ expr, zone, want string }{
		{"", "", "needs a cron expression"},
		{"* * * *", "", "expected exactly 5 fields"},
		{"0 * * * * *", "", "expected exactly 5 fields"},
		{"61 * * * *", "", "above maximum"},
		{"* * * * mo", "", "invalid schedule"},
		{"@sometimes", "", "unrecognized descriptor"},
		{"@every", "", "whole seconds"},
		{"@every 0s", "", "whole seconds"},
		{"@every -5s", "", "whole seconds"},
		{"@every 1500ms", "", "whole seconds"},
		{"TZ=", "", "--schedule-timezone"},
		{"CRON_TZ=Asia/Tokyo 0 3 * * *", "", "--schedule-timezone"},
		{"0 3 * * *", "Europe/Zurch", `unknown time zone "Europe/Zurch"`},
		{"0 3 * * *", "Local", "invalid time zone Local"},
		{"0 3 * * *", "../etc/passwd", "unknown time zone"},
		{"0 0 30 2 *", "", "never comes"},
		{"0 0 31 4,6,9,11 *", "Europe/Zurich", "never comes"},
		{",", "", "expected exactly 5 fields"},
		{", * * * *", "", "never comes"},
		{strings.Repeat("0,", 200) + "0 * * * *", "", "at most 256"},
	} {
		err := Validate(&skepv1.Schedule{Cron: c.expr, TimeZone: c.zone}, time.Unix(1_700_000_000, 0))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q in %q: %v, want %q", c.expr, c.zone, err, c.want)
		}
	}
	for _, s := range []*skepv1.Schedule{
		{Cron: "@daily", KeepCompleted: proto.Uint32(101)}, {Cron: "@daily", KeepFailed: proto.Uint32(101)}, {Cron: "@daily", Concurrency: 9},
		{Cron: "@daily", CatchUp: durationpb.New(-time.Second)}, {Cron: "@daily", CatchUp: durationpb.New(8 * 24 * time.Hour)},
	} {
		if err := Validate(s, time.Now()); err == nil {
			t.Errorf("%v is taken", s)
		}
	}
	if err := Validate(&skepv1.Schedule{Cron: "0 0 29 2 *"}, time.Now()); err != nil {
		t.Errorf("a leap day comes: %v", err)
	}
}

// What clocks that are put forward and back mean. Zurich 2026: forward on 29 March at 02:00 (+01) to 03:00, back on 25
// October at 03:00 (+02) to 02:00. Lord Howe moves by half an hour only.
func TestClockChanges(t *testing.T) {
	for _, c := range []struct{ name, expr, zone, from, want string }{
		{"ordinary", "30 2 * * *", "Europe/Zurich", "2026-01-10T00:00:00Z", "10 01:30, 11 01:30"},
		{"in the gap, due when it ends", "30 2 * * *", "Europe/Zurich", "2026-03-28T12:00:00Z", "29 01:00, 30 00:30"},
		{"in and after the gap, once", "30 2,3 * * *", "Europe/Zurich", "2026-03-29T00:00:00Z", "29 01:00, 29 01:30, 30 00:30"},
		{"at the end of the gap, not twice", "0 2,3 * * *", "Europe/Zurich", "2026-03-29T00:00:00Z", "29 01:00, 30 00:00"},
		{"twice on the clock, due the first time", "30 2 * * *", "Europe/Zurich", "2026-10-24T12:00:00Z", "25 00:30, 26 01:30"},
		{"from between the two", "30 2 * * *", "Europe/Zurich", "2026-10-25T00:45:00Z", "26 01:30"},
		{"hourly goes by elapsed time, back", "@hourly", "Europe/Zurich", "2026-10-24T23:30:00Z", "25 00:00, 25 01:00, 25 02:00"},
		{"hourly goes by elapsed time, forward", "@hourly", "Europe/Zurich", "2026-03-28T23:30:00Z", "29 00:00, 29 01:00, 29 02:00"},
		{"half past each hour, forward", "30 * * * *", "Europe/Zurich", "2026-03-29T00:00:00Z", "29 00:30, 29 01:30"},
		{"half an hour of gap", "15 2 * * *", "Australia/Lord_Howe", "2026-10-02T16:00:00Z", "03 15:30, 04 15:15"},
		{"no clocks change in UTC", "30 2 * * *", "", "2026-03-28T12:00:00Z", "29 02:30, 30 02:30"},
		{"midnight that does not exist", "0 0 * * *", "America/Asuncion", "2023-09-30T12:00:00Z", "01 04:00, 02 03:00"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := parse(t, c.expr, c.zone)
			var got []string
			for x := at(t, c.from); len(got) <= strings.Count(c.want, ","); {
				x = s.Next(x)
				got = append(got, x.UTC().Format("02 15:04"))
			}
			if g := strings.Join(got, ", "); g != c.want {
				t.Errorf("%s from %s: %s, want %s", c.expr, c.from, g, c.want)
			}
		})
	}
}

func TestBeat(t *testing.T) {
	s := parse(t, "@every 90s", "")
	from := time.Unix(1_700_000_000, 700_000_000)
	if got := s.Next(from); !got.Equal(time.Unix(1_700_000_090, 0)) {
		t.Errorf("next %v", got)
	}
	for _, c := range []struct {
		later time.Duration
		want  int64 // seconds after from, 0 = none
	}{{0, 0}, {-time.Hour, 0}, {89 * time.Second, 0}, {90 * time.Second, 90}, {269 * time.Second, 180}, {time.Hour, 3600}, {24 * 365 * time.Hour, 24 * 365 * 3600}} {
		got := s.Last(from, from.Add(c.later))
		if c.want == 0 && !got.IsZero() || c.want != 0 && got.Unix() != 1_700_000_000+c.want {
			t.Errorf("%s later: %v", c.later, got)
		}
	}
}

// Last finds what a walk over every due time finds, and never what was decided.
func TestLastIsTheNewestDue(t *testing.T) {
	exprs := []string{"*/5 * * * *", "30 2 * * *", "0 0 1 1 *", "@hourly", "@weekly", "*/7 2-4 * * 0", "0 12 29 2 *"}
	zones := []string{"", "Europe/Zurich", "Australia/Lord_Howe", "America/New_York"}
	rapid.Check(t, func(t *rapid.T) {
		s := parse(t, rapid.SampledFrom(exprs).Draw(t, "expr"), rapid.SampledFrom(zones).Draw(t, "zone"))
		after := time.Unix(rapid.Int64Range(1_700_000_000, 1_800_000_000).Draw(t, "after"), 0)
		now := after.Add(time.Duration(rapid.Int64Range(-10_000, 3_000_000).Draw(t, "later")) * time.Second)
		var want time.Time
		for x := s.Next(after); !x.IsZero() && !x.After(now); x = s.Next(x) {
			want = x
		}
		if got := s.Last(after, now); !got.Equal(want) {
			t.Fatalf("last in (%v, %v] is %v, want %v", after, now, got, want)
		}
		if next := s.Next(after); !next.IsZero() && !next.After(after) {
			t.Fatalf("next of %v is %v", after, next)
		}
	})
}

func TestNextOf(t *testing.T) {
	now := at(t, "2026-11-25T09:00:30Z")
	for _, c := range []struct {
		cron, decided, want string
	}{
		{"*/5 * * * *", "2026-11-25T08:00:00Z", "2026-11-25T09:05:00Z"},
		{"*/5 * * * *", "2026-11-25T10:00:00Z", "2026-11-25T10:05:00Z"}, // the clock was put back
		{"*/5 * * * *", "2031-01-01T00:00:00Z", "2026-11-25T09:05:00Z"}, // it had been wrong
		{"@every 40s", "2026-11-25T09:00:00Z", "2026-11-25T09:00:40Z"},
		{"@every 40s", "2026-11-25T08:59:00Z", "2026-11-25T09:01:00Z"},
	} {
		v := &skepv1.Service{Spec: &skepv1.ServiceSpec{Schedule: &skepv1.Schedule{Cron: c.cron}}, ScheduleDecided: timestamppb.New(at(t, c.decided))}
		if got := NextOf(v, now).UTC().Format(time.RFC3339); got != c.want {
			t.Errorf("%s decided %s: next %s, want %s", c.cron, c.decided, got, c.want)
		}
	}
	if got := fmt.Sprint(NextOf(&skepv1.Service{}, now).IsZero()); got != "true" {
		t.Error("a service without a schedule is due")
	}
}

func BenchmarkLastAfterAYear(b *testing.B) {
	s, err := Parse(&skepv1.Schedule{Cron: "* * * * *", TimeZone: "Europe/Zurich"})
	if err != nil {
		b.Fatal(err)
	}
	now := time.Unix(1_790_000_000, 0)
	for b.Loop() {
		s.Last(now.Add(-365*24*time.Hour), now)
	}
}
