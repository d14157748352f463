package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
	"google.golang.org/protobuf/types/known/durationpb"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/api"
	"skep.dev/libs/daemon"
	"skep.dev/libs/event"
	"skep.dev/libs/id"
	"skep.dev/libs/pki"
	"skep.dev/libs/stream"
	"skep.dev/libs/subject"
)

// churnImage has a digest, so that nobody asks a registry for one.
const churnImage = "example.invalid/none@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// churner makes and removes things of a cluster whose manager is a daemon of its own and whose workers are hollow.
type churner struct {
	*child
	nc    *nats.Conn // local root's
	boss  *nats.Conn // may do everything
	nodes []*hollow
	round int
}

func newChurner(t *testing.T) *churner {
	t.Helper()
	p := home(t)
	if out, err := command(t, p, "init", "--no-start", "--advertise-addr", "127.0.0.1", "--availability", "drain"); err != nil {
		t.Fatalf("init: %v\n%s", err, out)
	}
	c := &churner{child: spawn(t, p)}
	var err error
	if c.nc, err = nats.Connect("nats://skep", nats.SetCustomDialer(socket(p.Broker()))); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.nc.Close)
	store, err := pki.Open(p.Certs())
	if err != nil {
		t.Fatal(err)
	}
	if c.boss, err = daemon.Connect("churn", []string{"127.0.0.1:2377"}, store, zap.NewNop()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.boss.Close)
	token := mustAsk(t, c.nc, api.TokenGet, &skepv1.JoinTokenRequest{Role: skepv1.NodeRole_NODE_ROLE_WORKER}).Token
	for i := range 3 {
		c.nodes = append(c.nodes, joinHollow(t, "127.0.0.1:2377", token, fmt.Sprintf("w%d", i+1), fmt.Sprintf("127.0.1.%d", i+1)))
	}
	c.await("the workers are ready", func() error {
		ready := 0
		for _, n := range mustAsk(t, c.nc, api.NodeList, &skepv1.ListNodesRequest{}).Nodes {
			if n.Status.GetState() == skepv1.NodeState_NODE_STATE_READY {
				ready++
			}
		}
		if ready != 4 {
			return fmt.Errorf("%d nodes are", ready)
		}
		return nil
	})
	return c
}

func (c *churner) await(what string, look func() error) {
	c.t.Helper()
	c.within(patience, 5*time.Millisecond, what, look)
}

func (c *churner) within(most, every time.Duration, what string, look func() error) {
	c.t.Helper()
	var err error
	for end := time.Now().Add(most); time.Now().Before(end); time.Sleep(every) {
		if err = look(); err == nil {
			return
		}
	}
	c.t.Fatalf("%s: %v", what, err)
}

// made is how many tasks the workers have had and have not any more.
func (c *churner) made() (n uint64) {
	for _, h := range c.nodes {
		n += h.gone()
	}
	return n
}

func (c *churner) service(name string, replicas uint64, networks ...string) *skepv1.ServiceSpec {
	s := &skepv1.ServiceSpec{
		Name: name, Task: &skepv1.TaskSpec{
			Container: &skepv1.ContainerSpec{Image: churnImage, Env: []string{"A=1"}, Labels: map[string]string{"some": "label"}},
			Restart:   &skepv1.RestartPolicy{Condition: skepv1.RestartCondition_RESTART_CONDITION_ANY, Delay: durationpb.New(20 * time.Millisecond)},
		},
		Mode:   &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_Replicated{Replicated: &skepv1.ReplicatedMode{Replicas: replicas}}},
		Update: &skepv1.UpdateConfig{Parallelism: 0, Monitor: durationpb.New(time.Millisecond)},
	}
	for _, n := range networks {
		s.Task.Networks = append(s.Task.Networks, &skepv1.NetworkAttachment{Target: n})
	}
	return s
}

