package agent

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

const (
	callTimeout   = 5 * time.Second
	snapshotEvery = 5 * time.Minute
)

func (s *Service) askSnapshot() {
	select {
	case s.ask <- struct{}{}:
	default:
	}
}

// sync applies task sets: pushed ones as they come, and what it asks for at the start, after a reconnect, and when
// something says that one was missed.
func (s *Service) sync(ctx context.Context) error {
	push := make(chan *nats.Msg, 16)
	sub, err := s.cfg.NC.ChanSubscribe(subject.Push(s.cfg.NodeID), push)
	if err != nil {
		return fmt.Errorf("agent: subscribe to its task set: %w", err)
	}
	defer func() { _ = sub.Unsubscribe() }() // the connection may be closed before us
	select {
	case <-ctx.Done():
		return nil
	case <-s.Ready(): // before what runs is known, nothing new is begun
	}
	status := s.cfg.NC.StatusChanged(nats.CONNECTED)
	defer s.cfg.NC.RemoveStatusListener(status)
	var again <-chan time.Time
	backoff := 100 * time.Millisecond
	regular := time.NewTicker(snapshotEvery + rand.N(snapshotEvery/10))
	defer regular.Stop()
	for {
		snapshot := false
		select {
		case <-ctx.Done():
			return nil
		case m := <-push:
			s.pushed(m)
		case st := <-status:
			if st == nats.CONNECTED {
				snapshot = true
				s.describeAgain()
				s.report.changed()
			}
		case <-s.ask:
			snapshot = true
		case <-again:
			snapshot = true
		case <-regular.C:
			snapshot = true
		}
		if !snapshot {
			continue
		}
		if err := s.snapshot(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			s.log.Debug("ask for the task set", zap.Error(err))
			again = time.After(backoff/2 + rand.N(backoff))
			backoff = min(2*backoff, 5*time.Second)
			continue
		}
		again, backoff = nil, 100*time.Millisecond
	}
}

func (s *Service) pushed(m *nats.Msg) {
	if m.Header.Get("KV-Operation") != "" {
		return // the record was deleted: a snapshot tells what that means
	}
	gen, err := strconv.ParseUint(m.Header.Get("Nats-Sequence"), 10, 64)
	var tasks skepv1.NodeTasks
	if err == nil {
		err = proto.Unmarshal(m.Data, &tasks)
	}
	if err != nil {
		s.log.Warn("unreadable task set, asking for it", zap.Error(err))
		s.askSnapshot()
		return
	}
	// A store that was restored goes on at sequences far above. What that means for what runs here a snapshot tells, and
	// nothing is ended before it did.
	// Nor is anything begun before a snapshot said that this machine is the node (sole.go).
	if !s.granted.Load() || s.cluster.Load() == nil || gen>>restoredBits != s.set.Generation()>>restoredBits {
		s.askSnapshot()
		return
	}
	s.apply(gen, &tasks)
}

// restoredBits: generations that differ above them are of a store before and after a restore (libs/backup). Where a store
// came that far by itself, one more snapshot is asked for.
const restoredBits = 32

func (s *Service) apply(gen uint64, tasks *skepv1.NodeTasks) {
	applied, err := s.set.Apply(gen, tasks, s.cluster.Load().GetRestored())
	if err != nil {
		s.log.Error("task set not applied in full, trying again", zap.Uint64("rev", gen), zap.Error(err))
		time.AfterFunc(time.Second, s.askSnapshot)
	}
	if applied {
		s.log.Debug("task set applied", zap.Uint64("rev", gen), zap.Int("tasks", len(tasks.GetTasks())))
	}
}

func (s *Service) snapshot(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := api.Call(ctx, s.cfg.NC, api.StateSnapshot.At(s.cfg.NodeID), &skepv1.SnapshotRequest{NodeId: s.cfg.NodeID, Session: s.session})
	s.heard(err)
	if err != nil {
		return err
	}
	kept := s.cluster.Load().GetRestored()
	s.setCluster(r.GetCluster())
	if r.GetGeneration() > 0 {
		s.apply(r.GetGeneration(), r.GetTasks())
	}
	if !r.GetCluster().GetRestored() && (r.GetGeneration() > 0 || kept) {
		s.set.Release(r.GetGeneration(), r.GetTasks())
	}
	s.set.Confirm()
	return nil
}

func (s *Service) setCluster(c *skepv1.ClusterSpec) {
	if c == nil {
		return
	}
	was := s.cluster.Swap(c)
	if !proto.Equal(was.GetHeartbeatPeriod(), c.GetHeartbeatPeriod()) {
		select {
		case s.paced <- struct{}{}:
		default:
		}
	}
}

// specCache asks for revisions it does not know: once each, all that are missing in one request.
type specCache struct {
	s  *Service
	mu sync.Mutex
	// known holds revisions that tasks of this moment use; small, and rebuilt from the tasks' own files' needs.
	known   map[specKey]*skepv1.Revision
	wanted  map[specKey]*specWait
	fetches bool
}

type specKey struct {
	service  string
	revision uint64
}

type specWait struct {
	done    chan struct{}
	waiters int
	err     error // of the newest try, for people
}

const maxKnownSpecs = 256

func newSpecCache(s *Service) *specCache {
	return &specCache{s: s, known: map[specKey]*skepv1.Revision{}, wanted: map[specKey]*specWait{}}
}

// get waits for a revision for a few seconds at most; the task's own back-off asks again.
func (c *specCache) get(ctx context.Context, service string, revision uint64) (*skepv1.Revision, error) {
	key := specKey{service, revision}
	c.mu.Lock()
	if r := c.known[key]; r != nil {
		c.mu.Unlock()
		return r, nil
	}
	w := c.wanted[key]
	if w == nil {
		w = &specWait{done: make(chan struct{})}
		c.wanted[key] = w
	}
	w.waiters++
	if !c.fetches {
		c.fetches = true
		go c.fetch()
	}
	c.mu.Unlock()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-w.done:
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := c.known[key]; r != nil {
		return r, nil
	}
	return nil, w.err
}

// fetch runs while anything is wanted.
func (c *specCache) fetch() {
	for {
		// Tasks of one set come together: a moment gathers them into one request.
		time.Sleep(2 * time.Millisecond)
		c.mu.Lock()
		if len(c.wanted) == 0 {
			c.fetches = false
			c.mu.Unlock()
			return
		}
		batch := c.wanted
		c.wanted = map[specKey]*specWait{}
		c.mu.Unlock()
		req := &skepv1.SpecsRequest{NodeId: c.s.cfg.NodeID}
		for k := range batch {
			req.Keys = append(req.Keys, &skepv1.RevisionKey{ServiceId: k.service, Revision: k.revision})
		}
		ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
		reply, err := api.Call(ctx, c.s.cfg.NC, api.StateSpecs.At(c.s.cfg.NodeID), req)
		cancel()
		c.s.setCluster(reply.GetCluster())
		c.mu.Lock()
		for _, r := range reply.GetRevisions() {
			if len(c.known) >= maxKnownSpecs {
				clear(c.known)
			}
			c.known[specKey{r.GetServiceId(), r.GetNumber()}] = r
		}
		for k, w := range batch {
			if w.err = err; err == nil && c.known[k] == nil {
				w.err = fmt.Errorf("the managers do not give revision %d of service %s to this node", k.revision, k.service)
			}
			close(w.done)
		}
		c.mu.Unlock()
	}
}
