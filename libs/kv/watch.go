package kv

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"skep.dev/libs/patience"
)

// asking bounds what a feed asks the store before it can begin. Just after a leader was lost nobody may hear it, so each question
// is put again and again, see askLed.
func asking(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, ackWithin)
	return patience.Until(ctx, time.Now().Add(ackWithin)), cancel
}

// A request for a watcher is given up after watchFirst, the next after twice as long, the last after watchMost. One that comes late
// all the same is a consumer without a reader, for five seconds.
const (
	watchFirst = 250 * time.Millisecond
	watchMost  = 8 * time.Second
)

// watch asks for a watcher, again and for longer each time while nobody answers. Where it is served is for the leader of the
// whole store to say, which may be elected seconds after that of the stream; what it was sent before that, it never hears.
func (f *Feed) watch(ctx context.Context, kv jetstream.KeyValue) (jetstream.KeyWatcher, error) {
	for within := watchFirst; ; within *= 2 {
		watching, give := context.WithCancel(ctx) // it lasts as long as the watcher
		late := time.AfterFunc(within, give)
		w, err := kv.WatchFiltered(watching, f.filters())
		switch {
		case late.Stop():
			if err != nil {
				give()
			}
			return w, err
		case err == nil:
			_, err = w.Stop(), errStalled // it came in the moment that it was given up
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if within >= watchMost {
			return nil, fmt.Errorf("watch bucket %s: no server answers: %w", f.bucket, err)
		}
	}
}
