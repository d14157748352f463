package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"skep.dev/libs/api"
	"skep.dev/libs/rpc"
)

// SetManager says whether the node is a manager now: the agent then resolves images' names for the cluster. The connection
// has the certificate of that role already.
func (s *Service) SetManager(is bool) {
	s.manager.Store(is)
	select {
	case s.role <- struct{}{}:
	default:
	}
}

// serveManager answers what only managers' agents do, while the node is one.
func (s *Service) serveManager(ctx context.Context) (err error) {
	var srv *rpc.Server
	end := func() {
		if srv != nil {
			err = errors.Join(err, srv.Close())
			srv = nil
		}
	}
	defer end()
	for {
		switch is := s.manager.Load(); {
		case is && srv == nil:
			if srv, err = rpc.NewServer(s.cfg.NC, rpc.Config{
				Name: "skep-agent-images", Version: s.cfg.Version, Description: "resolves images' names, on manager " + s.cfg.NodeID, Log: s.log, Metrics: s.cfg.Metrics,
				Timeout: 30 * time.Minute, // a registry takes what it takes
			}); err == nil {
				err = api.Handle(srv, api.ImageResolve, s.resolveImage)
			}
			if err != nil {
				return fmt.Errorf("agent: resolve images' names: %w", err)
			}
		case !is:
			end()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.role:
		}
	}
}
