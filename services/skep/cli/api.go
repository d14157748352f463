package cli

import (
	"context"
	"strings"

	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// parseFilters turns --filter key=value into the API's form, same keys together.
func parseFilters(in []string) ([]*skepv1.Filter, error) {
	var out []*skepv1.Filter
next:
	for _, f := range in {
		k, v, ok := strings.Cut(f, "=")
		k = strings.ToLower(strings.TrimSpace(k))
		if !ok || k == "" {
			return nil, Usagef("invalid filter '%s': filters are key=value", f)
		}
		for _, o := range out {
			if o.Key == k {
				o.Values = append(o.Values, strings.TrimSpace(v))
				continue next
			}
		}
		out = append(out, &skepv1.Filter{Key: k, Values: []string{strings.TrimSpace(v)}})
	}
	return out, nil
}

func filter(key string, values ...string) *skepv1.Filter {
	return &skepv1.Filter{Key: key, Values: values}
}

func (a *app) services(ctx context.Context, f ...*skepv1.Filter) ([]*skepv1.Service, error) {
	var out []*skepv1.Service
	for after := ""; ; {
		var r skepv1.ListServicesReply
		if err := a.call(ctx, subject.API("service", "list"), &skepv1.ListServicesRequest{Filters: f, Page: &skepv1.Page{After: after}}, &r); err != nil {
			return nil, err
		}
		out = append(out, r.Services...)
		if after = r.Next; after == "" {
			return out, nil
		}
	}
}

func (a *app) nodes(ctx context.Context, f ...*skepv1.Filter) ([]*skepv1.Node, error) {
	var out []*skepv1.Node
	for after := ""; ; {
		var r skepv1.ListNodesReply
		if err := a.call(ctx, subject.API("node", "list"), &skepv1.ListNodesRequest{Filters: f, Page: &skepv1.Page{After: after}}, &r); err != nil {
			return nil, err
		}
		out = append(out, r.Nodes...)
		if after = r.Next; after == "" {
			return out, nil
		}
	}
}

func (a *app) tasks(ctx context.Context, f ...*skepv1.Filter) ([]*skepv1.Task, error) {
	var out []*skepv1.Task
	for after := ""; ; {
		var r skepv1.ListTasksReply
		if err := a.call(ctx, subject.API("task", "list"), &skepv1.ListTasksRequest{Filters: f, Page: &skepv1.Page{After: after}}, &r); err != nil {
			return nil, err
		}
		out = append(out, r.Tasks...)
		if after = r.Next; after == "" {
			return out, nil
		}
	}
}

func (a *app) networks(ctx context.Context, f ...*skepv1.Filter) ([]*skepv1.Network, error) {
	var out []*skepv1.Network
	for after := ""; ; {
		var r skepv1.ListNetworksReply
		if err := a.call(ctx, subject.API("network", "list"), &skepv1.ListNetworksRequest{Filters: f, Page: &skepv1.Page{After: after}}, &r); err != nil {
			return nil, err
		}
		out = append(out, r.Networks...)
		if after = r.Next; after == "" {
			return out, nil
		}
	}
}

func (a *app) network(ctx context.Context, ref string) (*skepv1.Network, error) {
	var r skepv1.NetworkReply
	err := a.call(ctx, subject.API("network", "inspect"), &skepv1.Ref{Ref: ref}, &r)
	return r.Network, err
}

func (a *app) revisions(ctx context.Context, ref string) ([]*skepv1.Revision, error) {
	var out []*skepv1.Revision
	for after := ""; ; {
		var r skepv1.ListRevisionsReply
		if err := a.call(ctx, subject.API("service", "revisions"), &skepv1.ListRevisionsRequest{Ref: ref, Page: &skepv1.Page{After: after}}, &r); err != nil {
			return nil, err
		}
		out = append(out, r.Revisions...)
		if after = r.Next; after == "" {
			return out, nil
		}
	}
}

func (a *app) service(ctx context.Context, ref string) (*skepv1.Service, error) {
	var r skepv1.ServiceReply
	err := a.call(ctx, subject.API("service", "inspect"), &skepv1.Ref{Ref: ref}, &r)
	return r.Service, err
}

func (a *app) inspectNode(ctx context.Context, ref string) (*skepv1.Node, error) {
	var r skepv1.NodeReply
	err := a.call(ctx, subject.API("node", "inspect"), &skepv1.Ref{Ref: ref}, &r)
	return r.Node, err
}

func (a *app) inspectTask(ctx context.Context, ref string) (*skepv1.Task, error) {
	var r skepv1.TaskReply
	err := a.call(ctx, subject.API("task", "inspect"), &skepv1.Ref{Ref: ref}, &r)
	return r.Task, err
}

func (a *app) cluster(ctx context.Context) (*skepv1.Cluster, error) {
	var r skepv1.ClusterReply
	err := a.call(ctx, subject.API("cluster", "inspect"), &skepv1.Empty{}, &r)
	return r.Cluster, err
}
