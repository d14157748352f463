package render

import (
	"bytes"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/golden"
)

func TestRuns(t *testing.T) {
	runs := []*skepv1.JobRun{
		from(t, &skepv1.JobRun{}, `run { iteration: 12 skipped: 2 } state: "running" completed: 3 wanted: 5`),
		from(t, &skepv1.JobRun{}, `run { iteration: 11 } state: "failed" completed: 4 wanted: 5 failed: 3 exit_codes: [1, 137]`),
		from(t, &skepv1.JobRun{}, `run { iteration: 9 } state: "completed" completed: 5 wanted: 5`),
	}
	for i, r := range runs {
		r.Run.Started = at(time.Duration(i*5+1) * time.Minute)
		if i != 1 {
			r.Run.Due = timestamppb.New(r.Run.Started.AsTime().Truncate(time.Minute))
		}
		if r.State != "running" {
			r.Ended = at(time.Duration(i*5) * time.Minute)
		}
	}
	forms(t, "runs", Runs(runs, now), `{{.Run}} {{.State}}`)
}

func TestPrettyJob(t *testing.T) {
	s := from(t, &skepv1.Service{}, `meta { id: "jjjjjjjjjjjjjjjjjjjjjjjj1" } revision: 1 job_iteration: 12 run { iteration: 12 }
		spec { name: "backup" mode { replicated_job { max_concurrent: 2 total_completions: 5 } } task { container { image: "backup:1" } }
		schedule { cron: "30 2 * * *" time_zone: "Europe/Zurich" concurrency: CONCURRENCY_FORBID keep_completed: 3 keep_failed: 1 catch_up { seconds: 60 } }
		depends_on { service: "db" condition: CONDITION_HEALTHY } depends_on { service: "migrate" condition: CONDITION_COMPLETED } }
		status { running: 1 desired: 2 completed: 3 }`)
	s.Meta.CreatedAt, s.Meta.UpdatedAt = at(time.Hour), at(time.Minute)
	s.Run.Started, s.ScheduleDecided = at(time.Minute), at(time.Minute)
	var b bytes.Buffer
	PrettyService(&b, s, now)
	golden.Check(t, "pretty-job", b.String())
	forms(t, "services-job", Services([]*skepv1.Service{s}, false, now), `{{.Mode}}`)
}
