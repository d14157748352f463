package task

import (
	"context"

	skepv1 "skep.dev/proto/skep/v1"
)

// FileKey is a version of a secret or config.
type FileKey struct {
	ID      string
	Version uint64
}

// Delivery is what a task is to have.
type Delivery struct {
	Files  []*skepv1.HeldFile // all of them
	Values map[FileKey]*skepv1.DeliveredValue
}

// Courier gets what a task refers to from the managers. held is what it has already, whose values are not sent again.
// Errors are final unless marked with Temporary.
type Courier func(ctx context.Context, taskID string, held []*skepv1.HeldFile) (*Delivery, error)
