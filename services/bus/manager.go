package bus

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"skep.dev/libs/kv"
	skepv1 "skep.dev/proto/skep/v1"
)

// Manager is a manager's broker with what belongs to it beside the server: its place in the group of managers, the
// cluster's streams and their compaction, the lists of who may connect, the socket of local root.
type Manager struct {
	*Bus
	socket string
	nodes  *Members
	users  *Users
	ready  chan struct{}
	group  *group
}

// NewManager checks the configuration and reads group.json; it starts nothing. socket is where local root reaches the broker.
//
// Which server this is, is decided by Run: the one of group.json; without that file, the one of an older version's
// directory (under Config.Name and Config.Witness); with Found a new group's first; else the one it is given by the
// managers it asks, which may take as long as they need.
func NewManager(cfg Config, socket string) (*Manager, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	m := &Manager{socket: socket, nodes: OpenMembers(cfg.DataDir, cfg.Log), users: OpenUsers(cfg.DataDir, cfg.Log), ready: make(chan struct{})}
	cfg.Revoked, cfg.RevokedUser, cfg.Peer = m.nodes.Revoked, m.users.Revoked, m.peer
	b, err := New(cfg)
	if err != nil {
		return nil, err
	}
	m.Bus = b
	m.group = newGroup(b)
	b.epoch, b.out, b.double = m.group.epoch, m.group.isOut, m.group.duplicate
	if _, err := ReadPlace(cfg.DataDir); err != nil {
		return nil, fmt.Errorf("%w; restore the file, or take this manager out of the cluster and let it join again", err)
	}
	return m, nil
}

// peer reports whether a node was a manager when the group was last heard of, until the list of nodes is known.
func (m *Manager) peer(node string) bool {
	if m.nodes.Fresh() {
		return false
	}
	set, _ := m.group.known()
	return slices.ContainsFunc(set.GetManagers(), func(x *skepv1.Manager) bool { return x.GetNodeId() == node })
}

// Ready is closed once the streams exist: services may start.
func (m *Manager) Ready() <-chan struct{} { return m.ready }

// Run starts the broker and blocks until ctx ends (nil) or it fails. It returns ErrRetired when the group has let this node
// go, ErrRefused when it does not let it in.
func (m *Manager) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(m.Life(), cancel)()
	anew, err := ReadRefounding(m.cfg.DataDir)
	if err != nil {
		return err
	}
	if err := m.awaitAddress(ctx); err != nil {
		return orEnded(ctx, err)
	}
	place, err := m.group.place(ctx, anew)
	if err != nil {
		err = orEnded(ctx, err)
		_ = m.Bus.Close() // it returns nil
		return err
	}
	m.cfg.Name, m.cfg.Witness, m.cfg.Routes = place.Server, place.Witness, append(slices.Clone(m.cfg.Told), place.Routes...)
	if anew != nil {
		m.cfg.Alone, m.cfg.Witness, m.cfg.Routes = true, "", nil
	}

	// The server ends after what uses it: leases are given up, and what is answered now is answered.
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- m.Bus.Run(running) }()
	select {
	case <-m.Serving():
	case <-ctx.Done():
		stop()
		return <-ended
	case err := <-ended:
		return err
	}
	preparing, cancelled := context.WithCancel(ctx)
	defer cancelled()
	go func() {
		select {
		case <-m.group.over:
			cancelled()
		case <-preparing.Done():
		}
	}()
	if anew == nil {
		go m.group.watchSole(preparing)
		go m.group.awaitAsked(preparing)
	} else {
		err = m.group.refound(preparing, anew)
	}
	var release func()
	if err == nil {
		release, err = m.prepare(preparing, anew)
	}
	if err != nil {
		err = orEnded(preparing, err)
		stop()
		<-ended
		return m.group.left(err)
	}
	close(m.ready)
	select {
	case err = <-ended:
		release()
	case <-ctx.Done():
		release()
		stop()
		err = <-ended
	case <-m.group.over:
		release()
		stop()
		err = <-ended
	}
	return m.group.left(err)
}

// prepare makes what is missing. "manager" may do everything.
func (m *Manager) prepare(ctx context.Context, anew *Refounding) (release func(), err error) {
	var undo []func()
	all := func() {
		for _, f := range slices.Backward(undo) {
			f()
		}
	}
	defer func() {
		if err != nil {
			all()
		}
	}()
	boss, err := m.InProcess(string(RoleManager))
	if err != nil {
		return nil, err
	}
	undo = append(undo, boss.Close)
	// What works without a quorum comes first.
	stop, err := m.group.serve(boss)
	if err != nil {
		return nil, err
	}
	undo = append(undo, stop)
	watching, unwatch := context.WithCancel(context.WithoutCancel(ctx))
	var watch sync.WaitGroup
	undo = append(undo, func() { unwatch(); watch.Wait() })
	watch.Go(func() {
		newDiskWatch(m.cfg.DataDir, m.log.Named("store")).run(watching, func() error { return durably(m.cfg.DataDir) })
	})
	if !m.cfg.Bare { // root of a witness is nobody in the cluster
		local, err := NewRelay(m.socket, m.Bus, m.log.Named("relay"))
		if err != nil {
			return nil, err
		}
		undo = append(undo, func() {
			if err := local.Close(); err != nil {
				m.log.Debug("close the local socket", zap.Error(err))
			}
		})
	}

	js, err := jetstream.New(boss)
	if err != nil {
		return nil, err
	}
	if err := m.streams(ctx, js); err != nil {
		return nil, err
	}
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	var running sync.WaitGroup
	undo = append(undo, func() { end(); running.Wait() })
	c := kv.NewCompactor(js, m.log.Named("store"), m.cfg.RetireAfter)
	if !m.cfg.Bare {
		c.Begin(ctx)
		running.Go(func() { c.Run(life) })
	}
	feeds := kv.Feeds{m.nodes.Follow(life, js, m.Bus), m.users.Follow(life, js, m.Bus)}
	undo = append(undo, func() { feeds.Close(); m.nodes.Save() })
	running.Go(func() { m.group.lead(life, boss, js) })
	running.Go(func() { m.group.watchEpoch(life) })
	if anew != nil {
		running.Go(func() { m.group.followRefound(life, boss, anew) })
	}
	store, err := m.serveStore(boss, js, c.Found)
	if err != nil {
		return nil, err
	}
	undo = append(undo, store.close)
	return all, nil
}

// streams makes what is missing of the cluster's streams. A witness waits for them: it was let into a group that has them.
func (m *Manager) streams(ctx context.Context, js jetstream.JetStream) error {
	if m.cfg.Bare {
		return kv.Await(ctx, js, m.log.Named("store"))
	}
	if err := kv.Ensure(ctx, js, m.group.replicas()); err != nil {
		return fmt.Errorf("prepare the cluster's streams: %w", err)
	}
	return nil
}
