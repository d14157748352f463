// Package task owns the life of every task on one node: it turns the newest task set into containers, one state
// at a time, and tells what became of each (ARCHITECTURE §4, swarm.md 2.2).
//
// It refuses to decide anything a manager decides: it never moves a task, never picks an order, and restarts one only while
// no manager can (see again.go). It knows nothing of containerd: all that is behind Runtime.
//
// Failure story: every record, spec and status is a file, written before it is reported, so an agent that
// restarts goes on where the other stopped, without managers. The files are not flushed to the disk platter: after a power cut
// the containers are gone too, and what the files then say at worst is a task older than it was.
package task

import (
	"context"
	"errors"
	"time"

	skepv1 "skep.dev/proto/skep/v1"
)

// Job is what a runtime needs to know of one task.
type Job struct {
	Record   *skepv1.TaskRecord
	Revision *skepv1.Revision
	Dir      string // the task's own directory, removed with the task
}

// ID is the task's id.
func (j *Job) ID() string { return j.Record.GetId() }

// Container is the task's container spec, never nil.
func (j *Job) Container() *skepv1.ContainerSpec {
	if c := j.Revision.GetSpec().GetTask().GetContainer(); c != nil {
		return c
	}
	return &skepv1.ContainerSpec{}
}

// Prepared is what a prepared task has.
type Prepared struct {
	ContainerID string
	Addresses   []string // CIDRs, skep0 first
	Networks    []*skepv1.NetworkAddress
	Ports       []*skepv1.PortConfig
	Health      *skepv1.HealthConfig // the image's HEALTHCHECK, nil = none
	Files       []*skepv1.HeldFile   // the secrets and configs it was given
}

// Exit tells how a container ended.
type Exit struct {
	Code  int32
	At    time.Time
	OOM   bool
	Limit int64 // the memory limit in force, bytes, 0 = none
	// Lost is set when nobody knows how it ended: the container is gone without an exit status.
	Lost string
	// WithNode: it ended while nothing of the node ran that could have seen it, as in a power cut. That is no failure of the task's.
	WithNode bool
}

// Phase is how far a container found at start has come.
type Phase int

// The phases.
const (
	PhaseCreated Phase = iota // container, but nothing runs in it
	PhaseRunning
	PhaseStopped
)

// Found is a container that a runtime has.
type Found struct {
	Phase Phase
	Pid   uint32
	Exit  Exit // when stopped
}

// Runtime makes containers of tasks. Every method may be called again after it failed, and again after it
// succeeded. Errors are final unless marked with Temporary.
type Runtime interface {
	// Prepare does everything but start: image, volumes, network, container. progress is for people.
	Prepare(ctx context.Context, j *Job, progress func(string)) (Prepared, error)
	// Make does of Start what can be done while the task waits for its turn. It need not be called.
	Make(ctx context.Context, j *Job) error
	// Start starts the prepared container.
	Start(ctx context.Context, j *Job) (pid uint32, err error)
	// Wait blocks until the container has ended.
	Wait(ctx context.Context, id string) (Exit, error)
	// Stop ends it: signal, grace, kill. It returns how it ended, or nil if it never ran.
	Stop(ctx context.Context, j *Job) (*Exit, error)
	// Renew makes an ended container one that was never started, with a root file system as new; what else it has stays.
	Renew(ctx context.Context, j *Job) error
	// Release removes container and network and lets go of volumes; the logs and the task's own volumes stay.
	Release(ctx context.Context, id string) error
	// List returns every container there is, by task id.
	List(ctx context.Context) (map[string]Found, error)
}

type temporary struct{ error }

func (t temporary) Unwrap() error { return t.error }

// Temporary marks an error that trying again later may cure.
func Temporary(err error) error {
	if err == nil {
		return nil
	}
	return temporary{err}
}

type full struct{ error }

func (f full) Unwrap() error { return f.error }

// NoSpace marks the temporary error of a full disk: it is tried again for a while, then the task is rejected, since
// another node may have room.
func NoSpace(err error) error {
	if err == nil {
		return nil
	}
	return full{Temporary(err)}
}

func isNoSpace(err error) bool {
	var f full
	return errors.As(err, &f)
}

type soon struct{ error }

func (s soon) Unwrap() error { return s.error }

// Soon marks a temporary error that is over in a moment, such as a restart of containerd: the next try does not
// wait longer and longer.
func Soon(err error) error {
	if err == nil {
		return nil
	}
	return soon{Temporary(err)}
}

func isSoon(err error) bool {
	var s soon
	return errors.As(err, &s)
}

// IsTemporary tells whether trying again may help.
func IsTemporary(err error) bool {
	var t temporary
	return errors.As(err, &t)
}
