package cli

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/api"
	"skep.dev/libs/event"
	"skep.dev/libs/fault"
	"skep.dev/libs/rpc"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/conn"
)

const (
	webID  = "webwebwebwebwebwebwebweb1"
	nodeID = "nodenodenodenodenodenode1"
)

var testNow = time.Date(2026, 1, 2, 15, 0, 0, 0, time.UTC)

// cluster answers the API over a real broker, from state a test sets.
type cluster struct {
	t   *testing.T
	url string
	nc  *nats.Conn
	rs  *rpc.Server

	mu       sync.Mutex
	services []*skepv1.Service
	tasks    []*skepv1.Task
	nodes    []*skepv1.Node
	networks []*skepv1.Network
	mesh     map[string]*skepv1.MeshNetworkReply // by network id
	calls    []proto.Message
	warn     string // of a removal
	// on, if set, decides about a request before the default does.
	on func(req proto.Message) error
	// looked runs at every list of tasks, under the lock.
	looked func(n int)
	looks  int
	// heard, if set, is told of every request.
	heard func(context.Context, proto.Message)
	// poison, if set, changes every answer before it is sent.
	poison func(proto.Message)
	revs   []*skepv1.Revision
	vault  *fakeVault // nil: nobody keeps secrets
	stacks *fakeStacks
	upkeep upkeep
	events []*skepv1.Event   // nil: one, of a service that was created
	info   *conn.Info        // nil: a manager's
	roots  []*skepv1.CAReply // one after the other; the last one stays
}

// nextCA is how a rotation goes on from one look to the next.
func (c *cluster) nextCA() *skepv1.CAReply {
	if len(c.roots) == 0 {
		return &skepv1.CAReply{Root: &skepv1.CARoot{CertPem: []byte("-----BEGIN CERTIFICATE-----\n"), Digest: "d0"}}
	}
	r := c.roots[0]
	if len(c.roots) > 1 {
		c.roots = c.roots[1:]
	}
	return r
}

func newCluster(t *testing.T, opts ...func(*server.Options)) *cluster {
	t.Helper()
	return newClusterUnder(t, nil, opts...)
}

