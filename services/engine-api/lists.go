package engine

import (
	"context"

	"skep.dev/libs/api"
	skepv1 "skep.dev/proto/skep/v1"
)

// pages asks for one page after the other and returns all that is on them.
func pages[T any](ask func(*skepv1.Page) (items []T, next string, err error)) ([]T, error) {
	var out []T
	for after := ""; ; {
		items, next, err := ask(&skepv1.Page{After: after})
		if err != nil {
			return nil, err
		}
		out = append(out, items...)
		if after = next; after == "" {
			return out, nil
		}
	}
}

func (s *Service) services(ctx context.Context, f ...*skepv1.Filter) ([]*skepv1.Service, error) {
	return pages(func(p *skepv1.Page) ([]*skepv1.Service, string, error) {
		r, err := call(ctx, s.cluster, api.ServiceList, &skepv1.ListServicesRequest{Filters: f, Page: p})
		return r.GetServices(), r.GetNext(), err
	})
}

func (s *Service) nodes(ctx context.Context, f ...*skepv1.Filter) ([]*skepv1.Node, error) {
	return pages(func(p *skepv1.Page) ([]*skepv1.Node, string, error) {
		r, err := call(ctx, s.cluster, api.NodeList, &skepv1.ListNodesRequest{Filters: f, Page: p})
		return r.GetNodes(), r.GetNext(), err
	})
}

func (s *Service) tasks(ctx context.Context, f ...*skepv1.Filter) ([]*skepv1.Task, error) {
	return pages(func(p *skepv1.Page) ([]*skepv1.Task, string, error) {
		r, err := call(ctx, s.cluster, api.TaskList, &skepv1.ListTasksRequest{Filters: f, Page: p})
		return r.GetTasks(), r.GetNext(), err
	})
}

func (s *Service) networks(ctx context.Context, f ...*skepv1.Filter) ([]*skepv1.Network, error) {
	return pages(func(p *skepv1.Page) ([]*skepv1.Network, string, error) {
		r, err := call(ctx, s.cluster, api.NetworkList, &skepv1.ListNetworksRequest{Filters: f, Page: p})
		return r.GetNetworks(), r.GetNext(), err
	})
}

// service finds a service by id, name or the beginning of its id.
func (s *Service) service(ctx context.Context, ref string) (*skepv1.Service, error) {
	r, err := call(ctx, s.cluster, api.ServiceInspect, &skepv1.Ref{Ref: ref})
	return r.GetService(), named(err, "service", ref)
}

func (s *Service) task(ctx context.Context, ref string) (*skepv1.Task, error) {
	r, err := call(ctx, s.cluster, api.TaskInspect, &skepv1.Ref{Ref: ref})
	return r.GetTask(), named(err, "task", ref)
}

func (s *Service) node(ctx context.Context, ref string) (*skepv1.Node, error) {
	r, err := call(ctx, s.cluster, api.NodeInspect, &skepv1.Ref{Ref: ref})
	return r.GetNode(), named(err, "node", ref)
}

func (s *Service) network(ctx context.Context, ref string) (*skepv1.Network, error) {
	r, err := call(ctx, s.cluster, api.NetworkInspect, &skepv1.Ref{Ref: ref})
	return r.GetNetwork(), named(err, "network", ref)
}