// cycle is a network, a service on it with a port, one that crashes, scale, update, and the removal of it all.
func (c *churner) cycle(replicas uint64) {
	c.t.Helper()
	c.round++
	net, web, crash := fmt.Sprintf("net%d", c.round), fmt.Sprintf("web%d", c.round), fmt.Sprintf("%s%d", crashing, c.round)
	mustAsk(c.t, c.nc, api.NetworkCreate, &skepv1.CreateNetworkRequest{Spec: &skepv1.NetworkSpec{Name: net, Driver: "overlay"}})
	spec := c.service(web, replicas, net)
	spec.Endpoint = &skepv1.EndpointSpec{Ports: []*skepv1.PortConfig{{Protocol: "tcp", TargetPort: 80}}}
	mustAsk(c.t, c.nc, api.ServiceCreate, &skepv1.CreateServiceRequest{Spec: spec})
	mustAsk(c.t, c.nc, api.ServiceCreate, &skepv1.CreateServiceRequest{Spec: c.service(crash, 1)})
	c.running(web, replicas)
	mustAsk(c.t, c.nc, api.ServiceScale, &skepv1.ScaleServiceRequest{Ref: web, Replicas: replicas * 7 / 4})
	c.running(web, replicas*7/4)
	cur := mustAsk(c.t, c.nc, api.ServiceInspect, &skepv1.Ref{Ref: web}).Service
	cur.Spec.Task.Container.Env = []string{"A=2"}
	mustAsk(c.t, c.nc, api.ServiceUpdate, &skepv1.UpdateServiceRequest{Ref: web, Spec: cur.Spec})
	c.await("the update ends", func() error {
		s := mustAsk(c.t, c.nc, api.ServiceInspect, &skepv1.Ref{Ref: web}).Service
		if s.UpdateStatus.GetState() != "completed" {
			return fmt.Errorf("%v", s.UpdateStatus)
		}
		return nil
	})
	for _, s := range []string{web, crash} {
		mustAsk(c.t, c.nc, api.ServiceRemove, &skepv1.RemoveServiceRequest{Ref: s})
	}
	c.await("the network goes", func() error {
		_, err := api.Call(c.t.Context(), c.nc, api.NetworkRemove, &skepv1.Ref{Ref: net})
		return err
	})
}

func (c *churner) running(name string, want uint64) {
	c.t.Helper()
	c.await(name+" runs", func() error {
		s := mustAsk(c.t, c.nc, api.ServiceInspect, &skepv1.Ref{Ref: name}).Service
		if s.Status.GetRunning() != want {
			return fmt.Errorf("%d of %d", s.Status.GetRunning(), want)
		}
		return nil
	})
}

func (c *churner) tasks(n int) {
	for until := c.made() + uint64(n); c.made() < until; {
		c.cycle(20)
	}
	c.await("no task is left", func() error {
		if l := mustAsk(c.t, c.nc, api.TaskList, &skepv1.ListTasksRequest{}).Tasks; len(l) > 0 {
			return fmt.Errorf("%d are", len(l))
		}
		return nil
	})
}

// events are published as services do, without waiting for the stream, but for one now and then: it drops what it cannot store.
func (c *churner) events(n int) {
	js, err := jetstream.New(c.boss)
	if err != nil {
		c.t.Fatal(err)
	}
	for i := range n {
		e := &skepv1.Event{Kind: "service", Id: id.New(), Name: "web", Verb: "update", Attributes: map[string]string{"updatestate.new": "completed", "some": "label"}}
		if err := event.Publish(c.boss, e); err != nil {
			c.t.Fatal(err)
		}
		if i%256 == 255 || i == n-1 {
			if _, err := js.Publish(c.t.Context(), subject.Event("service", "last", "update"), []byte("{}")); err != nil {
				c.t.Fatal(err)
			}
		}
	}
}

func (c *churner) revisions(n int) {
	mustAsk(c.t, c.nc, api.ServiceCreate, &skepv1.CreateServiceRequest{Spec: c.service("revised", 0)})
	for i := range n {
		s := c.service("revised", 0)
		s.Task.Container.Env = []string{fmt.Sprint("N=", i)}
		mustAsk(c.t, c.nc, api.ServiceUpdate, &skepv1.UpdateServiceRequest{Ref: "revised", Spec: s})
	}
	mustAsk(c.t, c.nc, api.ServiceRemove, &skepv1.RemoveServiceRequest{Ref: "revised"})
}

func (c *churner) networks(n int) {
	for i := range n {
		name := fmt.Sprintf("many%d", i)
		mustAsk(c.t, c.nc, api.NetworkCreate, &skepv1.CreateNetworkRequest{Spec: &skepv1.NetworkSpec{Name: name, Driver: "overlay"}})
		mustAsk(c.t, c.nc, api.NetworkRemove, &skepv1.Ref{Ref: name})
	}
}

// sessions opens as many logs and shells, some at once, and reads each to its end.
func (c *churner) sessions(n int) {
	c.parallel(n, func(i int) error {
		node := c.nodes[i%len(c.nodes)].id
		subj := api.LogsOpen.At(node).Subject()
		if i%2 == 0 {
			subj = api.ExecOpen.At(node).Subject()
		}
		s, err := stream.Dial(c.t.Context(), c.nc, subj, node, &skepv1.LogsRequest{})
		if err != nil {
			return err
		}
		defer s.Close()
		if _, err := io.Copy(io.Discard, s.Reader(stream.Out)); err != nil {
			return err
		}
		_, err = s.Wait()
		return err
	})
}

// dials connects as often, as commands do: every other one through the local socket.
func (c *churner) dials(n int) {
	store, err := pki.Open(c.p.Certs())
	if err != nil {
		c.t.Fatal(err)
	}
	c.parallel(n, func(i int) error {
		var nc *nats.Conn
		var err error
		if i%2 == 0 {
			nc, err = nats.Connect("nats://skep", nats.SetCustomDialer(socket(c.p.Broker())))
		} else {
			nc, err = nats.Connect("tls://127.0.0.1:2377", nats.Secure(pki.ClientTLS(store)), nats.TLSHandshakeFirst())
		}
		if err != nil {
			return err
		}
		defer nc.Close()
		ctx, cancel := context.WithTimeout(c.t.Context(), patience)
		defer cancel()
		_, err = api.Call(ctx, nc, api.NodeList, &skepv1.ListNodesRequest{})
		return err
	})
}