// newClusterUnder is a cluster whose services know of the managers' group what q does.
func newClusterUnder(t *testing.T, q rpc.Quorum, opts ...func(*server.Options)) *cluster {
	t.Helper()
	o := &server.Options{Host: "127.0.0.1", Port: -1, NoLog: true, NoSigs: true}
	for _, f := range opts {
		f(o)
	}
	srv, err := server.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	go srv.Start()
	t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	if !srv.ReadyForConnections(20 * time.Second) {
		t.Fatal("the broker does not start")
	}
	c := &cluster{t: t, url: srv.ClientURL(), nodes: []*skepv1.Node{{
		Meta: &skepv1.Meta{Id: nodeID}, Spec: &skepv1.NodeSpec{}, Description: &skepv1.NodeDescription{Hostname: "w1", EngineVersion: "0.1.0"}, Status: &skepv1.NodeLive{State: skepv1.NodeState_NODE_STATE_READY},
	}}}
	c.nc, err = nats.Connect(c.url, nats.UserInfo("admin", "x"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.nc.Close)
	rs, err := rpc.NewServer(c.nc, rpc.Config{Name: "fake", Quorum: q})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = rs.Close() })
	c.rs = rs
	serve(c, rs, api.ServiceCreate, c.create)
	serve(c, rs, api.ServiceUpdate, c.update)
	serve(c, rs, api.ServiceScale, func(r *skepv1.ScaleServiceRequest) (*skepv1.ServiceReply, error) {
		s, err := c.find(r.Ref)
		if err == nil {
			s.Spec.Mode.GetReplicated().Replicas = r.Replicas
		}
		return &skepv1.ServiceReply{Service: s}, err
	})
	serve(c, rs, api.ServiceRemove, func(r *skepv1.RemoveServiceRequest) (*skepv1.ServiceReply, error) {
		s, err := c.find(r.Ref)
		if err == nil && !r.DryRun {
			c.services = nil
		}
		if c.warn != "" {
			return &skepv1.ServiceReply{Service: s, Warnings: []string{c.warn}}, err
		}
		return &skepv1.ServiceReply{Service: s}, err
	})
	serve(c, rs, api.ServiceInspect, func(r *skepv1.Ref) (*skepv1.ServiceReply, error) {
		s, err := c.find(r.Ref)
		return &skepv1.ServiceReply{Service: s}, err
	})
	serve(c, rs, api.ServiceList, func(*skepv1.ListServicesRequest) (*skepv1.ListServicesReply, error) {
		return &skepv1.ListServicesReply{Services: c.services}, nil
	})
	serve(c, rs, api.ServiceRevisions, func(*skepv1.ListRevisionsRequest) (*skepv1.ListRevisionsReply, error) {
		return &skepv1.ListRevisionsReply{Revisions: c.revs}, nil
	})
	serve(c, rs, api.ServiceExplain, func(r *skepv1.ExplainRequest) (*skepv1.ExplainReply, error) {
		s, err := c.find(r.Ref)
		return &skepv1.ExplainReply{Service: s, Placing: &skepv1.Placing{Summary: "1 of 1 nodes suit"}}, err
	})
	serve(c, rs, api.PlanService, func(r *skepv1.PlanRequest) (*skepv1.PlanReply, error) {
		verb := "create"
		if r.Removed {
			verb = "remove"
		}
		return &skepv1.PlanReply{Operations: []*skepv1.Operation{{Verb: verb, Text: verb + " web.1 on w1"}}}, nil
	})
	serve(c, rs, api.TaskList, c.listTasks)
	serve(c, rs, api.TaskInspect, func(r *skepv1.Ref) (*skepv1.TaskReply, error) {
		for _, t := range c.tasks {
			if strings.HasPrefix(t.Meta.Id, r.Ref) {
				return &skepv1.TaskReply{Task: t}, nil
			}
		}
		return nil, fault.NotFound("no such task: %s", r.Ref)
	})
	serve(c, rs, api.NodeList, func(r *skepv1.ListNodesRequest) (*skepv1.ListNodesReply, error) {
		// One node a page: clients must follow.
		for i, n := range c.nodes {
			if r.GetPage().GetAfter() == "" || i > 0 && c.nodes[i-1].Meta.Id == r.Page.After {
				next := ""
				if i+1 < len(c.nodes) {
					next = n.Meta.Id
				}
				return &skepv1.ListNodesReply{Nodes: []*skepv1.Node{n}, Next: next}, nil
			}
		}
		return &skepv1.ListNodesReply{}, nil
	})
	serve(c, rs, api.NodeInspect, func(r *skepv1.Ref) (*skepv1.NodeReply, error) {
		for _, n := range c.nodes {
			if n.Meta.Id == r.Ref || n.Description.Hostname == r.Ref {
				return &skepv1.NodeReply{Node: n}, nil
			}
		}
		return nil, fault.NotFound("no such node: %s", r.Ref)
	})
	serve(c, rs, api.NodeUpdate, c.updateNode)
	serve(c, rs, api.NodeRemove, func(*skepv1.RemoveNodeRequest) (*skepv1.Empty, error) { return &skepv1.Empty{}, nil })
	serve(c, rs, api.TokenGet, func(r *skepv1.JoinTokenRequest) (*skepv1.JoinTokenReply, error) {
		return &skepv1.JoinTokenReply{Token: "SKEP-1-x", ManagerAddrs: []string{"10.0.0.1:2377"}}, nil
	})
	serve(c, rs, api.CAInspect, func(*skepv1.Empty) (*skepv1.CAReply, error) { return c.nextCA(), nil })
	serve(c, rs, api.CARotate, func(*skepv1.RotateCARequest) (*skepv1.CAReply, error) { return c.nextCA(), nil })
	onNode(c, api.ClusterInspect, func(*skepv1.Empty) (*skepv1.ClusterReply, error) {
		return &skepv1.ClusterReply{Cluster: &skepv1.Cluster{Meta: &skepv1.Meta{Version: 5}, Spec: &skepv1.ClusterSpec{Name: "default", TaskHistoryLimit: 5}}}, nil
	})
	serve(c, rs, api.ClusterUpdate, func(*skepv1.UpdateClusterRequest) (*skepv1.ClusterReply, error) { return &skepv1.ClusterReply{}, nil })
	serve(c, rs, api.EventList, func(*skepv1.ListEventsRequest) (*skepv1.ListEventsReply, error) {
		if c.events != nil {
			return &skepv1.ListEventsReply{Events: c.events}, nil
		}
		return &skepv1.ListEventsReply{Events: []*skepv1.Event{{Kind: "service", Id: webID, Name: "web", Verb: "create", Time: timestamppb.New(testNow), Attributes: map[string]string{"image.new": "httpd"}}}}, nil
	})
	c.serveNetworks(rs)
	c.serveUpkeep()
	c.flush()
	return c
}

