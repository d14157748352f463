package health

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// power is a fencing command and the state service that hears of it.
type power struct {
	*field
	dir string

	mu    sync.Mutex
	asked []*skepv1.FenceNodeRequest
	deny  int // so many requests
}

func newPower(t *testing.T, script string) *power {
	p := &power{field: newField(t), dir: t.TempDir()}
	path := filepath.Join(p.dir, "fence")
	if err := os.WriteFile(path, []byte("#!/bin/sh\ncd "+p.dir+"\necho \"$1 $SKEP_NODE_ID $SKEP_NODE_ADDR\" >> runs\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	srv, err := rpc.NewServer(p.n.Conn(t), rpc.Config{Name: "state"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = srv.Close() })
	if err := api.Handle(srv, api.NodeFence, func(_ context.Context, r *skepv1.FenceNodeRequest) (*skepv1.NodeReply, error) {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.deny > 0 {
			p.deny--
			return nil, fault.Unavailable("not now")
		}
		p.asked = append(p.asked, r)
		p.put("node."+r.Ref, &skepv1.NodeObject{Meta: &skepv1.Meta{Id: r.Ref}, Spec: &skepv1.NodeSpec{Name: "host-" + r.Ref}, Fence: &skepv1.NodeFence{ByCommand: true}})
		return &skepv1.NodeReply{}, nil
	}); err != nil {
		t.Fatal(err)
	}
	p.command(path)
	for _, id := range []string{"a", "b", "c", "d", "e"} {
		p.store(subject.NodeB, "desc."+id, &skepv1.NodeDescription{Hostname: "host-" + id, Addr: "10.0.0.9"})
	}
	return p
}

func (p *power) command(path string) {
	p.put("cluster", &skepv1.Cluster{Spec: &skepv1.ClusterSpec{HeartbeatPeriod: durationpb.New(period), FenceCommand: path}})
}

func (p *power) store(b subject.Bucket, key string, m proto.Message) {
	p.t.Helper()
	body, err := proto.Marshal(m)
	if err == nil {
		_, err = kv.Open(p.js, b).Put(context.Background(), key, body)
	}
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *power) claim(node string) {
	p.store(subject.Task, keys.ClaimKey("rexray", "of-"+node), &skepv1.VolumeClaim{Driver: "rexray", Name: "of-" + node, NodeId: node})
}

func (p *power) runs() []string {
	b, _ := os.ReadFile(filepath.Join(p.dir, "runs"))
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}

func (p *power) fencedNodes() (out []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.asked {
		out = append(out, fmt.Sprint(r.Ref, r.ByCommand, r.Undo))
	}
	return out
}

// Only a node that is down and holds a volume is cut off, once, and state is told; a program that fails is run again.
func TestFencingCommand(t *testing.T) {
	p := newPower(t, "[ -e ok ] || { touch ok; echo the switch does not answer; exit 1; }\n")
	p.deny = 1
	p.admit("a", "b", "c", "d", "e")
	p.claim("a")
	p.claim("b") // stays up
	p.claim("x") // no member
	p.beat("a", "b", "c", "d", "e")
	s, err := New(Config{NC: p.nc, NodeID: "m1", LeaseTTL: time.Second, Limits: Limits{Grace: 2 * time.Second, MassGrace: 3 * time.Second}})
	if err != nil {
		t.Fatal(err)
	}
	s.fences.pause = 20 * time.Millisecond
	p.run(s)
	p.await(readyS, "a", "b", "c", "d", "e")
	p.silence("a", "c")
	p.await(downS, "a", "c")
	p.until("a is fenced", func() bool { return len(p.fencedNodes()) > 0 })
	// The first failed, after the second state did not answer.
	if got := p.fencedNodes(); len(got) != 1 || got[0] != "atrue false" {
		t.Errorf("fenced %v", got)
	}
	if got := p.runs(); len(got) != 3 || got[0] != "host-a a 10.0.0.9" {
		t.Errorf("runs %q", got)
	}
	for _, e := range []string{"host-a fencing"} {
		p.until(e, func() bool {
			p.field.mu.Lock()
			defer p.field.mu.Unlock()
			n := 0
			for _, x := range p.events {
				if strings.HasPrefix(x, e) {
					n++
				}
			}
			return n >= 5 // three tries, two failures
		})
	}
	// A claim that comes late, of a node that is down already.
	p.claim("c")
	p.until("c is fenced", func() bool { return len(p.fencedNodes()) == 2 })
	if got := p.runs(); len(got) != 4 {
		t.Errorf("runs %q", got)
	}
}

// The node comes back while the program runs: it is stopped, and the node is not fenced. The leader ends in the middle: the next
// one begins anew.
func TestFencingIsInterrupted(t *testing.T) {
	p := newPower(t, "[ -e go ] || exec sleep 1000\n")
	p.admit("a", "b", "c", "d", "e")
	p.claim("a")
	p.beat("a", "b", "c", "d", "e")
	stop := p.start("m1", p.nc)
	p.await(readyS, "a")
	p.silence("a")
	p.until("the program runs", func() bool { return p.runs()[0] != "" })
	p.await(downS, "a") // the test's own view may be later than the program
	p.beat("a")
	p.await(readyS, "a")
	p.silence("a")
	p.until("it runs again", func() bool { return len(p.runs()) == 2 })
	if got := p.fencedNodes(); len(got) > 0 {
		t.Errorf("fenced %v", got)
	}
	stop()
	if err := os.WriteFile(filepath.Join(p.dir, "go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	p.start("m2", p.n.Conn(t))
	p.until("a is fenced", func() bool { return len(p.fencedNodes()) == 1 })
	if got := p.runs(); len(got) != 3 {
		t.Errorf("runs %q", got)
	}
}
