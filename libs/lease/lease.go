// Package lease elects one leader among a service's instances by a key with a time to live.
//
// Safety does not rest on time: a leader that was deposed without noticing may still believe in itself, so what it
// writes must be fenced (services/scheduler compares-and-sets task/fence in every commit). The lease only keeps
// several instances from working against one another, and its epoch, the stream sequence of the write that won,
// grows with every leader.
//
// Liveness: the holder renews at a quarter of the TTL and stops leading, by its own clock, at two thirds of the TTL
// without an acknowledgement, before anyone else can win. A clean stop deletes the key, which a standby hears of, so it follows at
// once. After a crash it does not wait for the store, which ends a lease only seconds after it has a leader again: at
// four fifths of the TTL without a word from the holder it writes over the revision it has seen unchanged meanwhile. A holder that
// does renew, and is only not heard (its broker and ours are cut from each other), changes that revision and keeps the lease. An
// instance that finds its own name in the lease (it was restarted) takes it over immediately.
package lease

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"skep.dev/libs/kv"
	"skep.dev/libs/subject"
)

// DefaultTTL outlives neither a crash for long nor a NATS leader election (4–9 s) for sure: losing the lease in one
// is harmless, since nothing can be committed meanwhile.
const DefaultTTL = 5 * time.Second

// A lease that is given up is heard of before the store has it, so whoever waits for it asks a few times in short order.
const (
	soonTimes = 10
	soonPause = 20 * time.Millisecond
	// seePause is how long after a renewal was heard its revision is looked at: the store has it then.
	seePause = 50 * time.Millisecond
	// overduePause is how often is asked for a lease whose holder missed two renewals. The store ends a lease up to two
	// seconds after it has a leader again (measured).
	overduePause = 100 * time.Millisecond
)

// Config names the lease and who asks.
type Config struct {
	Name   string // key in the lease bucket: scheduler, health
	Holder string // unique per instance, stable over its restarts
	TTL    time.Duration
	Log    *zap.Logger
}

// Lease campaigns for one key.
type Lease struct {
	js  jetstream.JetStream
	b   *kv.Bucket
	cfg Config

	heard atomic.Int64 // when the holder was heard last, unix ns; 0 = never
	// What Run's goroutine saw: the holder's revision, and since when.
	seen  uint64
	since time.Time
}

