// Package wait follows a service until it is what was asked for, and tells what happens meanwhile.
//
// It looks again whenever an event names the service, and once a second in case events are lost; it never polls
// tightly. What it sees it turns into a Progress by pure functions, which the display draws: one live bar per task on a
// terminal, one line per change elsewhere. It changes nothing: when it ends early, the cluster carries on.
package wait

import (
	"context"
	"errors"
	"io"
	"time"

	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/plain"
)

// API is what waiting needs of the cluster.
type API interface {
	Service(ctx context.Context, id string) (*skepv1.Service, error)
	Tasks(ctx context.Context, serviceID string) ([]*skepv1.Task, error)
	Revisions(ctx context.Context, serviceID string) ([]*skepv1.Revision, error)
	Explain(ctx context.Context, serviceID string) (*skepv1.ExplainReply, error)
}

// Options of one wait.
type Options struct {
	Service *skepv1.Service // as the change left it
	Wake    <-chan struct{} // something about the service may have changed
	// Hold is how long everything must have run before the wait is over.
	Hold time.Duration
	// Before is the update status from before the change: while it is still shown, the update has not begun.
	Before *skepv1.UpdateStatus
	// Rollback: the change was a rollback by hand, so a completed rollback is success.
	Rollback bool
	// AnyRevision: how many tasks run is what counts, an update under way may take its time.
	AnyRevision bool
	// Run is the run of a job to wait for, 0 = the one Service names.
	Run      uint64
	Timeout  time.Duration // 0 = as long as it takes
	Out      io.Writer
	Terminal bool // draw bars
	Width    func() int
	Quiet    bool
	Now      func() time.Time
}

// How a wait may end other than well.
var (
	ErrTimeout    = errors.New("timed out")
	ErrRolledBack = errors.New("rolled back")
	ErrPaused     = errors.New("paused")
	ErrGaveUp     = errors.New("gave up")
	ErrStopped    = errors.New("stopped")
	ErrAway       = errors.New("a node is away") // the others are as asked
)

type outcome struct {
	kind, text error
}

func (o *outcome) Error() string   { return o.text.Error() }
func (o *outcome) Unwrap() []error { return []error{o.kind, o.text} }

func end(kind error, format string, a ...any) error {
	return &outcome{kind, plain.Errorf(format, a...)}
}
