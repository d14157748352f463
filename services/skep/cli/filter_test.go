package cli

import (
	"strings"
	"testing"
	"time"

	skepv1 "skep.dev/proto/skep/v1"
)

// Every --filter is refused for a key it does not know and a value that cannot occur: status 2, with what there is, and before
// anybody is asked or waited for.
func TestFilters(t *testing.T) {
	c := newCluster(t)
	for line, want := range map[string]string{
		"events -f type=foo": "use service, network", "events -f kind=foo": "use service, network", "events -f image=x": "use type, id", "events -f type": "filters are key=value",
		"service ls -f nope=x": "use id, name, label, mode", "service ls -f mode=foo": "use replicated, global", "service ps -f desired-state=up web": "use running, shutdown",
		"task ls -f nope=1": "use id", "node ls -f role=boss": "use manager, worker", "node ls -f status=up": "use ready, sick, down", "node ls -f availability=no": "use active, pause, drain", "node ps -f nope=1": "use id", "network ls -f type=x": "use builtin, custom",
		"secret ls -f nope=1": "use id", "config ls -f nope=1": "use id", "stack ls -f nope=1": "use id, name", "stack ps -f nope=1 x": "use id", "stack services -f mode=x x": "use replicated",
		"volume ls -f dangling=perhaps": "use true, false", "volume claims -f nope=1": "use name", "volume prune --filter name=x": "use label", "network prune --filter name=x": "use label",
		"user ls -f nope=1": "use name", "mesh ls -f nope=1": "use port",
	} {
		if r := c.run(strings.Fields(line)...); r.code != ExitUsage || !strings.Contains(r.err, "invalid filter") || !strings.Contains(r.err, want) {
			t.Errorf("%s: %d %s", line, r.code, r.err)
		}
	}
	if len(c.calls) > 0 {
		t.Errorf("asked %v", c.calls)
	}
	if r := c.run("events", "-f", "type=NODE", "-f", "kind=service", "--since", "1h", "--until", "0s"); r.code != 0 {
		t.Errorf("%d %s", r.code, r.err)
	}
}

// A filter that leaves out the task that failed does not take its reason from the one that waits.
func TestWhyATaskWaitsIsShownWithoutTheFailedOne(t *testing.T) {
	c := newCluster(t)
	c.services = []*skepv1.Service{webService()}
	old := webTask("t1aaaaaaaaaaaaaaaaaaaaaaa", 1, skepv1.TaskState_TASK_STATE_FAILED)
	old.Desired, old.Status.Err = skepv1.TaskState_TASK_STATE_SHUTDOWN, "task: non-zero exit (7)"
	next := webTask("t2aaaaaaaaaaaaaaaaaaaaaaa", 1, skepv1.TaskState_TASK_STATE_ASSIGNED)
	next.Desired, next.Replaces, next.Failures, next.NotBeforeUnixMs = skepv1.TaskState_TASK_STATE_READY, old.Meta.Id, 1, testNow.Add(5*time.Second).UnixMilli()
	c.tasks = []*skepv1.Task{old, next}
	for _, line := range []string{"service ps -f desired-state=ready web", "task ls -f desired-state=ready", "node ps -f desired-state=ready w1"} {
		r := c.run(strings.Fields(line)...)
		if r.code != 0 || strings.Count(r.out, "\n") != 2 || !strings.Contains(r.out, "restarts in 5s (failed once)") || !strings.Contains(r.out, "non-zero exit (7)") {
			t.Errorf("%s: %d %s\n%s", line, r.code, r.err, r.out)
		}
	}
}

// A template that names what is not there is told what there is, at once and also where there is nothing to list.
func TestTemplatesNameTheFieldsThereAre(t *testing.T) {
	c := newCluster(t)
	c.services = []*skepv1.Service{webService()}
	for line, want := range map[string]string{
		"service ls --format {{.Foo}}": ".ID, .Image, .Mode, .Name", "task ls --format {{.Foo}}": ".CurrentState, .DesiredState", "events --format {{.Foo}}": ".Action, .Actor",
		"events --format {{.Actor.Name}}": ".Attributes, .ID", "info --format {{.Swarm.Foo}}": ".LocalNodeState", "version -f {{.Client.Foo}}": ".GitCommit",
		"service inspect web --format {{.Spec.Foo}}": ".TaskTemplate",
	} {
		if r := c.run(strings.Fields(line)...); r.code != ExitUsage || !strings.Contains(r.err, "; there are ") || !strings.Contains(r.err, want) {
			t.Errorf("%s: %d %s", line, r.code, r.err)
		}
	}
}
