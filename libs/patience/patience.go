// Package patience says how long a request waits for the managers to agree on a leader. It is carried by the context from
// whoever takes the request to whoever writes to the store, and means nothing to anybody else.
package patience

import (
	"context"
	"time"
)

// Election outlasts one: measured, writes go on 3 to 6 s after a leader was lost, where nats-server's own patience is 4 to 9 s.
const Election = 10 * time.Second

type (
	key  struct{}
	asIs struct{}
)

// Until lets what is done under ctx wait for a leader until then. A write that was not heard may be repeated till then.
func Until(ctx context.Context, end time.Time) context.Context {
	return context.WithValue(ctx, key{}, end)
}

// Left is how much longer to wait; 0 without patience.
func Left(ctx context.Context) time.Duration {
	end, ok := ctx.Value(key{}).(time.Time)
	if !ok {
		return 0
	}
	return max(0, time.Until(end))
}

// AsIs has a read under ctx answered from what is known, without asking the store whether there is more: it has no leader,
// and the answer says so.
func AsIs(ctx context.Context) context.Context { return context.WithValue(ctx, asIs{}, true) }

// IsAsIs reports whether what is known is enough.
func IsAsIs(ctx context.Context) bool { return ctx.Value(asIs{}) != nil }
