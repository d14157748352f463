package bus

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"go.uber.org/zap"

	"skep.dev/libs/id"
	"skep.dev/libs/life"
)

// Bus is a manager's broker.
type Bus struct {
	*life.Span // ready once the JetStream API answers

	cfg    Config
	log    *zap.Logger
	guests *guests
	secret string // known to connections made by InProcess alone

	slips, refusals *zap.Logger // what clients do wrong; repetitions are counted
	unhush          func()

	serving chan struct{} // closed once the listener serves

	// What a Manager knows of its group; set before Run.
	epoch func() uint64          // of the cluster's founding
	out   func(node string) bool // it was in the group and is not any more
	// double is told of a machine that comes as a manager that is there.
	double  func(node string, first, second machine)
	doubles doubles

	mu      sync.Mutex
	main    *instance
	witness *instance
	sys     *nats.Conn
	memberM sync.Mutex // one membership operation at a time
}

// New checks the configuration and starts nothing.
func New(cfg Config) (*Bus, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	b := &Bus{
		cfg: cfg, log: cfg.Log, secret: rand.Text(),
		serving: make(chan struct{}), Span: life.New(),
		epoch: func() uint64 { return 0 }, out: func(string) bool { return false }, double: func(string, machine, machine) {},
	}
	b.guests = newGuests(b.kick, b.alive)
	b.hush()
	return b, nil
}

// Serving is closed once connections are accepted, in process and over TCP. Streams that exist take writes from then on,
// but the JetStream API may still wait for a leader.
func (b *Bus) Serving() <-chan struct{} { return b.serving }

// Run starts the broker and blocks until ctx ends (nil), Close is called (nil) or the broker fails.
func (b *Bus) Run(ctx context.Context) error {
	ctx, end := b.Begin(ctx)
	defer end()
	if ctx.Err() != nil {
		return nil
	}
	defer b.stop()

	began := time.Now()
	main, err := b.startMain(ctx)
	if err != nil {
		return orEnded(ctx, err)
	}
	b.mu.Lock()
	b.main = main
	b.mu.Unlock()
	sys, err := b.connect(ctx, systemUser)
	if err != nil {
		return orEnded(ctx, err)
	}
	b.mu.Lock()
	b.sys = sys
	b.mu.Unlock()
	d, err := b.openDoor(ctx)
	if err != nil {
		return orEnded(ctx, err)
	}
	defer d.close()
	go b.watch(ctx, main)
	if !b.cfg.Bare { // nodes and people do not come to a witness
		go b.spread(ctx, main, sys)
		r, err := b.openReading(ctx)
		if err != nil {
			return orEnded(ctx, err)
		}
		defer r.close()
	}
	if err := b.register(); err != nil {
		return err
	}
	close(b.serving)

	if b.cfg.Witness != "" {
		if err := b.startOwnWitness(ctx); err != nil {
			if ctx.Err() != nil || len(b.cfg.Routes) == 0 {
				return orEnded(ctx, err)
			}
			// The others may be a majority without it, and give it a new name.
			b.log.Error("the witness does not start; this manager goes on without it", zap.Error(err))
		}
		if err := b.hurry(ctx, main, sys); err != nil {
			return orEnded(ctx, err)
		}
	}
	go func() {
		if b.WaitAPI(ctx) == nil {
			b.log.Info("broker ready", zap.String("addr", b.cfg.Listen), zap.Duration("dur", time.Since(began)))
			b.Begun()
		}
	}()
	select {
	case <-ctx.Done():
		return nil
	case err := <-main.log.fatal:
		return fmt.Errorf("the broker failed: %w", err)
	}
}

// orEnded: an error during the start counts for nothing when the start was called off.
func orEnded(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// startOwnWitness starts the witness of the configuration. A damaged store keeps it from starting; alone, everything in
// it is also with the main server, so it is wiped and rebuilt, under the same name.
func (b *Bus) startOwnWitness(ctx context.Context) error {
	b.memberM.Lock()
	defer b.memberM.Unlock()
	w, err := b.startWitnessServer(ctx, b.cfg.Witness)
	if err != nil && ctx.Err() == nil && len(b.cfg.Routes) == 0 {
		b.log.Warn("the witness does not start; its store is rebuilt from the main server", zap.Error(err))
		if err := os.RemoveAll(filepath.Join(b.cfg.DataDir, "witness")); err != nil {
			return fmt.Errorf("wipe the witness store: %w", err)
		}
		w, err = b.startWitnessServer(ctx, b.cfg.Witness)
	}
	if err != nil {
		return err
	}
	b.mu.Lock()
	b.witness = w
	b.mu.Unlock()
	return nil
}

// hurry shortens the first election of a restarted server and witness from seconds to a fraction of one: a rescue to the
// quorum of 2 of 2 that they have anyway only restarts the election timer. At any other size it would change the quorum.
// Should a version of nats-server refuse it, the API is merely seconds later.
func (b *Bus) hurry(ctx context.Context, main *instance, sys *nats.Conn) error {
	err := await(ctx, 5*time.Millisecond, 5*time.Second, func() bool { return main.NumRoutes() > 0 })
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		b.log.Warn("the witness has not reached the server yet", zap.Error(err))
		return nil
	}
	if j, err := main.Jsz(&server.JSzOptions{}); err != nil || j.Meta == nil || j.Meta.Size != 2 || j.Meta.Leader != "" {
		return nil
	}
	if _, err := sys.Request("$JS.API.META.RESCUE", []byte(`{"quorum_needed":2}`), time.Second); err != nil {
		b.log.Debug("the election was not hurried", zap.Error(err))
	}
	return nil
}

