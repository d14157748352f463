package bus

import (
	"context"
	"fmt"
	"sync"

	"github.com/nats-io/nats.go/jetstream"

	"skep.dev/libs/kv"
	"skep.dev/libs/subject"
)

// Manager is a manager's broker with what belongs to it beside the server: the cluster's streams and their compaction, the
// lists of who may connect, the socket of local root.
type Manager struct {
	*Bus
	socket string
	nodes  *Members
	users  *Users
	ready  chan struct{}
}

// NewManager checks the configuration and starts nothing. socket is where local root reaches the broker.
func NewManager(cfg Config, socket string) (*Manager, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	m := &Manager{socket: socket, nodes: OpenMembers(cfg.DataDir, cfg.Log), users: OpenUsers(cfg.DataDir, cfg.Log), ready: make(chan struct{})}
	cfg.Revoked, cfg.RevokedUser = m.nodes.Revoked, m.users.Revoked
	b, err := New(cfg)
	if err != nil {
		return nil, err
	}
	m.Bus = b
	return m, nil
}

// Ready is closed once the streams exist: services may start.
func (m *Manager) Ready() <-chan struct{} { return m.ready }

// Run starts the broker and blocks until ctx ends (nil) or it fails.
func (m *Manager) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- m.Bus.Run(ctx) }()
	select {
	case <-m.Serving():
	case err := <-ended:
		return err
	}
	release, err := m.prepare(ctx)
	if err != nil {
		err = orEnded(ctx, err)
		cancel()
		<-ended
		return err
	}
	close(m.ready)
	err = <-ended
	release()
	return err
}

// prepare makes what is missing. "manager" may do everything.
func (m *Manager) prepare(ctx context.Context) (release func(), err error) {
	boss, err := m.InProcess(string(RoleManager))
	if err != nil {
		return nil, err
	}
	js, err := jetstream.New(boss)
	if err == nil {
		if err = kv.Ensure(ctx, js, 1); err != nil {
			err = fmt.Errorf("prepare the cluster's streams: %w", err)
		}
	}
	var found func() map[subject.Bucket]kv.Found
	compacting, stop := context.WithCancel(context.WithoutCancel(ctx))
	var compactor sync.WaitGroup
	if err == nil {
		c := kv.NewCompactor(js, m.log.Named("store"), m.cfg.RetireAfter)
		c.Begin(ctx)
		compactor.Go(func() { c.Run(compacting) })
		found = c.Found
	}
	var feeds kv.Feeds
	if err == nil {
		life := context.WithoutCancel(ctx)
		feeds = kv.Feeds{m.nodes.Follow(life, js, m.Bus), m.users.Follow(life, js, m.Bus)}
	}
	var local *Relay
	if err == nil {
		local, err = NewRelay(m.socket, m.Bus, m.log.Named("relay"))
	}
	var store *storeState
	if err == nil {
		store, err = m.serveStore(boss, js, found)
	}
	release = func() {
		store.close()
		if local != nil {
			if cerr := local.Close(); cerr != nil {
				m.log.Sugar().Debugw("close the local socket", "err", cerr)
			}
		}
		feeds.Close()
		m.nodes.Save()
		stop()
		compactor.Wait()
		boss.Close()
	}
	if err != nil {
		release()
		return nil, err
	}
	return release, nil
}
