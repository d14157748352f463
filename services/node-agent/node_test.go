package agent

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"skep.dev/libs/api"
	"skep.dev/libs/id"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/leaktest"
	"skep.dev/libs/rpc"
	"skep.dev/libs/stream"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/node-agent/internal/ctrd"
)

const (
	running  = skepv1.TaskState_TASK_STATE_RUNNING
	complete = skepv1.TaskState_TASK_STATE_COMPLETE
	failed   = skepv1.TaskState_TASK_STATE_FAILED
	rejected = skepv1.TaskState_TASK_STATE_REJECTED
	shutdown = skepv1.TaskState_TASK_STATE_SHUTDOWN
	ready    = skepv1.TaskState_TASK_STATE_READY
	remove   = skepv1.TaskState_TASK_STATE_REMOVE

	testImage = "skep.test/busybox:1"
	patience  = 60 * time.Second
)

// node is a whole node without a cluster: real containerd, a real broker, and the managers' side played by the test.
type node struct {
	t    testing.TB
	id   string
	dir  string
	nc   *nats.Conn
	cfg  Config
	stop context.CancelFunc
	svc  *Service
	done chan error

	mu      sync.Mutex
	gen     uint64
	tasks   map[string]*skepv1.TaskRecord
	order   []string
	specs   map[string]*skepv1.Revision
	status  map[string]*skepv1.TaskStatus
	trace   map[string][]skepv1.TaskState
	held    []string // volumes in the newest status: "rexray/web:task,task! why not unmounted"
	always  string   // what every status must hold, "" = nothing
	changed chan struct{}
	beats   []*skepv1.Heartbeat
	desc    *skepv1.NodeDescription
	cluster *skepv1.ClusterSpec // nil = one that says nothing
	refuse  error               // what is said to who asks for the task set, nil = the set
	asked   int                 // how often it was asked for
	deaf    error               // what is said to a status, which is noted all the same; nil = it is stored
}

func tools(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("the agent's tests run containers: run them as root")
	}
	path := ctrd.SearchPath("")
	for _, p := range []string{"containerd", "containerd-shim-runc-v2", "runc", "busybox"} {
		if _, err := ctrd.Find(p, path); err != nil {
			t.Fatalf("%v (make tools; apt-get install busybox-static)", err)
		}
	}
}

// TestMain removes what the whole run shares.
func TestMain(m *testing.M) {
	code := leaktest.Run(m)
	if initDir != "" {
		_ = os.RemoveAll(initDir) // a leftover of a test run in the temporary directory
	}
	os.Exit(code)
}

var initDir string

var initBinary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "skep-init")
	if err != nil {
		return "", err
	}
	initDir = dir
	cmd := exec.Command("go", "build", "-o", dir, "./cmd/skep-init")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build skep-init: %w: %s", err, out)
	}
	return dir, nil
})

func newNode(t testing.TB) *node {
	t.Helper()
	tools(t)
	// Short: unix sockets live below it.
	dir, err := os.MkdirTemp("", "sk")
	if err != nil {
		t.Fatal(err)
	}
	bin, err := initBinary()
	if err != nil {
		t.Fatal(err)
	}
	n := &node{
		t: t, id: id.New(), dir: dir, done: make(chan error, 1), changed: make(chan struct{}),
		tasks: map[string]*skepv1.TaskRecord{}, specs: map[string]*skepv1.Revision{},
		status: map[string]*skepv1.TaskStatus{}, trace: map[string][]skepv1.TaskState{},
	}
	t.Cleanup(n.clean)
	n.nc = kvtest.Server(t).As(t, "agent-"+n.id) // asks as the node, and what services ask of it
	n.manage()
	var log *zap.Logger
	if _, bench := t.(*testing.B); bench {
		log = zap.NewNop()
	} else {
		log = zaptest.NewLogger(t, zaptest.Level(zap.DebugLevel))
	}
	n.cfg = Config{
		NodeID: n.id, NC: n.nc, Log: log, DataDir: filepath.Join(dir, "d"), RunDir: filepath.Join(dir, "r"), Version: "0.0.1",
		Attacher: newLoopback(t, filepath.Join(dir, "n")), BinDir: bin, Hostname: "host1", Manager: true,
		Registries: &Registries{Registries: map[string]Registry{"skep.test": {Mirrors: []string{"http://127.0.0.1:1"}, MirrorsOnly: true}}},
	}
	return n
}

