package engine

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"go.uber.org/zap"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/member"
	"skep.dev/libs/pki"
	"skep.dev/libs/pki/pkitest"
	"skep.dev/libs/rpc"
	"skep.dev/libs/seal"
	"skep.dev/libs/spec"
	"skep.dev/libs/stream"
	skepv1 "skep.dev/proto/skep/v1"
)

const (
	webID   = "webwebwebwebwebwebwebweb1"
	taskID  = "task1task1task1task1task11"
	oldID   = "task2task2task2task2task22"
	nodeID  = "nodenodenodenodenodenode1"
	netID   = "netnetnetnetnetnetnetnet1"
	fileID  = "filefilefilefilefilefile1"
	authID  = "authauthauthauthauthauth1"
	version = 41
)

// rig is the service on a node whose manager is made of paper: a real broker, behind the socket that local root uses.
type rig struct {
	t     testing.TB
	s     *Service
	nc    *nats.Conn
	http  *http.Client
	paths member.Paths

	mu     sync.Mutex
	calls  []proto.Message
	svc    *skepv1.Service
	revs   []*skepv1.Revision
	tasks  []*skepv1.Task
	value  []byte // of the secret, as the vault got it
	past   []*skepv1.Event
	lines  []string
	follow chan string                          // lines of a log that is followed; nil: none
	cut    func()                               // ends the connection of the service to its broker
	heard  func(context.Context, proto.Message) // nil: nobody listens
}

func record(t testing.TB, p member.Paths, role string) {
	t.Helper()
	if role == "" {
		return
	}
	b, err := json.Marshal(map[string]any{"node_id": nodeID, "cluster_id": "c", "role": role, "hostname": "m1", "advertise": "10.1.1.1:2377", "managers": []string{"10.1.1.2:2377"}})
	if err == nil {
		err = os.WriteFile(p.Record(), b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// serveNode runs the service on a node of a role, "" = none, without a broker.
func serveNode(t testing.TB, role string, ca []byte) *rig {
	t.Helper()
	return serveOn(t, role, ca, nil)
}

// serveOn is serveNode with an agent in the same process, nil = it is another process.
func serveOn(t testing.TB, role string, ca []byte, n *paperNode) *rig {
	t.Helper()
	r := &rig{t: t, paths: member.Paths{Data: t.TempDir(), Run: t.TempDir()}}
	record(t, r.paths, role)
	cfg := Config{Log: zap.NewNop(), Paths: r.paths, Version: "1.2.3", CA: func() []byte { return ca }}
	if n != nil {
		cfg.Node = n.serving
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.cluster.patience = 500 * time.Millisecond
	r.s = s
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	select {
	case <-s.Ready():
	case err := <-done:
		t.Fatal(err)
	}
	tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", r.paths.Docker()) }}
	r.http = &http.Client{Transport: tr}
	t.Cleanup(func() {
		tr.CloseIdleConnections()
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(time.Minute):
			t.Error("the service does not end")
		}
	})
	return r
}

// newRig is the service on a manager.
func newRig(t testing.TB) *rig {
	t.Helper()
	return newRigOn(t, nil)
}

// newRigOn is the service on a manager with an agent in the same process.
func newRigOn(t testing.TB, n *paperNode) *rig {
	t.Helper()
	ca := pkitest.NewCA(t)
	r := serveOn(t, member.RoleManager, ca.CertPEM(), n)
	r.s.cluster.patience = 20 * time.Second
	srv, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, NoLog: true, NoSigs: true})
	if err != nil {
		t.Fatal(err)
	}
	go srv.Start()
	t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	if !srv.ReadyForConnections(30 * time.Second) {
		t.Fatal("the broker does not start")
	}
	r.relay(srv.Addr().String())
	if r.nc, err = nats.Connect(srv.ClientURL()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.nc.Close)
	r.paper(ca)
	return r
}

// relay is the broker's socket for local root.
func (r *rig) relay(to string) {
	l, err := net.Listen("unix", r.paths.Broker())
	if err != nil {
		r.t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	r.cut = func() {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range open {
			c.Close()
		}
		open = nil
	}
	wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				continue
			}
			mu.Lock()
			open = append(open, in, out)
			mu.Unlock()
			for _, p := range [][2]net.Conn{{in, out}, {out, in}} {
				wg.Go(func() {
					_, _ = io.Copy(p[0], p[1]) // either end closing is how a session ends
					p[0].Close()
				})
			}
		}
	})
	r.t.Cleanup(func() { l.Close(); r.cut(); wg.Wait() })
}

