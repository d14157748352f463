package index

import (
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/record"
	skepv1 "skep.dev/proto/skep/v1"
)

// maxReports is how many nodes' reports are read, at most, to say why a service's tasks fail.
const maxReports = 16

// Loop tells of a service's task that failed most often in a row and waits to be started again: how often, when it will be,
// unix ms, and why the one before it ended. Nil when none waits.
func (x *Index) Loop(service string) *skepv1.CrashLoop {
	x.settle()
	x.mu.RLock()
	defer x.mu.RUnlock()
	of := x.counts[service]
	if of == nil {
		return nil
	}
	var worst *skepv1.CrashLoop
	replaces := ""
	for _, t := range of.groups {
		g := x.groups[x.named[t.group]]
		if t.looping == 0 || g == nil {
			continue
		}
		for _, k := range g.keys {
			_ = record.EachTask(k.raw, func(v *record.Task[[]byte]) {
				waits := v.Desired <= skepv1.TaskState_TASK_STATE_READY
				n, most := uint64(v.Failures), worst.GetFailures()
				if string(v.Service) != service || !waits || n < loopFrom || n < most || n == most && v.NotBefore >= worst.GetNextUnixMs() {
					return
				}
				worst = &skepv1.CrashLoop{Failures: n, NextUnixMs: v.NotBefore, Err: string(v.Err)}
				replaces = string(v.Replaces)
			})
		}
	}
	if worst == nil || worst.Err != "" || replaces == "" {
		return worst
	}
	for i, t := range of.groups {
		if i == maxReports {
			break
		}
		if st := x.statusLocked(x.named[t.group], replaces); st != nil {
			worst.Err = st.Err
			break
		}
	}
	return worst
}

// statusLocked is what the node of a group reports of a task, nil if it does not.
func (x *Index) statusLocked(group, task string) *skepv1.TaskStatus {
	r := x.statuses[group]
	if r == nil {
		return nil
	}
	var s skepv1.NodeStatus
	if proto.Unmarshal(r.raw, &s) != nil {
		return nil
	}
	for _, t := range s.Tasks {
		if t.TaskId == task {
			return t
		}
	}
	return nil
}
