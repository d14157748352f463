// Package cases runs the tutorial and the faults against real hosts: one lab per case, real containers, nothing faked.
//
// Cases that mostly wait and measure no time of their own run side by side (t.Parallel), after the others.
//
// A case owns its lab and fails when a daemon's log holds a panic or a data race, or when anything of the lab is left on the machine.
package cases

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
	"skep.dev/libs/leaktest"
)

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "the lab's cases need root: run them with sudo, or `make test-unit` for the others")
		os.Exit(1)
	}
	bin, err := lab.FindBin("")
	if err == nil {
		for _, f := range []string{"skep", "race/skep", "whoami"} {
			if _, serr := os.Stat(bin + "/" + f); serr != nil {
				err = errors.Join(err, fmt.Errorf("%w: run `make build` and `make build RACE=1`", serr))
			}
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	leaktest.Main(m)
}

// cluster is a lab and the test that owns it.
type cluster struct {
	*lab.Lab
	t   *testing.T
	ctx context.Context
}

// up makes a lab named after the test and takes it down with it.
func up(t *testing.T, o lab.Options) *cluster {
	t.Helper()
	o.Name = slug(t.Name())
	o.Lifeline = true
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	t.Cleanup(cancel)
	if old, err := lab.Load(o.Name); err == nil && !anyRunning(old) {
		if err := lab.Remove(o.Name); err != nil { // of a run that was killed: its lifeline ended the hosts
			t.Fatal(err)
		}
	}
	began := time.Now()
	l, err := lab.Up(ctx, o)
	if err != nil {
		t.Fatalf("lab: %v", err)
	}
	t.Logf("lab %s up in %.1f s", o.Name, time.Since(began).Seconds())
	c := &cluster{Lab: l, t: t, ctx: ctx}
	t.Cleanup(c.end)
	return c
}

func anyRunning(l *lab.Lab) bool {
	for _, h := range l.Hosts {
		if h.Running() {
			return true
		}
	}
	return false
}

// slug is a lab name made of the test's.
func slug(name string) string {
	s := strings.ToLower(strings.NewReplacer("Test", "", "/", "-", "_", "").Replace(name))
	return "t-" + strings.Trim(s[:min(18, len(s))], "-")
}

func (c *cluster) end() {
	for _, h := range c.Hosts {
		c.checkLogs(h.Name)
	}
	if err := c.Down(); err != nil {
		c.t.Errorf("take the lab down: %v", err)
	}
	left, err := lab.Leftovers(c.Name)
	if err != nil || len(left) > 0 {
		c.t.Errorf("left on the machine: %v %v", left, err)
	}
}

// checkLogs fails on what no daemon may ever say, and shows the last of each log when the case failed.
func (c *cluster) checkLogs(host string) {
	files, err := c.LogFiles(host)
	if err != nil {
		c.t.Error(err)
		return
	}
	for name, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			continue // never started there
		}
		for _, bad := range []string{"panic:", "DATA RACE", "fatal error:"} {
			if at := strings.Index(string(b), bad); at >= 0 {
				c.t.Errorf("%s of %s has %q:\n%s", name, host, bad, string(b[at:min(len(b), at+4000)]))
			}
		}
		if c.t.Failed() && strings.HasPrefix(name, "skep") {
			lines := strings.Split(strings.TrimSpace(string(b)), "\n")
			c.t.Logf("the last of %s on %s:\n%s", name, host, strings.Join(lines[max(0, len(lines)-25):], "\n"))
		}
	}
}

// on runs a command on a host, whatever comes of it.
func (c *cluster) on(host string, argv ...string) lab.Result {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.ctx, 2*time.Minute)
	defer cancel()
	r, err := c.Run(ctx, host, argv...)
	if err != nil {
		c.t.Fatal(err)
	}
	return r
}

// skep runs skep on m1 and returns what it printed; anything but exit status 0 ends the test.
func (c *cluster) skep(args ...string) string {
	c.t.Helper()
	r := c.on("m1", append([]string{"skep"}, args...)...)
	if r.Code != 0 {
		c.t.Fatalf("skep %s: exit status %d\n%s%s", strings.Join(args, " "), r.Code, r.Stdout, r.Stderr)
	}
	return strings.TrimSpace(r.Stdout)
}

// refused runs skep on m1 and wants it refused with this status, saying each of the words, once and to stderr.
func (c *cluster) refused(code int, words []string, args ...string) {
	c.t.Helper()
	c.refusedOn("m1", code, words, append([]string{"skep"}, args...)...)
}

func (c *cluster) refusedOn(host string, code int, words []string, argv ...string) {
	c.t.Helper()
	r := c.on(host, argv...)
	line := strings.Join(argv, " ")
	if len(line) > 200 {
		line = line[:200] + "…"
	}
	if r.Code != code {
		c.t.Errorf("%s: exit status %d, want %d\n%s%s", line, r.Code, code, r.Stdout, r.Stderr)
	}
	for _, w := range words {
		if !strings.Contains(strings.ToLower(r.Stderr), strings.ToLower(w)) {
			c.t.Errorf("%s: want an error with %q, got:\n%s", line, w, r.Stderr)
		}
	}
}

