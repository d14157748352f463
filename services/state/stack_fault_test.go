package state

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/stack"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/state/internal/index"
)

// onlyStacks checks that all there is belongs to stacks, that the stacks have what they say, and that the audit is content.
func (r *rig) onlyStacks() {
	r.t.Helper()
	r.caughtUp()
	want := map[string]string{}
	for _, n := range r.s.ix.Stacks() {
		for _, m := range r.s.ix.Stack(n.ID).Members {
			want[m.Id] = m.Kind + " " + m.Name
		}
	}
	for _, o := range slices.Concat(r.s.ix.ServicesAfter(""), r.s.ix.Networks()) {
		if want[o.ID] == "" {
			r.t.Errorf("%s is of no stack", o.Name)
		}
		delete(want, o.ID)
	}
	for _, what := range want {
		r.t.Errorf("%s is a member and is gone", what)
	}
	if got := audit(r.s.ix); len(got) > 0 {
		r.t.Errorf("the audit finds %v", got)
	}
}

// Whoever carries stacks out dies before its n-th step, for every n of a life of a stack: another goes on, nothing is made
// twice, nothing is left behind.
func TestStackSurvivesItsMaker(t *testing.T) {
	for n := 0; ; n++ {
		if !t.Run(fmt.Sprint(n), func(t *testing.T) { t.Parallel(); stackLife(t, n) }) || n == 10 {
			return
		}
	}
}

// stackLife is a stack's life with a maker that dies after n steps; a life has ten.
func stackLife(t *testing.T, n int) {
	srv := kvtest.Server(t)
	dead, stopped := make(chan struct{}), make(chan struct{})
	var did atomic.Int64
	r := &rig{t: t, n: srv, nc: srv.Conn(t)}
	mortal, stop := r.start(func(c *Config) {
		c.NodeID, c.LeaseTTL = "mortal", time.Second
		c.beforeStep = func(ctx context.Context, _ *stack.Op) {
			switch k := int(did.Add(1)); {
			case k == n+1:
				close(dead)
				<-ctx.Done()
			case k > n:
				<-ctx.Done()
			}
		}
	})
	await(t, "the mortal one to lead", func() bool { return mortal.ix.Leader(keys.LeaseStacks.Key()) == "mortal" })
	r.s, _ = r.start(func(c *Config) { c.NodeID, c.LeaseTTL = "other", time.Second })
	end := make(chan struct{})
	go func() {
		defer close(stopped)
		select {
		case <-dead:
		case <-end:
		}
		stop()
	}()
	defer func() { close(end); <-stopped }()
	r.init()
	spec := blog("blog")
	r.mustDeploy(spec, 0) // three steps
	spec.Services[1].Task.Container.Env = []string{"A=b"}
	spec.Services[0] = webSpec("blog_store", 1)
	spec.Services[0].Task.Networks = []*skepv1.NetworkAttachment{{Target: "blog_net"}}
	spec.Services[1].DependsOn[0].Service = "blog_store"
	r.mustDeploy(spec, 1, pruned) // three: a service goes, one comes, one changes
	if st := r.stack("blog"); members(st) != "network blog_net, service blog_store, service blog_web" {
		t.Fatal(st)
	}
	r.onlyStacks()
	must[*skepv1.DeployStackReply](t)(r.deploy(spec, 2)) // none
	if web := r.service("blog_web"); web.Revision != 2 {
		t.Fatalf("changed once, revision %d", web.Revision)
	}
	r.removeStack("blog") // three
	r.onlyStacks()
	if got := r.s.ix.Keys("idx."); len(got) > 1 {
		t.Fatal(got)
	}
	if n < 9 {
		select {
		case <-dead:
		default:
			t.Errorf("nobody died after %d steps", did.Load())
		}
	}
}

