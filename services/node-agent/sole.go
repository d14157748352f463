package agent

import (
	"cmp"
	"context"

	"go.uber.org/zap"

	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

// A machine whose disk is a copy of another's comes as the same node. Managers ask who is there under the node's name, and
// refuse the second one its task set. It then begins nothing and says nothing in the node's name, and asks again.

// self answers which agent this is. The session tells two machines apart.
func (s *Service) self(context.Context, *skepv1.Empty) (*skepv1.SelfReply, error) {
	seen := ""
	if ip, err := s.cfg.NC.GetClientIP(); err == nil && ip != nil && !ip.IsUnspecified() {
		seen = ip.String()
	}
	return &skepv1.SelfReply{Session: s.session, Hostname: s.cfg.Hostname, Addr: cmp.Or(seen, s.cfg.AdvertiseAddr)}, nil
}

// heard takes in what the managers say to the question for the task set.
func (s *Service) heard(err error) {
	switch {
	case err == nil:
		s.granted.Store(true)
		if s.refused.Swap(false) {
			s.log.Info("this machine is the node again")
			s.describeAgain()
			s.report.changed()
		}
	case fault.Is(err, fault.CodeConflict):
		if !s.refused.Swap(true) {
			s.log.Error("this machine is not the node: nothing is begun here", zap.Error(err))
		}
	}
}
