package cli

import (
	"context"
	"strings"

	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

// findTask takes a task's id, a prefix of it, or its name (web.1: then the task of that slot that runs; also Docker's
// container name web.1.<id>).
func (a *app) findTask(ctx context.Context, ref string) (*skepv1.Task, error) {
	t, err := a.inspectTask(ctx, ref)
	if err == nil || !fault.Is(err, fault.CodeNotFound) || !strings.Contains(ref, ".") {
		return t, err
	}
	name := ref
	if i := strings.LastIndexByte(ref, '.'); strings.Count(ref, ".") > 1 {
		if t, terr := a.inspectTask(ctx, ref[i+1:]); terr == nil {
			return t, nil
		}
		name = ref[:i]
	}
	list, lerr := a.tasks(ctx, filter("name", name))
	if lerr != nil {
		return nil, lerr
	}
	var best *skepv1.Task
	for _, c := range list {
		if c.Name != name {
			continue
		}
		if best == nil || rank(c) > rank(best) || rank(c) == rank(best) && c.GetMeta().GetCreatedAt().AsTime().After(best.GetMeta().GetCreatedAt().AsTime()) {
			best = c
		}
	}
	if best == nil {
		return nil, err
	}
	return a.inspectTask(ctx, best.GetMeta().GetId())
}

// rank prefers tasks that run, then those on their way, then the ended.
func rank(t *skepv1.Task) int {
	switch s := t.GetStatus().GetState(); {
	case s == skepv1.TaskState_TASK_STATE_RUNNING:
		return 2
	case s < skepv1.TaskState_TASK_STATE_RUNNING:
		return 1
	}
	return 0
}
