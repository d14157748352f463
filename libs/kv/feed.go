package kv

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"skep.dev/libs/patience"
	"skep.dev/libs/subject"
)

// Delta is a step of a feed. The first one, and any after the watcher had to be made anew, has Reset set: its
// entries are the whole bucket and everything known before is void. Later ones are changes in stream order.
type Delta struct {
	Reset   bool
	Entries []Entry
}

// Feed follows a bucket through one watcher.
type Feed struct {
	js     jetstream.JetStream
	bucket subject.Bucket
	filter string
	apply  func(Delta)

	cancel context.CancelFunc
	done   chan struct{}
	ready  chan struct{}
	nudge  chan uint64  // a waiter's doubt: no progress since this revision
	hurry  atomic.Int64 // until when it looks often, unix ns; 0: it does not

	mu      sync.Mutex
	rev     uint64        // everything up to here has been applied
	changed chan struct{} // closed and replaced whenever rev grows
}

// Follow starts a feed. apply runs on one goroutine, never concurrently, and should only update an index.
// An optional key filter (such as "live.*") narrows it.
func Follow(ctx context.Context, js jetstream.JetStream, bucket subject.Bucket, apply func(Delta), filter ...string) *Feed {
	ctx, cancel := context.WithCancel(ctx)
	f := &Feed{
		js: js, bucket: bucket, filter: ">", apply: apply, cancel: cancel,
		done: make(chan struct{}), ready: make(chan struct{}), nudge: make(chan uint64, 1), changed: make(chan struct{}),
	}
	if len(filter) > 0 {
		f.filter = filter[0]
	}
	go f.run(ctx)
	return f
}

// Ready is closed once the first Reset was applied.
func (f *Feed) Ready() <-chan struct{} { return f.ready }

// Revision is the newest sequence that has been applied.
func (f *Feed) Revision() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.rev
}

// doubtAfter is how long a feed may make no progress towards a revision that is known to exist. A watcher whose
// server died says nothing for up to 20 s by itself. doubtSoon is the same while a server was perhaps just stopped or lost.
const (
	doubtAfter = 1500 * time.Millisecond
	doubtSoon  = 100 * time.Millisecond
)

// Wait returns once everything up to rev has been applied: read your writes. rev must have been acknowledged: when
// the feed stands still on the way to it, the watcher is made anew.
func (f *Feed) Wait(ctx context.Context, rev uint64) error {
	stands := time.Now() // since when
	look := time.NewTicker(doubtSoon)
	defer look.Stop()
	for {
		f.mu.Lock()
		at, ch := f.rev, f.changed
		f.mu.Unlock()
		if at >= rev {
			return nil
		}
		select {
		case <-ch:
			stands = time.Now()
			look.Reset(doubtSoon)
		case <-look.C:
			if time.Since(stands) < doubtAfter && !f.hurries() {
				continue
			}
			select {
			case f.nudge <- at:
			default:
			}
		case <-f.done:
			return fmt.Errorf("wait for revision %d of %s: the feed is closed", rev, f.bucket)
		case <-ctx.Done():
			return fmt.Errorf("wait for revision %d of %s: %w", rev, f.bucket, ctx.Err())
		}
	}
}

// Current waits until the feed holds all that its bucket held when it was called, by the word of the bucket's leader: what
// is answered from the picture then is not older than the question. It is for feeds of a whole bucket. Without a leader, what
// people ask is answered as it is (patience.AsIs).
func (f *Feed) Current(ctx context.Context) error {
	if patience.IsAsIs(ctx) {
		return nil
	}
	bounded, cancel := context.WithTimeout(ctx, ackWithin)
	defer cancel()
	for {
		st, err := askLed(bounded, func(ctx context.Context) (jetstream.Stream, error) { return f.js.Stream(ctx, f.bucket.Stream()) })
		if err != nil {
			return fmt.Errorf("look how far bucket %s is: %w", f.bucket, err)
		}
		if info := st.CachedInfo(); hearsMost(info.Cluster) {
			return f.Wait(ctx, info.State.LastSeq)
		}
		select {
		case <-time.After(unheardAgain):
		case <-bounded.Done():
			return fmt.Errorf("look how far bucket %s is: its leader does not hear the other managers: %w", f.bucket, bounded.Err())
		}
	}
}

