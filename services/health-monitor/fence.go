package health

import (
	"context"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/api"
	"skep.dev/libs/event"
	"skep.dev/libs/kv"
	"skep.dev/services/health-monitor/internal/fencing"
)

const (
	fenceFirst   = time.Second // pause after the first try that failed; it doubles
	fenceLongest = time.Minute
	// fencesAtOnce bounds how many programs run at a time.
	fencesAtOnce = 4
	// fenceAsk bounds the request to state that follows.
	fenceAsk = 5 * time.Second
)

// fences is what the loop knows of nodes that may have to be cut off.
type fences struct {
	command string
	claims  map[string]string    // key of a claim → node
	fenced  map[string]bool      // nodes
	tries   map[string]*fenceTry // by node
	running sync.WaitGroup
	pause   time.Duration     // fenceFirst; tests have less patience
	addrs   map[string]string // of nodes
}

// fenceTry is one node that should be cut off.
type fenceTry struct {
	stop  context.CancelFunc // of the program that runs now, nil = none
	next  time.Time
	pause time.Duration
	n     int
}

func (f *fences) begin() {
	f.claims, f.fenced, f.tries, f.addrs, f.pause = map[string]string{}, map[string]bool{}, map[string]*fenceTry{}, map[string]string{}, fenceFirst
}

// applyClaims follows which node holds volumes with a single writer.
func (s *Service) applyClaims(d kv.Delta) {
	if d.Reset {
		clear(s.fences.claims)
	}
	for _, e := range d.Entries {
		var c skepv1.VolumeClaim
		if e.Deleted || proto.Unmarshal(e.Value, &c) != nil {
			delete(s.fences.claims, e.Key)
			continue
		}
		s.fences.claims[e.Key] = c.GetNodeId()
	}
}

// mustFence: the node is down by the record everybody acts on, holds volumes that others may wait for, and nobody has cut it off.
func (s *Service) mustFence(id string) bool {
	_, member := s.members[id]
	return s.leading && !s.away && s.fences.command != "" && member && !s.fences.fenced[id] &&
		s.record[id].live.GetState() == skepv1.NodeState_NODE_STATE_DOWN && s.verdict(id).GetState() == skepv1.NodeState_NODE_STATE_DOWN
}

// fence starts the cluster's program for nodes that must be cut off, and ends it for those that are back or no longer ours:
// one at a time for a node. Whoever leads next begins anew, so the program may meet a node that is off already.
func (s *Service) fence(ctx context.Context, do chan func(), now time.Time) {
	f := &s.fences
	for id, t := range f.tries {
		if s.mustFence(id) {
			continue
		}
		if t.stop != nil {
			t.stop() // its end is told by the goroutine
			continue
		}
		delete(f.tries, id)
	}
	if f.command == "" || !s.leading || len(f.claims) == 0 {
		return
	}
	running := 0
	for _, t := range f.tries {
		if t.stop != nil {
			running++
		}
	}
	for _, id := range f.claims {
		if running >= fencesAtOnce {
			return
		}
		t := f.tries[id]
		if t != nil && (t.stop != nil || now.Before(t.next)) || !s.mustFence(id) {
			continue
		}
		if t == nil {
			t = &fenceTry{pause: f.pause}
			f.tries[id] = t
		}
		running++
		s.tryFence(ctx, do, id, t)
	}
}

func (s *Service) tryFence(ctx context.Context, do chan func(), id string, t *fenceTry) {
	t.n++
	call, stop := context.WithCancel(ctx)
	t.stop = stop
	name := s.hosts[id]
	run := fencing.Command{Path: s.fences.command, Name: name, NodeID: id, Addr: s.fences.addrs[id]}
	try := t.n
	s.tellFencing(id, name, fmt.Sprintf("node %s is down and holds volumes: %s is run to cut it off (try %d)", name, run.Path, try))
	s.fences.running.Go(func() {
		defer stop()
		out, err := run.Run(call)
		if err == nil {
			err = s.askFence(call, id)
		}
		s.send(ctx, do, func() {
			t.stop = nil
			switch {
			case err == nil:
				t.next = time.Now().Add(fenceAsk) // until the feed says so
				s.log.Info("node cut off by the fencing command", zap.String("node", id), zap.String("name", name), zap.Int("try", try))
			case !s.mustFence(id):
			default:
				t.next, t.pause = time.Now().Add(t.pause), min(2*t.pause, fenceLongest)
				text := fmt.Sprintf("%s did not cut off node %s: %v; it is tried again", run.Path, name, err)
				if out != "" {
					text += ": " + out
				}
				s.tellFencing(id, name, text)
				s.log.Warn("fencing command failed", zap.String("node", id), zap.String("name", name), zap.Int("try", try), zap.Error(err), zap.String("output", out))
			}
		})
	})
}

// askFence has state note that the node was cut off.
func (s *Service) askFence(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, fenceAsk)
	defer cancel()
	if _, err := api.Call(ctx, s.cfg.NC, api.NodeFence, &skepv1.FenceNodeRequest{Ref: id, ByCommand: true}); err != nil {
		return fmt.Errorf("it ended well, and that could not be noted: %w", err)
	}
	return nil
}

func (s *Service) tellFencing(id, name, text string) {
	err := event.Publish(s.cfg.NC, &skepv1.Event{Kind: "node", Id: id, Name: name, Verb: "fencing", Message: text, Actor: "skep-health", Attributes: map[string]string{"name": name, "volumes": s.heldBy(id)}})
	if err != nil {
		s.log.Warn("publish an event", zap.String("node", id), zap.Error(err))
	}
}

// heldBy is how many volumes the node holds.
func (s *Service) heldBy(id string) string {
	n := 0
	for _, by := range s.fences.claims {
		if by == id {
			n++
		}
	}
	return fmt.Sprint(n)
}