// await polls until check returns "", and fails with its last word when that takes longer than the limit. It returns how long it took.
func (c *cluster) await(what string, limit time.Duration, check func() string) time.Duration {
	c.t.Helper()
	began := time.Now()
	for {
		why := check()
		if why == "" {
			return time.Since(began)
		}
		if time.Since(began) > limit {
			c.t.Fatalf("%s: not within %s: %s", what, limit, why)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// task is a row of `service ps`.
type task struct{ ID, Name, Node, Desired, State, Error string }

const taskFormat = "{{.ID}}\t{{.Name}}\t{{.Node}}\t{{.DesiredState}}\t{{.CurrentState}}\t{{.Error}}\t."

// tasks lists a service's tasks, history included.
func (c *cluster) tasks(service string) []task {
	c.t.Helper()
	return parseTasks(c.skep("service", "ps", "--no-trunc", "--format", taskFormat, service))
}

func parseTasks(out string) []task {
	var ts []task
	for _, line := range strings.Split(out, "\n") {
		f := strings.Split(line, "\t")
		if len(f) != 7 {
			continue
		}
		ts = append(ts, task{ID: f[0], Name: strings.TrimLeft(f[1], `\_ `), Node: f[2], Desired: f[3], State: f[4], Error: f[5]})
	}
	return ts
}

// running are the tasks that are meant to run and do, by node.
func (c *cluster) running(service string) map[string][]task {
	c.t.Helper()
	by := map[string][]task{}
	for _, t := range c.tasks(service) {
		if t.Desired == "Running" && strings.HasPrefix(t.State, "Running") {
			by[t.Node] = append(by[t.Node], t)
		}
	}
	return by
}

func count(by map[string][]task) (n int) {
	for _, ts := range by {
		n += len(ts)
	}
	return n
}

// awaitRunning waits until the service has exactly n running tasks, none of them on the nodes given.
func (c *cluster) awaitRunning(service string, n int, limit time.Duration, notOn ...string) time.Duration {
	c.t.Helper()
	return c.await(fmt.Sprintf("%s runs %d times", service, n), limit, func() string {
		by := c.running(service)
		for _, node := range notOn {
			if len(by[node]) > 0 {
				return fmt.Sprintf("%d still on %s", len(by[node]), node)
			}
		}
		if got := count(by); got != n {
			return fmt.Sprintf("%d run: %s", got, c.skep("service", "ps", service))
		}
		return ""
	})
}

// containers counts what really runs on a host: asked of its containerd, not of skep.
func (c *cluster) containers(host string) int {
	c.t.Helper()
	r := c.on(host, "ctr", "-a", "/run/skep/containerd.sock", "-n", "skep", "task", "ls")
	if r.Code != 0 {
		return -1 // containerd does not answer
	}
	return strings.Count(r.Stdout, "RUNNING")
}

// awaitContainers waits until the hosts together really run n containers.
func (c *cluster) awaitContainers(n int, limit time.Duration, hosts ...string) {
	c.t.Helper()
	c.await(fmt.Sprintf("%d containers on %v", n, hosts), limit, func() string {
		total, each := 0, map[string]int{}
		for _, h := range hosts {
			each[h] = c.containers(h)
			total += each[h]
		}
		if total != n {
			return fmt.Sprint(each)
		}
		return ""
	})
}

// node is a row of `node ls`.
func (c *cluster) nodeStates() map[string]string {
	c.t.Helper()
	out := map[string]string{}
	for _, line := range strings.Split(c.skep("node", "ls", "--format", "{{.Hostname}}\t{{.Status}}\t{{.Availability}}\t{{.ManagerStatus}}\t."), "\n") {
		if f := strings.Split(line, "\t"); len(f) == 5 {
			out[f[0]] = strings.TrimSpace(strings.Join(f[1:4], " "))
		}
	}
	return out
}

func (c *cluster) awaitNode(host, state string, limit time.Duration) time.Duration {
	c.t.Helper()
	return c.await("node "+host+" is "+state, limit, func() string {
		if got := c.nodeStates()[host]; !strings.HasPrefix(got, state) {
			return "it is " + strconv.Quote(got)
		}
		return ""
	})
}

// awaitClean waits until no host has a trace of any task.
func (c *cluster) awaitClean(limit time.Duration, hosts ...string) time.Duration {
	c.t.Helper()
	return c.await("nothing left of the tasks", limit, func() string {
		for _, h := range hosts {
			if out := c.on(h, "sh", "-c", lab.TaskTraces).Stdout; strings.TrimSpace(out) != "" {
				return h + ":\n" + out
			}
		}
		return ""
	})
}

// kill9 ends the newest process of that exact name on a host, or all of them.
func (c *cluster) kill9(host, name string, all bool) {
	c.t.Helper()
	if err := c.KillProcess(c.ctx, host, name, all); err != nil {
		c.t.Fatal(err)
	}
}

// members are the hosts that can run tasks, in order.
func (c *cluster) members() []string {
	var names []string
	for _, h := range c.Hosts {
		if h.Role == lab.Manager || h.Role == lab.Worker {
			names = append(names, h.Name)
		}
	}
	sort.Strings(names)
	return names
}
