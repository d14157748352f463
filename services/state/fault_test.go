package state

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/id"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/state/internal/index"
)

func TestRestartWithDataInPlace(t *testing.T) {
	n := kvtest.Server(t)
	r := &rig{t: t, n: n, nc: n.Conn(t)}
	var stop func()
	r.s, stop = r.start()
	r.init()
	node := r.admit("w1", worker)
	svc := must[*skepv1.ServiceReply](t)(r.create(published("web", &skepv1.PortConfig{TargetPort: 80, PublishedPort: 80}))).Service
	must[*skepv1.ServiceReply](t)(call(r, api.ServiceRemove, &skepv1.RemoveServiceRequest{Ref: r.mustCreate("gone", 1).Meta.Id}))
	stop()
	_, err := r.inspect("web")
	if !fault.Is(err, fault.CodeUnavailable) {
		t.Fatalf("without an instance: %v", err)
	}
	r.s, _ = r.start()
	got := must[*skepv1.Service](t)(r.inspect("web"))
	if !proto.Equal(got, svc) {
		t.Fatalf("after the restart %v, before %v", got, svc)
	}
	_, err = r.inspect("gone")
	wantErr(t, err, "no such service: gone")
	_, err = r.create(published("b", &skepv1.PortConfig{TargetPort: 80, PublishedPort: 80}))
	wantErr(t, err, fmt.Sprintf("port '80' is already in use by service 'web' (%s) as an ingress port", svc.Meta.Id))
	if n := must[*skepv1.NodeReply](t)(call(r, api.NodeInspect, &skepv1.Ref{Ref: "w1"})).Node; n.Subnet != node.Subnet {
		t.Fatalf("node %v", n)
	}
}

// Whatever instance answers, a client sees what it has just written.
func TestReadYourWritesAcrossInstances(t *testing.T) {
	r := newRig(t, kvtest.Cluster(t, 3))
	r.start()
	r.start()
	for i := range 60 {
		name := fmt.Sprintf("s%d", i)
		svc := r.mustCreate(name, 1)
		got, err := r.inspect(name)
		if err != nil || got.Meta.Id != svc.Meta.Id {
			t.Fatalf("inspect %s: %v", name, err)
		}
		got.Spec.Labels = map[string]string{"n": name}
		if _, err := call(r, api.ServiceUpdate, &skepv1.UpdateServiceRequest{Ref: name, Version: got.Meta.Version, Spec: got.Spec, NoResolveImage: true}); err != nil {
			t.Fatalf("update %s at the version just read: %v", name, err)
		}
	}
}

