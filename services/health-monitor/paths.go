package health

import (
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/event"
)

const (
	// pathLife is how long a report of blocked peers stands that is not made again; meshes make it every five seconds.
	pathLife = 35 * time.Second
	// settles is how long a node is Ready before others' word that they do not reach it counts: it was down when they
	// last asked.
	settles = 20 * time.Second
	// pathEvery is how soon after a report of a node another one that differs counts: meshes make one every five seconds.
	// So nobody makes records and events faster than that.
	pathEvery = 3 * time.Second
	// maxBlocked is how many peers of a report are looked at; meshes suspect forty at most.
	maxBlocked = 64
	// named is how many blocked peers a record names.
	named = 8
)

// path is what a node's mesh said of its way to the other nodes. It counts against that node alone: a node that lies makes
// itself look bad, and no other.
type path struct {
	blocked []string // ids, in the order they are told
	at      time.Time
	since   time.Time // it says so
}

// hear takes a mesh's report in. Leader and standby both do, so that a new leader knows.
func (s *Service) hear(m *nats.Msg) {
	var r skepv1.MeshPathReport
	if err := proto.Unmarshal(m.Data, &r); err != nil {
		s.log.Debug("unreadable report of blocked peers", zap.String("subject", m.Subject), zap.Error(err))
		return
	}
	id := lastToken(m.Subject) // as the broker let it publish
	if _, ok := s.members[id]; !ok {
		return
	}
	now := time.Now()
	is, was := path{s.reported(id, &r), now, now}, s.paths[id]
	if slices.Equal(is.blocked, was.blocked) {
		is.since = was.since
	} else if now.Sub(was.since) < s.pathEvery {
		return // it says so once more if it means it
	}
	s.paths[id] = is // also with nobody blocked, for the time
	s.dirty[id] = true
}

// reported are the members that a node's report names, each once. Names are as the cluster has them: those of the report
// are the node's choice.
func (s *Service) reported(id string, r *skepv1.MeshPathReport) (blocked []string) {
	for _, b := range r.Blocked {
		peer := b.GetNodeId()
		if _, ok := s.members[peer]; ok && peer != id && len(blocked) < maxBlocked && !slices.Contains(blocked, peer) {
			blocked = append(blocked, peer)
		}
	}
	return blocked
}

// name is a node's for people.
func (s *Service) name(id string) string {
	if n := s.members[id]; n != "" {
		return n
	}
	return s.hosts[id]
}

// inherit takes a node's path over from its record: the one who wrote it heard the reports, and the next comes soon.
func (s *Service) inherit(id string) {
	if _, ok := s.paths[id]; !ok && len(s.record[id].live.GetBlocked()) > 0 {
		p := path{at: time.Now()}
		for _, b := range s.record[id].live.Blocked {
			p.blocked = append(p.blocked, b.GetNodeId())
		}
		s.paths[id] = p
	}
}

// expirePaths forgets what is not said any more: the mesh that said it has ended, or its clearing word was lost.
func (s *Service) expirePaths(now time.Time) {
	for id, p := range s.paths {
		if now.Sub(p.at) > s.pathLife {
			delete(s.paths, id)
			s.dirty[id] = true
		}
	}
}

// renewPaths keeps what was known through a time in which nothing could be heard.
func (s *Service) renewPaths(now time.Time) {
	for id, p := range s.paths {
		s.paths[id] = path{p.blocked, now, p.since}
	}
}

// accused marks the nodes that do not reach one whose state changed: whether that is the path's fault may have changed too.
func (s *Service) accused(id string) {
	for from, p := range s.paths {
		if slices.Contains(p.blocked, id) {
			s.dirty[from] = true
		}
	}
}

// verdict is a member's record as it should be, nil if it is none.
func (s *Service) verdict(id string) *skepv1.NodeLive {
	live := s.core.Live(id)
	if live.GetState() != skepv1.NodeState_NODE_STATE_READY {
		return live
	}
	now := time.Now()
	for _, b := range s.paths[id].blocked {
		// A node that is down answers nobody: that is told in its own row.
		peer := s.core.Live(b)
		if peer.GetState() != skepv1.NodeState_NODE_STATE_READY || now.Sub(time.UnixMilli(peer.SinceUnixMs)) < s.settles {
			continue
		}
		if len(live.Blocked) == named {
			live.BlockedMore++
			continue
		}
		live.Blocked = append(live.Blocked, &skepv1.BlockedPeer{NodeId: b, Hostname: s.name(b)})
	}
	return live
}

func samePath(a, b *skepv1.NodeLive) bool {
	if len(a.GetBlocked()) != len(b.GetBlocked()) || a.GetBlockedMore() != b.GetBlockedMore() {
		return false
	}
	for i := range a.GetBlocked() {
		if !proto.Equal(a.Blocked[i], b.Blocked[i]) {
			return false
		}
	}
	return true
}

// tellPath publishes that a node's data path is blocked, or open again.
func (s *Service) tellPath(c change, name string) {
	was, is := len(c.old.live.GetBlocked()) > 0, len(c.live.GetBlocked()) > 0
	if was == is || c.live.GetState() != skepv1.NodeState_NODE_STATE_READY {
		return
	}
	e := &skepv1.Event{Kind: "node", Id: c.id, Name: name, Verb: "path-open", Actor: "skep-health", Message: "the nodes it did not reach answer again through the data path"}
	if is {
		var names []string
		for _, b := range c.live.Blocked {
			names = append(names, b.GetHostname())
		}
		e.Verb, e.Message = "path-blocked", "no answer through the data path from "+strings.Join(names, ", ")+": is its UDP port open between the nodes?"
	}
	s.log.Info("node "+e.Verb, zap.String("node", c.id), zap.String("name", name), zap.String("message", e.Message))
	if err := event.Publish(s.cfg.NC, e); err != nil {
		s.log.Warn("publish an event", zap.String("node", c.id), zap.Error(err))
	}
}