// parallel does a thing n times, a few at once.
func (c *churner) parallel(n int, do func(i int) error) {
	c.t.Helper()
	const at = 8
	var wg sync.WaitGroup
	var once sync.Once
	var failed error
	for w := range at {
		wg.Go(func() {
			for i := w; i < n; i += at {
				if err := do(i); err != nil {
					once.Do(func() { failed = err })
					return
				}
			}
		})
	}
	wg.Wait()
	if failed != nil {
		c.t.Fatal(failed)
	}
}

// What churn may leave next to a fifth of what there was: blocks of streams that were written a moment ago, the ids by which
// the broker knows events for two minutes, and deletions that stay marked for fifteen.
const (
	heapLeft  = 8 << 20 // while it is in work
	pagesLeft = 4 << 20 // at rest
)

// TestChurn makes and removes tasks and all that goes with them, events, revisions, networks, sessions and connections, and
// then holds of each kind of thing as many as before. SKEP_CHURN says how many tasks, and there are as many of the rest as fit
// that; with it the pages of the process are looked at too, which the race detector would make many of.
func TestChurn(t *testing.T) {
	tasks, counted := 200, false
	if v := os.Getenv("SKEP_CHURN"); v != "" {
		var err error
		if tasks, err = strconv.Atoi(v); err != nil {
			t.Fatal(err)
		}
		counted = true
	}
	c := newChurner(t)
	// What is made once is made, and all streams are being written.
	c.tasks(100)
	c.events(100)
	c.revisions(10)
	c.networks(2)
	c.sessions(50)
	c.dials(50)
	before := c.rested(counted)
	c.keep("0-before")
	t.Log("before: ", before)
	for _, step := range []struct {
		name string
		many int
		do   func(int)
	}{
		{"tasks", tasks / 2, c.tasks},
		{"more-tasks", tasks / 2, c.tasks},
		{"events", tasks * 2, c.events},
		{"revisions", max(tasks/5, 100), c.revisions},
		{"networks", max(tasks/50, 20), c.networks},
		{"sessions", max(tasks/5, 200), c.sessions},
		{"connections", max(tasks/5, 100), c.dials},
	} {
		began := time.Now()
		step.do(step.many)
		took := time.Since(began).Round(time.Millisecond)
		c.keep(step.name)
		t.Logf("%d %s in %v: %v", step.many, step.name, took, c.measure())
	}
	began := time.Now()
	if counted {
		c.within(5*time.Minute, time.Second, "the memory is given back", func() error {
			if n, most := c.anon(), before.anon/5*6+pagesLeft; n > most {
				return fmt.Errorf("RssAnon %.1f MB, want %.1f at most", mb(n), mb(most))
			}
			return nil
		})
		t.Logf("RssAnon %.1f MB after %v of quiet", mb(c.anon()), time.Since(began).Round(time.Second))
	}
	var after figures
	c.within(2*time.Minute, time.Second, "all is as before", func() error {
		after = c.measure()
		return after.leaks(before)
	})
	c.keep("after")
	t.Logf("after %v: %v", time.Since(began).Round(time.Second), after)
}

// rested measures, the pages of a process at rest if they are wanted.
func (c *churner) rested(pages bool) figures {
	if pages {
		// The daemon looks twice a minute whether it is at rest. It has given back what its start took when it holds as much as
		// 45 seconds before.
		last := int64(math.MaxInt64)
		c.within(5*time.Minute, 45*time.Second, "the daemon is at rest", func() error {
			was := last
			if last = c.anon(); last < was-was/20 {
				return fmt.Errorf("RssAnon %.1f MB", mb(last))
			}
			return nil
		})
	}
	return c.measure()
}

// leaks says what there is more of than before. A stream that is being written has a file or two and a goroutine for it.
func (f figures) leaks(before figures) error {
	var errs []error
	more := func(what string, now, was int) {
		if now > was {
			errs = append(errs, fmt.Errorf("%d %s, want %d at most", now, what, was))
		}
	}
	more("goroutines", f.goroutines, before.goroutines+before.streams)
	more("files", f.fds, before.fds+2*before.streams)
	more("streams", f.streams, before.streams)
	more("consumers", f.consumers, before.consumers)
	more("connections", f.connections, before.connections)
	more("subscriptions", f.subscriptions, before.subscriptions)
	if most := before.heap/5*6 + heapLeft; f.heap > most {
		errs = append(errs, fmt.Errorf("heap %.1f MB, want %.1f at most", mb(f.heap), mb(most)))
	}
	return errors.Join(errs...)
}
