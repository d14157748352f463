package kv

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"skep.dev/libs/subject"
)

// RetireAfter is how long a deletion's marker stays at least. Feeds that were away for longer notice by the checkpoint;
// writers on the condition that a key never was (Batch.Bar) give up long before.
const RetireAfter = 15 * time.Minute

// lookEvery is how often a server looks which buckets it leads. A bucket that changes is read once in the time its markers
// stay.
const lookEvery = time.Minute

// Compactor removes the markers of deletions from the buckets, after a checkpoint that makes up for them, and the ghosts
// that a server's recovery brought back. CheckpointKey has the argument.
//
// Every manager runs one. It works on the streams that its own server leads, since the leader's store is the one whose
// picture counts; should two work on one stream for a moment, the checkpoint's compare-and-set lets one through.
// No clock is trusted: a marker's age is the time since this process has first read past it.
type Compactor struct {
	js    jetstream.JetStream
	log   *zap.Logger
	after time.Duration
	known map[subject.Bucket]*progress

	mu    sync.Mutex
	found map[subject.Bucket]Found
}

// Found is what was found wrong with a bucket, for those who look after the cluster.
type Found struct {
	// Damage is what the store lost, by the last pass that could tell; "" = nothing.
	Damage string
	// Ghosts counts the keys that came back with a recovery, and were removed, since the compactor was made.
	Ghosts int
}

// damage is the error of a pass over a store that lost messages.
type damage string

func (d damage) Error() string { return string(d) }

// Found is what the passes found, by bucket.
func (c *Compactor) Found() map[subject.Bucket]Found {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.found)
}

// note keeps what a pass found. One that skipped the bucket found nothing new, but for one that another server leads now:
// what was found here is not known to be so any more.
func (c *Compactor) note(r Report, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.found[r.Bucket]
	f.Ghosts += len(r.Ghosts)
	var lost damage
	switch {
	case errors.As(err, &lost):
		f.Damage = string(lost)
	case err == nil && r.Skipped != unchanged:
		f.Damage = ""
	}
	c.found[r.Bucket] = f
}

// progress is what is remembered of a bucket between two passes, while its stream is led here.
type progress struct {
	last  uint64    // the stream's last sequence at the last pass
	at    time.Time // of the last pass
	owes  bool      // markers were too young then
	marks []mark
}

// mark: everything up to a sequence was there at a time.
type mark struct {
	through uint64
	at      time.Time
}

// NewCompactor makes one; js must be connected to this manager's own server. retireAfter is how long markers stay at least,
// 0 for RetireAfter.
func NewCompactor(js jetstream.JetStream, log *zap.Logger, retireAfter time.Duration) *Compactor {
	return &Compactor{js: js, log: log, after: cmp.Or(retireAfter, RetireAfter), known: map[subject.Bucket]*progress{}, found: map[subject.Bucket]Found{}}
}

// unchanged is why a bucket need not be looked at.
const unchanged = "unchanged"

// Report is what a pass over one bucket found and did.
type Report struct {
	Bucket  subject.Bucket
	Skipped string   // why the bucket was not looked at; empty when it was
	Live    int      // keys with a value
	Markers int      // deletions that are still marked
	Retired int      // markers removed
	Ghosts  []string // keys that had come back, and were removed
}

// Begin writes the first checkpoint of buckets that have none: at a manager's start, before its services read. Stores of
// before checkpoints are cured by it. Where there is one, Run removes what came back; nobody sees it meanwhile.
func (c *Compactor) Begin(ctx context.Context) {
	for _, b := range Compacted() {
		if have, err := Open(c.js, b).checkpoint(ctx); err == nil && have.revision == 0 {
			c.pass(ctx, b)
		}
	}
}

