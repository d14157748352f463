package engine

import (
	"context"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/swarm"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/engine-api/internal/translate"
	"skep.dev/services/engine-api/internal/wire"
)

func (s *Service) listServices(w http.ResponseWriter, r *wire.Request) error {
	f, err := r.Filters("id", "name", "label", "mode", "runtime")
	if err != nil {
		return err
	}
	all, err := s.services(r.Context())
	if err != nil {
		return err
	}
	view := translate.ServiceView{Status: r.Bool("status") && !r.Version.Before(41), Defaults: r.Bool("insertDefaults")}
	out := []swarm.Service{}
	for _, svc := range all {
		sp := svc.GetSpec()
		if f.Prefix("id", svc.GetMeta().GetId()) && f.Prefix("name", sp.GetName()) && f.Labels("label", sp.GetLabels()) && f.Exact("mode", spec.Mode(sp)) && f.Exact("runtime", string(swarm.RuntimeContainer)) {
			out = append(out, shown(translate.ServiceToDocker(now(svc), view), r.Version))
		}
	}
	return wire.WriteJSON(w, http.StatusOK, out)
}

// now is a service without the state of an update that was over before the newest change: docker takes it for that of the change it
// waits for, as there is none in Docker until an update has begun.
func now(s *skepv1.Service) *skepv1.Service {
	u := s.GetUpdateStatus()
	over := u.GetCompletedAt() != nil && u.GetCompletedAt().AsTime().Before(s.GetMeta().GetUpdatedAt().AsTime())
	if u.GetRevision() != 0 && u.GetRevision() != s.GetRevision() || over {
		s.UpdateStatus = nil
	}
	return s
}

// shown is a service as a client of a version sees it.
func shown(d swarm.Service, v wire.Version) swarm.Service {
	translate.Downgrade(&d.Spec, v)
	if d.PreviousSpec != nil {
		translate.Downgrade(d.PreviousSpec, v)
	}
	return d
}

func (s *Service) inspectService(w http.ResponseWriter, r *wire.Request) error {
	ctx := r.Context()
	svc, err := s.service(ctx, r.Var("id"))
	if err != nil {
		return err
	}
	view := translate.ServiceView{Defaults: r.Bool("insertDefaults")}
	if n := svc.GetPreviousRevision(); n != 0 {
		if view.Previous, err = s.revisions.spec(ctx, s.cluster, svc.GetMeta().GetId(), n); err != nil {
			return err
		}
	}
	return wire.WriteJSON(w, http.StatusOK, shown(translate.ServiceToDocker(now(svc), view), r.Version))
}

// readService reads the spec in a request's body.
func readService(r *wire.Request) (swarm.ServiceSpec, []string, error) {
	if err := r.IsJSON(); err != nil {
		return swarm.ServiceSpec{}, nil, err
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return swarm.ServiceSpec{}, nil, err
	}
	return translate.DecodeService(body)
}

func (s *Service) createService(w http.ResponseWriter, r *wire.Request) error {
	in, warnings, err := readService(r)
	if err != nil {
		return err
	}
	ctx := r.Context()
	known, err := s.networksOf(ctx, in)
	if err != nil {
		return err
	}
	sp, more, err := translate.CreateFromDocker(in, known, r.Version)
	if err != nil {
		return unkept(err)
	}
	if sp.Name == "" {
		sp.Name = spec.RandomName()
	}
	if sp.Task.Container.RegistryAuth, err = s.registryAuth(ctx, r, sp.Task.Container.Image); err != nil {
		return err
	}
	reply, err := call(ctx, s.cluster, api.ServiceCreate, &skepv1.CreateServiceRequest{Spec: sp, NoResolveImage: clientResolves(r)})
	if err != nil {
		return clash(err)
	}
	return wire.WriteJSON(w, http.StatusCreated, swarm.ServiceCreateResponse{ID: reply.GetService().GetMeta().GetId(), Warnings: slices.Concat(warnings, more, reply.GetWarnings())})
}

// clientResolves reports whether the client asks for the image's digest itself, or was told not to. Old ones leave it to the server.
func clientResolves(r *wire.Request) bool { return !r.Version.Before(30) }

// networksOf is what the networks are that a spec may name: clients say names or ids.
func (s *Service) networksOf(ctx context.Context, in swarm.ServiceSpec) (translate.Networks, error) {
	if len(in.TaskTemplate.Networks) == 0 {
		return nil, nil
	}
	return s.networkLookup(ctx)
}