// on answers a verb from paper, and writes down what was asked.
func on[Q, R proto.Message](r *rig, rs *rpc.Server, e api.Endpoint[Q, R], h func(Q) (R, error)) {
	r.t.Helper()
	err := api.Handle(rs, e, func(ctx context.Context, q Q) (R, error) {
		if r.heard != nil {
			r.heard(ctx, q)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.calls = append(r.calls, proto.Clone(q))
		return h(q)
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) found(ref string) (*skepv1.Service, error) {
	if r.svc == nil || ref != webID && ref != "web" && (ref == "" || !strings.HasPrefix(webID, ref)) {
		return nil, fault.NotFound("no such service: %s; did you mean web?", ref)
	}
	return proto.CloneOf(r.svc), nil
}

func (r *rig) paper(ca *pki.CA) {
	at := timestamppb.New(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	sp := &skepv1.ServiceSpec{Name: "web", Labels: map[string]string{"a": "b"}, HealthBudget: 7, Mode: spec.Replicated(2),
		Task: &skepv1.TaskSpec{Container: &skepv1.ContainerSpec{Image: "reg.lan/web:2", RegistryAuth: authID}, Networks: []*skepv1.NetworkAttachment{{Target: netID}}}}
	older := proto.CloneOf(sp)
	older.Task.Container.Image = "reg.lan/web:1"
	r.svc = &skepv1.Service{Meta: &skepv1.Meta{Id: webID, Version: version, CreatedAt: at, UpdatedAt: at}, Spec: sp, Revision: 2, PreviousRevision: 1}
	r.revs = []*skepv1.Revision{{ServiceId: webID, Number: 2, Spec: sp}, {ServiceId: webID, Number: 1, Spec: older}}
	running := &skepv1.TaskStatus{State: skepv1.TaskState_TASK_STATE_RUNNING, Networks: []*skepv1.NetworkAddress{{NetworkId: netID, Addr: "10.0.0.3/24"}}}
	r.tasks = []*skepv1.Task{
		{Meta: &skepv1.Meta{Id: taskID, CreatedAt: at}, ServiceId: webID, Slot: 1, NodeId: nodeID, Revision: 2, Image: "reg.lan/web:2", Desired: skepv1.TaskState_TASK_STATE_RUNNING, Status: running, Name: "web.1"},
		{Meta: &skepv1.Meta{Id: oldID, CreatedAt: at}, ServiceId: webID, Slot: 2, NodeId: nodeID, Revision: 1, Image: "reg.lan/web:1", Desired: skepv1.TaskState_TASK_STATE_SHUTDOWN, Status: &skepv1.TaskStatus{State: skepv1.TaskState_TASK_STATE_SHUTDOWN}, Name: "web.2"},
	}
	rs, err := rpc.NewServer(r.nc, rpc.Config{Name: "paper"})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = rs.Close() })
	on(r, rs, api.ServiceList, func(*skepv1.ListServicesRequest) (*skepv1.ListServicesReply, error) {
		if r.svc == nil {
			return &skepv1.ListServicesReply{}, nil
		}
		return &skepv1.ListServicesReply{Services: []*skepv1.Service{proto.CloneOf(r.svc)}}, nil
	})
	on(r, rs, api.ServiceInspect, func(q *skepv1.Ref) (*skepv1.ServiceReply, error) {
		s, err := r.found(q.Ref)
		return &skepv1.ServiceReply{Service: s}, err
	})
	on(r, rs, api.ServiceRevisions, func(*skepv1.ListRevisionsRequest) (*skepv1.ListRevisionsReply, error) {
		return &skepv1.ListRevisionsReply{Revisions: r.revs}, nil
	})
	on(r, rs, api.ServiceCreate, func(q *skepv1.CreateServiceRequest) (*skepv1.ServiceReply, error) {
		if q.Spec.Name == "web" {
			return nil, fault.Conflict("name conflicts with an existing object: service web already exists")
		}
		return &skepv1.ServiceReply{Service: &skepv1.Service{Meta: &skepv1.Meta{Id: "new"}, Spec: q.Spec}, Warnings: []string{"careful"}}, nil
	})
	on(r, rs, api.ServiceUpdate, func(q *skepv1.UpdateServiceRequest) (*skepv1.ServiceReply, error) {
		return &skepv1.ServiceReply{Service: r.svc}, nil
	})
	on(r, rs, api.ServiceRemove, func(q *skepv1.RemoveServiceRequest) (*skepv1.ServiceReply, error) {
		s, err := r.found(q.Ref)
		r.svc = nil
		return &skepv1.ServiceReply{Service: s}, err
	})
	on(r, rs, api.TaskList, func(*skepv1.ListTasksRequest) (*skepv1.ListTasksReply, error) {
		return &skepv1.ListTasksReply{Tasks: r.tasks}, nil
	})
	on(r, rs, api.TaskInspect, func(q *skepv1.Ref) (*skepv1.TaskReply, error) {
		for _, t := range r.tasks {
			if t.Meta.Id == q.Ref {
				return &skepv1.TaskReply{Task: t}, nil
			}
		}
		return nil, fault.NotFound("no such task: %s", q.Ref)
	})
	on(r, rs, api.NodeList, func(*skepv1.ListNodesRequest) (*skepv1.ListNodesReply, error) {
		return &skepv1.ListNodesReply{Nodes: []*skepv1.Node{{Meta: &skepv1.Meta{Id: nodeID, Version: 3}, Spec: &skepv1.NodeSpec{Name: "m1", Role: skepv1.NodeRole_NODE_ROLE_MANAGER}, Manager: &skepv1.ManagerStatus{Leader: true, Addr: "10.1.1.1:2377"}}}}, nil
	})
	on(r, rs, api.NetworkList, func(*skepv1.ListNetworksRequest) (*skepv1.ListNetworksReply, error) {
		return &skepv1.ListNetworksReply{Networks: []*skepv1.Network{{Meta: &skepv1.Meta{Id: netID}, Spec: &skepv1.NetworkSpec{Name: "back", Driver: "overlay"}, Scope: "swarm"}}}, nil
	})
	on(r, rs, api.ClusterInspect, func(*skepv1.Empty) (*skepv1.ClusterReply, error) {
		return &skepv1.ClusterReply{Cluster: &skepv1.Cluster{Meta: &skepv1.Meta{Id: "c", Version: 5}, Spec: &skepv1.ClusterSpec{Name: "default"}}}, nil
	})
	on(r, rs, api.EventList, func(*skepv1.ListEventsRequest) (*skepv1.ListEventsReply, error) {
		return &skepv1.ListEventsReply{Events: r.past}, nil
	})
	r.vault(rs, ca)
	logs, err := stream.Serve(r.nc, api.LogsOpen.At(nodeID).Subject(), nodeID, r.log)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = logs.Close() })
	if err := r.nc.Flush(); err != nil {
		r.t.Fatal(err)
	}
}

