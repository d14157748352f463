package engine

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/containers"
	"skep.dev/libs/fault"
	"skep.dev/libs/rpc"
	skepv1 "skep.dev/proto/skep/v1"
)

const secretWord = "hunter2" // of a volume's options, a log driver's, a registry: in no answer

// paperNode is a node's agent made of paper.
type paperNode struct {
	mu      sync.Mutex
	tasks   []containers.Container
	changed chan struct{}
	lines   map[string][]string
	ended   map[string]bool // logs that get no more
	reading int             // logs that are being read
	cond    *sync.Cond      // of lines and ends
	execs   []*skepv1.ExecRequest
	actors  []string
	exec    func(ctx context.Context, req *skepv1.ExecRequest, s containers.ExecIO) (int32, error)
	gone    bool // its agent does not serve
}

func newPaperNode() *paperNode {
	n := &paperNode{changed: make(chan struct{}), lines: map[string][]string{}, ended: map[string]bool{}}
	n.cond = sync.NewCond(&n.mu)
	n.add(taskID, "web", 1, running(5*time.Minute, func(st *skepv1.TaskStatus) { st.Health = skepv1.HealthState_HEALTH_STATE_HEALTHY }))
	n.add(oldID, "web", 2, func(st *skepv1.TaskStatus) {
		st.State, st.StartedUnixMs, st.ExitCode = skepv1.TaskState_TASK_STATE_FAILED, 1000, proto.Int32(3)
		st.SinceUnixMs = time.Now().Add(-2 * time.Hour).UnixMilli()
	})
	return n
}

func running(since time.Duration, more ...func(*skepv1.TaskStatus)) func(*skepv1.TaskStatus) {
	return func(st *skepv1.TaskStatus) {
		st.State, st.StartedUnixMs, st.Pid = skepv1.TaskState_TASK_STATE_RUNNING, time.Now().Add(-since).UnixMilli(), 4711
		for _, f := range more {
			f(st)
		}
	}
}

// add makes a task of a service.
func (n *paperNode) add(id, service string, slot uint64, status func(*skepv1.TaskStatus)) {
	sp := &skepv1.ServiceSpec{Name: service, Labels: map[string]string{"of": "service"}, Task: &skepv1.TaskSpec{
		Container: &skepv1.ContainerSpec{
			Image: "reg.lan/web:2@sha256:" + strings.Repeat("ab", 32), Env: []string{"COLOUR=blue"}, Labels: map[string]string{"a": "b", "com.docker.swarm.task.id": "forged"},
			RegistryAuth: secretWord, Secrets: []*skepv1.FileReference{{Name: "pw"}},
			Mounts: []*skepv1.Mount{{Type: skepv1.Mount_TYPE_VOLUME, Source: "data", Target: "/data", VolumeOpts: map[string]string{"o": "password=" + secretWord}}},
		},
		LogDriver: &skepv1.LogDriver{Name: "json-file", Options: map[string]string{"token": secretWord}},
	}, Endpoint: &skepv1.EndpointSpec{Ports: []*skepv1.PortConfig{{TargetPort: 80, PublishedPort: 8080, PublishMode: skepv1.PublishMode_PUBLISH_MODE_INGRESS}}}}
	st := &skepv1.TaskStatus{TaskId: id, ContainerId: id, State: skepv1.TaskState_TASK_STATE_READY, SinceUnixMs: time.Now().UnixMilli(),
		Addresses: []string{"10.200.1.5/24"}, Networks: []*skepv1.NetworkAddress{{NetworkId: netID, Addr: "10.0.0.3/24"}},
		Ports: []*skepv1.PortConfig{{TargetPort: 443, PublishedPort: 8443, PublishMode: skepv1.PublishMode_PUBLISH_MODE_HOST}}}
	if status != nil {
		status(st)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.tasks = append(n.tasks, containers.Container{
		Record:   &skepv1.TaskRecord{Id: id, ServiceId: webID, Slot: slot, Revision: 2, CreatedUnixMs: int64(1e12) + int64(len(n.tasks))},
		Revision: &skepv1.Revision{ServiceId: webID, Number: 2, Spec: sp, Networks: map[string]string{netID: "back"}}, Status: st,
	})
	n.tellLocked()
}

func (n *paperNode) tellLocked() {
	close(n.changed)
	n.changed = make(chan struct{})
}

// change changes the status of a task.
func (n *paperNode) change(id string, f func(*skepv1.TaskStatus)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i, c := range n.tasks {
		if c.ID() == id {
			n.tasks[i].Status = proto.CloneOf(c.Status)
			f(n.tasks[i].Status)
		}
	}
	n.tellLocked()
}

func (n *paperNode) remove(id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.tasks = slices.DeleteFunc(n.tasks, func(c containers.Container) bool { return c.ID() == id })
	n.tellLocked()
}

func (n *paperNode) serving() containers.Node {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.gone {
		return nil
	}
	return n
}

func (n *paperNode) ID() string       { return nodeID }
func (n *paperNode) Hostname() string { return "m1" }

func (n *paperNode) Containers() []containers.Container {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.tasks)
}

