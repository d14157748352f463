package engine

import (
	"context"
	"errors"
	"net/http"

	"github.com/moby/moby/api/types"

	"skep.dev/libs/containers"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/engine-api/internal/translate"
	"skep.dev/services/engine-api/internal/wire"
)

// containerLogs is GET /containers/{id}/logs: frames, or as it was written by a container with a terminal. Headers go out at once.
// Following ends with the container. A client that does not read holds up its own reading of the log's files, and nobody else.
func (s *Service) containerLogs(w http.ResponseWriter, r *wire.Request) error {
	n, c, err := s.container(r.Var("id"))
	if err != nil {
		return err
	}
	q, err := readLogQuery(r, c.Revision.GetSpec().GetTask().GetContainer())
	if err != nil {
		return err
	}
	if c.Revision.GetSpec().GetTask().GetLogDriver().GetName() == "none" {
		return wire.Unserved("configured logging driver does not support reading")
	}
	q.req.TaskId = c.ID()
	ctx, cancel := s.streaming(r)
	defer cancel()
	kind := types.MediaTypeMultiplexedStream
	if q.tty || r.Version.Before(42) {
		kind = types.MediaTypeRawStream
	}
	w.Header().Set("Content-Type", kind)
	w.WriteHeader(http.StatusOK)
	out := &logWriter{w: w, ctl: http.NewResponseController(w), q: q, parts: map[string][]byte{}}
	if err := out.flush(); err != nil {
		return ended(err)
	}
	t := taskOf(n, c)
	gone := false
	err = n.Logs(ctx, q.req, func(e *skepv1.LogEntry) error {
		err := out.write(t, e)
		gone = gone || err != nil
		return err
	}, out.flush)
	if gone || ctx.Err() != nil || err == nil || errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// taskOf is a container's task as the cluster's part knows tasks, as far as logs tell of it.
func taskOf(n containers.Node, c containers.Container) *skepv1.Task {
	return &skepv1.Task{Meta: &skepv1.Meta{Id: c.ID()}, ServiceId: c.Record.GetServiceId(), NodeId: n.ID(), Name: translate.ContainerName(c, viewOf(n))}
}
