package render

import (
	"bytes"
	"strings"
	"testing"
	"time"

	skepv1 "skep.dev/proto/skep/v1"
)

// What waits to be started again says so, for how long, and why the one before it ended.
func TestCrashLoopIsShown(t *testing.T) {
	mk := func(text string, created, since time.Duration) *skepv1.Task {
		k := from(t, &skepv1.Task{}, text)
		k.Meta.CreatedAt, k.Status.SinceUnixMs = at(created), ago(since)
		return k
	}
	old := mk(`meta { id: "old" } name: "web.1" slot: 1 image: "x" desired: TASK_STATE_SHUTDOWN status { state: TASK_STATE_FAILED err: "task: non-zero exit (3)" exit_code: 3 }`, time.Minute, 20*time.Second)
	wait := mk(`meta { id: "new" } name: "web.1" slot: 1 image: "x" desired: TASK_STATE_READY replaces: "old" status { state: TASK_STATE_READY }`, 20*time.Second, 20*time.Second)
	row := func(k *skepv1.Task) string {
		r := Tasks([]*skepv1.Task{k, old}, TaskOptions{Now: now}).Rows[0]
		return r["CurrentState"] + "|" + r["Error"]
	}
	for _, c := range []struct {
		in       time.Duration
		failures uint32
		want     string
	}{
		{40 * time.Second, 7, `Ready, restarts in 40s (failed 7 times in a row)|"task: non-zero exit (3)"`},
		{100 * time.Second, 1, `Ready, restarts in 1m40s (failed once)|"task: non-zero exit (3)"`},
		{300 * time.Millisecond, 2, `Ready, restarts in less than a second (failed 2 times in a row)|"task: non-zero exit (3)"`},
		{-time.Second, 7, `Ready 20 seconds ago|`}, // any moment now
	} {
		wait.NotBeforeUnixMs, wait.Failures = now.Add(c.in).UnixMilli(), c.failures
		if got := row(wait); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
	// With what it replaces filtered out it is as good as it gets, and an error of its own goes first.
	wait.NotBeforeUnixMs = now.Add(time.Minute).UnixMilli()
	if r := Tasks([]*skepv1.Task{wait}, TaskOptions{Now: now}).Rows[0]; r["Error"] != "" {
		t.Error(r)
	}
	wait.Status.Err = "pull failed"
	if got := row(wait); !strings.HasSuffix(got, `|"pull failed"`) {
		t.Error(got)
	}
	ill := mk(`meta { id: "ill" } name: "web.2" image: "x" desired: TASK_STATE_RUNNING status { state: TASK_STATE_RUNNING health: HEALTH_STATE_UNHEALTHY err: "unhealthy, not replaced: 1 of at most 1 replaced for health now" }`, time.Minute, time.Minute)
	if r := Tasks([]*skepv1.Task{ill}, TaskOptions{Now: now, NoTrunc: true}).Rows[0]; r["Error"] != `"unhealthy, not replaced: 1 of at most 1 replaced for health now"` || r["CurrentState"] != "Running about a minute ago (unhealthy)" {
		t.Error(r)
	}
}

func TestCrashLoopInServiceLs(t *testing.T) {
	s := from(t, &skepv1.Service{}, `meta { id: "s" } spec { name: "web" mode { replicated { replicas: 3 } } } status { running: 1 desired: 3 crash_looping: 1 }`)
	if got := Replicas(s); got != "1/3 (1 crash-looping)" {
		t.Error(got)
	}
	s.Status.Loop = &skepv1.CrashLoop{Failures: 4, NextUnixMs: now.Add(20 * time.Second).UnixMilli(), Err: "no such image:\nregistry.example.com/web:nine"}
	for noTrunc, want := range map[bool]string{
		false: `1/3 (1 crash-looping: failed 4 times in a row, next in 20s, "no such image: registry.examp…")`,
		true:  `1/3 (1 crash-looping: failed 4 times in a row, next in 20s, "no such image: registry.example.com/web:nine")`,
	} {
		if got := Services([]*skepv1.Service{s}, noTrunc, now).Rows[0]["Replicas"]; got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	var b bytes.Buffer
	if err := JSON(&b, []*skepv1.Service{s}); err != nil || !strings.Contains(strings.ReplaceAll(b.String(), " ", ""), `"crash_looping":"1"`) {
		t.Errorf("%v %s", err, b.String())
	}
}