// heardWithin is shorter than the patience after which managers elect another leader, and longer than two of its beats.
const heardWithin = 2 * time.Second

// hearsMost reports whether the leader that answered has heard most of its group lately. One that was cut off, or hung, does
// not know for a while that there is another, and answers from what it has.
func hearsMost(c *jetstream.ClusterInfo) bool {
	if c == nil {
		return true
	}
	heard := 1
	for _, r := range c.Replicas {
		if r.Active < heardWithin {
			heard++
		}
	}
	return 2*heard > 1+len(c.Replicas)
}

// Close stops the feed and waits for apply to return.
func (f *Feed) Close() {
	f.cancel()
	<-f.done
}

// A feed whose watcher ended begins anew after startAgain, and after twice as long, at most startEvery, each time that one does not
// last for startEvery.
const (
	startAgain = 25 * time.Millisecond
	startEvery = 2 * time.Second
)

func (f *Feed) run(ctx context.Context) {
	defer close(f.done)
	for pause := startAgain; ctx.Err() == nil; pause = min(2*pause, startEvery) {
		start := time.Now()
		_ = f.follow(ctx) // whatever it was, it begins anew
		if time.Since(start) > startEvery {
			pause = startAgain
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// checkEvery is how often a silent feed asks the server whether it missed anything. Two looks in a row have to say so: a watcher
// that died without a word, its connection alive, is made anew within ten seconds. The client library takes up to twenty.
const checkEvery = 4 * time.Second

// After a reconnection, and after an election of any stream, it asks more often for a while: a server was perhaps restarted or
// lost, the watcher is gone with it, and the client library notices only when ten seconds of its heartbeats are missing.
const (
	checkSoon  = 250 * time.Millisecond
	checkLater = 15 * time.Second
)

var errStalled = errors.New("the watcher stalled")

// follow runs one watcher until it fails, stalls or ctx ends.
func (f *Feed) follow(whole context.Context) error {
	ctx, cancel := context.WithCancel(whole)
	defer cancel()
	opCtx, opCancel := asking(ctx)
	defer opCancel()
	stream, err := askLed(opCtx, func(ctx context.Context) (jetstream.Stream, error) { return f.js.Stream(ctx, f.bucket.Stream()) })
	if err != nil {
		return err
	}
	// Taken before the watcher starts: whatever the replay holds, it is at least this recent.
	floor := stream.CachedInfo().State.LastSeq
	kv, err := askLed(opCtx, func(ctx context.Context) (jetstream.KeyValue, error) { return f.js.KeyValue(ctx, string(f.bucket)) })
	if err != nil {
		return err
	}
	// Counted before the watcher starts, too: see lagging.
	connections := f.js.Conn().Stats().Reconnects
	// A watcher is served by the server that led its stream when it began: if that one lost its power the watcher is silent. What
	// leads does not wait until that is found out: the feed reads the bucket again when its own stream has a new leader. Another
	// stream's tells that a server may be gone, which may have served this watcher since before its stream went over to a third.
	elected, elsewhere := make(chan struct{}, 1), make(chan struct{}, 1)
	election, err := f.js.Conn().Subscribe(leaderElected+"*", func(m *nats.Msg) {
		to := elsewhere
		if m.Subject == leaderElected+f.bucket.Stream() {
			to = elected
		}
		select {
		case to <- struct{}{}:
		default:
		}
	})
	if err != nil {
		return err
	}
	defer election.Unsubscribe() //nolint:errcheck // the connection may be gone
	w, err := f.watch(ctx, kv)
	if err != nil {
		return err
	}
	defer func() {
		// A watcher that is replaced ends with ctx, beside its successor: it asks its server to forget it, which may have died,
		// for five seconds.
		if whole.Err() != nil {
			_ = w.Stop() // the consumer goes away with its inbox anyway
		}
	}()

	entries, seen, err := f.replay(ctx, w)
	if err != nil {
		return err
	}
	d := Delta{Reset: true, Entries: entries}
	floor = max(floor, seen)
	f.step(d, floor)
	select {
	case <-f.ready:
	default:
		close(f.ready)
	}

	check := time.NewTicker(checkEvery)
	defer check.Stop()
	reconnected := f.js.Conn().StatusChanged(nats.CONNECTED)
	defer f.js.Conn().RemoveStatusListener(reconnected)
	var behind *uint64 // where it stood at the last look, if that found more than was applied
	// A look is made beside: one that is sent to a leader that died is not answered, and what the watcher says meanwhile counts.
	type look struct {
		last uint64
		err  error
	}
	looks := make(chan look, 1)
	looking := false
	lookOften := func() { // for a while
		if !f.hurries() {
			behind = nil
			check.Reset(checkSoon)
		}
		f.hurry.Store(time.Now().Add(checkLater).UnixNano())
	}
	// lagging reports that the connection was away and that the watcher, which goes on where it was, may have missed
	// deletions whose markers were retired meanwhile.
	lagging := func() (bool, error) {
		now := f.js.Conn().Stats().Reconnects
		if now == connections {
			return false, nil
		}
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		c, err := f.checkpoint(ctx)
		if err != nil {
			return false, err
		}
		connections = now
		return c.through > f.Revision(), nil
	}
	for {
		select {
		case e, ok := <-w.Updates():
			if !ok {
				return errStalled
			}
			if e == nil {
				continue
			}
			if late, err := lagging(); err != nil || late {
				return errors.Join(err, errStalled)
			}
			d := Delta{Entries: []Entry{f.entry(e)}}
			// Take what is there already: one apply for a burst.
		drain:
			for len(d.Entries) < 1024 {
				select {
				case e, ok := <-w.Updates():
					if !ok {
						f.step(d, 0)
						return errStalled
					}
					if e != nil {
						d.Entries = append(d.Entries, f.entry(e))
					}
				default:
					break drain
				}
			}
			f.step(d, 0)
		case <-elected:
			lookOften()
			return errStalled
		case <-elsewhere:
			lookOften()
		case at := <-f.nudge:
			if f.Revision() == at && len(w.Updates()) == 0 {
				return errStalled
			}
		case <-reconnected:
			if late, err := lagging(); err != nil || late {
				return errors.Join(err, errStalled)
			}
			lookOften()
		case <-check.C:
			if end := f.hurry.Load(); end != 0 && end < time.Now().UnixNano() {
				f.hurry.Store(0)
				check.Reset(checkEvery)
			}
			if looking {
				continue
			}
			looking = true
			go func() {
				ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
				defer cancel()
				last, err := f.newest(ctx, stream)
				looks <- look{last, err}
			}()
		case l := <-looks:
			looking = false
			// A watcher can die without a word (server restart, slow consumer). Two looks in a row at a
			// stream that is ahead of us by the same distance mean that ours did.
			if l.err != nil {
				continue
			}
			now := f.Revision()
			if l.last <= now {
				behind = nil
				continue
			}
			if behind != nil && *behind == now {
				return errStalled
			}
			behind = &now
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// hurries reports whether a server was perhaps stopped or lost a moment ago.
func (f *Feed) hurries() bool { return f.hurry.Load() != 0 }

// newest is the sequence of the newest message that the feed is to show.
func (f *Feed) newest(ctx context.Context, stream jetstream.Stream) (uint64, error) {
	if f.filter == ">" {
		info, err := stream.Info(ctx)
		if err != nil {
			return 0, err
		}
		return info.State.LastSeq, nil
	}
	m, err := stream.GetLastMsgForSubject(ctx, f.bucket.Key(f.filter))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return m.Sequence, nil
}

func (f *Feed) entry(e jetstream.KeyValueEntry) Entry {
	return Entry{Key: strings.Clone(e.Key()), Value: e.Value(), Revision: e.Revision(), Deleted: e.Operation() != jetstream.KeyValuePut, Time: e.Created()}
}

// step applies a delta. The bucket's own checkpoint is none of its keys, but counts as progress.
func (f *Feed) step(d Delta, floor uint64) {
	rev := floor
	for _, e := range d.Entries {
		rev = max(rev, e.Revision)
	}
	d.Entries = slices.DeleteFunc(d.Entries, func(e Entry) bool { return e.Key == CheckpointKey })
	if d.Reset || len(d.Entries) > 0 {
		f.apply(d)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if rev > f.rev || d.Reset {
		f.rev = rev
		close(f.changed)
		f.changed = make(chan struct{})
	}
}
