package kv

import (
	"context"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// filters are the keys that a feed's watcher is given: its own, and the bucket's checkpoint.
func (f *Feed) filters() []string {
	if f.filter == ">" || !compacted(f.bucket) {
		return []string{f.filter}
	}
	return []string{f.filter, CheckpointKey}
}

// checkpoint is the bucket's, none where it has none.
func (f *Feed) checkpoint(ctx context.Context) (checkpoint, error) {
	if !compacted(f.bucket) {
		return checkpoint{}, nil
	}
	ctx, cancel := asking(ctx)
	defer cancel()
	return Open(f.js, f.bucket).checkpoint(ctx)
}

// replay reads what a new watcher says first: every key with a value, without ghosts, and the newest sequence among all
// that it saw.
//
// A ghost shows only beside the checkpoint that outlived its marker, or a later one. So the checkpoint is asked for once
// the watcher has said everything, and what a deletion or a newer value replaced since is waited for: until the watcher,
// whose replica may be behind, has passed the checkpoint itself. Without that a key that was only just written again would
// be missing for a moment.
func (f *Feed) replay(ctx context.Context, w jetstream.KeyWatcher) (live []Entry, seen uint64, err error) {
	patience := time.NewTimer(time.Minute)
	defer patience.Stop()
	var all []Entry
	place := map[string]int{}
	var check checkpoint
	for told := false; !told || seen < check.revision; {
		select {
		case e, ok := <-w.Updates():
			if !ok {
				return nil, 0, errStalled
			}
			if e == nil {
				told = true
				if check, err = f.checkpoint(ctx); err != nil {
					return nil, 0, err
				}
				continue
			}
			seen = max(seen, e.Revision())
			if i, ok := place[e.Key()]; ok {
				all[i] = f.entry(e)
				continue
			}
			place[e.Key()] = len(all)
			all = append(all, f.entry(e))
		case <-patience.C:
			return nil, 0, errStalled
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		}
	}
	live = all[:0]
	for _, e := range all {
		if !e.Deleted && !check.ghost(e.Revision) {
			live = append(live, e)
		}
	}
	return live, seen, nil
}
