package cases

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

// The clock of the manager that leads is a year ahead for a minute: doctor says so, changes are taken at the others, nobody is
// expelled, and when it is right again everything is there, what happened before included.
func TestManagersClockIsAYearAhead(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Managers: 3, Hosts: 4})
	c.skep("service", "create", "--name", "web", "--replicas", "4", "--constraint", "node.role==worker", "--stop-signal", "SIGKILL", "busybox", "sleep", "100000")
	c.on("m1", "sh", "-c", "printf hidden | skep secret create kept -")
	before := ids(c.tasks("web"))
	c.awaitSettled(3, 2*time.Minute)
	wrong := c.awaitLeader("m1", 3, time.Minute)
	others := slices.DeleteFunc([]string{"m1", "m2", "m3"}, func(m string) bool { return m == wrong })
	w := c.writes("ahead", others...)
	if err := c.Clock(c.ctx, wrong, 365*24*time.Hour); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	t.Logf("%s is a year ahead; doctor says so after %.1f s", wrong, c.doctorSays(others[0], time.Minute, "clock of "+wrong).Seconds())
	c.await("changes are taken at the others", time.Minute, func() string {
		for _, m := range others {
			if w.since(m, began) < 3 {
				return fmt.Sprint(w.since(m, began), " at ", m)
			}
		}
		return ""
	})
	time.Sleep(time.Minute - time.Since(began)) // the fault lasts; nothing is waited for
	if err := c.Clock(c.ctx, wrong, 0); err != nil {
		t.Fatal(err)
	}
	n, pause := w.end("m1", "m2", "m3")
	t.Logf("%d changes, the longest pause %.1f s", n, pause.Seconds())
	for _, host := range c.members() {
		c.awaitNode(host, "Ready", 2*time.Minute)
	}
	c.awaitLeader("m1", 3, 2*time.Minute)
	if after := ids(c.tasks("web")); after != before {
		t.Errorf("tasks were replaced:\n%s\n%s", before, after)
	}
	if out := c.skep("secret", "ls", "--format", "{{.Name}}"); out != "kept" {
		t.Errorf("the secrets are %q", out)
	}
	for _, m := range []string{"m1", "m2", "m3"} {
		if r := c.on(m, "skep", "events", "--since", "1h", "--until", "0s", "--filter", "type=service", "--format", "{{.Action}} {{.Actor.Attributes.name}}"); !strings.Contains(r.Stdout, "create web") {
			t.Errorf("%s has lost that web was created: %d %s%s", m, r.Code, r.Stdout, r.Stderr)
		}
	}
	c.skep("service", "update", "--env-add", "A=b", "web")
	c.awaitNoError("m1", 2*time.Minute)
}