// flush makes sure that the broker knows every subscription.
func (c *cluster) flush() {
	c.t.Helper()
	if err := c.nc.Flush(); err != nil {
		c.t.Fatal(err)
	}
}

// serve answers one endpoint under the cluster's lock and remembers the request.
func serve[Q, R proto.Message](c *cluster, rs *rpc.Server, e api.Endpoint[Q, R], h func(Q) (R, error)) {
	c.t.Helper()
	var none R
	err := api.Handle(rs, e, func(ctx context.Context, r Q) (R, error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.calls = append(c.calls, r)
		if c.heard != nil {
			c.heard(ctx, r)
		}
		if c.on != nil {
			if err := c.on(r); err != nil {
				return none, err
			}
		}
		out, err := h(r)
		if err != nil {
			return out, err
		}
		out = proto.CloneOf(out) // it is encoded outside the lock
		if c.poison != nil {
			c.poison(out)
		}
		return out, nil
	})
	if err != nil {
		c.t.Fatal(err)
	}
}

// updateNode changes a node's role, as if the managers needed no time for it.
func (c *cluster) updateNode(r *skepv1.UpdateNodeRequest) (*skepv1.NodeReply, error) {
	for _, n := range c.nodes {
		if r.Role == nil || n.Meta.Id != r.Ref {
			continue
		}
		n.Spec.Role, n.Role, n.Manager = *r.Role, *r.Role, nil
		if *r.Role == manager {
			n.Manager = &skepv1.ManagerStatus{Reachability: "reachable", State: "voter"}
		}
	}
	return &skepv1.NodeReply{}, nil
}

func (c *cluster) find(ref string) (*skepv1.Service, error) {
	for _, s := range c.services {
		if s.Spec.Name == ref || s.Meta.Id == ref {
			return proto.CloneOf(s), nil
		}
	}
	return nil, fault.NotFound("no such service: %s; did you mean web_server?", ref)
}

func (c *cluster) create(r *skepv1.CreateServiceRequest) (*skepv1.ServiceReply, error) {
	s := &skepv1.Service{Meta: &skepv1.Meta{Id: webID, Version: 1}, Spec: r.Spec, Revision: 1}
	if !r.DryRun {
		c.services = append(c.services, s)
	}
	return &skepv1.ServiceReply{Service: s, Warnings: []string{"image tag left as it is"}}, nil
}

func (c *cluster) update(r *skepv1.UpdateServiceRequest) (*skepv1.ServiceReply, error) {
	s, err := c.find(r.Ref)
	if err != nil {
		return nil, err
	}
	if !r.Rollback {
		s.Spec = r.Spec
	}
	return &skepv1.ServiceReply{Service: s}, nil
}

