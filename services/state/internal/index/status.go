package index

import (
	"strings"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/kv"
	skepv1 "skep.dev/proto/skep/v1"
)

// report is a node's newest status.
type report struct {
	stored
	number   uint64
	session  string
	previous string // the session before, whose late messages are stale
}

// ApplyStatus takes a step of the status bucket's feed.
func (x *Index) ApplyStatus(d kv.Delta) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if d.Reset {
		x.resetStatus()
	}
	for _, e := range d.Entries {
		x.dirty[strings.Clone(e.Key)] = struct{}{}
		if e.Deleted {
			delete(x.statuses, e.Key)
			continue
		}
		r := &report{stored: keep(e)}
		var s skepv1.NodeStatus
		if proto.Unmarshal(e.Value, &s) != nil {
			continue
		}
		r.number, r.session = s.Report, strings.Clone(s.Session)
		if old := x.statuses[e.Key]; old != nil {
			r.previous = old.previous
			if old.session != r.session {
				r.previous = old.session
			}
		}
		x.statuses[strings.Clone(e.Key)] = r
	}
	x.notifyLocked()
}

// Report is what is stored of a node's status.
type Report struct {
	Revision uint64
	Number   uint64
	Session  string
	Previous string
	Status   *skepv1.NodeStatus
}

// Report is a node's newest stored status; its Revision is 0 when there is none.
func (x *Index) Report(node string) Report {
	x.mu.RLock()
	r := x.statuses[node]
	x.mu.RUnlock()
	if r == nil {
		return Report{Status: &skepv1.NodeStatus{}}
	}
	out := Report{Revision: r.rev, Number: r.number, Session: r.session, Previous: r.previous, Status: &skepv1.NodeStatus{}}
	if proto.Unmarshal(r.raw, out.Status) != nil {
		out.Status = &skepv1.NodeStatus{}
	}
	return out
}

// OrphanReports are the nodes that are gone, tasks and all, but whose status is not.
func (x *Index) OrphanReports() map[string]uint64 {
	x.mu.RLock()
	defer x.mu.RUnlock()
	out := map[string]uint64{}
	for id, r := range x.statuses {
		n := x.nodes[id]
		if (n == nil || n.rev == 0) && x.groups[id] == nil {
			out[id] = r.rev
		}
	}
	return out
}