func (n *paperNode) Container(id string) (containers.Container, bool) {
	for _, c := range n.Containers() {
		if c.ID() == id {
			return c, true
		}
	}
	return containers.Container{}, false
}

func (n *paperNode) Changed() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.changed
}

func (n *paperNode) Process(_ context.Context, id string) (*containers.Process, error) {
	if c, ok := n.Container(id); !ok || c.Status.GetState() > skepv1.TaskState_TASK_STATE_RUNNING {
		return nil, fault.NotFound("the container of task %s is not there any more", id)
	}
	return &containers.Process{Args: []string{"/bin/web", "-v"}, Env: []string{"PATH=/bin", "COLOUR=blue"}, Dir: "/srv", Hostname: id[:12]}, nil
}

// write adds a line to a task's log, end ends it.
func (n *paperNode) write(id, line string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lines[id] = append(n.lines[id], line)
	n.cond.Broadcast()
}

func (n *paperNode) end(id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ended[id] = true
	n.cond.Broadcast()
}

// readers is how many read a log.
func (n *paperNode) readers() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.reading
}

func (n *paperNode) Logs(ctx context.Context, req *skepv1.LogsRequest, each func(*skepv1.LogEntry) error, idle func() error) error {
	defer context.AfterFunc(ctx, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.cond.Broadcast()
	})()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.reading++
	defer func() { n.reading-- }()
	i := 0
	if req.Tail >= 0 {
		i = max(0, len(n.lines[req.TaskId])-int(req.Tail))
	}
	for ctx.Err() == nil {
		if i == len(n.lines[req.TaskId]) {
			if !req.Follow || n.ended[req.TaskId] {
				return nil
			}
			n.mu.Unlock()
			err := idle()
			n.mu.Lock()
			if err != nil {
				return err
			}
			if i == len(n.lines[req.TaskId]) && !n.ended[req.TaskId] && ctx.Err() == nil {
				n.cond.Wait()
			}
			continue
		}
		l := n.lines[req.TaskId][i]
		n.mu.Unlock()
		err := each(&skepv1.LogEntry{TimeUnixNano: int64(1e18) + int64(i), Line: []byte(l), Stderr: strings.HasPrefix(l, "err"), Partial: !strings.HasSuffix(l, "\n")})
		n.mu.Lock()
		if err != nil {
			return err
		}
		i++
	}
	return ctx.Err()
}

func (n *paperNode) Exec(ctx context.Context, req *skepv1.ExecRequest, s containers.ExecIO) (int32, error) {
	n.mu.Lock()
	n.execs, n.actors = append(n.execs, req), append(n.actors, rpc.Asker(ctx))
	n.mu.Unlock()
	return n.exec(ctx, req, s)
}

func (n *paperNode) Stats(id string) *skepv1.TaskStats {
	return &skepv1.TaskStats{TaskId: id, CpuNanos: 5e9, MemoryBytes: 1 << 20, MemoryLimit: 1 << 30, Pids: 3}
}

func (n *paperNode) Processes(string) ([]int, error) { return []int{1}, nil }

func (n *paperNode) Images(context.Context) ([]*skepv1.Image, error) {
	at := timestamppb.New(time.Unix(1e9, 0))
	id, digest := "sha256:"+strings.Repeat("1", 64), "sha256:"+strings.Repeat("ab", 32)
	return []*skepv1.Image{{Name: "reg.lan/web:2", Digest: digest, Id: id, Size: 1000, CreatedAt: at}, {Name: "web:latest", Digest: digest, Id: id, Size: 1000, CreatedAt: at},
		{Name: "<none>", Digest: "sha256:" + strings.Repeat("cd", 32), Id: "sha256:" + strings.Repeat("2", 64), Size: 7, CreatedAt: at}}, nil
}

func (n *paperNode) Volumes(context.Context) ([]*skepv1.Volume, []string) {
	return []*skepv1.Volume{{Name: "data", Driver: "local", Scope: "local", Mountpoint: "/v/data", TaskIds: []string{taskID}}, {Name: "free", Driver: "rexray", Scope: "global"}}, []string{"volumes of driver dead may be left out"}
}

// newNodeRig is the service on a worker, or a manager, whose agent is made of paper.
func newNodeRig(t testing.TB, role string) (*rig, *paperNode) {
	t.Helper()
	n := newPaperNode()
	return serveOn(t, role, nil, n), n
}

// copyAll answers a command with what it is given, and what it reads.
func copyAll(_ context.Context, req *skepv1.ExecRequest, s containers.ExecIO) (int32, error) {
	fmt.Fprintln(s.Stdout, strings.Join(req.Args, " "))
	if s.Stdin != nil {
		var b bytes.Buffer
		_, _ = io.Copy(&b, s.Stdin)
		_, _ = s.Stderr.Write(b.Bytes())
	}
	return 7, nil
}
