package engine

import (
	"context"
	"net/http"
	"strings"

	"github.com/moby/moby/api/types/swarm"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/engine-api/internal/translate"
	"skep.dev/services/engine-api/internal/wire"
)

// trust is what the nodes of the cluster trust.
func (s *Service) trust() swarm.TLSInfo {
	tls, err := translate.TLSInfo(s.cfg.CA())
	if err != nil {
		s.log.Sugar().Warnw("the node's root certificate is not shown", "err", err)
	}
	return tls
}

func (s *Service) listNodes(w http.ResponseWriter, r *wire.Request) error {
	f, err := r.Filters("id", "name", "label", "node.label", "role", "membership")
	if err != nil {
		return err
	}
	if !f.Exact("role", "worker", "manager") {
		return wire.Invalid("invalid filter 'role=%s': use worker or manager", strings.Join(f["role"], ","))
	}
	all, err := s.nodes(r.Context())
	if err != nil {
		return err
	}
	tls := s.trust()
	out := []swarm.Node{}
	for _, n := range all {
		d := translate.NodeToDocker(n, tls)
		if f.Prefix("id", d.ID) && f.Prefix("name", d.Description.Hostname, d.Spec.Name) && f.Labels("label", d.Description.Engine.Labels) &&
			f.Labels("node.label", d.Spec.Labels) && f.Exact("role", string(d.Spec.Role)) && f.Exact("membership", "accepted") {
			out = append(out, d)
		}
	}
	return wire.WriteJSON(w, http.StatusOK, out)
}

func (s *Service) inspectNode(w http.ResponseWriter, r *wire.Request) error {
	n, err := s.node(r.Context(), r.Var("id"))
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusOK, translate.NodeToDocker(n, s.trust()))
}

func (s *Service) updateNode(w http.ResponseWriter, r *wire.Request) error {
	version, err := r.ObjectVersion()
	if err != nil {
		return err
	}
	var in swarm.NodeSpec
	if _, err := r.ReadJSON(&in); err != nil {
		return err
	}
	ctx := r.Context()
	cur, err := s.node(ctx, r.Var("id"))
	if err != nil {
		return err
	}
	if version != cur.GetMeta().GetVersion() {
		return outOfSequence()
	}
	sp, err := translate.NodeFromDocker(cur, in)
	if err != nil {
		return unkept(err)
	}
	if sp.Name == "" { // clients of Docker's have no names for nodes
		sp.Name = cur.GetSpec().GetName()
	}
	if _, err := s.callNode(ctx, &skepv1.UpdateNodeRequest{Ref: cur.GetMeta().GetId(), Version: version, Spec: sp}); err != nil {
		return named(err, "node", r.Var("id"))
	}
	return wire.None(w, http.StatusOK)
}

func (s *Service) callNode(ctx context.Context, req *skepv1.UpdateNodeRequest) (*skepv1.NodeReply, error) {
	return call(ctx, s.cluster, api.NodeUpdate, req)
}

func (s *Service) removeNode(w http.ResponseWriter, r *wire.Request) error {
	ctx := r.Context()
	n, err := s.node(ctx, r.Var("id"))
	if err != nil {
		return err
	}
	_, err = call(ctx, s.cluster, api.NodeRemove, &skepv1.RemoveNodeRequest{Ref: n.GetMeta().GetId(), Force: r.Bool("force")})
	switch {
	case fault.Is(err, fault.CodeInvalid), fault.Is(err, fault.CodeConflict): // it is up, or a manager
		return wire.Invalid("rpc error: code = FailedPrecondition desc = %v", err)
	case err != nil:
		return named(err, "node", r.Var("id"))
	}
	return wire.None(w, http.StatusOK)
}
