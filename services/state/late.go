package state

import (
	"context"
	"time"

	"go.uber.org/zap"

	"skep.dev/libs/subject"
)

const (
	// lateAfter is how long a node may take to say that it has its newest task set before it is told to ask for it.
	lateAfter = time.Second
	lateEvery = 500 * time.Millisecond
	// lateMost bounds how often the time doubles for a node that is told and does not: one may be away for long.
	lateMost = 6
)

// late knows which nodes have not applied their newest task set, and since when.
//
// A task set is pushed once, by the leader of its stream as it stores it. One that just loses its lead, or that a node does not
// hear, pushes into nothing, and the node goes on with what it has, for minutes, if nothing else happens there.
type late struct {
	now   func() time.Time
	nodes map[string]lateNode
}

type lateNode struct {
	generation uint64
	since      time.Time
	told       int
}

// look says whether to tell a node that there is a newer set than the one it has applied.
func (l *late) look(node string, generation, applied uint64) bool {
	was, known := l.nodes[node]
	switch {
	case applied >= generation:
		delete(l.nodes, node)
	case !known || was.generation != generation:
		l.nodes[node] = lateNode{generation: generation, since: l.now()}
	case l.now().Sub(was.since) >= lateAfter<<was.told:
		l.nodes[node] = lateNode{generation, l.now(), min(was.told+1, lateMost)}
		return true
	}
	return false
}

// tellLate tells nodes that are late, until ctx ends. Every instance does: one may be cut off from a node that another reaches,
// and to hear it twice costs a node a question.
func (s *Service) tellLate(ctx context.Context) {
	l := &late{now: time.Now, nodes: map[string]lateNode{}}
	tick := time.NewTicker(lateEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		there := map[string]bool{}
		for _, id := range s.ix.NodeIDs() {
			there[id] = true
			if !l.look(id, s.ix.Generation(id), s.ix.Report(id).Status.GetAppliedGeneration()) {
				continue
			}
			if err := s.cfg.NC.Publish(subject.PushFiles(id), nil); err != nil {
				s.log.Warn("a node is not told that there is a newer task set", zap.String("node", id), zap.Error(err))
			}
		}
		for id := range l.nodes {
			if !there[id] {
				delete(l.nodes, id)
			}
		}
	}
}
