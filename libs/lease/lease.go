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
	// overduePause is how often a lease is looked at whose holder missed a renewal. The store ends a lease up to two
	// seconds after it has a leader again (measured).
	overduePause = 100 * time.Millisecond
)

// campaignHeader is on a write that asks for the lease. Everybody hears those too: only what lacks it is a holder's renewal.
const campaignHeader = "Skep-Campaign"

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
	if sub, err := l.js.Conn().Subscribe(subject.Lease.Key(l.cfg.Name), func(m *nats.Msg) {
		switch {
		case len(m.Data) == 0:
			select {
			case up <- struct{}{}:
			default:
			}
		case m.Header.Get(campaignHeader) == "" && string(m.Data) != l.cfg.Holder:
			l.heard.Store(time.Now().UnixNano())
		}
	}); err == nil {
		defer sub.Unsubscribe() //nolint:errcheck // the connection may be gone
	} else {
		l.cfg.Log.Debug("a lease that is given up is found by looking", zap.String("lease", l.cfg.Name), zap.Error(err))
	}
	for soon := 0; ctx.Err() == nil; {
		rev, err := l.acquire(ctx)
		if err != nil {
			soon = l.wait(ctx, up, soon)
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

// wait ends when the lease is worth another look: it was given up, or its holder is overdue. As long as renewals are heard
// the store is asked nothing. soon is how many looks in short order are left, and what is left afterwards is returned.
func (l *Lease) wait(ctx context.Context, up <-chan struct{}, soon int) int {
	for {
		pause, heard := overduePause, false
		switch silent := l.silent(); {
		case soon > 0:
			pause, soon = soonPause, soon-1
		case silent == 0: // never heard
			pause = l.cfg.TTL / 10
		case silent < l.lookAfter():
			pause, heard = l.lookAfter()-silent, true
		}
		select {
		case <-up:
			return soonTimes
		case <-time.After(pause):
			if heard {
				continue // perhaps heard again meanwhile
			}
		case <-ctx.Done():
		}
		return soon
	}
}

// lookAfter is how long a holder, which renews every quarter of the TTL, may be silent before its revision is looked at: so soon
// that it was seen to stand still for long enough when the silence alone would end it, see isOver.
func (l *Lease) lookAfter() time.Duration { return l.cfg.TTL * 3 / 8 }

func (l *Lease) acquire(ctx context.Context) (uint64, error) {
	// What was sent to a leader that died is never answered: better to ask again. Our own name is found if it was taken.
	ctx, cancel := context.WithTimeout(ctx, l.cfg.TTL/5)
	defer cancel()
	e, err := l.b.Get(ctx, l.cfg.Name)
	switch {
	case errors.Is(err, kv.ErrNotFound):
		// Never held, expired or given up: over the marker, in one write with its TTL. Without one, a holder that died before
		// the next would keep the lease for ever.
	case err != nil:
		return 0, err
	case string(e.Value) != l.cfg.Holder && !l.isOver(e.Revision):
		return 0, fmt.Errorf("lease %s is held by %s", l.cfg.Name, e.Value)
	}
	return l.put(ctx, e.Revision, true)
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
// leads without an acknowledgement, and it has not renewed either for longer than from one renewal to the next. Silence is
// looked at from lookAfter on, which with those three eighths is less than the four fifths.
func (l *Lease) isOver(revision uint64) bool {
	now := time.Now()
	if revision != l.seen {
		l.seen, l.since = revision, now
	}
	return l.silent() > l.cfg.TTL*4/5 && now.Sub(l.since) > l.cfg.TTL*3/8
}

// put writes the lease over revision rev, as the holder's renewal or to ask for it. nats.go's Update would drop the TTL, so this
// is a raw publish.
func (l *Lease) put(ctx context.Context, rev uint64, campaign bool) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.TTL/2)
	defer cancel()
	m := nats.NewMsg(subject.Lease.Key(l.cfg.Name))
	m.Data = []byte(l.cfg.Holder)
	m.Header.Set("Nats-Expected-Last-Subject-Sequence", strconv.FormatUint(rev, 10))
	if campaign {
		m.Header.Set(campaignHeader, "1")
	}
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
			next, err := l.put(ctx, rev, false)
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