// vault keeps one secret, or config, and opens what is sealed to it as the real one does.
func (r *rig) vault(rs *rpc.Server, ca *pki.CA) {
	key, err := seal.NewKey()
	if err != nil {
		r.t.Fatal(err)
	}
	public, err := key.Public(ca)
	if err != nil {
		r.t.Fatal(err)
	}
	kept := func(kind skepv1.SecretKind) *skepv1.Secret {
		return &skepv1.Secret{Meta: &skepv1.Meta{Id: fileID, Version: 9}, Kind: kind, Spec: &skepv1.SecretSpec{Name: "pw", Labels: map[string]string{"old": "1"}}, Versions: []*skepv1.SecretVersion{{Number: 1}}}
	}
	on(r, rs, api.VaultKey, func(*skepv1.Empty) (*skepv1.VaultKey, error) { return public, nil })
	create := func(kind skepv1.SecretKind) func(*skepv1.CreateSecretRequest) (*skepv1.SecretReply, error) {
		return func(q *skepv1.CreateSecretRequest) (*skepv1.SecretReply, error) {
			v, err := key.FromClient(q.Sealed, kind, q.Spec.Name, 1)
			r.value = v
			o := kept(kind)
			if kind == skepv1.SecretKind_SECRET_KIND_REGISTRY {
				o.Meta.Id = "newauth"
			}
			return &skepv1.SecretReply{Secret: o}, err
		}
	}
	update := func(kind skepv1.SecretKind) func(*skepv1.UpdateSecretRequest) (*skepv1.SecretReply, error) {
		return func(q *skepv1.UpdateSecretRequest) (*skepv1.SecretReply, error) {
			if q.Sealed == nil {
				return &skepv1.SecretReply{Secret: kept(kind)}, nil
			}
			if !q.DryRun || !q.IfChanged {
				return nil, fault.New(fault.CodeInternal, "it would have been changed")
			}
			v, err := key.FromClient(q.Sealed, kind, "pw", 2)
			return &skepv1.SecretReply{Secret: kept(kind), Unchanged: bytes.Equal(v, r.value)}, err
		}
	}
	inspect := func(kind skepv1.SecretKind) func(*skepv1.InspectSecretRequest) (*skepv1.InspectSecretReply, error) {
		return func(q *skepv1.InspectSecretRequest) (*skepv1.InspectSecretReply, error) {
			if q.Ref != "pw" && q.Ref != fileID {
				return nil, fault.NotFound("secret not found: %s", q.Ref)
			}
			out := &skepv1.InspectSecretReply{Secret: kept(kind)}
			if q.Reader != "" {
				var err error
				out.Sealed, err = key.To(q.Reader, &skepv1.SealedValue{Kind: kind, Name: "pw", Version: 1, Value: r.value})
				return out, err
			}
			return out, nil
		}
	}
	list := func(kind skepv1.SecretKind) func(*skepv1.ListSecretsRequest) (*skepv1.ListSecretsReply, error) {
		return func(*skepv1.ListSecretsRequest) (*skepv1.ListSecretsReply, error) {
			return &skepv1.ListSecretsReply{Secrets: []*skepv1.Secret{kept(kind)}}, nil
		}
	}
	on(r, rs, api.RegistryCreate, create(skepv1.SecretKind_SECRET_KIND_REGISTRY))
	for _, k := range []*files{aSecret, aConfig} {
		on(r, rs, k.create, create(k.kind))
		on(r, rs, k.update, update(k.kind))
		on(r, rs, k.inspect, inspect(k.kind))
		on(r, rs, k.list, list(k.kind))
	}
}

