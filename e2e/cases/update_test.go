package cases

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

// images counts the service's running tasks by image.
func (c *cluster) images(service string) map[string]int {
	c.t.Helper()
	n := map[string]int{}
	for _, line := range strings.Split(c.skep("service", "ps", "--format", "{{.Image}}\t{{.DesiredState}}\t{{.CurrentState}}", service), "\n") {
		if f := strings.Split(line, "\t"); len(f) == 3 && f[1] == "Running" && strings.HasPrefix(f[2], "Running") {
			n[f[0]]++
		}
	}
	return n
}

func (c *cluster) awaitImages(service string, want map[string]int) {
	c.t.Helper()
	c.await(fmt.Sprint("tasks ", want), 30*time.Second, func() string {
		if got := c.images(service); !maps.Equal(got, want) {
			return fmt.Sprintf("%v run: %s", got, c.skep("service", "ps", service))
		}
		return ""
	})
}

// versions counts which versions answer at a published port of every node.
func (c *cluster) versions(port int) map[string]int {
	c.t.Helper()
	n := map[string]int{}
	for _, h := range c.members() {
		for range draws / len(c.members()) {
			a, err := c.ask("client", fmt.Sprintf("http://%s:%d/", fabric[h], port))
			if err != nil {
				c.t.Fatal(err)
			}
			n[a.version]++
		}
	}
	return n
}

// Chapter 9: a service is updated under load, a version that fails pauses it or rolls it back, and any kept revision can
// be gone back to.
func TestChapter9Updates(t *testing.T) {
	c := up(t, lab.Options{})
	c.skep("service", "create", "--name", "my_web", "--replicas", "3", "--publish", "8080:80", "--update-monitor", "2s", "--rollback-monitor", "1s", "whoami:v1")
	c.awaitPort(8080)
	var urls []string
	for _, m := range c.members() {
		urls = append(urls, "http://"+fabric[m]+":8080/")
	}
	end := c.hammer(2, urls...)
	c.skep("service", "update", "--image", "whoami:v2", "my_web")
	c.skep("service", "update", "--replicas", "6", "--update-parallelism", "2", "--update-delay", "1s", "my_web")
	c.awaitRunning("my_web", 6, 30*time.Second)

	// A version that fails pauses the update; the others go on with v2, and the screen says why.
	began := time.Now()
	c.refused(1, []string{"service update paused: update paused due to failure or early termination of task", "non-zero exit (1)", "| whoami: crashing, as asked", "--resume my_web"},
		"service", "update", "--args", "-crash", "my_web")
	t.Logf("paused %.1f s after the command", time.Since(began).Seconds())
	if n := c.versions(8080)["v2"]; n == 0 {
		t.Error("v2 does not serve while the update is paused")
	}
	if out := c.skep("service", "inspect", "--pretty", "my_web"); !strings.Contains(out, "paused") || !strings.Contains(out, "update paused due to failure") {
		t.Errorf("inspect --pretty does not tell of the paused update:\n%s", out)
	}
	if n := c.images("my_web")["whoami:v2"]; n < 4 {
		t.Errorf("%d of 6 serve after an update of two at a time failed", n)
	}
	c.skep("service", "update", "--rollback", "my_web")
	c.awaitRunning("my_web", 6, 10*time.Second)

	// By itself, with exit status 3 and the reason.
	c.skep("service", "update", "--update-failure-action", "rollback", "--update-delay", "0s", "my_web")
	c.refused(3, []string{"service rolled back: update rolled back due to failure or early termination of task", "non-zero exit (1)"},
		"service", "update", "--args", "-crash", "my_web")
	history := c.skep("service", "history", "my_web")
	if !strings.Contains(history, "rollback to revision") || !strings.Contains(history, "scheduler") || !strings.Contains(history, "root") {
		t.Errorf("the history names neither the rollback nor who asked:\n%s", history)
	}
	c.skep("service", "rollback", "--to", "1", "my_web")
	asked, failed, first := end()
	if failed > 0 || asked == 0 {
		t.Errorf("%d of %d requests failed, such as %s", failed, asked, first)
	}
	if v := c.versions(8080); v["v1"] == 0 || len(v) != 1 {
		t.Errorf("after the rollback to revision 1 these versions answer: %v", v)
	}
	if diff := c.skep("service", "diff", "my_web", "1", "2"); !strings.Contains(diff, "image whoami:v1 -> whoami:v2") {
		t.Errorf("diff 1 2:\n%s", diff)
	}
}

