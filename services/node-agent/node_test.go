package agent

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/nats-io/nats.go"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"skep.dev/libs/id"
	"skep.dev/libs/kvtest"
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
	changed chan struct{}
	beats   []*skepv1.Heartbeat
	desc    *skepv1.NodeDescription
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

var initBinary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "skep-init")
	if err != nil {
		return "", err
	}
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
	n.nc = kvtest.Server(t).Conn(t)
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
	must(rpc.HandleNode(srv, "state", "snapshot", func(_ context.Context, _ string, _ *skepv1.SnapshotRequest) (*skepv1.SnapshotReply, error) {
		n.mu.Lock()
		defer n.mu.Unlock()
		return &skepv1.SnapshotReply{Generation: n.gen, Tasks: n.setLocked(), Cluster: &skepv1.ClusterSpec{}}, nil
	}))
	must(rpc.HandleNode(srv, "state", "specs", func(_ context.Context, _ string, r *skepv1.SpecsRequest) (*skepv1.SpecsReply, error) {
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
	must(rpc.HandleNode(srv, "state", "status", func(_ context.Context, _ string, r *skepv1.NodeStatus) (*skepv1.StatusReply, error) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.status = map[string]*skepv1.TaskStatus{}
		for _, s := range r.Tasks {
			n.status[s.TaskId] = s
			if tr := n.trace[s.TaskId]; len(tr) == 0 || tr[len(tr)-1] != s.State {
				n.trace[s.TaskId] = append(tr, s.State)
			}
		}
		close(n.changed)
		n.changed = make(chan struct{})
		return &skepv1.StatusReply{Generation: n.gen}, nil
	}))
	must(rpc.HandleNode(srv, "state", "describe", func(_ context.Context, _ string, r *skepv1.DescribeRequest) (*skepv1.DescribeReply, error) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.desc = r.Description
		return &skepv1.DescribeReply{Cluster: &skepv1.ClusterSpec{}}, nil
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
	var ids []string
	n.mu.Lock()
	svc := id.New()
	n.specs[svc] = &skepv1.Revision{ServiceId: svc, Number: 1, Spec: spec}
	for i := range count {
		r := &skepv1.TaskRecord{Id: id.New(), ServiceId: svc, Slot: uint64(i + 1), Revision: 1, Desired: running}
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
	n.mu.Lock()
	for _, id := range ids {
		n.tasks[id] = proto.CloneOf(n.tasks[id])
		n.tasks[id].Desired = s
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
	if err := proto.Unmarshal(out.Bytes(), r); err != nil {
		n.t.Fatal(err)
	}
	return r.Names
}

// busybox builds the test image, with changes.
func busybox(t testing.TB, files map[string]string, change func(*v1.ConfigFile)) v1.Image {
	t.Helper()
	bin, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal("busybox is not installed: apt-get install busybox-static")
	}
	body, err := os.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(h *tar.Header, body []byte) {
		h.Size = int64(len(body))
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(body); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"bin", "etc", "tmp", "proc", "sys", "dev", "run"} {
		mode := int64(0o755)
		if d == "tmp" {
			mode = 0o1777
		}
		add(&tar.Header{Name: d + "/", Typeflag: tar.TypeDir, Mode: mode}, nil)
	}
	add(&tar.Header{Name: "bin/busybox", Mode: 0o755}, body)
	for _, l := range strings.Fields("sh sleep cat echo ls id env head tail true false hostname grep touch dd seq kill trap test mount stty ulimit wc mkdir rm stat ps nc yes sync printf tr tty") {
		add(&tar.Header{Name: "bin/" + l, Typeflag: tar.TypeLink, Linkname: "bin/busybox", Mode: 0o755}, nil)
	}
	add(&tar.Header{Name: "etc/passwd", Mode: 0o644}, []byte("root:x:0:0::/root:/bin/sh\napp:x:1234:1234::/home/app:/bin/sh\n"))
	add(&tar.Header{Name: "etc/group", Mode: 0o644}, []byte("root:x:0:\napp:x:1234:\nextra:x:777:app\n"))
	for name, text := range files {
		if d := filepath.Dir(name); d != "." {
			add(&tar.Header{Name: d + "/", Typeflag: tar.TypeDir, Mode: 0o755, Uid: 1234, Gid: 1234}, nil)
		}
		add(&tar.Header{Name: name, Mode: 0o640, Uid: 1234, Gid: 1234}, []byte(text))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromReader(&b, tarball.WithMediaType(types.OCILayer)) //nolint:staticcheck // small, and in memory
	if err != nil {
		t.Fatal(err)
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	if img, err = mutate.AppendLayers(img, layer); err != nil {
		t.Fatal(err)
	}
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture = "linux", "amd64"
	cf.Config.Env = []string{"PATH=/bin", "FROM=image"}
	cf.Config.Cmd = []string{"sleep", "1000"}
	if change != nil {
		change(cf)
	}
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		t.Fatal(err)
	}
	return img
}

// archive is the image as `docker save` writes it.
func archive(t testing.TB, ref string, img v1.Image) []byte {
	t.Helper()
	tag, err := name.NewTag(ref)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := tarball.Write(tag, img, &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// up is a node with an agent and the test image.
func up(t testing.TB) *node {
	t.Helper()
	n := newNode(t)
	n.start()
	n.load(archive(t, testImage, busybox(t, map[string]string{"data/hello": "from the image"}, nil)))
	return n
}

// exec runs a command in a task and returns its output and exit code.
func (n *node) exec(task string, args ...string) (string, int32) {
	n.t.Helper()
	out, code, err := n.tryExec(&skepv1.ExecRequest{TaskId: task, Args: args}, "")
	if err != nil {
		n.t.Fatalf("exec %v: %v", args, err)
	}
	return out, code
}

func (n *node) tryExec(req *skepv1.ExecRequest, stdin string) (string, int32, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req.Stdin = stdin != ""
	sess, err := stream.Dial(ctx, n.nc, subject.Node(n.id, "exec.open"), n.id, req)
	if err != nil {
		return "", 0, err
	}
	defer sess.Close()
	var out, errs bytes.Buffer
	var wg sync.WaitGroup
	wg.Add(3)
	go func() {
		defer wg.Done()
		if stdin == "" {
			return
		}
		w := sess.Writer(stream.In)
		if _, err := w.Write([]byte(stdin)); err != nil {
			n.t.Errorf("write to exec: %v", err)
		}
		if err := w.Close(); err != nil {
			n.t.Errorf("write to exec: %v", err)
		}
	}()
	go func() { defer wg.Done(); _, _ = out.ReadFrom(sess.Reader(stream.Out)) }()
	go func() { defer wg.Done(); _, _ = errs.ReadFrom(sess.Reader(stream.Err)) }()
	wg.Wait()
	x, err := sess.Wait()
	if err != nil {
		return "", 0, err
	}
	if x.Err != "" {
		return out.String() + errs.String(), x.Code, fmt.Errorf("%s", x.Err)
	}
	return out.String() + errs.String(), x.Code, nil
}

// logs reads a task's log, all of it with tail < 0.
func (n *node) logs(task string, tail int64) []*skepv1.LogEntry {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	sess, err := stream.Dial(ctx, n.nc, subject.Node(n.id, "logs.open"), n.id, &skepv1.LogsRequest{TaskId: task, Tail: tail})
	if err != nil {
		n.t.Fatalf("logs: %v", err)
	}
	defer sess.Close()
	out, err := readEntries(sess.Reader(stream.Out), -1)
	if err != nil {
		n.t.Fatalf("logs: %v", err)
	}
	return out
}

// readEntries reads until the end, or max entries.
func readEntries(r io.Reader, limit int) ([]*skepv1.LogEntry, error) {
	br := bufio.NewReader(r)
	var out []*skepv1.LogEntry
	for limit < 0 || len(out) < limit {
		size, err := binary.ReadUvarint(br)
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		b := make([]byte, size)
		if _, err := io.ReadFull(br, b); err != nil {
			return out, err
		}
		e := &skepv1.LogEntry{}
		if err := proto.Unmarshal(b, e); err != nil {
			return out, err
		}
		out = append(out, e)
	}
	return out, nil
}

// awaitLogs follows a task's log until it has that many lines.
func (n *node) awaitLogs(task string, lines int) []*skepv1.LogEntry {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	sess, err := stream.Dial(ctx, n.nc, subject.Node(n.id, "logs.open"), n.id, &skepv1.LogsRequest{TaskId: task, Tail: -1, Follow: true})
	if err != nil {
		n.t.Fatalf("follow logs: %v", err)
	}
	defer sess.Close()
	out, err := readEntries(sess.Reader(stream.Out), lines)
	if err != nil || len(out) < lines {
		n.t.Fatalf("follow logs: %d of %d lines, %v", len(out), lines, err)
	}
	return out
}

// deadConn is a connection that nobody ever answers.
func deadConn(t testing.TB) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect("nats://127.0.0.1:1", nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// awaitGone waits until a path below /proc/PID is no more: the process has ended.
func awaitGone(t testing.TB, path string) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		if _, err := os.Stat(path); err != nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is still there", path)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