// Many deploy one stack at once, each its own value everywhere, while somebody's hand is in it too: every deploy is stored
// whole or refused, and in the end all services have the value of the newest revision.
func TestStackDeploysNeverMix(t *testing.T) {
	for _, c := range []struct {
		name  string
		start func(testing.TB) *kvtest.NATS
	}{{"R1", kvtest.Server}, {"R3", func(t testing.TB) *kvtest.NATS { return kvtest.Cluster(t, 3) }}} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, c.start(t))
			r.start()
			r.init()
			const services, people, times = 5, 4, 4
			var wg sync.WaitGroup
			var stored, refused atomic.Int64
			for p := range people {
				wg.Go(func() {
					for k := range times {
						spec := &skepv1.StackSpec{Name: "s", ResolveImage: "never"}
						for i := range services {
							s := webSpec(fmt.Sprintf("s_%d", i), 1)
							s.Task.Container.Env = []string{fmt.Sprintf("WHO=%d.%d", p, k)}
							spec.Services = append(spec.Services, s)
						}
						now := r.stack("s").GetRevision()
						_, err := r.deploy(spec, now)
						switch {
						case err == nil:
							stored.Add(1)
						case fault.Is(err, fault.CodeConflict):
							refused.Add(1)
						default:
							t.Errorf("deploy: %v", err)
						}
						if k%2 == 1 {
							_, _ = call(r, api.ServiceScale, &skepv1.ScaleServiceRequest{Ref: fmt.Sprintf("s_%d", p), Replicas: 5})
						}
					}
				})
			}
			wg.Wait()
			st := r.settled("s")
			if int64(st.Revision) < stored.Load() || len(st.Members) != services {
				t.Fatalf("%d stored, %d refused: %v", stored.Load(), refused.Load(), st)
			}
			for i := range services {
				svc := r.service(fmt.Sprintf("s_%d", i))
				if got, want := svc.Spec.Task.Container.Env[0], st.Spec.Services[0].Task.Container.Env[0]; got != want {
					t.Errorf("service %d has %s, the newest revision %s", i, got, want)
				}
			}
			t.Logf("%d stored, %d refused", stored.Load(), refused.Load())
			r.onlyStacks()
		})
	}
}

// A stack is removed in the middle of being deployed, at any moment: it goes with everything, and can come again.
func TestStackRemovedWhileDeployed(t *testing.T) {
	var halfway atomic.Pointer[chan struct{}]
	r := newRig(t, kvtest.Server(t), func(c *Config) {
		c.beforeStep = func(_ context.Context, o *stack.Op) {
			if ch := halfway.Load(); ch != nil && rand.IntN(3) == 0 {
				select {
				case *ch <- struct{}{}:
				default:
				}
			}
		}
	})
	r.init()
	for range 12 {
		ch := make(chan struct{}, 1)
		halfway.Store(&ch)
		must[*skepv1.DeployStackReply](t)(r.deploy(blog("blog"), 0))
		select {
		case <-ch:
		case <-time.After(50 * time.Millisecond): // it was too fast for the dice
		}
		r.removeStack("blog")
		r.caughtUp()
		if got := r.everything(); len(got) > 0 || len(r.s.ix.Keys("idx.")) > 0 {
			t.Fatal(got, r.s.ix.Keys("idx."))
		}
	}
	r.mustDeploy(blog("blog"), 0)
	r.onlyStacks()
}

// What somebody made by hand under the stack's label is nobody's but theirs.
func TestStackTakesOnlyItsOwn(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	r.mustDeploy(blog("blog"), 0)
	mine := webSpec("blog_mine", 1)
	mine.Labels = map[string]string{stack.Label: "blog"}
	must[*skepv1.ServiceReply](t)(r.create(mine))
	spec := blog("blog")
	spec.Services = spec.Services[:1]
	if got := changes(must[*skepv1.DeployStackReply](t)(r.deploy(spec, 1, pruned))); got != "remove service blog_web, keep network blog_net, keep service blog_db" {
		t.Fatal(got)
	}
	r.settled("blog")
	// A member that somebody removed and made anew by hand is no member.
	must[*skepv1.ServiceReply](t)(call(r, api.ServiceRemove, &skepv1.RemoveServiceRequest{Ref: "blog_db"}))
	r.mustCreate("blog_db", 1)
	_, err := r.deploy(spec, 2)
	wantErr(t, err, "service blog_db exists and is not of this stack: remove it, or deploy under another name")
	r.removeStack("blog")
	if got := fmt.Sprint(r.everything()); got != "[blog_db blog_mine]" {
		t.Fatal(got)
	}
}

// What fights the stack for a service is told of, and does not make revisions for ever.
func TestStackThatDoesNotStay(t *testing.T) {
	var s Service
	o := &stack.Op{Kind: stack.Service, Name: "s_a", Fields: []string{"replicas 5 -> 2"}}
	wantErr(t, s.mayDo(o, map[string]int{"service s_a": mostDone}, nil), "it does not stay as the stack asks for, after 3 times: something else changes it (replicas 5 -> 2)")
	if err := s.mayDo(o, map[string]int{"service s_a": mostDone - 1}, nil); err != nil {
		t.Fatal(err)
	}
}