func (c *cluster) listTasks(r *skepv1.ListTasksRequest) (*skepv1.ListTasksReply, error) {
	c.looks++
	if c.looked != nil {
		c.looked(c.looks)
	}
	out := &skepv1.ListTasksReply{}
next:
	for _, t := range c.tasks {
		for _, f := range r.Filters {
			if f.Key == "name" && !strings.HasPrefix(t.Name, f.Values[0]) {
				continue next
			}
			if f.Key == "desired-state" && t.Desired != 0 && !slices.Contains(f.Values, strings.ToLower(strings.TrimPrefix(t.Desired.String(), "TASK_STATE_"))) {
				continue next
			}
		}
		out.Tasks = append(out.Tasks, t)
	}
	return out, nil
}

func (c *cluster) publish(e *skepv1.Event) {
	if err := event.Publish(c.nc, e); err != nil {
		c.t.Error(err)
	}
}

// sent returns the last request of a type.
func sent[M proto.Message](c *cluster) M {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := len(c.calls) - 1; i >= 0; i-- {
		if m, ok := c.calls[i].(M); ok {
			return m
		}
	}
	var none M
	c.t.Fatalf("no %T was sent", none)
	return none
}

type result struct {
	code     int
	out, err string
}

// safeBuffer is written by commands and read by tests at the same time.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func (c *cluster) env(out, err *safeBuffer) Env {
	dir := c.t.TempDir()
	return Env{
		In: strings.NewReader(""), Out: out, Err: err, Version: "0.1.0", Now: func() time.Time { return testNow },
		Getenv: func(k string) string {
			return map[string]string{"HOME": dir, "SKEP_CONFIG_DIR": dir}[k]
		},
		CompleteTimeout: time.Minute,
		CA:              c.authority,
		Connect:         func(context.Context) (*nats.Conn, error) { return nats.Connect(c.url) },
		Info: func(context.Context) (conn.Info, error) {
			if c.info != nil {
				return *c.info, nil
			}
			return conn.Info{NodeID: nodeID, Role: "manager", Hostname: "w1", ClusterID: "cl", Version: "0.1.0", Addr: "10.0.0.1"}, nil
		},
	}
}

// run executes one command line. Waiting needs a clock that moves, so these take the real one.
func (c *cluster) run(args ...string) result {
	return c.runCtx(c.t.Context(), args...)
}

func (c *cluster) runCtx(ctx context.Context, args ...string) result {
	var out, errs safeBuffer
	env := c.env(&out, &errs)
	if len(args) > 1 && (args[0] == "service" && args[1] != "ls" && args[1] != "ps" || args[0] == "stack" && slices.Contains([]string{"deploy", "up", "rollback", "rm"}, args[1])) {
		env.Now = time.Now
	}
	code := Main(ctx, env, args)
	return result{code, out.String(), errs.String()}
}

func webService() *skepv1.Service {
	return &skepv1.Service{Meta: &skepv1.Meta{Id: webID, Version: 3}, Revision: 1, Spec: &skepv1.ServiceSpec{
		Name: "web", Mode: &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_Replicated{Replicated: &skepv1.ReplicatedMode{Replicas: 1}}},
		Task: &skepv1.TaskSpec{Container: &skepv1.ContainerSpec{Image: "httpd:latest"}},
	}, Status: &skepv1.ServiceStatus{Running: 1, Desired: 1}}
}

func webTask(id string, slot uint64, state skepv1.TaskState) *skepv1.Task {
	return &skepv1.Task{Meta: &skepv1.Meta{Id: id, CreatedAt: timestamppb.New(testNow)}, ServiceId: webID, ServiceName: "web", Slot: slot, Name: "web." + string(rune('0'+slot)), NodeId: nodeID, NodeHostname: "w1",
		Image: "httpd:latest", Revision: 1, Desired: skepv1.TaskState_TASK_STATE_RUNNING, Status: &skepv1.TaskStatus{State: state, SinceUnixMs: testNow.Add(-3 * time.Minute).UnixMilli()}}
}
