package scheduler

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"skep.dev/libs/kvtest"
	"skep.dev/libs/leaktest"
	skepv1 "skep.dev/proto/skep/v1"
)

// A kill -9 needs a process: the test binary runs itself again as a scheduler, until its standard input ends.

const (
	childURL  = "SKEP_SCHEDULER_TEST_URL"
	childName = "SKEP_SCHEDULER_TEST_NAME"
)

func TestMain(m *testing.M) {
	url := os.Getenv(childURL)
	if url == "" {
		leaktest.Main(m)
	}
	if err := childMain(url, os.Getenv(childName)); err != nil {
		fmt.Fprintln(os.Stderr, "scheduler:", err)
		os.Exit(1)
	}
}

func childMain(url, name string) error {
	nc, err := nats.Connect(url)
	if err != nil {
		return err
	}
	defer nc.Close()
	s, err := New(Config{NC: nc, NodeID: name, LeaseTTL: time.Second})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		io.Copy(io.Discard, os.Stdin) //nolint:errcheck // however it ends, it ends
		cancel()
	}()
	return s.Run(ctx)
}

// spawn runs a scheduler in a process of its own, until kill is called or the test ends.
func (f *fake) spawn(name string) (kill func()) {
	f.t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childURL+"="+f.n.Servers[0].ClientURL(), childName+"="+name)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		f.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		f.t.Fatal(err)
	}
	killed := false
	f.t.Cleanup(func() {
		_ = in.Close()
		if err := cmd.Wait(); err != nil && !killed {
			f.t.Errorf("scheduler %s: %v", name, err)
		}
	})
	return func() { killed = true; _ = cmd.Process.Kill() }
}

// course is what becomes of one rolling update.
type course struct {
	batches map[int64][]uint64 // slots by the moment at which the plan that began them was made
	made    map[uint64]string  // the new task of each slot
	least   int                // how many tasks ran at once, at least
	broken  error
}

func (c *course) String() string {
	var at []int64
	for k := range c.batches {
		at = append(at, k)
	}
	slices.Sort(at)
	var out []string
	for _, k := range at {
		slices.Sort(c.batches[k])
		out = append(out, fmt.Sprint(c.batches[k]))
	}
	return strings.Join(out, " ")
}

// note looks at every record and at what the agents do, at each of their steps.
func (c *course) note(f *fake, id string) {
	up := 0
	for _, r := range f.records(id) {
		if r.seen == skepv1.TaskState_TASK_STATE_RUNNING {
			up++
		}
		if r.Revision != 2 || c.made[r.Slot] == r.Id {
			continue
		}
		if other := c.made[r.Slot]; other != "" {
			c.broken = fmt.Errorf("slot %d is updated twice, by %s and by %s", r.Slot, other, r.Id)
		}
		c.made[r.Slot] = r.Id
		c.batches[r.CreatedUnixMs] = append(c.batches[r.CreatedUnixMs], r.Slot)
	}
	c.least = min(c.least, up)
}

// The leading scheduler is killed in the middle of a rolling update, at a different point of each of four batches. The
// update goes the very way it goes when nobody disturbs it: the same slots batch by batch, each once, and never fewer
// replicas up than the policy allows.
func TestUpdateGoesOnOverKilledLeaders(t *testing.T) {
	const replicas, parallelism = 20, 4
	f := newFake(t, kvtest.Server(t), 5)
	kills := map[string]func(){}
	spawn := func(name string) { kills[name] = f.spawn(name) }
	update := func(id string) *course {
		f.putService(id, 1, service(id, replicas, "v1"))
		f.awaitRunning(id, replicas)
		c := &course{batches: map[int64][]uint64{}, made: map[uint64]string{}, least: replicas}
		f.mu.Lock()
		f.watch = func() { c.note(f, id) }
		f.mu.Unlock()
		s := service(id, replicas, "v2")
		s.Update = &skepv1.UpdateConfig{Parallelism: parallelism, Delay: dur(150 * time.Millisecond)}
		f.putService(id, 2, s)
		return c
	}
	finish := func(id string, c *course) {
		t.Helper()
		f.await(id+" is updated", func() error {
			if st := f.rollouts[id].GetStatus(); st.GetState() != "completed" {
				return fmt.Errorf("%v: %v", st, c)
			}
			if run := f.running(id); len(run) != replicas || slices.ContainsFunc(run, func(r record) bool { return r.Revision != 2 }) {
				return fmt.Errorf("%d run: %v", len(run), c)
			}
			return f.duplicates(id)
		})
		f.mu.Lock()
		defer f.mu.Unlock()
		f.watch = nil
		if c.broken != nil {
			t.Errorf("%s: %v", id, c.broken)
		}
		if len(c.made) != replicas {
			t.Errorf("%s: %d of %d slots updated", id, len(c.made), replicas)
		}
		if c.least < replicas-parallelism {
			t.Errorf("%s: %d tasks up, at least %d have to be", id, c.least, replicas-parallelism)
		}
	}

	spawn("s0")
	calm := update("calm")
	finish("calm", calm)

	spawn("s1")
	storm := update("storm")
	// Where in its batch the leader dies: each says of the n-th batch's slots whether that point is reached.
	point := []struct {
		name string
		at   func(r record) bool
	}{
		{"the new tasks are made", func(r record) bool { return r.Revision == 2 }},
		{"the old ones are told to stop", func(r record) bool { return r.Revision == 1 && r.Desired == skepv1.TaskState_TASK_STATE_SHUTDOWN }},
		{"the new ones are told to run", func(r record) bool { return r.Revision == 2 && r.Desired == skepv1.TaskState_TASK_STATE_RUNNING }},
		{"the new ones run", func(r record) bool { return r.Revision == 2 && r.seen == skepv1.TaskState_TASK_STATE_RUNNING }},
	}
	for n, p := range point {
		from := uint64(n*parallelism + 1)
		victim := ""
		f.await(fmt.Sprintf("batch %d: %s", n+1, p.name), func() error {
			for _, r := range f.records("storm") {
				if r.Slot >= from && p.at(r) {
					victim = f.holder
					kills[victim]()
					return nil
				}
			}
			return fmt.Errorf("so far %v", storm)
		})
		delete(kills, victim)
		spawn(fmt.Sprintf("s%d", n+2))
		f.await("another leads", func() error {
			if f.holder == victim {
				return fmt.Errorf("%s is dead and leads", victim)
			}
			return nil
		})
	}
	finish("storm", storm)
	f.mu.Lock()
	defer f.mu.Unlock()
	if calm.String() != storm.String() {
		t.Errorf("undisturbed %v\nwith kills  %v", calm, storm)
	}
	t.Logf("batches %v; at least %d of %d up", storm, storm.least, replicas)
}
