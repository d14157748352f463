package cases

import (
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

// TestDoctorTellsOfUpkeep: certificates, clocks, the store and what is left over are well in a fresh cluster; secrets that
// nobody uses are named, and so is a task whose node does not bring it the newest version.
func TestDoctorTellsOfUpkeep(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Hosts: 3, Race: true})
	c.awaitWell(time.Minute)
	began := time.Now()
	lines := c.skep("doctor", "--format", "{{.Status}} {{.Check}}: {{.Text}}")
	t.Logf("doctor of %d healthy nodes took %s", 3, time.Since(began).Round(time.Millisecond))
	for _, want := range []string{
		"OK certificates: 3 nodes, the first ends in 8", // 90 days, and some minutes are gone
		"; the CA's ends in 19 years", "OK clocks: those of 3 nodes are known and near manager m1's", "OK store of m1: a durable write takes ",
		" have a leader, and every replica is up to date", "OK secrets: services use every secret and config", "OK leftovers: nothing is left",
	} {
		if !strings.Contains(lines, want) {
			t.Errorf("doctor does not say %q:\n%s", want, lines)
		}
	}
	finding := func(want string) {
		t.Helper()
		c.await("doctor says "+want, time.Minute, func() string {
			if r := c.on("m1", "skep", "doctor", "--format", "{{.Status}} {{.Check}}: {{.Text}}"); !strings.Contains(r.Stdout, want) {
				return r.Stdout + r.Stderr
			}
			return ""
		})
	}

	// Spare secrets and configs are named until somebody uses them.
	for _, kind := range []string{"secret", "config"} {
		c.on("m1", "sh", "-c", "printf one | skep "+kind+" create spare_"+kind+" -")
	}
	finding("WARN secrets: no service uses 1 secret: spare_secret; `skep secret rm` removes what is not needed")
	finding("WARN configs: no service uses 1 config: spare_config;")
	c.skep("config", "rm", "spare_config")
	c.skep("service", "create", "--name", "web", "--constraint", "node.hostname==w1", "--secret", "spare_secret", "--secret-update-signal", "SIGHUP",
		"busybox", "sh", "-c", "trap : HUP; while :; do sleep 1; done")
	c.awaitRunning("web", 1, time.Minute)
	c.awaitWell(time.Minute)

	// A node that is up for its managers and does nothing: its task stays behind, and is named with it.
	c.skep("swarm", "update", "--dispatcher-heartbeat", "60s")
	c.on("w1", "sh", "-c", "kill -STOP $(pgrep -o -x skep)")
	c.on("m1", "sh", "-c", "printf two | skep secret update spare_secret -")
	finding("WARN service web: 1 task runs with another version of a secret or config than the service: web.1 on node w1 has version 1 of secret spare_secret, not 2;")
	c.on("w1", "sh", "-c", "kill -CONT $(pgrep -o -x skep)")
	c.skep("swarm", "update", "--dispatcher-heartbeat", "1s")
	c.awaitWell(2 * time.Minute)
}