// A canary waits for a word, a pause for a resumption; a scale neither disturbs an update nor is undone by a rollback.
func TestCanaryPauseResume(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{})
	c.skep("service", "create", "--name", "web", "--replicas", "4", "--update-monitor", "500ms", "--publish", "8080:80", "whoami:v1")
	out := c.on("m1", "skep", "service", "update", "--canary", "1", "--image", "whoami:v2", "web")
	if out.Code != 0 || !strings.Contains(out.Stdout+out.Stderr, "1 of 4 tasks run revision 2: skep service promote or abort") {
		t.Fatalf("the canary: %d\n%s%s", out.Code, out.Stdout, out.Stderr)
	}
	c.awaitImages("web", map[string]int{"whoami:v1": 3, "whoami:v2": 1})
	c.skep("service", "promote", "web")
	c.awaitImages("web", map[string]int{"whoami:v2": 4})
	c.refused(1, []string{"service web has no canary to promote"}, "service", "promote", "web")

	c.skep("service", "update", "--canary", "2", "--image", "whoami:v1", "web")
	c.skep("service", "scale", "web=5")
	c.awaitImages("web", map[string]int{"whoami:v1": 2, "whoami:v2": 3}) // what is added is of the revision that is known to be good
	c.skep("service", "abort", "web")
	c.awaitImages("web", map[string]int{"whoami:v2": 5})

	c.skep("service", "update", "--detach", "--update-delay", "60s", "--image", "whoami:v1", "web")
	c.awaitImages("web", map[string]int{"whoami:v1": 1, "whoami:v2": 4})
	c.skep("service", "update", "--pause", "web")
	c.await("the pause", 10*time.Second, func() string {
		if s := c.skep("service", "inspect", "--format", "{{.UpdateStatus.State}}", "web"); s != "paused" {
			return "the update is " + s
		}
		return ""
	})
	// A manager that dies and returns finds the update as it was.
	c.kill9("m1", "skep", true)
	c.on("m1", "sh", "-c", "setsid skep node run >>/var/lib/skep/skep.log 2>&1 </dev/null & true")
	c.awaitNode("m1", "Ready", 30*time.Second)
	if s := strings.TrimSpace(c.skep("service", "inspect", "--format", "{{.UpdateStatus.State}}", "web")); s != "paused" {
		t.Errorf("after the manager's return the update is %s", s)
	}
	c.skep("service", "update", "--detach", "--update-delay", "0s", "web")
	c.awaitImages("web", map[string]int{"whoami:v1": 5})
}

// An update whose image does not exist, or that no node can take, changes nothing that runs, and fails in time.
func TestUpdateThatCannotBe(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Hosts: 2})
	c.skep("service", "create", "--name", "web", "--replicas", "2", "--update-monitor", "500ms", "--update-timeout", "4s", "--update-failure-action", "rollback", "whoami:v1")
	c.refused(3, []string{"service rolled back: update rolled back due to task", "does not serve after 4s", "no suitable node"},
		"service", "update", "--constraint-add", "node.labels.nowhere==true", "web")
	c.awaitImages("web", map[string]int{"whoami:v1": 2})
	c.refused(3, []string{"service rolled back:"}, "service", "update", "--no-resolve-image", "--image", "whoami:never", "web")
	c.awaitImages("web", map[string]int{"whoami:v1": 2})
}
