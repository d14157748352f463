package state

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/id"
	"skep.dev/libs/kv"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// deadline is generous: the machines that run this are loaded.
const deadline = 60 * time.Second

// rig is a broker and running state services over it.
type rig struct {
	t  testing.TB
	n  *kvtest.NATS
	nc *nats.Conn
	s  *Service // the first instance

	mu    sync.Mutex
	nodes map[string]*nats.Conn
	stop  func() // ends s, and returns when it has ended
}

// node is a connection with a node's inboxes, in which alone what that node asks is answered.
func (r *rig) node(id string) *nats.Conn {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.nodes[id] == nil {
		r.nodes[id] = r.n.As(r.t, id)
	}
	return r.nodes[id]
}

func newRig(t testing.TB, n *kvtest.NATS, set ...func(*Config)) *rig {
	t.Helper()
	r := &rig{t: t, n: n, nc: n.Conn(t), nodes: map[string]*nats.Conn{}}
	r.s, r.stop = r.start(set...)
	// Of several servers the one asked may not have heard yet that somebody answers at another.
	await(t, "an answer", func() bool {
		_, err := call(r, api.ServiceList, &skepv1.ListServicesRequest{})
		return !fault.Is(err, fault.CodeUnavailable)
	})
	return r
}

// start runs one more instance; stop ends it before the test does.
func (r *rig) start(set ...func(*Config)) (s *Service, stop func()) {
	r.t.Helper()
	log := zaptest.NewLogger(r.t, zaptest.Level(zap.WarnLevel))
	if os.Getenv("SKEP_TEST_LOG") != "" {
		log = zaptest.NewLogger(r.t)
	}
	cfg := Config{NC: r.n.Conn(r.t), Log: log, ResolveTimeout: 2 * time.Second}
	for _, f := range set {
		f(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			if err != nil {
				r.t.Errorf("run: %v", err)
			}
		case <-time.After(deadline):
			r.t.Error("the service does not stop")
		}
	}
	r.t.Cleanup(stop)
	select {
	case <-s.Ready():
	case <-time.After(deadline):
		r.t.Fatal("the service does not become ready")
	}
	return s, stop
}

func (r *rig) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	r.t.Cleanup(cancel)
	return ctx
}

func call[Q, R proto.Message](r *rig, e api.Endpoint[Q, R], req Q) (R, error) {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	nc := r.nc
	if e.Callers == api.Nodes {
		nc = r.node(e.Subject()[strings.LastIndexByte(e.Subject(), '.')+1:])
	}
	return api.Call(ctx, nc, e, req)
}

func must[T any](t testing.TB) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func (r *rig) init() {
	r.t.Helper()
	must[*skepv1.ClusterReply](r.t)(call(r, api.ClusterInit, &skepv1.InitClusterRequest{CaDigest: "d"}))
}

func (r *rig) admit(hostname string, role skepv1.NodeRole) *skepv1.Node {
	r.t.Helper()
	return must[*skepv1.NodeReply](r.t)(call(r, api.NodeAdmit,
		&skepv1.AdmitNodeRequest{NodeId: id.New(), Hostname: hostname, Role: role, Addr: "10.1.1.1"})).Node
}

func webSpec(name string, replicas uint64) *skepv1.ServiceSpec {
	return &skepv1.ServiceSpec{
		Name: name,
		Task: &skepv1.TaskSpec{Container: &skepv1.ContainerSpec{Image: "httpd"}},
		Mode: &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_Replicated{Replicated: &skepv1.ReplicatedMode{Replicas: replicas}}},
	}
}

func (r *rig) create(spec *skepv1.ServiceSpec) (*skepv1.ServiceReply, error) {
	return call(r, api.ServiceCreate, &skepv1.CreateServiceRequest{Spec: spec, NoResolveImage: true})
}

func (r *rig) mustCreate(name string, replicas uint64) *skepv1.Service {
	r.t.Helper()
	return must[*skepv1.ServiceReply](r.t)(r.create(webSpec(name, replicas))).Service
}

func (r *rig) inspect(ref string) (*skepv1.Service, error) {
	reply, err := call(r, api.ServiceInspect, &skepv1.Ref{Ref: ref})
	return reply.GetService(), err
}

func wantErr(t testing.TB, err error, text string) {
	t.Helper()
	if err == nil || err.Error() != text {
		t.Fatalf("error %q, want %q", fmt.Sprint(err), text)
	}
}

// await polls until ok or the deadline.
func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	end := time.Now().Add(deadline)
	for !ok() {
		if time.Now().After(end) {
			t.Fatalf("waited %s for %s", deadline, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// putTasks plays the scheduler.
func (r *rig) putTasks(key string, tasks ...*skepv1.TaskRecord) uint64 {
	r.t.Helper()
	body, err := proto.Marshal(&skepv1.NodeTasks{Tasks: tasks})
	if err != nil {
		r.t.Fatal(err)
	}
	rev, err := kv.Open(r.s.js, subject.Task).Put(r.ctx(), key, body)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.s.feeds.Of(subject.Task).Wait(r.ctx(), rev); err != nil {
		r.t.Fatal(err)
	}
	return rev
}

func (r *rig) putLive(node string, st skepv1.NodeState) {
	r.t.Helper()
	body, err := proto.Marshal(&skepv1.NodeLive{State: st})
	if err != nil {
		r.t.Fatal(err)
	}
	rev, err := r.s.nodes.Put(r.ctx(), "live."+node, body)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.s.feeds.Of(subject.NodeB).Wait(r.ctx(), rev); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) report(node string, st *skepv1.NodeStatus) (*skepv1.StatusReply, error) {
	return call(r, api.StateStatus.At(node), st)
}
