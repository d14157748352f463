package health

import (
	"strings"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/subject"
)

func lastToken(s string) string { return s[strings.LastIndexByte(s, '.')+1:] }

// applyCluster takes the heartbeat period.
func (s *Service) applyCluster(d kv.Delta) {
	for _, e := range d.Entries {
		var c skepv1.Cluster
		if e.Deleted || proto.Unmarshal(e.Value, &c) != nil {
			continue
		}
		s.fences.command = c.GetSpec().GetFenceCommand()
		s.core.Wait(c.GetSpec().GetRestored(), time.Now())
		if p := c.GetSpec().GetHeartbeatPeriod().AsDuration(); p > 0 && p != s.period {
			s.log.Info("heartbeat period", zap.Duration("period", p))
			s.period = p
			s.core.SetPeriod(p, time.Now())
		}
	}
}

// applyMembers follows the admitted nodes.
func (s *Service) applyMembers(d kv.Delta) {
	seen := map[string]bool{}
	for _, e := range d.Entries {
		id, _ := keys.Node.ID(e.Key)
		if e.Deleted {
			s.drop(id)
			continue
		}
		seen[id] = true
		var n skepv1.NodeObject
		if err := proto.Unmarshal(e.Value, &n); err != nil {
			s.log.Error("unreadable node object", zap.String("node", id), zap.Error(err))
		}
		s.members[id] = n.GetSpec().GetName()
		delete(s.fences.fenced, id)
		if n.Fence != nil {
			s.fences.fenced[id] = true
		}
		s.core.Admit(id, s.record[id].live, time.Now())
		s.inherit(id)
		s.dirty[id] = true
	}
	if d.Reset {
		for id := range s.members {
			if !seen[id] {
				s.drop(id)
			}
		}
		for id := range s.record {
			s.dirty[id] = true // records of nodes removed while nobody looked
		}
	}
}

func (s *Service) drop(id string) {
	delete(s.members, id)
	s.core.Remove(id)
	delete(s.paths, id)
	delete(s.clocks, id)
	delete(s.fences.fenced, id)
	s.dirty[id] = true
}

// applyNodes follows the records, our own writes among them, and the nodes' host names.
func (s *Service) applyNodes(d kv.Delta) {
	if d.Reset {
		for id := range s.record {
			s.dirty[id] = true
		}
		clear(s.record)
	}
	for _, e := range d.Entries {
		switch f, id := keys.Of(subject.NodeB, e.Key); {
		case f == keys.Description && e.Deleted:
			delete(s.hosts, id)
			delete(s.fences.addrs, id)
		case f == keys.Description:
			var n skepv1.NodeDescription
			if proto.Unmarshal(e.Value, &n) == nil {
				s.hosts[id], s.fences.addrs[id] = n.Hostname, n.Addr
			}
		case f == keys.Live:
			s.note(id, e)
		}
	}
}

func (s *Service) note(id string, e kv.Entry) {
	if old, ok := s.record[id]; ok && e.Revision < old.rev {
		return // our own newer write is known already
	}
	s.dirty[id] = true
	if e.Deleted {
		delete(s.record, id)
		return
	}
	live := &skepv1.NodeLive{}
	if err := proto.Unmarshal(e.Value, live); err != nil {
		s.log.Error("unreadable liveness record, to be written anew", zap.String("node", id), zap.Error(err))
		live = nil
	}
	s.record[id] = stored{live: live, rev: e.Revision}
}
