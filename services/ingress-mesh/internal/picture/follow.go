package picture

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/atomicfile"
	"skep.dev/libs/keys"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

const (
	// compareEvery is how often a node asks the controller for what it may have missed; soonAfter, when it did not answer.
	compareEvery = 15 * time.Second
	soonAfter    = 500 * time.Millisecond
	askFor       = 5 * time.Second
	// saveAfter gathers changes before the picture is written to disk.
	saveAfter = 500 * time.Millisecond
)

// Config of a follower.
type Config struct {
	NC     *nats.Conn
	Log    *zap.Logger
	NodeID string
	Path   string // the file that keeps the last state
	// Changed is told the scopes that changed, from one goroutine at a time; it must not block.
	Changed func(scopes []string)
}

// Follower keeps a picture up to date.
type Follower struct {
	cfg Config
	*Picture

	mu     sync.Mutex
	wanted map[string]*nats.Subscription // by scope

	askMu sync.Mutex // one question at a time: the answers are applied in order
	ask   chan struct{}
	save  chan struct{}
}

// Follow prepares a follower and reads what an earlier process left.
func Follow(cfg Config) (*Follower, error) {
	f := &Follower{cfg: cfg, Picture: New(), wanted: map[string]*nats.Subscription{}, ask: make(chan struct{}, 1), save: make(chan struct{}, 1)}
	b, err := os.ReadFile(cfg.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("read the picture of the networks: %w", err)
	default:
		if err := f.Unmarshal(b); err != nil { // torn by a power failure: the controller tells everything again
			cfg.Log.Warn("the kept picture of the networks is of no use", zap.Error(err))
			f.Picture = New()
		}
	}
	return f, nil
}

// Run follows until ctx ends.
func (f *Follower) Run(ctx context.Context) error {
	for _, scope := range []string{keys.ScopeNodes, keys.ScopeIngress} {
		if err := f.subscribe(scope); err != nil {
			return err
		}
	}
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, s := range f.wanted {
			_ = s.Unsubscribe() // the connection may be gone already
		}
		clear(f.wanted)
	}()
	reconnected := f.cfg.NC.StatusChanged(nats.CONNECTED)
	defer f.cfg.NC.RemoveStatusListener(reconnected)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { f.keep(ctx) })
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-reconnected:
		case <-f.ask:
		case <-next.C:
		}
		wait := compareEvery
		if err := f.Compare(ctx); err != nil {
			f.cfg.Log.Debug("compare with the mesh controller", zap.Error(err))
			wait = soonAfter
		}
		next.Reset(wait)
	}
}

// Compare asks the controller for what differs from the picture, and takes it.
func (f *Follower) Compare(ctx context.Context) error {
	f.askMu.Lock()
	defer f.askMu.Unlock()
	for {
		req := &skepv1.MeshSyncRequest{NodeId: f.cfg.NodeID, Networks: f.networksWanted(), Known: f.Known()}
		try, cancel := context.WithTimeout(ctx, askFor)
		reply, err := api.Call(try, f.cfg.NC, api.MeshSync.At(f.cfg.NodeID), req)
		cancel()
		if err != nil {
			return err
		}
		changed := map[string]bool{}
		for _, e := range reply.Changed {
			if scope, item, ok := keys.ParseEndpoint(e.Key); ok && f.Apply(scope, item, e.Revision, e.Record) {
				changed[scope] = true
			}
		}
		for _, key := range reply.Gone {
			if scope, _, ok := keys.ParseEndpoint(key); ok && f.Gone(key, reply.Revision) {
				changed[scope] = true
			}
		}
		f.changed(changed)
		if !reply.More || len(reply.Changed)+len(reply.Gone) == 0 {
			return nil
		}
	}
}

func (f *Follower) changed(scopes map[string]bool) {
	if len(scopes) == 0 {
		return
	}
	names := make([]string, 0, len(scopes))
	for s := range scopes {
		names = append(names, s)
	}
	f.cfg.Changed(names)
	select {
	case f.save <- struct{}{}:
	default:
	}
}

func (f *Follower) networksWanted() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for s := range f.wanted {
		if s != keys.ScopeNodes && s != keys.ScopeIngress {
			out = append(out, s)
		}
	}
	slices.Sort(out)
	return out
}

// Follows reports whether a scope is followed.
func (f *Follower) Follows(scope string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.wanted[scope] != nil
}

// Want follows a network from now on. What it is comes with the next comparison, which is made soon.
func (f *Follower) Want(network string) error {
	f.mu.Lock()
	_, has := f.wanted[network]
	f.mu.Unlock()
	if has {
		return nil
	}
	if err := f.subscribe(network); err != nil {
		return err
	}
	select {
	case f.ask <- struct{}{}:
	default:
	}
	return nil
}

// Drop ceases to follow a network and forgets it.
func (f *Follower) Drop(network string) {
	f.mu.Lock()
	s := f.wanted[network]
	delete(f.wanted, network)
	f.mu.Unlock()
	if s != nil {
		_ = s.Unsubscribe() // the connection may be gone already
	}
	f.Forget(network)
	select {
	case f.save <- struct{}{}:
	default:
	}
}

func (f *Follower) subscribe(scope string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.wanted[scope] != nil {
		return nil
	}
	sub, err := f.cfg.NC.Subscribe(subject.Net(scope, "*"), func(m *nats.Msg) { f.take(scope, m) })
	if err != nil {
		return fmt.Errorf("follow network %s: %w", scope, err)
	}
	f.wanted[scope] = sub
	return nil
}

// take is one re-published record.
func (f *Follower) take(scope string, m *nats.Msg) {
	rev, err := strconv.ParseUint(m.Header.Get("Nats-Sequence"), 10, 64)
	if err != nil {
		f.cfg.Log.Warn("a network record without a revision", zap.String("subject", m.Subject))
		return
	}
	item := m.Subject[strings.LastIndexByte(m.Subject, '.')+1:]
	var rec *skepv1.MeshRecord
	if m.Header.Get("KV-Operation") == "" {
		rec = &skepv1.MeshRecord{}
		if err := proto.Unmarshal(m.Data, rec); err != nil {
			f.cfg.Log.Error("a network record nobody can read", zap.String("subject", m.Subject), zap.Error(err))
			return
		}
	}
	if f.Apply(scope, item, rev, rec) {
		f.changed(map[string]bool{scope: true})
	}
}

// keep writes the picture to disk, a little after it changed and once more at the end.
func (f *Follower) keep(ctx context.Context) {
	for {
		select {
		case <-f.save:
		case <-ctx.Done():
			f.write()
			return
		}
		select {
		case <-time.After(saveAfter):
		case <-ctx.Done():
		}
		f.write()
	}
}

func (f *Follower) write() {
	b, err := f.Marshal()
	if err == nil {
		err = os.MkdirAll(filepath.Dir(f.cfg.Path), 0o700)
	}
	if err == nil {
		err = atomicfile.Write(f.cfg.Path, b)
	}
	if err != nil {
		f.cfg.Log.Warn("the picture of the networks is not kept on disk", zap.Error(err))
	}
}