// Revisions of a stack that is gone, and those that no stack came to, go with the sweep; a name that no stack has is released;
// the history keeps as many as it may.
func TestStackSweep(t *testing.T) {
	r := newRig(t, kvtest.Server(t), func(c *Config) { c.KeepRevisions = 3 })
	r.init()
	spec := blog("blog")
	var st *skepv1.Stack
	for i := range 5 {
		spec.Services[0].Task.Container.Env = []string{fmt.Sprintf("A=%d", i)}
		st = r.mustDeploy(spec, uint64(i))
	}
	var kept []uint64
	for _, k := range r.s.ix.StackRevisions(st.Meta.Id) {
		kept = append(kept, k.Number)
	}
	if fmt.Sprint(kept) != "[3 4 5]" {
		t.Fatal(kept)
	}
	put := func(b interface {
		Put(context.Context, string, []byte) (uint64, error)
	}, key string, m proto.Message) {
		t.Helper()
		body := []byte("nobody")
		if m != nil {
			body = must[[]byte](t)(proto.Marshal(m))
		}
		must[uint64](t)(b.Put(r.ctx(), key, body))
	}
	put(r.s.rev, keys.StackRevisionKey("nobody", 1), &skepv1.StackRevision{})
	put(r.s.rev, keys.StackRevisionKey(st.Meta.Id, 9), &skepv1.StackRevision{Number: 9})
	put(r.s.spec, keys.Name(keys.StackName, "lost"), nil)
	r.caughtUp()
	if got := leftOver(r.s.ix, time.Now().Add(time.Hour)); fmt.Sprint(got) != "[rev/stack.nobody.*]" {
		t.Fatal(got)
	}
	if got := audit(r.s.ix); len(got) != 1 {
		t.Fatal(got)
	}
	// A deploy skips the number that somebody may have died with.
	spec.Services[0].Task.Container.Env = []string{"A=next"}
	if st := r.mustDeploy(spec, 5); st.Revision != 10 {
		t.Fatal(st)
	}
	put(r.s.rev, keys.StackRevisionKey(st.Meta.Id, 11), &skepv1.StackRevision{Number: 11})
	r.caughtUp()
	r.s.sweepOnce(r.ctx(), time.Now().Add(time.Hour))
	r.caughtUp()
	revs := r.s.ix.StackRevisions(st.Meta.Id)
	if revs[len(revs)-1].Number != 10 || len(r.s.ix.StackRevisions("nobody")) != 0 || len(r.s.ix.Keys(keys.StackName.Prefix())) != 1 || len(audit(r.s.ix)) != 0 {
		t.Fatal(revs, audit(r.s.ix))
	}
	r.onlyStacks()
}

// Who asked for a stack stands in the revisions of its services, and in the events.
func TestStackSaysWho(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	who := r.n.As(t, "user-ann")
	if _, err := api.Call(r.ctx(), who, api.StackDeploy, &skepv1.DeployStackRequest{Spec: blog("blog")}); err != nil {
		t.Fatal(err)
	}
	st := r.settled("blog")
	web := r.service("blog_web")
	if rev := r.s.ix.Revision(web.Meta.Id, 1); st.Author == "" || rev.Author != st.Author || rev.Summary != "created by revision 1 of stack blog" {
		t.Fatal(st, rev)
	}
	await(t, "the events", func() bool {
		list := must[*skepv1.ListEventsReply](t)(call(r, api.EventList, &skepv1.ListEventsRequest{Filters: []*skepv1.Filter{{Key: "kind", Values: []string{"stack"}}}}))
		return len(list.Events) == 2 && list.Events[0].Verb == "deploy" && list.Events[1].Verb == "deployed" && list.Events[1].Actor == st.Author
	})
}

// BenchmarkStack is a stack of 20 services: stored, the same again, and removed.
func BenchmarkStack(b *testing.B) {
	for _, c := range []struct {
		name  string
		start func(testing.TB) *kvtest.NATS
	}{{"R1", kvtest.Server}, {"R3", func(t testing.TB) *kvtest.NATS { return kvtest.Cluster(t, 3) }}} {
		b.Run(c.name, func(b *testing.B) {
			r := newRig(b, c.start(b))
			r.init()
			spec := &skepv1.StackSpec{Name: "s", Networks: []*skepv1.NetworkSpec{{Name: "s_net"}}}
			for i := range 20 {
				s := webSpec(fmt.Sprintf("s_%d", i), 3)
				s.Task.Networks = []*skepv1.NetworkAttachment{{Target: "s_net"}}
				if i > 0 {
					s.DependsOn = []*skepv1.Dependency{{Service: fmt.Sprintf("s_%d", i-1)}}
				}
				spec.Services = append(spec.Services, s)
			}
			var stored, again, gone time.Duration
			b.ResetTimer()
			for range b.N {
				began := time.Now()
				r.mustDeploy(spec, 0)
				stored += time.Since(began)
				began = time.Now()
				if reply := must[*skepv1.DeployStackReply](b)(r.deploy(spec, 1)); reply.Stack.State != deployed || reply.Stack.Revision != 1 {
					b.Fatal(reply.Stack)
				}
				again += time.Since(began)
				began = time.Now()
				r.removeStack("s")
				gone += time.Since(began)
			}
			per := func(d time.Duration, what string) { b.ReportMetric(float64(d.Microseconds())/1000/float64(b.N), what) }
			per(stored, "stored-ms")
			per(again, "unchanged-ms")
			per(gone, "removed-ms")
		})
	}
}

