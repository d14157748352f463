package cases

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"skep.dev/e2e/history"
	"skep.dev/e2e/lab"
)

// Hosts of a cluster fail in every way the lab knows, at random, while clients change things. When all is mended, everything
// that was acknowledged is there, in an order that explains every answer; each service has exactly its tasks; and when the
// clients' objects are removed, nothing is left anywhere.
//
// SKEP_CHAOS is how long it goes on, SKEP_SEED what is done and when, 0 for a new one: the same seed plans the same faults
// and the same requests. With an even seed a host's services are one process, with an odd one each is a process of its own.
func TestChaos(t *testing.T) {
	lasts, seed := 2*time.Minute, uint64(7)
	if v := os.Getenv("SKEP_CHAOS"); v != "" {
		d, err := time.ParseDuration(v)
		if err != nil {
			t.Fatalf("SKEP_CHAOS: %v", err)
		}
		lasts = d
	}
	if v := os.Getenv("SKEP_SEED"); v != "" {
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			t.Fatalf("SKEP_SEED: %v", err)
		}
		if seed = n; n == 0 {
			seed = uint64(time.Now().UnixNano())
		}
	}
	t.Logf("chaos for %v; SKEP_SEED=%d does it again", lasts, seed)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("it was SKEP_SEED=%d", seed)
		}
	})
	c := up(t, lab.Options{Managers: 3, Hosts: 6, OwnDisk: 2 << 30, Separate: seed%2 == 1})
	var cancel context.CancelFunc
	c.ctx, cancel = context.WithTimeout(context.Background(), lasts+20*time.Minute)
	defer cancel()
	c.awaitLeader("m1", 3, time.Minute)

	h := history.New()
	stop := make(chan struct{})
	var clients sync.WaitGroup
	all := make([]*chaosClient, 20)
	for i := range all {
		all[i] = &chaosClient{c: c, n: i, rnd: rand.New(rand.NewPCG(seed, uint64(i)+1)), h: h, odd: map[string]int{}}
		clients.Go(func() { all[i].work(stop) })
	}
	n := &nemesis{c: c, rnd: rand.New(rand.NewPCG(seed, 0)), began: time.Now()}
	for time.Since(n.began) < lasts && !t.Failed() {
		n.strike()
	}
	close(stop)
	clients.Wait()
	n.revive()
	t.Logf("%d faults, %s", n.struck, h)
	odd := map[string]int{}
	for _, cl := range all {
		for text, k := range cl.odd {
			odd[text] += k
		}
	}
	for _, text := range slices.Sorted(maps.Keys(odd)) {
		t.Logf("%4d times: %s", odd[text], text)
		if strings.Contains(text, "internal error") {
			t.Errorf("a client was told of an internal error: %s", text)
		}
	}

	c.awaitAPI(2 * time.Minute)
	c.awaitLeader("m1", 3, 3*time.Minute)
	for _, host := range c.members() {
		c.awaitNode(host, "Ready", 2*time.Minute)
	}
	c.finalReads(h)
	broken, unsure := h.Broken(2 * time.Minute)
	for _, name := range slices.Sorted(maps.Keys(broken)) {
		t.Errorf("no order of its changes explains what clients were told of %s:\n%s", name, broken[name])
	}
	if len(unsure) > 0 {
		t.Logf("not decided in time: %v", unsure)
	}
	c.settled(5 * time.Minute)
	c.await("doctor finds no error", 3*time.Minute, func() string { // secrets that nobody uses are worth a warning
		if r := c.on("m1", "skep", "doctor"); r.Code != 0 {
			return r.Stdout + r.Stderr
		}
		return ""
	})
	c.on("m1", "sh", "-c", "printf 'correct horse\n' > /srv/pass; chmod 600 /srv/pass")
	c.skep("backup", "create", "--passphrase-file", "/srv/pass", "/srv/chaos.skep") // audits the store, at one instant
	if out := c.skep("backup", "inspect", "--passphrase-file", "/srv/pass", "/srv/chaos.skep"); !strings.Contains(out, "whole, and unaltered") {
		t.Error(out)
	}

	for _, kind := range []string{"service", "network", "secret"} {
		if names := strings.Fields(c.skep(kind, "ls", "--format", "{{.Name}}")); len(names) > 0 {
			for _, name := range names {
				if strings.HasPrefix(name, "chaos-") {
					c.skep(kind, "rm", name)
				}
			}
		}
	}
	c.awaitContainers(0, 2*time.Minute, c.members()...)
	c.awaitClean(2*time.Minute, c.members()...)
	c.awaitWell(3 * time.Minute)
}

// chaosClient changes things, one after the other, and notes what it is told.
type chaosClient struct {
	c   *cluster
	n   int
	rnd *rand.Rand
	h   *history.History
	seq int
	odd map[string]int // what was said when the outcome is unclear
}

// work goes on until stop is closed.
func (cl *chaosClient) work(stop <-chan struct{}) {
	for {
		pause := time.Duration(200+cl.rnd.IntN(1000)) * time.Millisecond
		select {
		case <-stop:
			return
		case <-time.After(pause):
		}
		cl.change()
	}
}

// Names that all clients share are changed by many at once; the first clients have a service with tasks of their own, too.
const (
	sharedServices = 5
	sharedSecrets  = 3
	sharedNetworks = 2
	ownServices    = 8
)

