package ctrd

import (
	"context"
	"fmt"

	"skep.dev/services/node-agent/internal/task"
)

// Renew implements task.Runtime. An agent that is killed between the two steps leaves a container without a root file system: the
// next Renew says so, and the task stays ended.
func (r *Runtime) Renew(ctx context.Context, j *task.Job) error {
	ctx, done, err := r.inSlot(ctx)
	if err != nil {
		return err
	}
	defer done()
	id := j.ID()
	if err := r.deleteTask(ctx, id); err != nil {
		return err
	}
	snapshots := r.client.SnapshotService(snapshotter)
	info, err := snapshots.Stat(ctx, id)
	if err != nil {
		return trouble(fmt.Errorf("look at the root file system of %s: %w", id, err))
	}
	return trouble(withLease(ctx, r.client, "task-"+id, func(ctx context.Context) error {
		if err := snapshots.Remove(ctx, id); err != nil {
			return fmt.Errorf("remove the root file system of %s: %w", id, err)
		}
		if _, err := snapshots.Prepare(ctx, id, info.Parent); err != nil {
			return fmt.Errorf("make a new root file system for %s: %w", id, err)
		}
		return nil
	}))
}
