package kv

import (
	"context"

	"skep.dev/libs/subject"
)

// HalfPass is a Pass that ends before it removes anything: after the checkpoint was written.
func (c *Compactor) HalfPass(ctx context.Context, bucket subject.Bucket) error {
	p, err := c.begin(ctx, bucket)
	if err == nil && p.Skipped == "" {
		err = p.mark(ctx)
	}
	return err
}

// ByTime has a Cutter go by the messages' times at once, unless nobody writes.
func (c *Cutter) ByTime() { c.quiet = 0 }
