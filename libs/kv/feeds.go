package kv

import (
	"context"

	"skep.dev/libs/subject"
)

// Feeds are those of one service.
type Feeds []*Feed

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