// The removal of a network that was begun for one revision does not go on for the next, which wants it: whether its maker is
// told in time or dies with the network marked.
func TestStackWantsItsNetworkBack(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	spec := blog("blog")
	r.mustDeploy(spec, 0)
	id, _ := r.s.ix.NetworkByName("blog_net")
	marked := func() {
		t.Helper()
		if err := r.s.markRemoving(r.ctx(), r.s.ix.Network(id), true); err != nil {
			t.Fatal(err)
		}
	}
	stays := func(when string) {
		t.Helper()
		if st, ok := r.s.ix.NetworkState(id); !ok || st.Removing {
			t.Fatal(when, st, ok)
		}
	}
	marked()
	spec.Services = append(spec.Services, webSpec("blog_more", 1))
	spec.Services[2].Task.Networks = []*skepv1.NetworkAttachment{{Target: "blog_net"}}
	r.mustDeploy(spec, 1)
	stays("dead")
	// A maker of the revision before is late.
	st := r.stack("blog")
	late := aimed{r.s, st.Meta.Id, index.StackAim{Revision: 1, State: deploying}}
	for _, s := range spec.Services {
		s.Task.Networks = nil
	}
	r.mustDeploy(spec, 2)
	err := r.s.do(r.ctx(), late, &stack.Op{Kind: stack.Network, Name: "blog_net", ID: id, Verb: skepv1.StackChange_VERB_REMOVE}, nil)
	if err != errOtherAim {
		t.Fatal(err)
	}
	stays("late")
}

// Nothing that a late maker does for a revision that is not the newest, or for a stack that goes or is gone, comes to be.
func TestStackLateMakerDoesNothing(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	spec := blog("blog")
	st := r.mustDeploy(spec, 0)
	rev := r.s.newest(st)
	late := aimed{r.s, st.Meta.Id, index.StackAim{Revision: 1, State: deploying}}
	web := r.service("blog_web")
	env := webSpec("blog_web", 9)
	more := webSpec("blog_more", 1)
	ops := []*stack.Op{
		{Kind: stack.Network, Name: "blog_late", Verb: skepv1.StackChange_VERB_CREATE, Network: &skepv1.NetworkSpec{Name: "blog_late"}},
		{Kind: stack.Service, Name: "blog_more", Verb: skepv1.StackChange_VERB_CREATE, Service: more},
		{Kind: stack.Service, Name: "blog_web", ID: web.Meta.Id, Over: web.Meta.Version, Verb: skepv1.StackChange_VERB_CHANGE, Service: env},
		{Kind: stack.Service, Name: "blog_web", ID: web.Meta.Id, Verb: skepv1.StackChange_VERB_REMOVE},
	}
	for _, o := range ops {
		if o.Service != nil {
			if err := prepare(o.Service); err != nil {
				t.Fatal(err)
			}
		}
	}
	try := func(when string) {
		t.Helper()
		before := r.everything()
		for _, o := range ops {
			if err := r.s.do(r.ctx(), late, o, rev); err == nil {
				t.Errorf("%s: %s %s %s was done", when, o.Verb, o.Kind, o.Name)
			}
		}
		r.caughtUp()
		if got := r.everything(); fmt.Sprint(got) != fmt.Sprint(before) {
			t.Errorf("%s: %v, before %v", when, got, before)
		}
	}
	try("deployed")
	spec.Services[0].Task.Container.Env = []string{"A=b"}
	r.mustDeploy(spec, 1)
	try("another revision")
	r.removeStack("blog")
	try("gone")
	if svc := r.s.ix.Revisions(web.Meta.Id); len(svc) > 0 {
		r.s.sweepOnce(r.ctx(), time.Now().Add(time.Hour))
	}
	r.onlyStacks()
}
