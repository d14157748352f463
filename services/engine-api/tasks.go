package engine

import (
	"context"
	"maps"
	"net/http"
	"slices"

	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/engine-api/internal/translate"
	"skep.dev/services/engine-api/internal/wire"
)

// sizeOf a message as it travels; in memory it takes a few times as much.
func sizeOf(m proto.Message) int { return proto.Size(m) }

// taskViews knows what tasks were made from, each asked for once.
type taskViews struct {
	s        *Service
	services map[string]*skepv1.Service
	networks translate.Networks
}

// fewServices is up to how many services are asked for one by one, and not all of the cluster's.
const fewServices = 50

func (s *Service) taskViews(ctx context.Context, tasks []*skepv1.Task) (*taskViews, error) {
	v := &taskViews{s: s, services: map[string]*skepv1.Service{}}
	onNetworks := false
	for _, t := range tasks {
		v.services[t.GetServiceId()] = nil
		onNetworks = onNetworks || len(t.GetStatus().GetNetworks()) > 0
	}
	if len(v.services) > 0 {
		var ask []*skepv1.Filter
		if len(v.services) <= fewServices {
			ask = append(ask, &skepv1.Filter{Key: "id", Values: slices.Collect(maps.Keys(v.services))})
		}
		all, err := s.services(ctx, ask...)
		if err != nil {
			return nil, err
		}
		for _, svc := range all {
			v.services[svc.GetMeta().GetId()] = svc
		}
	}
	if onNetworks {
		var err error
		if v.networks, err = s.networkLookup(ctx); err != nil {
			return nil, err
		}
	}
	return v, nil
}

// of is the spec that a task was made from, nil when it is gone with its service.
func (v *taskViews) of(ctx context.Context, t *skepv1.Task) (*skepv1.ServiceSpec, error) {
	svc := v.services[t.GetServiceId()]
	switch {
	case svc == nil:
		return nil, nil
	case svc.GetRevision() == t.GetRevision():
		return svc.GetSpec(), nil
	}
	sp, err := v.s.revisions.spec(ctx, v.s.cluster, t.GetServiceId(), t.GetRevision())
	if fault.Is(err, fault.CodeNotFound) {
		return nil, nil // the service was removed meanwhile
	}
	return sp, err
}

// current reports whether a task is what its service asks for now.
func (v *taskViews) current(ctx context.Context, t *skepv1.Task) (bool, error) {
	svc := v.services[t.GetServiceId()]
	if svc == nil {
		return false, nil
	}
	if svc.GetRevision() == t.GetRevision() {
		return true, nil
	}
	made, err := v.of(ctx, t)
	if err != nil || made == nil {
		return false, err
	}
	hostPorts := func(sp *skepv1.ServiceSpec) (out []*skepv1.PortConfig) {
		for _, p := range sp.GetEndpoint().GetPorts() {
			if p.PublishMode == skepv1.PublishMode_PUBLISH_MODE_HOST {
				out = append(out, p)
			}
		}
		return out
	}
	return proto.Equal(made.GetTask(), svc.GetSpec().GetTask()) &&
		slices.EqualFunc(hostPorts(made), hostPorts(svc.GetSpec()), func(a, b *skepv1.PortConfig) bool { return proto.Equal(a, b) }), nil
}

func (s *Service) listTasks(w http.ResponseWriter, r *wire.Request) error {
	f, err := r.Filters("id", "name", "label", "service", "node", "desired-state", "runtime", "_up-to-date")
	if err != nil {
		return err
	}
	upToDate, filtered, err := f.TakeBool("_up-to-date")
	if err != nil {
		return err
	}
	if !f.Exact("runtime", string(swarm.RuntimeContainer)) {
		return wire.WriteJSON(w, http.StatusOK, []swarm.Task{})
	}
	var ask []*skepv1.Filter
	for _, key := range []string{"id", "service", "node", "desired-state"} {
		if f.Has(key) {
			ask = append(ask, &skepv1.Filter{Key: key, Values: f[key]})
		}
	}
	ctx := r.Context()
	all, err := s.tasks(ctx, ask...)
	if err != nil {
		return err
	}
	views, err := s.taskViews(ctx, all)
	if err != nil {
		return err
	}
	out := []swarm.Task{}
	for _, t := range all {
		if !f.Prefix("name", t.GetName()) || f.Has("label") && !f.Labels("label", views.services[t.GetServiceId()].GetSpec().GetLabels()) {
			continue
		}
		if filtered {
			is, err := views.current(ctx, t)
			if err != nil {
				return err
			}
			if is != upToDate {
				continue
			}
		}
		made, err := views.of(ctx, t)
		if err != nil {
			return err
		}
		out = append(out, translate.TaskToDocker(t, translate.TaskView{Service: made, Networks: views.networks}))
	}
	return wire.WriteJSON(w, http.StatusOK, out)
}

func (s *Service) inspectTask(w http.ResponseWriter, r *wire.Request) error {
	ctx := r.Context()
	t, err := s.task(ctx, r.Var("id"))
	if err != nil {
		return err
	}
	view := translate.TaskView{}
	if view.Service, err = s.revisions.spec(ctx, s.cluster, t.GetServiceId(), t.GetRevision()); err != nil && !fault.Is(err, fault.CodeNotFound) {
		return err
	}
	if view.Networks, err = s.networkLookup(ctx); err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusOK, translate.TaskToDocker(t, view))
}
