package cases

import (
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

// Two of three managers are lost for good. One command makes the third the only one, with all data; the worker's containers
// are not touched. A manager that returns serves nothing and becomes a worker.
func TestForceNewCluster(t *testing.T) {
	t.Parallel()
	for _, form := range []string{"one process", "separate"} {
		t.Run(form, func(t *testing.T) {
			c := up(t, lab.Options{Hosts: 4, Managers: 3, Separate: form == "separate"})
			c.awaitManagers(time.Minute, "m1", "m2", "m3")
			c.skep("service", "create", "--name", "still", "--replicas", "2", "--constraint", "node.role==worker", "--stop-signal", "SIGKILL", "busybox", "sleep", "200000")
			c.on("m1", "sh", "-c", "echo hidden | skep secret create kept -")
			running := func() string { return c.on("w1", "pgrep", "-fx", "sleep 200000").Stdout }
			before := running()
			if strings.Count(before, "\n") != 2 {
				t.Fatalf("2 tasks are these processes: %s", before)
			}
			force := []string{"skep", "init", "--force-new-cluster"}
			c.refusedOn("m1", 1, []string{"The managers have a majority", "m2 at 10.90.1.2:2377", "skep node rm --force"}, force...)
			c.refusedOn("w1", 1, []string{"This node is a worker and has no copy of the cluster's data"}, force...)

			for _, host := range []string{"m2", "m3"} {
				if err := c.Kill(c.ctx, host); err != nil {
					t.Fatal(err)
				}
			}
			var said string
			took := c.await("the loss is noticed, and the cluster founded anew", 2*time.Minute, func() string {
				r := c.on("m1", force...)
				if said = r.Stdout; r.Code != 0 {
					return r.Stderr
				}
				return ""
			})
			t.Logf("founded anew in %s:\n%s", took, said)
			for _, want := range []string{"Lost for good: manager m2", "Lost for good: manager m3", "is now its only manager", "Its data goes up to", "skep node rm NODE"} {
				if !strings.Contains(said, want) {
					t.Errorf("it does not say %q:\n%s", want, said)
				}
			}
			t.Logf("the node list follows after %s", c.awaitManagers(time.Minute, "m1"))
			for _, host := range []string{"m2", "m3"} {
				c.awaitNode(host, "Down", time.Minute)
			}
			if out := c.skep("secret", "ls", "--format", "{{.Name}}"); out != "kept" {
				t.Errorf("the secrets are %q", out)
			}
			c.awaitNode("w1", "Ready", time.Minute)
			c.refusedOn("m1", 1, []string{"is the cluster's only manager and it works"}, force...)
			if now := running(); now != before {
				t.Errorf("the containers before: %s, now: %s", before, now)
			}
			c.skep("service", "update", "--env-add", "A=b", "still")
			c.awaitRunning("still", 2, time.Minute)

			// One returns.
			if err := c.Start(c.ctx, "m2"); err != nil {
				t.Fatal(err)
			}
			c.await("m2 says what happened", time.Minute, func() string {
				r := c.on("m2", "sh", "-c", "cat /var/lib/skep/*.log | grep -c 'founded anew'")
				if strings.TrimSpace(r.Stdout) == "0" {
					return r.Stdout
				}
				return ""
			})
			if err := c.SetRole(c.ctx, "m2", lab.Worker); err != nil {
				t.Fatal(err)
			}
			c.awaitNode("m2", "Ready", 2*time.Minute)
			c.await("m2 is a worker by its own word", time.Minute, func() string {
				r := c.on("m2", "cat", "/var/lib/skep/node.json").Stdout
				if strings.Contains(r, `"role": "worker"`) {
					return ""
				}
				return r
			})
			c.awaitManagers(time.Minute, "m1")
		})
	}
}
