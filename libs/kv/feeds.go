package kv

import (
	"cmp"
	"context"
	"sync"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"skep.dev/libs/subject"
)

// Feeds are those of one service.
type Feeds []*Feed

// Source is a bucket that a picture is made of.
type Source struct {
	Bucket subject.Bucket
	Filter string // of its keys, such as "node.*"; all of them without
	Apply  func(Delta)
}

// FollowAll starts a feed for each source, as Follow does. They go on until Close, also when ctx ends: requests that are in work
// when a service ends wait until its picture has what they wrote.
func FollowAll(ctx context.Context, js jetstream.JetStream, sources ...Source) Feeds {
	ctx = context.WithoutCancel(ctx)
	feeds := make(Feeds, len(sources))
	for i, s := range sources {
		feeds[i] = Follow(ctx, js, s.Bucket, s.Apply, cmp.Or(s.Filter, ">"))
	}
	return feeds
}

// Fold is how the entries of several buckets go into one picture.
type Fold struct {
	Lock sync.Locker // of the picture, held over each step of a feed
	Log  *zap.Logger
	Then func() // at the end of each step, under the lock; nil: nothing
}

// Source makes a source of a bucket whose entries put takes one by one. reset is called before those of a feed that begins
// anew; without it they are added to what is known. A value that nobody can read is skipped, loudly: the rest of the
// cluster must go on.
func (f Fold) Source(bucket subject.Bucket, put func(Entry) error, reset func(Delta)) Source {
	return Source{Bucket: bucket, Apply: func(d Delta) {
		f.Lock.Lock()
		defer f.Lock.Unlock()
		if d.Reset && reset != nil {
			reset(d)
		}
		for _, e := range d.Entries {
			if err := put(e); err != nil {
				f.Log.Error("unreadable value", zap.String("bucket", string(bucket)), zap.String("key", e.Key), zap.Error(err))
			}
		}
		if f.Then != nil {
			f.Then()
		}
	}}
}

// Of is the feed of a bucket, nil when there is none.
func (fs Feeds) Of(bucket subject.Bucket) *Feed {
	for _, f := range fs {
		if f.bucket == bucket {
			return f
		}
	}
	return nil
}

// Caught waits until every feed has applied what its bucket held when it began; false when ctx ended first.
func (fs Feeds) Caught(ctx context.Context) bool {
	for _, f := range fs {
		select {
		case <-f.Ready():
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// Close ends every feed and waits for it.
func (fs Feeds) Close() {
	for _, f := range fs {
		f.Close()
	}
}
