package ctrd

import (
	"context"
	"fmt"
	"testing"

	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"skep.dev/services/node-agent/internal/task"
)

// A runtime that does not answer in time is no fault of the task, whoever noticed it first.
func TestTimesOut(t *testing.T) {
	for _, err := range []error{
		context.DeadlineExceeded,
		errgrpc.ToNative(status.FromContextError(context.DeadlineExceeded).Err()),
		errgrpc.ToNative(status.Error(codes.DeadlineExceeded, "context deadline exceeded")),
		errgrpc.ToNative(status.Error(codes.Unknown, "failed to delete task: context deadline exceeded")),
	} {
		err = fmt.Errorf("delete the process of container x: %w", err)
		if !timedOut(err) || !task.IsTemporary(trouble(err)) {
			t.Errorf("final: %v", err)
		}
	}
	if err := errgrpc.ToNative(status.Error(codes.Unknown, "runc create failed: exec: \"x\": not found")); timedOut(err) || task.IsTemporary(trouble(err)) {
		t.Errorf("temporary: %v", err)
	}
}
