package state

import (
	"context"

	"go.uber.org/zap"

	"skep.dev/libs/fault"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// refound follows a group that one manager founded anew, after the others were lost for good: they are workers from now on,
// so that the group waits for none of them, and one that returns finds that out. Asked again it changes nothing. The bus
// asks before it lets anybody in again, so whoever is a manager now was one of the lost.
func (s *Service) refound(ctx context.Context, r *skepv1.RefoundRequest) (*skepv1.Empty, error) {
	catchUp(ctx, s.feeds.Of(subject.Spec))
	if !s.ix.HasNode(r.NodeId) {
		return nil, fault.NotFound("found the cluster anew: node %s is not part of it", r.NodeId)
	}
	var lost []string
	for _, id := range s.ix.NodeIDs() {
		role, changed := skepv1.NodeRole_NODE_ROLE_WORKER, false
		if id == r.NodeId {
			role = skepv1.NodeRole_NODE_ROLE_MANAGER
		}
		err := s.retry(ctx, func() error {
			changed = false
			n := s.ix.NodeObject(id)
			if n == nil || n.Role == role && n.Spec.Role == role {
				return nil
			}
			n.Role, n.Spec.Role, changed = role, role, true
			return s.putNode(ctx, n)
		})
		if err != nil {
			return nil, err
		}
		if !changed || id == r.NodeId {
			continue
		}
		lost = append(lost, id)
		name := s.ix.Hostname(id)
		s.events.send(ctx, &skepv1.Event{Kind: "node", Id: id, Name: name, Verb: "update",
			Attributes: map[string]string{"name": name, "role.old": "manager", "role.new": "worker", "reason": "the cluster was founded anew without it"}})
	}
	if len(lost) > 0 {
		s.log.Warn("the cluster was founded anew: the other managers are workers now", zap.Strings("nodes", lost), zap.Uint64("epoch", r.Epoch))
	}
	return &skepv1.Empty{}, nil
}