// Many clients change one service without a version: none is lost, each makes a revision.
func TestConcurrentUpdates(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.start()
	svc := r.mustCreate("web", 1)
	const clients = 12
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			sp := proto.CloneOf(svc.Spec)
			sp.Task.ForceUpdate = uint64(i + 1)
			if _, err := call(r, api.ServiceUpdate, &skepv1.UpdateServiceRequest{Ref: "web", Spec: sp, NoResolveImage: true}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	revs := must[*skepv1.ListRevisionsReply](t)(call(r, api.ServiceRevisions, &skepv1.ListRevisionsRequest{Ref: "web"})).Revisions
	got := must[*skepv1.Service](t)(r.inspect("web"))
	if revs[0].Number != got.Revision || !proto.Equal(revs[0].Spec, got.Spec) {
		t.Fatalf("newest revision %d is not the service's %d", revs[0].Number, got.Revision)
	}
	seen := map[uint64]bool{}
	for _, v := range revs {
		seen[v.Spec.Task.ForceUpdate] = true
	}
	if len(seen) != clients+1 {
		t.Fatalf("%d of %d changes made a revision", len(seen)-1, clients)
	}
	// With one version, exactly one wins.
	var won int
	var mu sync.Mutex
	for i := range clients {
		wg.Go(func() {
			sp := proto.CloneOf(got.Spec)
			sp.Task.ForceUpdate = uint64(100 + i)
			_, err := call(r, api.ServiceUpdate, &skepv1.UpdateServiceRequest{Ref: "web", Version: got.Meta.Version, Spec: sp, NoResolveImage: true})
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won++
			} else if err.Error() != "update out of sequence" {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won != 1 {
		t.Fatalf("%d won", won)
	}
}

func TestRevisionRetention(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.s.cfg.KeepRevisions = 4
	svc := r.mustCreate("web", 1)
	// A task still runs revision 1: it is kept beyond the limit.
	r.putTasks("n1", record(svc, 1, running))
	for i := range 8 {
		sp := proto.CloneOf(svc.Spec)
		sp.Task.ForceUpdate = uint64(i + 1)
		must[*skepv1.ServiceReply](t)(call(r, api.ServiceUpdate, &skepv1.UpdateServiceRequest{Ref: "web", Spec: sp, NoResolveImage: true}))
	}
	await(t, "the old revisions to go", func() bool {
		var n []uint64
		for _, v := range r.s.ix.Revisions(svc.Meta.Id) {
			n = append(n, v.Number)
		}
		return fmt.Sprint(n) == "[1 7 8 9]"
	})
}

// A creator that died between claiming a name and writing its service does not keep the name.
func TestStaleClaim(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	dead := id.New()
	claim, err := r.s.spec.Create(r.ctx(), keys.Name(keys.ServiceName, "web"), []byte(dead))
	if err != nil {
		t.Fatal(err)
	}
	await(t, "the name to be free", func() bool {
		_, err := r.create(webSpec("web", 1))
		if err != nil && !fault.Is(err, fault.CodeUnavailable) {
			t.Fatal(err)
		}
		return err == nil
	})
	// The dead one wakes up: it must not make a second service of that name.
	if _, err := r.s.spec.WriteFenced(r.ctx(), keys.Service.Key(dead), []byte("x"), keys.Name(keys.ServiceName, "web"), claim); err == nil {
		t.Fatal("a lost claim was used")
	}
}

// Two creators find the same stale claim: the slower one must not release what the faster one has claimed since.
func TestStaleClaimIsReleasedOnce(t *testing.T) {
	for _, size := range []int{1, 3} {
		t.Run(fmt.Sprintf("R%d", size), func(t *testing.T) {
			n := kvtest.Server
			if size > 1 {
				n = func(t testing.TB) *kvtest.NATS { return kvtest.Cluster(t, size) }
			}
			r := newRig(t, n(t))
			dead, key := id.New(), keys.Name(keys.ServiceName, "web")
			claim, err := r.s.spec.Create(r.ctx(), key, []byte(dead))
			if err != nil {
				t.Fatal(err)
			}
			saw := index.Key{Value: dead, Revision: claim}
			if _, err := r.s.release(r.ctx(), key, saw); err != nil {
				t.Fatal(err)
			}
			svc := r.mustCreate("web", 1)
			if _, err := r.s.release(r.ctx(), key, saw); !errors.Is(err, kv.ErrConflict) {
				t.Errorf("a claim was released twice: %v", err)
			}
			if e, err := r.s.spec.Get(r.ctx(), key); err != nil || string(e.Value) != svc.Meta.Id {
				t.Errorf("the name of %s is held by %q, %v", svc.Meta.Id, e.Value, err)
			}
			// A claim whose object came stays.
			if _, err := r.s.release(r.ctx(), key, index.Key{Value: svc.Meta.Id, Revision: must[uint64](t)(r.keyRevision(key))}); !errors.Is(err, kv.ErrConflict) {
				t.Errorf("the name of a service was released: %v", err)
			}
		})
	}
}

func (r *rig) keyRevision(key string) (uint64, error) {
	e, err := r.s.spec.Get(r.ctx(), key)
	return e.Revision, err
}

func TestSweep(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	svc := r.mustCreate("web", 1)
	orphan := &skepv1.Service{Meta: &skepv1.Meta{Id: id.New()}, Spec: svc.Spec, Revision: 1}
	if err := r.s.putRevision(r.ctx(), orphan, "x"); err != nil {
		t.Fatal(err)
	}
	if err := r.s.putRevisionNumber(r.ctx(), svc, 7, step{summary: "never came to be"}); err != nil {
		t.Fatal(err)
	}
	rev, err := r.s.status.Put(r.ctx(), id.New(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.s.feeds.Of(subject.Status).Wait(r.ctx(), rev); err != nil {
		t.Fatal(err)
	}
	claim := keys.Name(keys.ServiceName, "never")
	if rev, err = r.s.spec.Create(r.ctx(), claim, []byte(id.New())); err != nil {
		t.Fatal(err)
	}
	if err := r.s.feeds.Of(subject.Spec).Wait(r.ctx(), rev); err != nil {
		t.Fatal(err)
	}
	if rev, err = r.s.nodes.Put(r.ctx(), keys.Description.Key(id.New()), nil); err != nil {
		t.Fatal(err)
	}
	if err := r.s.feeds.Of(subject.NodeB).Wait(r.ctx(), rev); err != nil {
		t.Fatal(err)
	}
	r.s.sweepOnce(r.ctx(), time.Now().Add(time.Hour))
	await(t, "the sweep", func() bool {
		if _, ok := r.s.ix.Key(claim); ok {
			return false
		}
		if _, ok := r.s.ix.Key(keys.Name(keys.ServiceName, "web")); !ok {
			t.Fatal("the name of a service was released")
		}
		return len(r.s.ix.Revisions(orphan.Meta.Id)) == 0 && len(r.s.ix.Revisions(svc.Meta.Id)) == 1 && len(r.s.ix.OrphanReports()) == 0 && len(r.s.ix.OrphanDescriptions()) == 0
	})
}

func TestImageResolution(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	reply, err := call(r, api.ServiceCreate, &skepv1.CreateServiceRequest{Spec: webSpec("offline", 1)})
	if err != nil {
		t.Fatal(err)
	}
	want := "image httpd:latest could not be accessed on a registry to record its digest. Each node will access httpd:latest independently, possibly leading to different nodes running different versions of the image."
	if len(reply.Warnings) != 1 || reply.Warnings[0] != want {
		t.Fatalf("warnings %q", reply.Warnings)
	}
	const digest = "@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	agent := r.n.Conn(t)
	srv := must[*rpc.Server](t)(rpc.NewServer(agent, rpc.Config{Name: "agent"}))
	defer srv.Close()
	if err := api.Handle(srv, api.ImageResolve, func(_ context.Context, q *skepv1.ResolveImageRequest) (*skepv1.ResolveImageReply, error) {
		return &skepv1.ResolveImageReply{Ref: q.Ref + digest, Platforms: []*skepv1.Platform{{Os: "linux", Arch: "amd64"}}}, nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := agent.Flush(); err != nil {
		t.Fatal(err)
	}
	reply = must[*skepv1.ServiceReply](t)(call(r, api.ServiceCreate, &skepv1.CreateServiceRequest{Spec: webSpec("online", 1)}))
	if got := reply.Service.Spec.Task; got.Container.Image != "httpd:latest"+digest || len(got.Placement.Platforms) != 1 || len(reply.Warnings) != 0 {
		t.Fatalf("resolved %v, warnings %v", got, reply.Warnings)
	}
}

// Twenty thousand of each: every page stays below the limits in both encodings, and together they are complete.
func TestPagesOf20k(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	const services, nodes, perNode = 20_000, 20, 1_000
	batch := r.s.spec.Batch()
	var last uint64
	for i := range services {
		sp := webSpec(fmt.Sprintf("service-%05d", i), 2)
		if err := prepare(sp); err != nil {
			t.Fatal(err)
		}
		sp.Task.Container.Env = []string{"PATH_TO_SOMETHING=/a/reasonably/long/value", "ANOTHER=value"}
		body, err := encodeService(&skepv1.Service{Meta: &skepv1.Meta{Id: id.New()}, Spec: sp, Revision: 1})
		if err != nil {
			t.Fatal(err)
		}
		batch.Put(keys.Service.Key(id.New()), body)
		if batch.Len() == 1000 {
			if last, err = batch.Commit(r.ctx()); err != nil {
				t.Fatal(err)
			}
			batch = r.s.spec.Batch()
		}
	}
	if err := r.s.feeds.Of(subject.Spec).Wait(r.ctx(), last); err != nil {
		t.Fatal(err)
	}
	first := r.s.ix.ServicesAfter("")[0]
	for n := range nodes {
		var recs []*skepv1.TaskRecord
		for i := range perNode {
			recs = append(recs, &skepv1.TaskRecord{Id: id.New(), ServiceId: first.ID, Slot: uint64(n*perNode + i + 1), Revision: 1, Desired: running, CreatedUnixMs: time.Now().UnixMilli()})
		}
		r.putTasks(fmt.Sprintf("node%02d", n), recs...)
	}
	for _, accept := range []string{rpc.TypeProto, rpc.TypeJSON} {
		seen := pages(t, r, "service", accept, func() *skepv1.ListServicesReply { return &skepv1.ListServicesReply{} }, func(after string) proto.Message {
			return &skepv1.ListServicesRequest{Page: &skepv1.Page{After: after}}
		}, func(l *skepv1.ListServicesReply) (next string, ids []string) {
			for _, s := range l.Services {
				ids = append(ids, s.Spec.Name)
			}
			return l.Next, ids
		})
		if seen != services {
			t.Errorf("%d of %d services listed (%s)", seen, services, accept)
		}
		seen = pages(t, r, "task", accept, func() *skepv1.ListTasksReply { return &skepv1.ListTasksReply{} }, func(after string) proto.Message {
			return &skepv1.ListTasksRequest{Page: &skepv1.Page{After: after}, Filters: []*skepv1.Filter{{Key: "service", Values: []string{first.Name}}}}
		}, func(l *skepv1.ListTasksReply) (next string, ids []string) {
			for _, x := range l.Tasks {
				ids = append(ids, x.Meta.Id)
			}
			return l.Next, ids
		})
		if seen != nodes*perNode {
			t.Errorf("%d of %d tasks listed (%s)", seen, nodes*perNode, accept)
		}
	}
}

func pages[R proto.Message](t *testing.T, r *rig, kind, accept string, fresh func() R, req func(after string) proto.Message, read func(R) (string, []string)) int {
	t.Helper()
	seen := map[string]bool{}
	n, largest, after := 0, 0, ""
	for {
		body, err := rpc.Encode(req(after), accept == rpc.TypeJSON)
		if err != nil {
			t.Fatal(err)
		}
		m, err := r.nc.RequestWithContext(r.ctx(), subject.API(kind, "list"), body)
		if err != nil {
			t.Fatal(err)
		}
		if err := rpc.ReplyError(m.Header); err != nil {
			t.Fatal(err)
		}
		largest = max(largest, len(m.Data))
		reply := fresh()
		if _, err := rpc.Decode(m.Data, accept, reply); err != nil {
			t.Fatal(err)
		}
		n++
		next, ids := read(reply)
		for _, v := range ids {
			seen[v] = true
		}
		if after = next; after == "" {
			break
		}
	}
	t.Logf("%d %ss in %d pages of at most %d bytes (%s)", len(seen), kind, n, largest, accept)
	if limit := map[string]int{rpc.TypeProto: 512 << 10, rpc.TypeJSON: 1<<20 - 4096}[accept]; largest > limit {
		t.Errorf("a page of %d bytes is above %d", largest, limit)
	}
	return len(seen)
}

func TestFiltersOfServices(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	for _, n := range []string{"web_a", "web_b", "db"} {
		s := webSpec(n, 1)
		s.Labels = map[string]string{"tier": n, "all": ""}
		if n == "db" {
			s.Mode = &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_Global{Global: &skepv1.GlobalMode{}}}
		}
		must[*skepv1.ServiceReply](t)(r.create(s))
	}
	for _, c := range []struct {
		filters []*skepv1.Filter
		want    string
	}{
		{nil, "[db web_a web_b]"},
		{[]*skepv1.Filter{{Key: "name", Values: []string{"web"}}}, "[web_a web_b]"},
		{[]*skepv1.Filter{{Key: "name", Values: []string{"web_b", "db"}}}, "[db web_b]"},
		{[]*skepv1.Filter{{Key: "label", Values: []string{"tier=db"}}}, "[db]"},
		{[]*skepv1.Filter{{Key: "label", Values: []string{"all"}}, {Key: "mode", Values: []string{"replicated"}}}, "[web_a web_b]"},
	} {
		var got []string
		for _, s := range must[*skepv1.ListServicesReply](t)(call(r, api.ServiceList, &skepv1.ListServicesRequest{Filters: c.filters})).Services {
			got = append(got, s.Spec.Name)
		}
		if fmt.Sprint(got) != c.want {
			t.Errorf("%v: %v, want %s", c.filters, got, c.want)
		}
	}
	_, err := call(r, api.ServiceList, &skepv1.ListServicesRequest{Filters: []*skepv1.Filter{{Key: "x"}}})
	wantErr(t, err, "invalid filter 'x': use id, label, mode, name")
}

func TestSuggest(t *testing.T) {
	all := []index.Named{{ID: "1", Name: "web_server"}, {ID: "2", Name: "db"}, {ID: "3", Name: "worker"}}
	for in, want := range map[string]string{"web": "web_server", "wbe_server": "web_server", "dn": "db", "wroker": "worker", "zzz": "", "worker2": "worker"} {
		if got := suggest(in, all); got != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
}

// TestTheAuditTellsWhatLasts: what a sweep met and could not remove, and differences that the audit met before. What is on
// its way is not told.
func TestTheAuditTellsWhatLasts(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	svc := r.mustCreate("web", 1)
	audit := func() *skepv1.ClusterCheckReply {
		t.Helper()
		return must[*skepv1.ClusterCheckReply](t)(call(r, api.ClusterCheck, &skepv1.Empty{}))
	}
	if a := audit(); len(a.Orphans)+len(a.Differences) > 0 {
		t.Fatalf("of a fresh cluster: %v", a)
	}
	orphan := &skepv1.Service{Meta: &skepv1.Meta{Id: id.New()}, Spec: svc.Spec, Revision: 1}
	if err := r.s.putRevision(r.ctx(), orphan, "x"); err != nil {
		t.Fatal(err)
	}
	gone := id.New()
	if _, err := r.s.status.Put(r.ctx(), gone, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := r.s.nodes.Put(r.ctx(), keys.Description.Key(gone), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := r.s.spec.Create(r.ctx(), keys.Number(keys.VNI, uint32(4242)), []byte("nobody")); err != nil {
		t.Fatal(err)
	}
	if a := audit(); len(a.Orphans)+len(a.Differences) > 0 {
		t.Errorf("before a sweep: %v", a)
	}
	r.s.left.note(leftOver(r.s.ix, time.Now().Add(time.Hour)))
	r.s.tellAudit(nil)
	a := audit()
	want := []string{"node/" + keys.Description.Key(gone), "status/" + gone} // the revision is young yet
	if !slices.Equal(a.Orphans, want) {
		t.Errorf("left over are %v, want %v", a.Orphans, want)
	}
	if len(a.Differences) != 1 || !strings.Contains(a.Differences[0], "nobody, which does not exist") {
		t.Errorf("differences: %v", a.Differences)
	}
	if old := leftOver(r.s.ix, time.Now().Add(time.Hour)); len(old) != 3 || old[1] != "rev/service."+orphan.Meta.Id+".*" {
		t.Errorf("left over once they are old: %v", old)
	}
	r.s.sweepOnce(r.ctx(), time.Now().Add(time.Hour))
	await(t, "nothing to tell", func() bool { a := audit(); return len(a.Orphans)+len(a.Differences) == 0 })
}
