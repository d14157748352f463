package cli

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

// A value that no cluster would take is an error of usage, status 2, and nothing is changed for it.
func TestValuesThereAreNot(t *testing.T) {
	c := newCluster(t)
	c.services = []*skepv1.Service{webService()}
	for _, line := range strings.Split(strings.TrimSpace(`
service create --mode foo img
service create --replicas -1 img
service create --restart-condition foo img
service create --update-order foo img
service create --update-failure-action foo img
service create --endpoint-mode foo img
service create --limit-memory foo img
service create --limit-cpu foo img
service create --publish foo img
service create --mount foo img
service create --constraint foo img
service create --constraint foo==bar img
service create --on-partition foo img
service create --isolation foo img
service create --stop-grace-period foo img
service create --name b@d img
service create --env =x img
service create --label =x img
service create --network name= img
service create --secret source= img
service create --ulimit foo img
service create --sysctl foo img
service create --dns foo img
service create --host foo img
service create --generic-resource foo img
service create --health-interval 1us img
service create --placement-pref foo img
service create --user= --workdir foo img
service create --schedule foo --mode replicated-job img
service create --depends-on web:foo img
service create --resolve-image foo img
service create IMG
service update --update-order foo web
service update --publish-add foo web
service update --limit-memory foo web
service scale web
service scale web=abc
service scale web=-1
service logs --since foo web
service logs --tail foo web
events --since foo
node update --availability foo w1
node update --role foo w1
node update --label-add =x w1
swarm update --task-history-limit foo
swarm update --dispatcher-heartbeat 1ms
swarm update --cert-expiry 1s
swarm update --backup-schedule foo
network create --subnet foo n
network create --driver foo n
network create --gateway foo --subnet 10.9.0.0/24 n
network create --opt encrypted=maybe n
secret create b@d -
config create --label =x n -
join-token foo
ca rotate --cert-expiry 1s
user create --role foo u
user create B@D
context create b/d
login b@d/x
top --interval foo
exec --user
mesh trace foo
mesh trace 99999
stack deploy -c /nonexistent st
stack deploy --resolve-image foo -c - st
service ps --format {{ web
upgrade --node w1 /nonexistent
audit --since foo
service rollback --to foo web
service diff web 0
`), "\n") {
		c.calls = nil
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		r := c.runCtx(ctx, strings.Fields(line)...)
		cancel()
		if r.code != ExitUsage {
			t.Errorf("skep %s: %d %q %q", line, r.code, r.out, r.err)
		}
		if strings.Contains(r.err, "strconv.") {
			t.Errorf("skep %s shows what Go's parser says: %q", line, r.err)
		}
	}
}

// Who serves the request may say so too: what is wrong is how it was written.
func TestUsageFromAfar(t *testing.T) {
	c := newCluster(t)
	c.on = func(proto.Message) error { return fault.Usage("invalid filter 'x': use y") }
	if r := c.run("service", "ls"); r.code != ExitUsage || r.err != "Error: invalid filter 'x': use y\n" {
		t.Errorf("%d %q", r.code, r.err)
	}
	c.on = func(proto.Message) error { return fault.Invalid("service web is a job") }
	if r := c.run("service", "ls"); r.code != ExitError {
		t.Errorf("%d %q", r.code, r.err)
	}
}

// A service in the place of a task is told which tasks it has, and what is nowhere is said once.
func TestTaskOrService(t *testing.T) {
	c := newCluster(t)
	c.services = []*skepv1.Service{webService()}
	c.tasks = []*skepv1.Task{webTask("t2aaaaaaaaaaaaaaaaaaaaaaa", 2, skepv1.TaskState_TASK_STATE_RUNNING), webTask("t1aaaaaaaaaaaaaaaaaaaaaaa", 1, skepv1.TaskState_TASK_STATE_RUNNING)}
	want(t, c.run("exec", "web", "sh"), ExitUsage, "", "Error: web is a service: name one of its tasks, such as web.1 (skep service ps web)\n")
	want(t, c.run("exec", "nosuch", "sh"), ExitError, "", "Error: no such task: nosuch\n")
	if r := c.run("logs", "nosuch"); r.code != ExitError || strings.Count(r.err, "no such") != 1 || !strings.Contains(r.err, "no such task or service: nosuch") {
		t.Errorf("%d %q", r.code, r.err)
	}
	c.tasks = nil
	if r := c.run("exec", "web", "sh"); r.code != ExitError || !strings.Contains(r.err, "skep service explain web") {
		t.Errorf("%d %q", r.code, r.err)
	}
}
