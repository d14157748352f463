package specflag

import (
	"errors"
	"strings"
	"testing"

	skepv1 "skep.dev/proto/skep/v1"
)

const cronJob = `mode { replicated_job { max_concurrent: 1 total_completions: 1 } } task { container { image: "img" } } `

func TestCreateScheduled(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"--schedule|*/5  * * * *", `schedule { cron: "*/5 * * * *" }`},
		{"--schedule|@every 1s|--schedule-timezone|Europe/Zurich|--schedule-concurrency|replace|--schedule-keep|5,0|--schedule-catch-up|0s",
			`schedule { cron: "@every 1s" time_zone: "Europe/Zurich" concurrency: CONCURRENCY_REPLACE keep_completed: 5 keep_failed: 0 catch_up {} }`},
		{"--schedule|@daily|--schedule-keep|7", `schedule { cron: "@daily" keep_completed: 7 }`},
		{"--depends-on|db|--depends-on|migrate:completed|--depends-on|cache:healthy",
			`depends_on { service: "db" condition: CONDITION_STARTED } depends_on { service: "migrate" condition: CONDITION_COMPLETED } depends_on { service: "cache" condition: CONDITION_HEALTHY }`},
	} {
		got, err := create(append([]string{"--mode", "replicated-job"}, strings.Split(c.args, "|")...)...)
		if err != nil {
			t.Errorf("%s: %v", c.args, err)
			continue
		}
		same(t, got, parse(t, cronJob+c.want))
	}
}

func TestScheduleMistakes(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"--schedule-timezone|UTC", "--schedule-* flags need --schedule"},
		{"--schedule-keep|x", `invalid value "x" for --schedule-keep: write it as 3 or 3,1`},
		{"--schedule-keep|1,2,3", "write it as 3 or 3,1"},
		{"--schedule-keep|-1", "write it as 3 or 3,1"},
		{"--schedule-concurrency|both", `it must be "allow", "forbid" or "replace"`},
		{"--schedule-catch-up|soon", "schedule-catch-up"},
		{"--depends-on|:healthy", "write it as NAME or NAME:healthy"},
		{"--depends-on|db:ready", `invalid condition "ready" of --depends-on db: it must be started, healthy or completed`},
	} {
		_, err := create(strings.Split(c.args, "|")...)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.args, err, c.want)
		}
	}
}

func TestUpdateScheduled(t *testing.T) {
	const sched = `schedule { cron: "@daily" keep_completed: 2 keep_failed: 1 }`
	for _, c := range []struct{ before, args, after string }{
		{sched, "--schedule|@hourly", `schedule { cron: "@hourly" keep_completed: 2 keep_failed: 1 }`},
		{sched, "--schedule-keep|9", `schedule { cron: "@daily" keep_completed: 9 keep_failed: 1 }`},
		{sched, "--schedule|", ``},
		{sched, "--image|img", sched},
		{``, "--schedule|@daily", `schedule { cron: "@daily" }`},
		{`depends_on { service: "db" condition: CONDITION_STARTED }`, "--depends-on-add|db:healthy|--depends-on-add|x",
			`depends_on { service: "db" condition: CONDITION_HEALTHY } depends_on { service: "x" condition: CONDITION_STARTED }`},
		{`depends_on { service: "db" condition: CONDITION_STARTED }`, "--depends-on-rm|db", ``},
	} {
		s := parse(t, cronJob+c.before)
		if err := update(s, strings.Split(c.args, "|")...); err != nil {
			t.Errorf("%s: %v", c.args, err)
			continue
		}
		same(t, s, parse(t, cronJob+c.after))
	}
	for _, c := range []struct{ before, args, want string }{
		{``, "--schedule-keep|1", "--schedule-* flags need --schedule"},
		{sched, "--schedule||--schedule-keep|1", "make no sense with an empty --schedule"},
		{``, "--depends-on-rm|db", "the service does not depend on db"},
	} {
		if err := update(parse(t, cronJob+c.before), strings.Split(c.args, "|")...); err == nil || !strings.Contains(err.Error(), c.want) || !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, want %q", c.args, err, c.want)
		}
	}
}

// Stored services name ids: what the user calls a service is looked up.
func TestUpdateDependsByID(t *testing.T) {
	s := &skepv1.ServiceSpec{DependsOn: []*skepv1.Dependency{{Service: "id-db"}, {Service: "id-gone"}}, Mode: &skepv1.ServiceMode{}}
	f := &Flags{ServiceID: func(ref string) (string, error) { return "id-" + ref, nil }}
	f.depends = addRm[*skepv1.Dependency]{add: &list[*skepv1.Dependency]{parse: one(parseDependency)}, rm: &list[string]{parse: one(text)}}
	for _, x := range []struct{ set, to string }{{"rm", "db"}, {"rm", "id-gone"}, {"add", "web"}} {
		var err error
		if x.set == "rm" {
			err = f.depends.rm.Set(x.to)
		} else {
			err = f.depends.add.Set(x.to)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := f.applyDepends(s); err != nil || len(s.DependsOn) != 1 || s.DependsOn[0].Service != "id-web" {
		t.Errorf("%v %v", s.DependsOn, err)
	}
}
