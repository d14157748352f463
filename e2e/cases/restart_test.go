package cases

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

// A service that crashes over and over: service ls says so, service ps says why, and when it is tried again; it is tried
// less and less often, and at once after an update that mends it.
func TestCrashLoop(t *testing.T) {
	c := up(t, lab.Options{})
	c.skep("service", "create", "--detach", "--name", "loop", "--restart-delay", "100ms", "--restart-backoff", "2s", "whoami:crash")

	// How long each task was to wait, by the number of failures before it: what the records say, however busy the machine.
	held := map[uint64]time.Duration{}
	look := func() {
		var ts []struct {
			Failures  uint64 `json:"failures"`
			NotBefore int64  `json:"not_before_unix_ms,string"`
			Meta      struct {
				Created time.Time `json:"created_at"`
			} `json:"meta"`
		}
		if err := json.Unmarshal([]byte(c.skep("service", "ps", "--json", "loop")), &ts); err != nil {
			c.t.Fatal(err)
		}
		for _, x := range ts {
			if x.NotBefore != 0 {
				held[x.Failures] = time.UnixMilli(x.NotBefore).Sub(x.Meta.Created)
			}
		}
	}
	waits := regexp.MustCompile(`^[A-Z][a-z]+, restarts in .* \(failed \d+ times in a row\)$`)
	c.await("the waiting task says what it waits for and why", time.Minute, func() string {
		for _, x := range c.tasks("loop") {
			if x.Desired == "Ready" && waits.MatchString(x.State) && strings.Contains(x.Error, "task: non-zero exit (1)") {
				return ""
			}
		}
		return c.skep("service", "ps", "--no-trunc", "loop")
	})
	c.await("service ls says that it is a loop", time.Minute, func() string {
		if out := c.skep("service", "ls"); !regexp.MustCompile(`loop .* 0/1 \(1 crash-looping(: failed .*)?\)`).MatchString(out) {
			return out
		}
		return ""
	})
	c.await("ten failures in a row", 2*time.Minute, func() string {
		if look(); held[10] == 0 {
			return fmt.Sprint(held)
		}
		return ""
	})
	t.Log(held)
	for n, d := range held {
		most := 100 * time.Millisecond
		if n > 5 {
			most = min(2*time.Second, most<<(n-5))
		}
		// Less a tenth for the jitter, and a few milliseconds between two looks at the clock.
		if d > most || d < most*9/10-5*time.Millisecond {
			t.Errorf("after %d failures the wait is %s, want about %s", n, d, most)
		}
	}

	// Mended, nothing is left of it.
	c.skep("service", "update", "--detach", "--image", "whoami", "loop")
	took := c.awaitRunning("loop", 1, 30*time.Second)
	t.Logf("ran %s after the update", took)
	if out := c.skep("service", "ls", "--filter", "name=loop", "--format", "{{.Replicas}}"); out != "1/1" {
		t.Errorf("service ls: %s", out)
	}
	c.skep("service", "rm", "loop")
	c.awaitClean(time.Minute, c.members()...)
}