// log is the node's side of a task's log.
func (r *rig) log(ctx context.Context, s *stream.Session, body []byte) {
	q := &skepv1.LogsRequest{}
	if err := proto.Unmarshal(body, q); err != nil {
		r.t.Error(err)
	}
	r.mu.Lock()
	lines, follow := r.lines, r.follow
	r.mu.Unlock()
	out := s.Writer(stream.Out)
	say := func(i int, line string) {
		e := &skepv1.LogEntry{TimeUnixNano: int64(1e18) + int64(i), Stderr: strings.HasPrefix(line, "err"), Line: []byte(line), Partial: !strings.HasSuffix(line, "\n")}
		if _, err := protodelim.MarshalTo(out, e); err != nil && ctx.Err() == nil {
			r.t.Log(err)
		}
	}
	for i, l := range lines {
		say(i, l)
	}
	for i := len(lines); q.Follow; i++ {
		select {
		case l, more := <-follow:
			if !more { // the task is over
				_ = s.Exit(0, nil)
				return
			}
			say(i, l)
		case <-ctx.Done():
			return
		}
	}
	_ = s.Exit(0, nil) // the reader may be gone
}

// asked are the requests of a type since the last look.
func asked[Q proto.Message](r *rig) (out []Q) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.calls {
		if q, ok := c.(Q); ok {
			out = append(out, q)
		}
	}
	r.calls = nil
	return out
}

// do asks and returns status and body.
func (r *rig) do(method, path, body string, header ...string) (int, string) {
	r.t.Helper()
	req, err := http.NewRequest(method, "http://docker"+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := r.http.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.StatusCode, strings.TrimSpace(string(b))
}

// refused asks for what is not to be, and wants a status and a text.
func (r *rig) refused(status int, want, method, path, body string) {
	r.t.Helper()
	code, got := r.do(method, path, body)
	var m struct{ Message string }
	if err := json.Unmarshal([]byte(got), &m); err != nil || code != status || !strings.Contains(m.Message, want) {
		r.t.Errorf("%s %s: %d %s, want %d %s", method, path, code, got, status, want)
	}
}

// get reads an answer into v.
func (r *rig) get(path string, v any) {
	r.t.Helper()
	code, body := r.do("GET", path, "")
	if code != 200 {
		r.t.Fatalf("%s: %d %s", path, code, body)
	}
	if err := json.Unmarshal([]byte(body), v); err != nil {
		r.t.Fatalf("%s: %v\n%s", path, err, body)
	}
}

// open begins a stream and returns once its headers are there.
func (r *rig) open(path string) (*bufio.Reader, *http.Response, func()) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	req, err := http.NewRequestWithContext(ctx, "GET", "http://docker"+path, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	resp, err := r.http.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	return bufio.NewReader(resp.Body), resp, func() { cancel(); resp.Body.Close() }
}

func (r *rig) await(what string, ok func() bool) {
	r.t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatal("not yet: ", what)
		}
	}
}

// frame is one of a log.
func frame(t *testing.T, in io.Reader) string {
	t.Helper()
	head := make([]byte, 8)
	if _, err := io.ReadFull(in, head); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, int(head[4])<<24|int(head[5])<<16|int(head[6])<<8|int(head[7]))
	if _, err := io.ReadFull(in, b); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(head[0], " ", string(b))
}