// WaitAPI returns once the JetStream group has a leader that answers and counts this server in: before that it would
// refuse to place a stream ("no suitable peers").
func (b *Bus) WaitAPI(ctx context.Context) error {
	return await(ctx, 10*time.Millisecond, 0, func() bool {
		members, led, counted := []Member(nil), false, false
		if b.led() {
			members, _ = b.members(100 * time.Millisecond) // an error is the same as no answer: ask again
		}
		for _, m := range members {
			led = led || m.Leader
			counted = counted || m.Name == b.cfg.Name && m.Current && !m.Offline
		}
		return led && counted
	})
}

// led reports whether this server knows a leader; asking it costs nothing.
func (b *Bus) led() bool {
	main := b.running()
	if main == nil {
		return false
	}
	j, err := main.Jsz(&server.JSzOptions{})
	return err == nil && j.Meta != nil && j.Meta.Leader != ""
}

// ClientAddr is where nodes connect on this machine; it differs from Config.Listen when that asked for any port.
func (b *Bus) ClientAddr() net.Addr {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.main == nil {
		return nil
	}
	return b.main.Addr()
}

// Disconnect ends a node's connections, usually because it was removed. It reports how many there were.
func (b *Bus) Disconnect(nodeID string) int {
	main := b.running()
	if main == nil {
		return 0
	}
	n := 0
	for {
		z, err := main.Connz(&server.ConnzOptions{Username: true, User: nodeID, State: server.ConnOpen, Limit: 256})
		if err != nil || len(z.Conns) == 0 {
			return n
		}
		for _, c := range z.Conns {
			// An error means that it is gone already.
			if main.DisconnectClientByID(c.Cid) == nil {
				n++
			}
		}
	}
}

// Sweep ends the connections of all nodes that are revoked now, and reports how many there were: for when the list of
// nodes was not known yet as they connected.
func (b *Bus) Sweep() int {
	main := b.running()
	if main == nil {
		return 0
	}
	n := 0
	for offset := 0; ; {
		z, err := main.Connz(&server.ConnzOptions{Username: true, State: server.ConnOpen, Limit: 1024, Offset: offset})
		if err != nil || len(z.Conns) == 0 {
			return n
		}
		offset += len(z.Conns)
		for _, c := range z.Conns {
			// Services, users and joiners have names that are no node ids.
			if id.Valid(c.AuthorizedUser) && b.revoked(c.AuthorizedUser) && main.DisconnectClientByID(c.Cid) == nil {
				n++
				offset--
			}
		}
	}
}

// kick ends a connection.
func (b *Bus) kick(cid uint64) {
	if main := b.running(); main != nil {
		_ = main.DisconnectClientByID(cid) // an error means that it is gone already
	}
}

func (b *Bus) alive(cid uint64) bool {
	main := b.running()
	return main != nil && main.GetClient(cid) != nil
}

func (b *Bus) revoked(nodeID string) bool { return b.cfg.Revoked != nil && b.cfg.Revoked(nodeID) }

// shut reports whether routes to and from a manager are refused.
func (b *Bus) shut(nodeID string) bool {
	return b.revoked(nodeID) && (b.cfg.Peer == nil || !b.cfg.Peer(nodeID))
}

// Close stops the broker; Run then returns. It may be called more than once.
func (b *Bus) Close() error {
	_ = b.Span.Close() // it returns nil
	b.stop()
	return nil
}

// stop ends the servers: the main one first, so that the witness still serves the meta group while it hands over.
func (b *Bus) stop() {
	b.memberM.Lock()
	defer b.memberM.Unlock()
	b.mu.Lock()
	main, witness, sys := b.main, b.witness, b.sys
	b.main, b.witness, b.sys = nil, nil, nil
	b.mu.Unlock()
	if sys != nil {
		sys.Close()
	}
	if main != nil {
		main.stop(b.peers(main))
	}
	witness.stop(false)
	b.unhush()
}

// peers reports whether other managers could take over from this one.
func (b *Bus) peers(main *instance) bool {
	j, err := main.Jsz(&server.JSzOptions{})
	return err == nil && j.Meta != nil && j.Meta.Size > 2
}

// await polls for a condition; limit 0 means as long as ctx lives.
func await(ctx context.Context, every, limit time.Duration, ok func() bool) error {
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	t := time.NewTicker(every)
	defer t.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
	}
	return nil
}
