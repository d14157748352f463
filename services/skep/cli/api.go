package cli

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

func (a *app) services(ctx context.Context, f ...*skepv1.Filter) ([]*skepv1.Service, error) {
	return pages(func(p *skepv1.Page) ([]*skepv1.Service, string, error) {
		r, err := call(ctx, a, api.ServiceList, &skepv1.ListServicesRequest{Filters: f, Page: p})
		return r.GetServices(), r.GetNext(), err
	})
}

func (a *app) nodes(ctx context.Context, f ...*skepv1.Filter) ([]*skepv1.Node, error) {
	return pages(func(p *skepv1.Page) ([]*skepv1.Node, string, error) {
		r, err := call(ctx, a, api.NodeList, &skepv1.ListNodesRequest{Filters: f, Page: p})
		return r.GetNodes(), r.GetNext(), err
	})
}

func (a *app) tasks(ctx context.Context, f ...*skepv1.Filter) ([]*skepv1.Task, error) {
	return pages(func(p *skepv1.Page) ([]*skepv1.Task, string, error) {
		r, err := call(ctx, a, api.TaskList, &skepv1.ListTasksRequest{Filters: f, Page: p})
		return r.GetTasks(), r.GetNext(), err
	})
}

func (a *app) networks(ctx context.Context, f ...*skepv1.Filter) ([]*skepv1.Network, error) {
	return pages(func(p *skepv1.Page) ([]*skepv1.Network, string, error) {
		r, err := call(ctx, a, api.NetworkList, &skepv1.ListNetworksRequest{Filters: f, Page: p})
		return r.GetNetworks(), r.GetNext(), err
	})
}

func (a *app) network(ctx context.Context, ref string) (*skepv1.Network, error) {
	r, err := call(ctx, a, api.NetworkInspect, &skepv1.Ref{Ref: ref})
	return r.GetNetwork(), err
}

func (a *app) revisions(ctx context.Context, ref string) ([]*skepv1.Revision, error) {
	return pages(func(p *skepv1.Page) ([]*skepv1.Revision, string, error) {
		r, err := call(ctx, a, api.ServiceRevisions, &skepv1.ListRevisionsRequest{Ref: ref, Page: p})
		return r.GetRevisions(), r.GetNext(), err
	})
}

func (a *app) service(ctx context.Context, ref string) (*skepv1.Service, error) {
	r, err := call(ctx, a, api.ServiceInspect, &skepv1.Ref{Ref: ref})
	return r.GetService(), err
}

func (a *app) inspectNode(ctx context.Context, ref string) (*skepv1.Node, error) {
	r, err := call(ctx, a, api.NodeInspect, &skepv1.Ref{Ref: ref})
	return r.GetNode(), err
}

func (a *app) inspectTask(ctx context.Context, ref string) (*skepv1.Task, error) {
	r, err := call(ctx, a, api.TaskInspect, &skepv1.Ref{Ref: ref})
	return r.GetTask(), err
}

func (a *app) cluster(ctx context.Context) (*skepv1.Cluster, error) {
	r, err := call(ctx, a, api.ClusterInspect, &skepv1.Empty{})
	return r.GetCluster(), err
}