// change makes one change at one manager.
func (cl *chaosClient) change() {
	at := fmt.Sprint("m", 1+cl.rnd.IntN(3))
	cl.seq++
	v := fmt.Sprintf("%d-%d", cl.n, cl.seq)
	what := cl.rnd.IntN(100)
	switch {
	case cl.n < ownServices && what < 50:
		cl.service(at, fmt.Sprint("chaos-own-", cl.n), v, fmt.Sprint(1+cl.rnd.IntN(2)), what)
	case what < 75:
		cl.service(at, fmt.Sprint("chaos-", cl.rnd.IntN(sharedServices)), v, "0", what-50)
	case what < 90:
		name := fmt.Sprint("chaos-", cl.rnd.IntN(sharedSecrets))
		if cl.rnd.IntN(2) == 0 {
			cl.do(at, history.Request{Verb: history.Create, Name: "secret " + name, Value: v}, "secret", "create", "--label", "v="+v, "--random", "16", name)
		} else {
			cl.do(at, history.Request{Verb: history.Remove, Name: "secret " + name}, "secret", "rm", name)
		}
	default:
		name := fmt.Sprint("chaos-", cl.rnd.IntN(sharedNetworks))
		if cl.rnd.IntN(2) == 0 {
			cl.do(at, history.Request{Verb: history.Create, Name: "network " + name, Value: v}, "network", "create", "--label", "v="+v, name)
		} else {
			cl.do(at, history.Request{Verb: history.Remove, Name: "network " + name}, "network", "rm", name)
		}
	}
}

// service makes one change to a service, whose value is its label v. What scales or rolls back is not noted: it leaves or
// takes back the label, whose order the others tell.
func (cl *chaosClient) service(at, name, v, replicas string, what int) {
	object := "service " + name
	switch {
	case what%50 < 12:
		cl.do(at, history.Request{Verb: history.Create, Name: object, Value: v}, "service", "create", "--detach", "--name", name, "--label", "v="+v,
			"--replicas", replicas, "--stop-signal", "SIGKILL", "busybox", "sleep", "100000")
	case what%50 < 40:
		cl.do(at, history.Request{Verb: history.Update, Name: object, Value: v}, "service", "update", "--detach", "--label-add", "v="+v, name)
	case what%50 < 45 && replicas != "0":
		cl.do(at, history.Request{}, "service", "scale", "--detach", name+"="+replicas)
	case what%50 < 47 && replicas != "0":
		// On a service of its own, whose label is not looked at.
		cl.do(at, history.Request{}, "service", "update", "--detach", "--env-add", "V="+v, "chaos-back")
		cl.do(at, history.Request{}, "service", "rollback", "--detach", "chaos-back")
		cl.do(at, history.Request{}, "service", "create", "--detach", "--name", "chaos-back", "--stop-signal", "SIGKILL", "busybox", "sleep", "100000")
	default:
		cl.do(at, history.Request{Verb: history.Remove, Name: object}, "service", "rm", name)
	}
}

// do runs a command on a manager and notes its outcome.
func (cl *chaosClient) do(at string, q history.Request, args ...string) {
	ctx, cancel := context.WithTimeout(cl.c.ctx, time.Minute)
	defer cancel()
	cmd, err := cl.c.Command(ctx, at, append([]string{"skep"}, args...)...)
	if err != nil {
		return // the host is off: nothing was asked
	}
	var errs strings.Builder
	cmd.Stderr = &errs
	began := time.Now()
	err = cmd.Run()
	said := strings.TrimSpace(errs.String())
	a := history.Answer{Outcome: history.Unclear}
	switch {
	case err == nil:
		a.Outcome = history.Done
	case strings.Contains(said, "already exists"):
		a.Outcome = history.Exists
	case strings.Contains(strings.ToLower(said), "no such "+args[0]), strings.Contains(said, args[0]+" "+args[len(args)-1]+" not found"), strings.Contains(said, args[0]+" not found: "):
		a.Outcome = history.Missing
	default:
		line, _, _ := strings.Cut(said, "\n")
		cl.odd[fmt.Sprintf("%s %s: %.160s", args[0], args[1], line)]++
	}
	if q.Name != "" {
		cl.h.Note(cl.n, began, q, a)
	}
}

// finalReads notes what every object is at the end.
func (c *cluster) finalReads(h *history.History) {
	c.t.Helper()
	for _, object := range h.Names() {
		kind, name, _ := strings.Cut(object, " ")
		format := "{{index .Spec.Labels \"v\"}}"
		if kind == "network" {
			format = "{{index .Labels \"v\"}}"
		}
		began := time.Now()
		r := c.on("m1", "skep", kind, "inspect", "--format", format, name)
		a := history.Answer{Outcome: history.Done, Value: strings.TrimSpace(r.Stdout)}
		switch {
		case r.Code == 0:
		case strings.Contains(strings.ToLower(r.Stderr), "no such"), strings.Contains(r.Stderr, " not found"):
			a = history.Answer{Outcome: history.Missing}
		default:
			c.t.Errorf("inspect %s: %s", object, r.Stderr)
			continue
		}
		h.Note(-1, began, history.Request{Verb: history.Read, Name: object}, a)
	}
}

// settled waits until every service has exactly its tasks, and the hosts run exactly those containers.
func (c *cluster) settled(limit time.Duration) {
	c.t.Helper()
	c.await("every service has exactly its tasks", limit, func() string {
		want := 0
		for line := range strings.Lines(c.skep("service", "ls", "--format", "{{.Name}} {{.Replicas}}")) {
			name, replicas, _ := strings.Cut(strings.TrimSpace(line), " ")
			running, desired, _ := strings.Cut(replicas, "/")
			n, err := strconv.Atoi(desired)
			if err != nil || running != desired {
				return name + " has " + replicas
			}
			if got := count(c.running(name)); got != n {
				return fmt.Sprintf("%s has %d tasks of %d", name, got, n)
			}
			want += n
		}
		total := 0
		for _, host := range c.members() {
			total += c.containers(host)
		}
		if total != want {
			return fmt.Sprintf("%d containers run, %d should", total, want)
		}
		return ""
	})
}
