package engine

import (
	"context"
	"slices"

	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/api"
	"skep.dev/libs/containers"
	"skep.dev/libs/member"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/engine-api/internal/translate"
)

// pastEvents tells of the events that the managers keep, and of those of the containers that this node knows, in the order of time.
func (s *Service) pastEvents(ctx context.Context, n containers.Node, ofCluster bool, since, until *timestamppb.Timestamp, tell func(*skepv1.Event) error) error {
	var own []*skepv1.Event
	if n != nil {
		own = slices.DeleteFunc(pastOfNode(n), func(e *skepv1.Event) bool {
			at := e.GetTime().AsTime()
			return since != nil && at.Before(since.AsTime()) || until != nil && at.After(until.AsTime())
		})
		slices.SortStableFunc(own, byTime)
	}
	for after := ""; ofCluster; {
		r, err := call(ctx, s.cluster, api.EventList, &skepv1.ListEventsRequest{Since: since, Until: until, Page: &skepv1.Page{After: after}})
		if err != nil {
			return err
		}
		for _, e := range r.Events {
			if e.GetKind() == translate.KindContainer {
				continue // those are told by their own nodes
			}
			for len(own) > 0 && byTime(own[0], e) <= 0 {
				if err := tell(own[0]); err != nil {
					return err
				}
				own = own[1:]
			}
			if err := tell(e); err != nil {
				return err
			}
		}
		if after = r.Next; after == "" {
			break
		}
	}
	for _, e := range own {
		if err := tell(e); err != nil {
			return err
		}
	}
	return nil
}

func byTime(a, b *skepv1.Event) int { return a.GetTime().AsTime().Compare(b.GetTime().AsTime()) }

// nodeOf is this node's agent, nil when there is none to ask.
func (s *Service) nodeOf() containers.Node {
	if s.cfg.Node == nil {
		return nil
	}
	return s.cfg.Node()
}

// without reports whether this node is of a kind that has no manager.
func (c *cluster) without() bool {
	rec, err := member.Load(c.paths)
	return err == nil && rec.Role != member.RoleManager
}
