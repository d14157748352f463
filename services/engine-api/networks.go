package engine

import (
	"net/http"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/network"

	"skep.dev/libs/api"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/engine-api/internal/translate"
	"skep.dev/services/engine-api/internal/wire"
)

func (s *Service) listNetworks(w http.ResponseWriter, r *wire.Request) error {
	f, err := r.Filters("id", "name", "driver", "label", "scope", "type", "dangling")
	if err != nil {
		return err
	}
	dangling, filtered, err := f.TakeBool("dangling")
	if err != nil {
		return err
	}
	if !f.Exact("type", "builtin", "custom") {
		return wire.Invalid("invalid filter: 'type'='%s'", strings.Join(f["type"], ","))
	}
	all, err := s.networks(r.Context())
	if err != nil {
		return err
	}
	out := []network.Inspect{}
	for _, n := range all {
		d := translate.NetworkToDocker(n, nil, false)
		kind := "custom"
		if spec.Predefined(d.Name) != "" {
			kind = "builtin"
		}
		// Names and ids of networks match in part, unlike those of services.
		if !part(f["id"], d.ID) || !part(f["name"], d.Name) || !f.Exact("driver", d.Driver) || !f.Labels("label", d.Labels) || !f.Exact("scope", d.Scope) || !f.Exact("type", kind) {
			continue
		}
		if filtered && dangling != (kind == "custom" && n.GetServices() == 0) {
			continue
		}
		out = append(out, d)
	}
	return wire.WriteJSON(w, http.StatusOK, out)
}

func part(want []string, have string) bool {
	return len(want) == 0 || slices.ContainsFunc(want, func(w string) bool { return strings.Contains(have, w) })
}

func (s *Service) inspectNetwork(w http.ResponseWriter, r *wire.Request) error {
	ctx := r.Context()
	n, err := s.network(ctx, r.Var("id"))
	if err != nil {
		return err
	}
	d, ok := translate.InScope(translate.NetworkToDocker(n, nil, false), r.Query.Get("scope"))
	if !ok {
		return wire.NotFound("network %s not found", r.Var("id"))
	}
	if r.Bool("verbose") && n.GetScope() == "swarm" {
		id := d.ID
		if id == spec.NetworkIngress {
			id = "" // the mesh of published ports
		}
		mesh, err := call(ctx, s.cluster, api.MeshNetwork, &skepv1.MeshNetworkRequest{NetworkId: id})
		if err != nil {
			return named(err, "network", r.Var("id"))
		}
		d = translate.NetworkToDocker(n, mesh, true)
	}
	return wire.WriteJSON(w, http.StatusOK, d)
}

func (s *Service) createNetwork(w http.ResponseWriter, r *wire.Request) error {
	var in network.CreateRequest
	if _, err := r.ReadJSON(&in); err != nil {
		return err
	}
	sp, err := translate.NetworkFromDocker(in)
	if err != nil {
		return unkept(err)
	}
	reply, err := call(r.Context(), s.cluster, api.NetworkCreate, &skepv1.CreateNetworkRequest{Spec: sp})
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusCreated, network.CreateResponse{ID: reply.GetNetwork().GetMeta().GetId(), Warning: strings.Join(reply.GetWarnings(), "; ")})
}

func (s *Service) removeNetwork(w http.ResponseWriter, r *wire.Request) error {
	ctx := r.Context()
	n, err := s.network(ctx, r.Var("id"))
	if err != nil {
		return err
	}
	if spec.Predefined(n.GetSpec().GetName()) != "" {
		return wire.Errorf(http.StatusForbidden, "%s is a pre-defined network and cannot be removed", n.GetSpec().GetName())
	}
	if _, err := call(ctx, s.cluster, api.NetworkRemove, &skepv1.Ref{Ref: n.GetMeta().GetId()}); err != nil {
		return named(err, "network", r.Var("id"))
	}
	return wire.None(w, http.StatusNoContent)
}
