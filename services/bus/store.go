package bus

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"skep.dev/libs/api"
	"skep.dev/libs/diskspace"
	"skep.dev/libs/kv"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

const (
	// streamsFor is how long streams may take to say how they are. One without a leader says nothing.
	streamsFor = 2 * time.Second
	// tryFor is how long the disk may take for the writes that are timed; they end by themselves.
	tryFor = 2 * time.Second
	// tries is how many writes are timed, with a pause between them: a disk that is busy with something else takes turns, and
	// a few writes in a row would all be in one.
	tries    = 9
	tryPause = 20 * time.Millisecond
	// tryBytes is what a small record and its way into the store's log amount to.
	tryBytes = 4 << 10
	// tryAgain keeps many who ask at once from writing all the time.
	tryAgain = time.Second
	tryFile  = "try"
)

// storeState tells how this manager's store is: what a durable write takes, what is free, and how each stream is by its
// leader's word. It is asked by people (`skep doctor`), and works only then.
type storeState struct {
	m     *Manager
	srv   *rpc.Server
	js    jetstream.JetStream
	found func() map[subject.Bucket]kv.Found

	mu      sync.Mutex
	tried   time.Time     // when the last try began
	last    *trial        // what it gave
	current chan struct{} // of the try that goes on, closed at its end
	writing sync.WaitGroup
}

// trial is what timing the disk gave.
type trial struct {
	took, slowest time.Duration
	err           error
}

// serveStore answers StoreState for this manager.
func (m *Manager) serveStore(boss *nats.Conn, js jetstream.JetStream, found func() map[subject.Bucket]kv.Found) (*storeState, error) {
	srv, err := rpc.NewServer(boss, rpc.Config{Name: "skep-bus", Description: "the broker's store", Log: m.log, Metrics: m.cfg.Metrics})
	if err != nil {
		return nil, fmt.Errorf("serve the state of the store: %w", err)
	}
	s := &storeState{m: m, srv: srv, js: js, found: found}
	if err := api.Handle(srv, api.StoreState.At(m.cfg.NodeID), s.state); err != nil {
		s.close()
		return nil, fmt.Errorf("serve the state of the store: %w", err)
	}
	return s, nil
}

func (s *storeState) close() {
	if s == nil {
		return
	}
	if err := s.srv.Close(); err != nil {
		s.m.log.Debug("stop telling how the store is", zap.Error(err))
	}
	s.writing.Wait()
}

func (s *storeState) state(ctx context.Context, _ *skepv1.StoreStateRequest) (*skepv1.StoreStateReply, error) {
	out := &skepv1.StoreStateReply{Dir: s.m.cfg.DataDir}
	var wg sync.WaitGroup
	wg.Go(func() { out.Streams = s.streams(ctx) })
	tried := s.try(ctx)
	out.WriteMicros, out.SlowestMicros = tried.took.Microseconds(), tried.slowest.Microseconds()
	if tried.err != nil {
		out.WriteError = tried.err.Error()
	}
	var err error
	if out.FreeBytes, out.TotalBytes, err = diskspace.Of(s.m.cfg.DataDir); err != nil {
		s.m.log.Warn("look at the store's file system", zap.Error(err))
	}
	if dir, why, at := asideOf(s.m.cfg.DataDir); dir != "" {
		out.DamagedDir, out.DamagedWhy, out.DamagedUnixMs = dir, why, at.UnixMilli()
	}
	if main := s.m.running(); main != nil {
		if j, err := main.Jsz(&server.JSzOptions{}); err == nil {
			out.StoreBytes, out.StoreLimitBytes = j.Store, uint64(max(j.Config.MaxStore, 0))
		}
	}
	wg.Wait()
	return out, nil
}

// try times durable writes beside the streams. They wait for the disk as the store's own do, so a disk that is busy with
// something else shows. A try that hangs is not waited for longer than tryFor, and no second one is begun beside it.
func (s *storeState) try(ctx context.Context) trial {
	s.mu.Lock()
	if s.current == nil && (s.last == nil || time.Since(s.tried) >= tryAgain) {
		done := make(chan struct{})
		s.tried, s.current = time.Now(), done
		s.writing.Go(func() {
			gave := timeWrites(s.m.cfg.DataDir)
			s.mu.Lock()
			s.last, s.current = &gave, nil
			s.mu.Unlock()
			close(done)
		})
	}
	current, since := s.current, s.tried
	s.mu.Unlock()
	if current != nil {
		ctx, cancel := context.WithTimeout(ctx, tryFor)
		defer cancel()
		select {
		case <-current:
		case <-ctx.Done():
			return trial{err: fmt.Errorf("%d small writes to the store's disk are not through after %s", tries, time.Since(since).Round(time.Second))}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return *s.last
}

// timeWrites is what a small durable write in a directory takes: the middle one of a few, and the slowest.
func timeWrites(dir string) trial {
	each, err := writes(dir)
	if err != nil {
		return trial{err: fmt.Errorf("write to the store's disk: %w", err)}
	}
	slices.Sort(each)
	return trial{took: each[len(each)/2], slowest: each[len(each)-1]}
}

// writes are the times that small durable writes take.
func writes(dir string) (each []time.Duration, err error) {
	path := filepath.Join(dir, tryFile)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if rerr := os.Remove(path); err == nil {
			err = rerr
		}
	}()
	block := make([]byte, tryBytes)
	for n := range tries {
		if n > 0 {
			time.Sleep(tryPause) // between the writes, for their times are what is wanted
		}
		began := time.Now()
		if _, err := f.Write(block); err != nil {
			return nil, err
		}
		if err := f.Sync(); err != nil {
			return nil, err
		}
		each = append(each, time.Since(began))
	}
	return each, nil
}

// streams asks all streams at once how they are.
func (s *storeState) streams(ctx context.Context) []*skepv1.StreamState {
	ctx, cancel := context.WithTimeout(ctx, streamsFor)
	defer cancel()
	list := kv.Streams(1)
	out := make([]*skepv1.StreamState, len(list))
	found := s.found()
	var wg sync.WaitGroup
	for i, c := range list {
		wg.Go(func() {
			out[i] = s.stream(ctx, c.Name)
			for b, f := range found {
				if b.Stream() == c.Name {
					out[i].Damage, out[i].Ghosts = f.Damage, uint32(f.Ghosts)
				}
			}
		})
	}
	wg.Wait()
	return out
}

func (s *storeState) stream(ctx context.Context, name string) *skepv1.StreamState {
	out := &skepv1.StreamState{Name: name}
	st, err := s.js.Stream(ctx, name)
	if err != nil {
		out.Err = strings.TrimPrefix(err.Error(), "nats: ")
		if ctx.Err() != nil {
			out.Err = fmt.Sprintf("no answer within %s", streamsFor)
		}
		return out
	}
	info := st.CachedInfo()
	out.Messages, out.Bytes = info.State.Msgs, info.State.Bytes
	if info.Cluster != nil {
		out.Leader = info.Cluster.Leader
		for _, r := range info.Cluster.Replicas {
			out.Replicas = append(out.Replicas, &skepv1.StreamReplica{Name: r.Name, Current: r.Current, Offline: r.Offline, Lag: r.Lag})
		}
	}
	return out
}
