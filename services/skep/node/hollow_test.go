package node

import (
	"context"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/api"
	"skep.dev/libs/daemon"
	"skep.dev/libs/id"
	"skep.dev/libs/join"
	"skep.dev/libs/pki"
	"skep.dev/libs/stream"
	"skep.dev/libs/subject"
)

// crashing begins the names of services whose tasks fail as soon as they run.
const crashing = "crash"

// hollow is a worker without containers: it joins, and does at once, on paper, what its task set says. What the managers see
// of it is what they see of a node.
type hollow struct {
	t       *testing.T
	nc      *nats.Conn
	id      string
	session string
	changed chan struct{}

	mu    sync.Mutex
	gen   uint64
	want  []*skepv1.TaskRecord
	cuts  map[string]*skepv1.Revision // by "<service>/<revision>", of the tasks of now
	seen  map[string]*skepv1.TaskStatus
	ended uint64 // tasks that are gone
	seq   uint64
	next  map[string]int // network → how many addresses of its block were given
	block map[string]netip.Prefix
}

// joinHollow makes a hollow node a member of the cluster and runs it until the test ends.
func joinHollow(t *testing.T, manager, token, name, addr string) *hollow {
	t.Helper()
	r, err := join.Join(t.Context(), manager, token, join.Params{Hostname: name, Addr: addr, Version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	store, err := pki.Memory(r.Cert, r.Key, r.CA)
	if err != nil {
		t.Fatal(err)
	}
	nc, err := daemon.Connect("hollow", []string{manager}, store, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	h := &hollow{
		t: t, nc: nc, id: store.Identity().NodeID, session: id.New(), changed: make(chan struct{}, 1),
		cuts: map[string]*skepv1.Revision{}, seen: map[string]*skepv1.TaskStatus{}, next: map[string]int{}, block: map[string]netip.Prefix{},
	}
	if _, err := nc.Subscribe(subject.Push(h.id), h.pushed); err != nil {
		t.Fatal(err)
	}
	mustAsk(t, nc, api.StateDescribe.At(h.id), &skepv1.DescribeRequest{NodeId: h.id, Description: &skepv1.NodeDescription{
		Hostname: name, Platform: &skepv1.Platform{Os: "linux", Arch: "amd64"}, Addr: addr, DataPathAddr: addr,
		Resources: &skepv1.Resources{NanoCpus: 64e9, MemoryBytes: 64 << 30},
	}})
	snap := mustAsk(t, nc, api.StateSnapshot.At(h.id), &skepv1.SnapshotRequest{NodeId: h.id})
	h.apply(snap.Generation, snap.Tasks)
	var opens []*stream.Server
	for _, subj := range []string{api.ExecOpen.At(h.id).Subject(), api.LogsOpen.At(h.id).Subject()} {
		s, err := stream.Serve(nc, subj, h.id, func(_ context.Context, s *stream.Session, _ []byte) {
			_, _ = s.Writer(stream.Out).Write([]byte("a line of a task's log, as long as such a line may be\n"))
			_ = s.Exit(0, nil)
		})
		if err != nil {
			t.Fatal(err)
		}
		opens = append(opens, s)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { h.beats(ctx) })
	wg.Go(func() { h.run(ctx) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		for _, s := range opens {
			_ = s.Close()
		}
		nc.Close()
	})
	return h
}

func (h *hollow) beats(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		h.mu.Lock()
		hb := &skepv1.Heartbeat{NodeId: h.id, Session: h.session, AppliedGeneration: h.gen, SentUnixMs: time.Now().UnixMilli(), Running: uint32(len(h.seen))}
		h.mu.Unlock()
		if body, err := proto.Marshal(hb); err == nil {
			_ = h.nc.Publish(subject.Heartbeat(h.id), body)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (h *hollow) pushed(m *nats.Msg) {
	gen, err := strconv.ParseUint(m.Header.Get("Nats-Sequence"), 10, 64)
	var tasks skepv1.NodeTasks
	if err == nil && m.Header.Get("KV-Operation") == "" {
		err = proto.Unmarshal(m.Data, &tasks)
	}
	if err != nil {
		h.t.Errorf("task set of %s: %v", h.id, err)
		return
	}
	h.apply(gen, &tasks)
}

func (h *hollow) apply(gen uint64, tasks *skepv1.NodeTasks) {
	h.mu.Lock()
	if gen > h.gen {
		h.gen, h.want = gen, tasks.GetTasks()
	}
	h.mu.Unlock()
	select {
	case h.changed <- struct{}{}:
	default:
	}
}

// run brings what the node tells in line with what it is told.
func (h *hollow) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.changed:
		}
		for again := true; again && ctx.Err() == nil; {
			again = h.react(ctx)
			call, cancel := context.WithTimeout(ctx, 5*time.Second)
			_, err := api.Call(call, h.nc, api.StateStatus.At(h.id), h.status())
			cancel()
			again = again || err != nil
		}
	}
}

func (h *hollow) status() *skepv1.NodeStatus {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seq++
	out := &skepv1.NodeStatus{NodeId: h.id, Report: h.seq, Session: h.session, AppliedGeneration: h.gen}
	for _, st := range h.seen {
		out.Tasks = append(out.Tasks, st)
	}
	return out
}

// react does one step of every task; true: there is another one.
func (h *hollow) react(ctx context.Context) (again bool) {
	h.learn(ctx)
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now().UnixMilli()
	there := map[string]bool{}
	networks := map[string]bool{}
	for _, w := range h.want {
		if w.Desired == skepv1.TaskState_TASK_STATE_REMOVE {
			continue
		}
		there[w.Id] = true
		rev := h.cuts[cut(w)]
		for _, n := range rev.GetSpec().GetTask().GetNetworks() {
			networks[n.Target] = true
		}
		st := h.seen[w.Id]
		next := skepv1.TaskState_TASK_STATE_RUNNING
		switch {
		case w.Desired > skepv1.TaskState_TASK_STATE_COMPLETE:
			next = skepv1.TaskState_TASK_STATE_SHUTDOWN
		case w.Desired == skepv1.TaskState_TASK_STATE_READY:
			next = skepv1.TaskState_TASK_STATE_READY
		case st.GetState() == skepv1.TaskState_TASK_STATE_RUNNING && strings.HasPrefix(rev.GetSpec().GetName(), crashing):
			next = skepv1.TaskState_TASK_STATE_FAILED
		}
		if st.GetState() >= next || st.GetState() > skepv1.TaskState_TASK_STATE_RUNNING {
			continue
		}
		n := &skepv1.TaskStatus{TaskId: w.Id, State: next, SinceUnixMs: now, StartedUnixMs: now, Networks: st.GetNetworks(), Addresses: st.GetAddresses()}
		switch next {
		case skepv1.TaskState_TASK_STATE_RUNNING:
			n.ContainerId, n.Pid, n.ServedUnixMs = w.Id, 4711, now
			for _, net := range rev.GetSpec().GetTask().GetNetworks() {
				if p, ok := h.block[net.Target]; ok {
					a := p.Addr()
					for range 2 + h.next[net.Target]%12 {
						a = a.Next()
					}
					h.next[net.Target]++
					n.Networks = append(n.Networks, &skepv1.NetworkAddress{NetworkId: net.Target, Addr: netip.PrefixFrom(a, p.Bits()).String()})
				}
			}
			again = again || strings.HasPrefix(rev.GetSpec().GetName(), crashing)
		case skepv1.TaskState_TASK_STATE_FAILED:
			n.ExitCode, n.Err = proto.Int32(1), "task: non-zero exit (1)"
		}
		h.seen[w.Id] = n
	}
	for task := range h.seen {
		if !there[task] {
			delete(h.seen, task)
			h.ended++
		}
	}
	for n, p := range h.block {
		if !networks[n] {
			delete(h.block, n)
			delete(h.next, n)
			go func() { // the network may be gone
				_, _ = api.Call(ctx, h.nc, api.MeshReturn.At(h.id), &skepv1.ReturnBlocksRequest{NodeId: h.id, NetworkId: n, Blocks: []string{p.String()}})
			}()
		}
	}
	return again
}

func cut(w *skepv1.TaskRecord) string { return w.ServiceId + "/" + strconv.FormatUint(w.Revision, 10) }

// learn asks for the revisions that the tasks were made from, and for addresses on their networks.
func (h *hollow) learn(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	h.mu.Lock()
	req := &skepv1.SpecsRequest{NodeId: h.id}
	have := map[string]*skepv1.Revision{}
	asked := map[string]bool{}
	for _, w := range h.want {
		k := cut(w)
		if r := h.cuts[k]; r != nil {
			have[k] = r
		} else if !asked[k] {
			asked[k] = true
			req.Keys = append(req.Keys, &skepv1.RevisionKey{ServiceId: w.ServiceId, Revision: w.Revision})
		}
	}
	h.cuts = have
	h.mu.Unlock()
	if len(req.Keys) > 0 {
		r, err := api.Call(ctx, h.nc, api.StateSpecs.At(h.id), req)
		if err != nil {
			return
		}
		h.mu.Lock()
		for _, rev := range r.Revisions {
			h.cuts[rev.ServiceId+"/"+strconv.FormatUint(rev.Number, 10)] = rev
		}
		h.mu.Unlock()
	}
	h.mu.Lock()
	var lease []string
	for _, rev := range h.cuts {
		for _, n := range rev.GetSpec().GetTask().GetNetworks() {
			if _, ok := h.block[n.Target]; !ok {
				lease = append(lease, n.Target)
			}
		}
	}
	h.mu.Unlock()
	for _, n := range lease {
		r, err := api.Call(ctx, h.nc, api.MeshLease.At(h.id), &skepv1.LeaseBlockRequest{NodeId: h.id, NetworkId: n, WantBlock: true})
		if err != nil || len(r.Blocks) == 0 {
			continue
		}
		if p, err := netip.ParsePrefix(r.Blocks[0]); err == nil {
			h.mu.Lock()
			h.block[n] = p
			h.mu.Unlock()
		}
	}
}

// gone is how many tasks the node has had and has not any more.
func (h *hollow) gone() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ended
}