// networkLookup finds networks by id or name, as they are now.
func (s *Service) networkLookup(ctx context.Context) (translate.Networks, error) {
	all, err := s.networks(ctx)
	if err != nil {
		return nil, err
	}
	known := map[string]*skepv1.Network{}
	for _, n := range all {
		known[strings.ToLower(n.GetSpec().GetName())] = n
	}
	for _, n := range all {
		known[n.GetMeta().GetId()] = n
	}
	return func(ref string) *skepv1.Network {
		if n := known[ref]; n != nil {
			return n
		}
		return known[strings.ToLower(ref)]
	}, nil
}

func (s *Service) updateService(w http.ResponseWriter, r *wire.Request) error {
	version, err := r.ObjectVersion()
	if err != nil {
		return err
	}
	in, warnings, err := readService(r)
	if err != nil {
		return err
	}
	ctx := r.Context()
	cur, err := s.service(ctx, r.Var("id"))
	if err != nil {
		return err
	}
	req := &skepv1.UpdateServiceRequest{Ref: cur.GetMeta().GetId(), Version: version, NoResolveImage: clientResolves(r)}
	switch back := r.Query.Get("rollback"); back {
	case "":
	case "previous": // the body is the current spec, and means nothing
		req.Rollback = true
		return s.update(ctx, w, r, req, nil)
	default:
		return wire.Invalid("unrecognized rollback option %s", back)
	}
	if version != cur.GetMeta().GetVersion() {
		return outOfSequence()
	}
	known, err := s.networksOf(ctx, in)
	if err != nil {
		return err
	}
	sp, more, err := translate.UpdateFromDocker(cur.GetSpec(), in, known, r.Version)
	if err != nil {
		return unkept(err)
	}
	if err := s.keepAuth(ctx, r, cur, sp); err != nil {
		return err
	}
	req.Spec = sp
	return s.update(ctx, w, r, req, append(warnings, more...))
}

// keepAuth gives a spec the credentials that came along, or those that the service has, or had, for the same registry.
func (s *Service) keepAuth(ctx context.Context, r *wire.Request, cur *skepv1.Service, sp *skepv1.ServiceSpec) error {
	c := sp.GetTask().GetContainer()
	id, err := s.registryAuth(ctx, r, c.GetImage())
	if err != nil {
		return err
	}
	if id != "" {
		c.RegistryAuth = id
		return nil
	}
	from := cur.GetSpec()
	switch source := r.Query.Get("registryAuthFrom"); source {
	case "", string(swarm.RegistryAuthFromSpec):
	case string(swarm.RegistryAuthFromPreviousSpec):
		if cur.GetPreviousRevision() == 0 {
			return wire.Invalid("service %s does not have a previous spec", sp.GetName())
		}
		if from, err = s.revisions.spec(ctx, s.cluster, cur.GetMeta().GetId(), cur.GetPreviousRevision()); err != nil {
			return err
		}
	default:
		return wire.Invalid("unsupported registryAuthFrom value: %s", source)
	}
	before, err := spec.RegistryOf(from.GetTask().GetContainer().GetImage())
	if err != nil {
		return nil //nolint:nilerr // it has no registry that could be the same
	}
	c.RegistryAuth = ""
	if now, err := spec.RegistryOf(c.GetImage()); err == nil && now == before {
		c.RegistryAuth = from.GetTask().GetContainer().GetRegistryAuth()
	}
	return nil
}

func (s *Service) update(ctx context.Context, w http.ResponseWriter, r *wire.Request, req *skepv1.UpdateServiceRequest, warnings []string) error {
	reply, err := call(ctx, s.cluster, api.ServiceUpdate, req)
	if err != nil {
		return named(err, "service", r.Var("id"))
	}
	return wire.WriteJSON(w, http.StatusOK, swarm.ServiceUpdateResponse{Warnings: append(warnings, reply.GetWarnings()...)})
}

func (s *Service) removeService(w http.ResponseWriter, r *wire.Request) error {
	ctx := r.Context()
	svc, err := s.service(ctx, r.Var("id"))
	if err != nil {
		return err
	}
	_, err = call(ctx, s.cluster, api.ServiceRemove, &skepv1.RemoveServiceRequest{Ref: svc.GetMeta().GetId()})
	if err != nil && !fault.Is(err, fault.CodeNotFound) { // somebody else removed it just now
		return err
	}
	return wire.None(w, http.StatusOK)
}
