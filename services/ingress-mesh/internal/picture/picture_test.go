package picture

import (
	"context"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

func node(id string) *skepv1.MeshRecord {
	return &skepv1.MeshRecord{Record: &skepv1.MeshRecord_Node{Node: &skepv1.MeshNode{Id: id}}}
}

func endpoints(tasks ...string) *skepv1.MeshRecord {
	e := &skepv1.MeshEndpoints{}
	for _, t := range tasks {
		e.Endpoints = append(e.Endpoints, &skepv1.MeshEndpoint{TaskId: t})
	}
	return &skepv1.MeshRecord{Record: &skepv1.MeshRecord_Endpoints{Endpoints: e}}
}

func TestNewestWins(t *testing.T) {
	p := New()
	if !p.Apply("net", "n1", 5, endpoints("a")) || p.Apply("net", "n1", 5, endpoints("b")) || p.Apply("net", "n1", 4, nil) {
		t.Fatal("an older or equal revision was taken")
	}
	if p.Gone("net.n1", 4) {
		t.Fatal("who knows less than the record's revision cannot say it is gone")
	}
	if !p.Gone("net.n1", 9) || p.Endpoints("net", "n1") != nil {
		t.Fatal("it is gone")
	}
	if p.Apply("net", "n1", 8, endpoints("a")) {
		t.Fatal("a record older than its end came back")
	}
	if !p.Apply("net", "n1", 10, endpoints("c")) {
		t.Fatal("a later record was not taken")
	}
}

// world is a broker with a controller that knows what is in the bucket.
type world struct {
	t *testing.T
	b *kv.Bucket

	mu   sync.Mutex
	deaf bool // answers nobody
	keys map[string]*skepv1.MeshEntry
	rev  uint64
}

func (w *world) put(key string, r *skepv1.MeshRecord) {
	w.t.Helper()
	b, err := proto.Marshal(r)
	if err != nil {
		w.t.Fatal(err)
	}
	rev, err := w.b.Put(context.Background(), key, b)
	if err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.keys[key], w.rev = &skepv1.MeshEntry{Key: key, Revision: rev, Record: r}, rev
}

func (w *world) delete(key string) {
	w.t.Helper()
	if err := w.b.Delete(context.Background(), key, 0); err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.keys, key)
	w.rev++
}

func (w *world) sync(_ context.Context, _ string, r *skepv1.MeshSyncRequest) (*skepv1.MeshSyncReply, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.deaf {
		return nil, fault.Unavailable("not now")
	}
	out := &skepv1.MeshSyncReply{Revision: w.rev}
	for key, e := range w.keys {
		scope, _, _ := keys.ParseEndpoint(key)
		if r.Known[key] == e.Revision || scope != keys.ScopeNodes && scope != keys.ScopeIngress && !slices.Contains(r.Networks, scope) {
			continue
		}
		if len(out.Changed) == 1 { // one a page: the least convenient size
			out.More = true
			break
		}
		out.Changed = append(out.Changed, e)
	}
	for key := range r.Known {
		if w.keys[key] == nil {
			out.Gone = append(out.Gone, key)
		}
	}
	return out, nil
}

func newWorld(t *testing.T) (*world, func(path string) (*Follower, func())) {
	t.Helper()
	s := kvtest.Server(t)
	w := &world{t: t, b: kv.Open(s.JS(t), subject.Endpoint), keys: map[string]*skepv1.MeshEntry{}}
	srv, err := rpc.NewServer(s.Conn(t), rpc.Config{Name: "skep-mesh-controller", Version: "0.0.0", Log: zaptest.NewLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = srv.Close() })
	if err := api.HandleNode(srv, api.MeshSync, w.sync); err != nil {
		t.Fatal(err)
	}
	return w, func(path string) (*Follower, func()) {
		t.Helper()
		f, err := Follow(Config{NC: s.As(t, "n1"), Log: zaptest.NewLogger(t), NodeID: "n1", Path: path, Changed: func([]string) {}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- f.Run(ctx) }()
		return f, sync.OnceFunc(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 10 s", what)
		}
	}
}

func TestFollow(t *testing.T) {
	w, start := newWorld(t)
	w.put("node.n1", node("n1"))
	w.put("node.n2", node("n2"))
	w.put("neta.n2", endpoints("a"))
	w.put("netb.n2", endpoints("b"))
	path := filepath.Join(t.TempDir(), "mesh", "picture.pb")
	f, stop := start(path)
	defer stop()
	await(t, "nodes are known", func() bool { return len(f.Scope(keys.ScopeNodes).Nodes) == 2 })
	if got := f.Networks(); len(got) != 0 {
		t.Fatalf("it knows networks nobody here is on: %v", got)
	}
	if err := f.Want("neta"); err != nil {
		t.Fatal(err)
	}
	await(t, "the network is known", func() bool { return f.Endpoints("neta", "n2") != nil })
	w.put("neta.n3", endpoints("c"))
	w.put("netb.n3", endpoints("d"))
	await(t, "a new endpoint is seen without asking", func() bool { return f.Endpoints("neta", "n3") != nil })
	w.delete("neta.n2")
	await(t, "an endpoint that left is seen", func() bool { return f.Endpoints("neta", "n2") == nil })
	if f.Endpoints("netb", "n3") != nil {
		t.Error("it listens to a network nobody here is on")
	}

	// Without a controller a new process knows what the old one did; with one it hears what changed meanwhile.
	stop()
	w.mu.Lock()
	w.deaf = true
	w.mu.Unlock()
	w.put("node.n3", node("n3"))
	w.delete("node.n2")
	g, stopG := start(path)
	defer stopG()
	if g.Endpoints("neta", "n3") == nil || len(g.Scope(keys.ScopeNodes).Nodes) != 2 {
		t.Fatal("the kept picture is not what was known")
	}
	w.mu.Lock()
	w.deaf = false
	w.mu.Unlock()
	await(t, "what changed meanwhile is known", func() bool {
		n := g.Scope(keys.ScopeNodes).Nodes
		return n["n3"] != nil && n["n2"] == nil
	})
	g.Drop("neta")
	if len(g.Networks()) != 0 {
		t.Error("a dropped network is remembered")
	}
}