// manage answers what state answers.
func (n *node) manage() {
	srv, err := rpc.NewServer(n.nc, rpc.Config{Name: "skep-state", Log: zap.NewNop()})
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = srv.Close() })
	must := func(err error) {
		if err != nil {
			n.t.Fatal(err)
		}
	}
	must(api.HandleNode(srv, api.StateSnapshot, func(_ context.Context, _ string, _ *skepv1.SnapshotRequest) (*skepv1.SnapshotReply, error) {
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.asked++; n.refuse != nil {
			return nil, n.refuse
		}
		return &skepv1.SnapshotReply{Generation: n.gen, Tasks: n.setLocked(), Cluster: n.clusterLocked()}, nil
	}))
	must(api.HandleNode(srv, api.StateSpecs, func(_ context.Context, _ string, r *skepv1.SpecsRequest) (*skepv1.SpecsReply, error) {
		n.mu.Lock()
		defer n.mu.Unlock()
		out := &skepv1.SpecsReply{}
		for _, k := range r.Keys {
			if rev := n.specs[k.ServiceId]; rev != nil {
				out.Revisions = append(out.Revisions, rev)
			}
		}
		return out, nil
	}))
	must(api.HandleNode(srv, api.StateStatus, func(_ context.Context, _ string, r *skepv1.NodeStatus) (*skepv1.StatusReply, error) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.status, n.held = map[string]*skepv1.TaskStatus{}, nil
		for _, v := range r.Volumes {
			n.held = append(n.held, v.Driver+"/"+v.Name+":"+strings.Join(v.TaskIds, ",")+"!"+v.Err)
		}
		if n.always != "" && !slices.Contains(n.held, n.always) {
			n.t.Errorf("a status without %s: %v", n.always, n.held)
		}
		for _, s := range r.Tasks {
			n.status[s.TaskId] = s
			if tr := n.trace[s.TaskId]; len(tr) == 0 || tr[len(tr)-1] != s.State {
				n.trace[s.TaskId] = append(tr, s.State)
			}
		}
		close(n.changed)
		n.changed = make(chan struct{})
		if n.deaf != nil {
			return nil, n.deaf
		}
		return &skepv1.StatusReply{Generation: n.gen}, nil
	}))
	must(api.HandleNode(srv, api.StateDescribe, func(_ context.Context, _ string, r *skepv1.DescribeRequest) (*skepv1.DescribeReply, error) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.desc = r.Description
		return &skepv1.DescribeReply{Cluster: n.clusterLocked()}, nil
	}))
	_, err = n.nc.Subscribe(subject.Heartbeat(n.id), func(m *nats.Msg) {
		hb := &skepv1.Heartbeat{}
		if proto.Unmarshal(m.Data, hb) == nil {
			n.mu.Lock()
			n.beats = append(n.beats, hb)
			n.mu.Unlock()
		}
	})
	must(err)
}

func (n *node) clusterLocked() *skepv1.ClusterSpec {
	if n.cluster == nil {
		return &skepv1.ClusterSpec{}
	}
	return proto.CloneOf(n.cluster)
}

func (n *node) setLocked() *skepv1.NodeTasks {
	out := &skepv1.NodeTasks{}
	for _, id := range n.order {
		if r := n.tasks[id]; r != nil {
			out.Tasks = append(out.Tasks, proto.CloneOf(r))
		}
	}
	return out
}

