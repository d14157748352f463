package agent

import (
	"context"
	"io"
	"time"

	"go.uber.org/zap"

	"skep.dev/libs/fault"
	"skep.dev/libs/rpc"
	"skep.dev/libs/stream"
	skepv1 "skep.dev/proto/skep/v1"
)

// Upgrader puts another build of skep in the place of the running one.
type Upgrader interface {
	// Check refuses a program before its bytes travel; nothing was changed.
	Check(r *skepv1.UpgradeNodeRequest) error
	// Take receives the program, verifies that it is the announced one and runs here, and prepares to restart the daemon with
	// it, which the returned function has happen. An error leaves the node as it was.
	Take(ctx context.Context, r *skepv1.UpgradeNodeRequest, program io.Reader) (restart func(), err error)
	// State is how the last upgrade stands.
	State() (*skepv1.UpgradeState, error)
}

// upgradeWithin is how long a program may take to travel: who sends it slowly holds the only place.
const upgradeWithin = 10 * time.Minute

// upgrade takes a program. The bytes come on a subject that operators may write to, too: they count for nothing until they
// have the sum that stands in the request, which admins alone may make.
func (s *Service) upgrade(ctx context.Context, sess *stream.Session, body []byte) {
	req := &skepv1.UpgradeNodeRequest{}
	if _, err := rpc.Decode(body, "", req); err != nil {
		refuse(sess, fault.Invalid("cannot read the upgrade request: %v", err))
		return
	}
	if s.cfg.Upgrader == nil {
		refuse(sess, errSeparate(s.cfg.Hostname))
		return
	}
	if err := s.cfg.Upgrader.Check(req); err != nil {
		refuse(sess, err)
		return
	}
	s.tell(ctx, &skepv1.ToldRequest{Verb: "upgrade", Subject: req.GetVersion()})
	if err := sess.Accept(); err != nil {
		return // the client is gone
	}
	ctx, cancel := context.WithTimeout(ctx, upgradeWithin)
	defer cancel()
	// A read does not see the context end: the session does.
	defer context.AfterFunc(ctx, func() { _ = sess.Exit(1, fault.Unavailable("the program did not come within %s", upgradeWithin)) })()
	restart, err := s.cfg.Upgrader.Take(ctx, req, sess.Reader(stream.In))
	if err != nil {
		s.log.Warn("no upgrade", zap.String("to", req.GetVersion()), zap.Error(err))
		refuse(sess, err)
		return
	}
	if s.set != nil {
		s.beat(&skepv1.Heartbeat{Restarting: true})
	}
	_ = sess.Exit(0, nil) // the client is gone
	if err := s.cfg.NC.FlushTimeout(toldWithin); err != nil {
		s.log.Warn("who asked for the upgrade may not hear that the node restarts", zap.Error(err))
	}
	restart()
}

func errSeparate(host string) error {
	return fault.Conflict("the services of node %s run as processes of their own: replace their programs there and restart them one by one (docs/upgrade.md)", host)
}

func (s *Service) upgradeState(context.Context, *skepv1.Empty) (*skepv1.UpgradeState, error) {
	if s.cfg.Upgrader == nil {
		return nil, errSeparate(s.cfg.Hostname)
	}
	return s.cfg.Upgrader.State()
}
