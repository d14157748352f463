// Package containers is what the agent of a node tells in its own process of the containers there: it is the source of the Docker API's
// part that is of one node. It goes over no broker, so it needs no rights on a subject, and a node without managers answers all the same.
//
// Who asks has been let in by who calls: the agent refuses nobody here, and notes who it was (rpc.WithActor).
package containers

import (
	"context"
	"io"

	skepv1 "skep.dev/proto/skep/v1"
)

// Container is a task of the node and what became of it. What it points to is the caller's to keep, not to change.
type Container struct {
	Record   *skepv1.TaskRecord
	Revision *skepv1.Revision // of the service that it was made from
	Status   *skepv1.TaskStatus
}

// ID is the container's, which is the task's.
func (c Container) ID() string { return c.Record.GetId() }

// Process is what a container runs, with what its image says and its templates filled in.
type Process struct {
	Args, Env     []string
	Dir, Hostname string
}

// ExecIO is the caller's side of a command in a container.
type ExecIO struct {
	Stdin          io.Reader // nil: none
	Stdout, Stderr io.Writer
	// Control carries resizes; closed or not, it ends with the context.
	Control <-chan *skepv1.StreamControl
}

// Node is the agent. All may be called at any time; an agent that is ending answers with errors.
type Node interface {
	// ID and Hostname are the node's.
	ID() string
	Hostname() string
	// Containers are those of all tasks that the node has made one for, ended ones included for as long as their record is kept, by id.
	Containers() []Container
	// Container is one of them by its id.
	Container(id string) (Container, bool)
	// Changed is closed when anything about them has changed since it was asked for.
	Changed() <-chan struct{}
	// Process is not found once the container is taken away, which is soon after it ended.
	Process(ctx context.Context, id string) (*Process, error)
	// Logs gives the lines of a container's log to each, in order, and calls idle whenever there are no more for now. Following ends when the
	// container has, and all was read.
	Logs(ctx context.Context, req *skepv1.LogsRequest, each func(*skepv1.LogEntry) error, idle func() error) error
	// Exec runs a command until it ends, or kills it when ctx does. An error with a code is that of a command that could not be started.
	Exec(ctx context.Context, req *skepv1.ExecRequest, io ExecIO) (code int32, err error)
	// Stats is what a running container uses.
	Stats(id string) *skepv1.TaskStats
	// Processes are the pids of a running container, as the node counts them.
	Processes(id string) ([]int, error)
	Images(ctx context.Context) ([]*skepv1.Image, error)
	Volumes(ctx context.Context) (all []*skepv1.Volume, warnings []string)
}