// New prepares a lease; Run campaigns.
func New(js jetstream.JetStream, cfg Config) *Lease {
	if cfg.TTL < time.Second {
		cfg.TTL = DefaultTTL
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	return &Lease{js: js, b: kv.Open(js, subject.Lease), cfg: cfg}
}

// Run campaigns until ctx ends. Whenever it wins it calls lead with a context that ends when the lease may be lost
// and the epoch of this leadership; lead must return soon after. An error of lead gives the lease up and campaigns
// again after a pause.
func (l *Lease) Run(ctx context.Context, lead func(ctx context.Context, epoch uint64) error) error {
	up := make(chan struct{}, 1)
	renewed := make(chan struct{}, 1)
	if sub, err := l.js.Conn().Subscribe(subject.Lease.Key(l.cfg.Name), func(m *nats.Msg) {
		if len(m.Data) > 0 {
			if string(m.Data) != l.cfg.Holder {
				l.heard.Store(time.Now().UnixNano())
				select {
				case renewed <- struct{}{}:
				default:
				}
			}
			return
		}
		select {
		case up <- struct{}{}:
		default:
		}
	}); err == nil {
		defer sub.Unsubscribe() //nolint:errcheck // the connection may be gone
	} else {
		l.cfg.Log.Debug("a lease that is given up is found by looking", zap.String("lease", l.cfg.Name), zap.Error(err))
	}
	for soon := 0; ctx.Err() == nil; {
		rev, err := l.acquire(ctx)
		if err != nil {
			pause := l.cfg.TTL / 10
			switch silent := l.silent(); {
			case silent == 0: // never heard
			case silent > l.cfg.TTL/2:
				pause = min(pause, overduePause)
			default:
				pause = l.cfg.TTL / 2 // or sooner: its next renewal is looked at
			}
			if soon > 0 {
				pause, soon = min(pause, soonPause), soon-1
			}
			select {
			case <-up:
				soon = soonTimes
			case <-renewed:
				if !sleep(ctx, seePause) {
					return nil
				}
			case <-time.After(pause):
			case <-ctx.Done():
			}
			continue
		}
		soon = 0
		l.cfg.Log.Info("leading", zap.String("lease", l.cfg.Name), zap.Uint64("epoch", rev))
		err = l.hold(ctx, rev, lead)
		l.cfg.Log.Info("not leading any more", zap.String("lease", l.cfg.Name), zap.Uint64("epoch", rev), zap.Error(err))
		if err != nil && !sleep(ctx, l.cfg.TTL/10) {
			return nil
		}
	}
	return nil
}

func (l *Lease) acquire(ctx context.Context) (uint64, error) {
	// What was sent to a leader that died is never answered: better to ask again. Our own name is found if it was taken.
	ctx, cancel := context.WithTimeout(ctx, l.cfg.TTL/5)
	defer cancel()
	rev, err := l.put(ctx, 0)
	if !errors.Is(err, kv.ErrConflict) {
		return rev, err
	}
	e, gerr := l.b.Get(ctx, l.cfg.Name)
	switch {
	case errors.Is(gerr, kv.ErrNotFound):
		// Expired or given up: over the marker, in one write with its TTL. Without one, a holder that died before the
		// next would keep the lease for ever.
		return l.put(ctx, e.Revision)
	case gerr != nil:
		return 0, gerr
	case string(e.Value) == l.cfg.Holder, l.isOver(e.Revision):
		return l.put(ctx, e.Revision)
	}
	return 0, fmt.Errorf("lease %s is held by %s", l.cfg.Name, e.Value)
}

// silent is how long nothing was heard of the holder, 0 when nothing ever was.
func (l *Lease) silent() time.Duration {
	last := l.heard.Load()
	if last == 0 {
		return 0
	}
	return max(1, time.Since(time.Unix(0, last)))
}

// isOver reports whether the holder, whose revision this is, lost its lease: it was heard once and is silent for longer than it
// leads without an acknowledgement, and it has not renewed either for longer than from one renewal to the next.
func (l *Lease) isOver(revision uint64) bool {
	now := time.Now()
	if revision != l.seen {
		l.seen, l.since = revision, now
	}
	return l.silent() > l.cfg.TTL*4/5 && now.Sub(l.since) > l.cfg.TTL*3/8
}

// put writes the lease over revision rev. nats.go's Update would drop the TTL, so this is a raw publish.
func (l *Lease) put(ctx context.Context, rev uint64) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.TTL/2)
	defer cancel()
	m := nats.NewMsg(subject.Lease.Key(l.cfg.Name))
	m.Data = []byte(l.cfg.Holder)
	m.Header.Set("Nats-Expected-Last-Subject-Sequence", strconv.FormatUint(rev, 10))
	m.Header.Set("Nats-TTL", strconv.Itoa(int((l.cfg.TTL+time.Second-1)/time.Second)))
	ack, err := l.js.PublishMsg(ctx, m)
	if err != nil {
		return 0, kv.Classify(err)
	}
	return ack.Sequence, nil
}

func (l *Lease) hold(parent context.Context, rev uint64, lead func(context.Context, uint64) error) error {
	ctx, cancel := context.WithCancel(parent)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- lead(ctx, rev) }()

	renewed := time.Now()
	tick := time.NewTicker(l.cfg.TTL / 4)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			l.release(rev)
			return err
		case <-parent.Done():
			cancel()
			err := <-done
			l.release(rev)
			if errors.Is(err, context.Canceled) {
				err = nil
			}
			return err
		case <-tick.C:
			began := time.Now()
			next, err := l.put(ctx, rev)
			switch {
			case err == nil:
				rev, renewed = next, began
			case errors.Is(err, kv.ErrConflict):
				// Perhaps our own renewal, its answer lost.
				if e, gerr := l.b.Get(ctx, l.cfg.Name); gerr == nil && string(e.Value) == l.cfg.Holder {
					rev = e.Revision
					continue
				}
				cancel()
				<-done
				return fmt.Errorf("lease %s was taken over", l.cfg.Name)
			case time.Since(renewed) > l.cfg.TTL*2/3:
				cancel()
				<-done
				return fmt.Errorf("lease %s could not be renewed: %w", l.cfg.Name, err)
			}
		}
	}
}

// release lets a standby follow at once. Failing is fine: the TTL does the same, later.
func (l *Lease) release(rev uint64) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := l.b.Delete(ctx, l.cfg.Name, rev); err != nil {
		l.cfg.Log.Debug("lease not released", zap.String("lease", l.cfg.Name), zap.Error(err))
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