// start runs an agent on the node.
func (n *node) start() {
	n.t.Helper()
	svc, err := New(n.cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	n.svc, n.stop, n.done = svc, cancel, make(chan error, 1)
	done := n.done
	go func() { done <- svc.Run(ctx) }()
	select {
	case <-svc.Ready():
	case err := <-n.done:
		n.done <- err
		n.t.Fatalf("agent ended: %v", err)
	case <-time.After(patience):
		n.t.Fatal("agent not ready")
	}
}

// halt ends the agent and leaves everything else.
func (n *node) halt() {
	n.t.Helper()
	if n.stop == nil {
		return
	}
	n.stop()
	n.stop = nil
	select {
	case err := <-n.done:
		if err != nil {
			n.t.Errorf("agent: %v", err)
		}
	case <-time.After(patience):
		n.t.Error("agent does not end")
	}
}

// clean leaves nothing, whatever happened before.
func (n *node) clean() {
	n.halt()
	if n.svc != nil {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		cfg := n.cfg
		cfg.Log = zap.NewNop()
		if svc, err := New(cfg); err == nil {
			if err := svc.Leave(ctx); err != nil {
				n.t.Errorf("leave: %v", err)
			}
		}
		n.leftovers()
	}
	if err := ctrd.Unmount(n.dir); err != nil {
		n.t.Error(err)
	}
	if err := os.RemoveAll(n.dir); err != nil {
		n.t.Error(err)
	}
}

// leftovers fails the test for anything of the node that outlived it, and ends it.
func (n *node) leftovers() {
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		b, err := os.ReadFile(p)
		if err != nil || !bytes.Contains(b, []byte(n.dir+"/")) {
			continue
		}
		pid := strings.Split(p, "/")[2]
		if pid == fmt.Sprint(os.Getpid()) {
			continue
		}
		n.t.Errorf("left behind: process %s: %s", pid, bytes.ReplaceAll(b, []byte{0}, []byte{' '}))
		if err := exec.Command("kill", "-9", pid).Run(); err != nil {
			n.t.Logf("kill %s: %v", pid, err)
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for _, l := range strings.Split(string(mounts), "\n") {
		if strings.Contains(l, " "+n.dir+"/") && !strings.Contains(l, " "+n.cfg.DataDir+" ") { // a test may have mounted the data directory itself
			n.t.Errorf("left behind: mount %s", l)
		}
	}
	if groups, _ := filepath.Glob("/sys/fs/cgroup/*/skep/" + n.id); len(groups) > 0 {
		n.t.Errorf("left behind: cgroups %v", groups)
	}
}

// spec makes a service of one command.
func (n *node) spec(args ...string) *skepv1.ServiceSpec {
	return &skepv1.ServiceSpec{Name: "web", Task: &skepv1.TaskSpec{Container: &skepv1.ContainerSpec{
		Image: testImage, Args: args, StopGracePeriod: durationpb.New(50 * time.Millisecond),
	}}}
}

// put adds tasks of one service to the set and pushes it.
func (n *node) put(count int, spec *skepv1.ServiceSpec) []string {
	n.t.Helper()
	return n.add(count, spec, func(r *skepv1.TaskRecord) {})
}

func (n *node) add(count int, spec *skepv1.ServiceSpec, change func(*skepv1.TaskRecord)) []string {
	n.t.Helper()
	var ids []string
	n.mu.Lock()
	svc := id.New()
	n.specs[svc] = &skepv1.Revision{ServiceId: svc, Number: 1, Spec: spec}
	for i := range count {
		r := &skepv1.TaskRecord{Id: id.New(), ServiceId: svc, Slot: uint64(i + 1), Revision: 1, Desired: running}
		change(r)
		n.tasks[r.Id] = r
		n.order = append(n.order, r.Id)
		ids = append(ids, r.Id)
	}
	n.mu.Unlock()
	n.push()
	return ids
}

// want changes what is desired of tasks.
func (n *node) want(s skepv1.TaskState, ids ...string) {
	n.t.Helper()
	n.change(func(r *skepv1.TaskRecord) { r.Desired = s }, ids...)
}

func (n *node) change(f func(*skepv1.TaskRecord), ids ...string) {
	n.t.Helper()
	n.mu.Lock()
	for _, id := range ids {
		n.tasks[id] = proto.CloneOf(n.tasks[id])
		f(n.tasks[id])
	}
	n.mu.Unlock()
	n.push()
}

// drop takes tasks out of the set.
func (n *node) drop(ids ...string) {
	n.t.Helper()
	n.mu.Lock()
	for _, id := range ids {
		delete(n.tasks, id)
	}
	n.mu.Unlock()
	n.push()
}

func (n *node) push() {
	n.t.Helper()
	n.mu.Lock()
	n.gen++
	m := nats.NewMsg(subject.Push(n.id))
	m.Header.Set("Nats-Sequence", fmt.Sprint(n.gen))
	body, err := proto.Marshal(n.setLocked())
	n.mu.Unlock()
	if err != nil {
		n.t.Fatal(err)
	}
	m.Data = body
	if err := n.nc.PublishMsg(m); err != nil {
		n.t.Fatal(err)
	}
}

// await blocks until the reported statuses satisfy cond.
func (n *node) await(what string, cond func(map[string]*skepv1.TaskStatus) bool) {
	n.t.Helper()
	deadline := time.After(patience)
	for {
		n.mu.Lock()
		ok, ch := cond(n.status), n.changed
		n.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-ch:
		case <-deadline:
			n.mu.Lock()
			defer n.mu.Unlock()
			n.t.Fatalf("%s: not within %s; statuses: %v", what, patience, n.status)
		}
	}
}

// told is a task's status by the last report.
func (n *node) told(id string) *skepv1.TaskStatus {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.status[id]
}

// state blocks until every task reports the state, and returns the last one's status.
func (n *node) state(s skepv1.TaskState, ids ...string) *skepv1.TaskStatus {
	n.t.Helper()
	var last *skepv1.TaskStatus
	n.await("tasks in state "+s.String(), func(m map[string]*skepv1.TaskStatus) bool {
		for _, id := range ids {
			st := m[id]
			if st != nil && st.State > s && s < shutdown {
				n.t.Fatalf("task is past %s: %v", s, st)
			}
			if st == nil || st.State != s {
				return false
			}
			last = st
		}
		return true
	})
	return last
}

// load puts an image on the node the way `skep image load` does.
func (n *node) load(archive []byte) []string {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	sess, err := stream.Dial(ctx, n.nc, subject.Node(n.id, "image.load.open"), n.id, &skepv1.LoadImageRequest{NodeId: n.id})
	if err != nil {
		n.t.Fatalf("load image: %v", err)
	}
	defer sess.Close()
	w := sess.Writer(stream.In)
	if _, err := w.Write(archive); err != nil {
		n.t.Fatalf("load image: %v", err)
	}
	if err := w.Close(); err != nil {
		n.t.Fatalf("load image: %v", err)
	}
	var out bytes.Buffer
	if _, err := out.ReadFrom(sess.Reader(stream.Out)); err != nil {
		n.t.Fatalf("load image: %v", err)
	}
	if x, err := sess.Wait(); err != nil || x.Code != 0 {
		n.t.Fatalf("load image: %v %v", x, err)
	}
	r := &skepv1.LoadImageReply{}
	if err := protodelim.UnmarshalFrom(&out, r); err != nil {
		n.t.Fatal(err)
	}
	return r.Names
}

// up is a node with an agent and the test image.
func up(t testing.TB) *node {
	t.Helper()
	n := newNode(t)
	n.start()
	n.load(archive(t, testImage, busybox(t, map[string]string{"data/hello": "from the image"}, nil)))
	return n
}