// Run keeps the buckets small until ctx ends.
func (c *Compactor) Run(ctx context.Context) {
	tick := time.NewTicker(min(lookEvery, c.after))
	defer tick.Stop()
	for {
		for _, b := range Compacted() {
			if p := c.known[b]; p == nil || time.Since(p.at) >= c.after {
				c.pass(ctx, b)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Compacted are the buckets that have checkpoints: all whose keys do not end by themselves.
func Compacted() []subject.Bucket {
	var out []subject.Bucket
	for _, b := range subject.Buckets {
		if compacted(b) {
			out = append(out, b)
		}
	}
	return out
}

// compacted: the lease bucket has a handful of keys whose names never change, each with a time to live in its own header,
// which a recovered value brings back with it.
func compacted(b subject.Bucket) bool { return b != subject.Lease }

func (c *Compactor) pass(ctx context.Context, b subject.Bucket) {
	r, err := c.Pass(ctx, b)
	log := c.log.With(zap.String("bucket", string(b)))
	if n := len(r.Ghosts); n > 0 {
		const most = 20
		log.Warn("keys that had been deleted came back with the store's recovery, and were removed",
			zap.Int("keys", n), zap.Strings("names", r.Ghosts[:min(n, most)]))
	}
	switch {
	case err != nil && ctx.Err() == nil:
		log.Warn("bucket not compacted, trying again", zap.Error(err))
	case r.Retired > 0:
		log.Info("bucket compacted", zap.Int("live", r.Live), zap.Int("retired", r.Retired), zap.Int("markers", r.Markers))
	}
}

// Pass looks at one bucket: removes ghosts, and retires markers that are old enough. What it did not get to, the next pass does.
func (c *Compactor) Pass(ctx context.Context, bucket subject.Bucket) (Report, error) {
	p, err := c.begin(ctx, bucket)
	if err == nil && p.Skipped == "" {
		if err = p.mark(ctx); err == nil {
			err = p.sweep(ctx)
		}
	}
	c.note(p.Report, err)
	return p.Report, err
}

// pass is one look at a bucket.
type pass struct {
	Report
	b     *Bucket
	st    jetstream.Stream
	known *progress
	prior checkpoint
	found finding
}

// begin reads the bucket and judges it; it changes nothing.
func (c *Compactor) begin(ctx context.Context, bucket subject.Bucket) (*pass, error) {
	p := &pass{Report: Report{Bucket: bucket}, b: Open(c.js, bucket)}
	var err error
	if p.st, err = c.js.Stream(ctx, bucket.Stream()); err != nil {
		return p, fmt.Errorf("look at the stream of bucket %s: %w", bucket, err)
	}
	info := p.st.CachedInfo()
	if info.Cluster != nil && info.Cluster.Leader != c.js.Conn().ConnectedServerName() {
		delete(c.known, bucket)
		p.Skipped = "another server leads it"
		return p, nil
	}
	if p.known = c.known[bucket]; p.known == nil {
		p.known = &progress{}
		c.known[bucket] = p.known
	}
	p.known.at = time.Now()
	if p.known.last == info.State.LastSeq && p.known.last != 0 && !p.known.owes {
		p.Skipped = unchanged
		return p, nil
	}
	if p.prior, err = p.b.checkpoint(ctx); err != nil {
		return p, err
	}
	now, err := scan(ctx, p.st)
	if err != nil {
		return p, fmt.Errorf("read bucket %s: %w", bucket, err)
	}
	if now.through < p.prior.through {
		return p, damage(fmt.Sprintf("the store of bucket %s ends at sequence %d, before its checkpoint (%d): it has lost messages", bucket, now.through, p.prior.through))
	}
	p.found = judge(p.prior, now, p.known.settled(c.after))
	p.Live, p.Markers = len(p.found.next.live), p.found.markers
	if p.found.lost > 0 {
		return p, damage(fmt.Sprintf("the store of bucket %s lacks %d keys that it had at sequence %d, with no deletion to tell why: it is damaged; not compacting it",
			bucket, p.found.lost, p.prior.through))
	}
	return p, nil
}

// finding is what a bucket amounts to beside its last checkpoint.
type finding struct {
	next    checkpoint // of it as it is
	ghosts  []message
	retire  []message // markers that are old enough
	markers int       // all of them
	// lost is how many live keys of the last checkpoint are neither there nor have a newer message: the disk lost them, and
	// they may still be on another replica. A checkpoint made now would bury them.
	lost int
}

// judge compares a picture with the last checkpoint; markers up to settled are old enough to go.
func judge(prior checkpoint, now picture, settled uint64) finding {
	f := finding{next: checkpoint{through: now.through}}
	newer, kept := 0, 0
	for _, m := range now.newest {
		if m.key == CheckpointKey {
			continue
		}
		if m.seq > prior.through {
			newer++
		}
		switch {
		case m.marker:
			f.markers++
			if m.seq <= settled {
				f.retire = append(f.retire, m)
			}
		case prior.ghost(m.seq):
			f.ghosts = append(f.ghosts, m)
		default:
			if m.seq <= prior.through {
				kept++
			}
			f.next.live = append(f.next.live, m.seq)
		}
	}
	f.lost = max(0, len(prior.live)-kept-newer)
	return f
}

// mark writes the checkpoint that has to stand before a marker goes, and the first one of a bucket.
func (p *pass) mark(ctx context.Context) error {
	if len(p.found.retire) == 0 && (p.prior.revision > 0 || p.found.next.through == 0) {
		return nil
	}
	if err := p.b.store(ctx, p.found.next, p.prior.revision); err != nil {
		return fmt.Errorf("write the checkpoint of bucket %s: %w", p.Bucket, err)
	}
	return nil
}

// sweep removes what the checkpoint makes up for.
func (p *pass) sweep(ctx context.Context) error {
	for _, m := range p.found.ghosts {
		if err := purge(ctx, p.st, p.b, m); err != nil {
			return err
		}
		p.Ghosts = append(p.Ghosts, m.key)
	}
	for _, m := range p.found.retire {
		if err := purge(ctx, p.st, p.b, m); err != nil {
			return err
		}
		p.Retired++
		p.Markers--
	}
	p.known.seen(p.found.next.through, p.Markers > 0)
	return nil
}

// settled is the sequence up to which everything was there at least the given time ago.
func (p *progress) settled(age time.Duration) uint64 {
	var through uint64
	for len(p.marks) > 0 && time.Since(p.marks[0].at) >= age {
		through, p.marks = p.marks[0].through, p.marks[1:]
	}
	if through > 0 { // still so at the next pass, should this one fail
		p.marks = append([]mark{{through: through}}, p.marks...)
	}
	return through
}

func (p *progress) seen(through uint64, owes bool) {
	p.last, p.owes = through, owes
	if n := len(p.marks); n == 0 || p.marks[n-1].through < through {
		p.marks = append(p.marks, mark{through, time.Now()})
	}
}

// store writes a checkpoint over the one at prior.
func (b *Bucket) store(ctx context.Context, c checkpoint, prior uint64) error {
	val, err := c.encode()
	if err != nil {
		return err
	}
	_, err = b.Update(ctx, CheckpointKey, val, prior)
	return err
}

// purgeWithin is how long a server may take to answer one removal. It is asked again then: a request that was lost between
// two leaders is answered by nobody, and would end the pass.
const purgeWithin = 5 * time.Second

// purge removes a key's messages up to m. One that was written since stays.
func purge(ctx context.Context, st jetstream.Stream, b *Bucket, m message) error {
	once := func() error {
		ctx, cancel := context.WithTimeout(ctx, purgeWithin)
		defer cancel()
		return st.Purge(ctx, jetstream.WithPurgeSubject(b.name.Key(m.key)), jetstream.WithPurgeSequence(m.seq+1))
	}
	err := once()
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		err = once()
	}
	if err != nil {
		return fmt.Errorf("remove what is left of the deleted key %s/%s: %w", b.name, m.key, err)
	}
	return nil
}
