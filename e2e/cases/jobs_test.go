package cases

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

// run is a row of `service runs`.
type run struct{ number, due, state, completed, failed, codes, skipped string }

func (c *cluster) runs(job string) []run {
	c.t.Helper()
	var out []run
	for line := range strings.Lines(c.skep("service", "runs", "--format", "{{.Run}}\t{{.Due}}\t{{.State}}\t{{.Completed}}\t{{.Failed}}\t{{.ExitCodes}}\t{{.Skipped}}", job)) {
		if f := strings.Split(strings.TrimSpace(line), "\t"); len(f) == 7 {
			out = append(out, run{f[0], f[1], f[2], f[3], f[4], f[5], f[6]})
		}
	}
	return out
}

// Jobs: completions two at once, a failing one, logs that stay; a schedule that runs, skips and is asked to run; services
// that wait for others.
func TestJobs(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Race: true})
	job := func(name string, args ...string) []string {
		return append([]string{"service", "create", "--name", name, "--mode", "replicated-job"}, args...)
	}

	// Five completions, two at once: the wait ends when all are done, and what they said is kept.
	c.skep(job("five", "--replicas=5", "--max-concurrent=2", "busybox", "sh", "-c", "echo done; sleep 1")...)
	if got := c.skep("service", "ls", "--format", "{{.Mode}} {{.Replicas}}", "--filter", "name=five"); got != "replicated job 0/2 (5/5 completed)" {
		t.Errorf("service ls: %q", got)
	}
	if n := strings.Count(c.skep("service", "logs", "five"), "done"); n != 5 {
		t.Errorf("the logs of ended tasks hold %d lines, want 5", n)
	}
	if r := c.runs("five"); len(r) != 1 || r[0].completed != "5/5" || !strings.HasPrefix(r[0].state, "completed") {
		t.Errorf("runs: %+v", r)
	}

	// One that cannot complete says so, with status 1, and its exit code is kept.
	c.refused(1, []string{"job bad failed: 0 of 1 tasks completed", "non-zero exit (7)"}, job("bad", "--restart-max-attempts=1", "--restart-delay=500ms", "busybox", "sh", "-c", "echo oh no; exit 7")...)
	if r := c.runs("bad"); len(r) != 1 || r[0].failed != "2" || r[0].codes != "7" {
		t.Errorf("runs: %+v", r)
	}
	if n := strings.Count(c.skep("service", "logs", "bad"), "oh no"); n != 2 {
		t.Errorf("the logs of failed tasks hold %d lines, want 2", n)
	}
	c.refused(1, []string{"job bad failed"}, "service", "run", "bad")

	// A schedule does not run at once, and then at its times.
	c.refused(2, []string{"never comes"}, job("never", "--schedule=0 0 30 2 *", "busybox")...)
	c.skep(job("tick", "--schedule=@every 2s", "busybox", "true")...)
	c.skep(job("slow", "--schedule=@every 2s", "--schedule-catch-up=10s", "busybox", "sleep", "5")...)
	c.await("three runs of tick are kept", 40*time.Second, func() string {
		ok := 0
		seen := map[string]bool{}
		for _, r := range c.runs("tick") {
			if seen[r.due] {
				t.Fatalf("two runs for %s", r.due)
			}
			seen[r.due] = true
			if strings.HasPrefix(r.state, "completed") {
				ok++
			}
		}
		if ok < 3 {
			return fmt.Sprintf("%+v", c.runs("tick"))
		}
		return ""
	})
	c.await("slow skips what comes while it goes", 30*time.Second, func() string {
		for _, r := range c.runs("slow") {
			if strings.HasPrefix(r.state, "completed") && r.skipped != "0" {
				return ""
			}
		}
		return fmt.Sprintf("%+v", c.runs("slow"))
	})
	if got := c.skep("service", "ls", "--format", "{{.Mode}}", "--filter", "name=tick"); got != "replicated job (cron)" {
		t.Errorf("service ls: %q", got)
	}
	if got := c.skep("service", "inspect", "--pretty", "tick"); !strings.Contains(got, "Next:\t\tin ") {
		t.Errorf("inspect does not say when it runs next:\n%s", got)
	}
	c.skep("service", "rm", "tick", "slow")

	// By hand.
	c.skep(job("nightly", "--schedule=0 3 * * *", "--schedule-timezone=Europe/Zurich", "busybox", "true")...)
	if r := c.runs("nightly"); len(r) != 0 {
		t.Errorf("it ran when it was made: %+v", r)
	}
	if got := c.skep("service", "run", "nightly"); got != "1" {
		t.Errorf("service run prints %q, want the run's number", got)
	}
	c.skep("service", "update", "--args=sleep 60", "nightly") // neither runs it nor waits
	c.skep("service", "run", "--detach", "nightly")
	c.refused(1, []string{"run 2 of job nightly still goes"}, "service", "run", "nightly")
	c.skep("service", "rm", "nightly")

	// What depends on others waits for them, and says so.
	c.refused(1, []string{"web depends on db", "does not exist"}, "service", "create", "--name", "web", "--depends-on", "db", "whoami:v1")
	c.skep("service", "create", "-d", "--name", "db", "--constraint", "node.labels.disk==ssd", "busybox", "sleep", "1000")
	c.skep(job("migrate", "-d", "--depends-on=db", "busybox", "true")...)
	c.skep("service", "create", "-d", "--name", "web", "--depends-on", "db:started", "--depends-on", "migrate:completed", "busybox", "sleep", "1000")
	c.refused(1, []string{"db cannot depend on web", "db -> web"}, "service", "update", "--depends-on-add", "web", "db")
	c.await("web says what it waits for", 10*time.Second, func() string {
		for _, x := range c.tasks("web") {
			if strings.HasPrefix(x.State, "Pending") && strings.Contains(x.Error, "waits for service db to be started (0 of 1)") {
				return ""
			}
		}
		return c.skep("service", "ps", "--no-trunc", "web")
	})
	if got := c.skep("service", "explain", "web"); !strings.Contains(got, "waits for service db to be started (0 of 1)") {
		t.Errorf("explain does not say what it waits for:\n%s", got)
	}
	c.skep("node", "update", "--label-add", "disk=ssd", "w1")
	c.awaitRunning("web", 1, time.Minute)
	if r := c.runs("migrate"); len(r) != 1 || !strings.HasPrefix(r[0].state, "completed") {
		t.Errorf("web runs and migrate is %+v", r)
	}
	// Once it runs it is not stopped because what it waited for goes.
	r := c.on("m1", "skep", "service", "rm", "db")
	if r.Code != 0 || !strings.Contains(r.Stderr, "services migrate, web depend on it") {
		t.Errorf("rm db: %d\n%s", r.Code, r.Stderr)
	}
	c.awaitRunning("web", 1, 5*time.Second)
}
