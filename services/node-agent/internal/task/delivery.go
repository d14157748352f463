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
	// Registry is where in Values the credentials of its image's registry are, if that was asked for and it has some.
	Registry FileKey
}

// Courier gets what tasks refer to from the managers. Errors are final unless marked with Temporary. Whoever is given
// values overwrites them in the end.
type Courier interface {
	// Files are a task's secrets and configs. held is what it has already, whose values are not sent again.
	Files(ctx context.Context, taskID string, held []*skepv1.HeldFile) (*Delivery, error)
	// Registry are the credentials that its image is pulled with.
	Registry(ctx context.Context, taskID string) (*skepv1.DeliveredValue, error)
}
