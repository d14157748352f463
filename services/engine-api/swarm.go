package engine

import (
	"context"
	"errors"
	"net/http"

	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/member"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/engine-api/internal/translate"
	"skep.dev/services/engine-api/internal/wire"
)

// clusterView is what is told of the cluster besides its object and its tokens.
func (s *Service) clusterView(ctx context.Context) translate.ClusterView {
	view := translate.ClusterView{TLS: s.trust()}
	ctx, cancel := context.WithTimeout(ctx, besideWithin)
	defer cancel()
	if ca, err := call(ctx, s.cluster, api.CAInspect, &skepv1.Empty{}); err == nil { // a locked vault says nothing, and rotates nothing
		view.Rotating = ca.GetRotation() != nil
	}
	return view
}

// inspectSwarm answers with the tokens, as docker reads them here and nowhere else. That they were shown is an event.
func (s *Service) inspectSwarm(w http.ResponseWriter, r *wire.Request) error {
	ctx := r.Context()
	c, err := call(ctx, s.cluster, api.ClusterInspect, &skepv1.Empty{})
	if err != nil {
		return err
	}
	view := s.clusterView(ctx)
	if view.Tokens, err = s.tokens(ctx, false, false); err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusOK, translate.ClusterToDocker(c.GetCluster(), view))
}

// tokens are those that let nodes join, or new ones in their place.
func (s *Service) tokens(ctx context.Context, rotateWorker, rotateManager bool) (swarm.JoinTokens, error) {
	var t swarm.JoinTokens
	for _, one := range []struct {
		role   skepv1.NodeRole
		rotate bool
		to     *string
	}{{skepv1.NodeRole_NODE_ROLE_WORKER, rotateWorker, &t.Worker}, {skepv1.NodeRole_NODE_ROLE_MANAGER, rotateManager, &t.Manager}} {
		r, err := call(ctx, s.cluster, api.TokenGet, &skepv1.JoinTokenRequest{Role: one.role, Rotate: one.rotate})
		if err != nil {
			return t, err
		}
		*one.to = r.Token
	}
	return t, nil
}

func (s *Service) updateSwarm(w http.ResponseWriter, r *wire.Request) error {
	version, err := r.ObjectVersion()
	if err != nil {
		return err
	}
	var in swarm.Spec
	if _, err := r.ReadJSON(&in); err != nil {
		return err
	}
	ctx := r.Context()
	c, err := call(ctx, s.cluster, api.ClusterInspect, &skepv1.Empty{})
	if err != nil {
		return err
	}
	cur := c.GetCluster()
	if version != cur.GetMeta().GetVersion() {
		return outOfSequence()
	}
	change, err := translate.ClusterFromDocker(cur.GetSpec(), in)
	if err != nil {
		return unkept(err)
	}
	if change.RootCert != "" {
		return wire.Unserved("a root of one's own is not taken through this API, which would carry its key: use skep ca --rotate --ca-cert")
	}
	if !proto.Equal(change.Spec, cur.GetSpec()) {
		if _, err := call(ctx, s.cluster, api.ClusterUpdate, &skepv1.UpdateClusterRequest{Version: version, Spec: change.Spec}); err != nil {
			return named(err, "swarm", "")
		}
	}
	if change.Rotate {
		if _, err := call(ctx, s.cluster, api.CARotate, &skepv1.RotateCARequest{}); err != nil {
			return err
		}
	}
	if worker, manager := r.Bool("rotateWorkerToken"), r.Bool("rotateManagerToken"); worker || manager {
		if _, err := s.tokens(ctx, worker, manager); err != nil {
			return err
		}
	}
	if r.Bool("rotateManagerUnlockKey") {
		if _, err := s.shownKey(ctx, true); err != nil {
			return err
		}
	}
	return wire.None(w, http.StatusOK)
}

// inCluster reports whether this node is part of a cluster.
func (s *Service) inCluster() bool {
	_, err := member.Load(s.cfg.Paths)
	return !errors.Is(err, member.ErrNoNode)
}

const sayPart = `This node is already part of a swarm. Use "docker swarm leave" to leave this swarm and join another one. (In skep: skep leave.)`

func (s *Service) initSwarm(http.ResponseWriter, *wire.Request) error {
	if s.inCluster() {
		return wire.Unavailable("%s", sayPart)
	}
	return wire.Unserved("skep does not found a cluster through this API: use skep init")
}

func (s *Service) joinSwarm(http.ResponseWriter, *wire.Request) error {
	if s.inCluster() {
		return wire.Unavailable("%s", sayPart)
	}
	return wire.Unserved("skep does not join a cluster through this API: use skep join")
}

func (s *Service) leaveSwarm(http.ResponseWriter, *wire.Request) error {
	if !s.inCluster() {
		return wire.Unavailable("This node is not part of a swarm")
	}
	return wire.Unserved("a node does not leave through this API, which would end with it: use skep leave")
}
