package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

const (
	// currentWithin is how long an answer waits for the newest records: less than a node's patience.
	currentWithin = 4 * time.Second
	// syncBytes bounds one page of an answer; a single record may be larger.
	syncBytes = 256 << 10
	// maxReply is what the broker takes, less the headers.
	maxReply = 1<<20 - 4096
)

// endpoints are what every instance answers.
func (s *Service) endpoints(srv *rpc.Server) error {
	return errors.Join(api.HandleNode(srv, api.MeshSync, s.sync), api.Handle(srv, api.MeshNetwork, s.network))
}

// leaderEndpoints are what writes.
func (s *Service) leaderEndpoints(srv *rpc.Server) error {
	return errors.Join(
		api.HandleNode(srv, api.MeshLease, s.lease),
		api.HandleNode(srv, api.MeshReturn, s.giveBack),
		api.HandleNode(srv, api.MeshDrain, s.drain),
	)
}

// ownNode refuses a message that speaks for another node than the one the broker let it come from.
func ownNode(node, claimed string) error {
	if claimed != "" && claimed != node {
		return fault.Denied("node %s cannot speak for node %s", node, claimed)
	}
	return nil
}

// sync answers what a node does not know of what it follows. It is not older than the question, as state's snapshots.
func (s *Service) sync(ctx context.Context, node string, r *skepv1.MeshSyncRequest) (*skepv1.MeshSyncReply, error) {
	if err := ownNode(node, r.NodeId); err != nil {
		return nil, err
	}
	now, cancel := context.WithTimeout(ctx, currentWithin)
	defer cancel()
	if err := s.syncs.share(now, s.feeds.Of(subject.Endpoint).Current); err != nil {
		return nil, fault.Unavailable("this manager may not know the newest records of the networks: try again (%v)", err)
	}
	scopes := append([]string{keys.ScopeNodes, keys.ScopeIngress}, r.Networks...)
	slices.Sort(scopes)
	scopes = slices.Compact(scopes)
	// How far the feed is says more than the newest record: what was deleted last has left nothing to see.
	applied := s.feeds.Of(subject.Endpoint).Revision()
	s.mu.Lock()
	defer s.mu.Unlock()
	out := &skepv1.MeshSyncReply{Revision: max(applied, s.pic.Revision())}
	size := 0
	full := func(more int) bool {
		if size > 0 && size+more > syncBytes {
			out.More = true
			return true
		}
		size += more
		return false
	}
	for _, scope := range scopes {
		for _, item := range s.pic.Items(scope) {
			key := keys.Endpoint.Key(scope, item)
			e, _ := s.pic.Get(key)
			if r.Known[key] >= e.Revision {
				continue
			}
			if full(len(e.Raw) + len(key) + 24) {
				return out, nil
			}
			out.Changed = append(out.Changed, &skepv1.MeshEntry{Key: key, Revision: e.Revision, Record: e.Record()})
		}
	}
	for key, rev := range r.Known {
		scope, _, _ := keys.ParseEndpoint(key)
		if _, ok := slices.BinarySearch(scopes, scope); !ok || rev > out.Revision {
			continue
		}
		if _, exists := s.pic.Get(key); !exists {
			if full(len(key) + 4) {
				break
			}
			out.Gone = append(out.Gone, key)
		}
	}
	slices.Sort(out.Gone)
	return out, nil
}

// network is what `skep network inspect -v` shows.
func (s *Service) network(_ context.Context, r *skepv1.MeshNetworkRequest) (*skepv1.MeshNetworkReply, error) {
	scope := r.NetworkId
	if scope == "" {
		scope = keys.ScopeIngress
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if scope != keys.ScopeIngress && s.pic.Network(scope) == nil {
		return nil, fault.NotFound("network %s not found", scope)
	}
	out := &skepv1.MeshNetworkReply{}
	byID := map[string]*skepv1.MeshNetworkService{}
	parts := map[string]*skepv1.MeshEndpoints{}
	items := s.pic.Items(scope)
	for _, item := range items {
		e, _ := s.pic.Get(keys.Endpoint.Key(scope, item))
		rec := e.Record()
		if svc := rec.GetService(); svc != nil {
			byID[svc.Id] = &skepv1.MeshNetworkService{Service: svc}
			out.Services = append(out.Services, byID[svc.Id])
		}
		parts[item] = rec.GetEndpoints()
	}
	tasks := 0
	for _, node := range items {
		eps := parts[node]
		if eps == nil {
			continue
		}
		hostname, addr := s.pic.Host(node)
		out.Peers = append(out.Peers, &skepv1.MeshPeer{NodeId: node, Hostname: hostname, Addr: addr, Blocks: eps.Blocks, Endpoints: uint64(len(eps.Endpoints))})
		for _, t := range eps.Endpoints {
			svc := byID[t.ServiceId]
			if svc == nil {
				continue
			}
			tasks++
			svc.Tasks = append(svc.Tasks, &skepv1.MeshNetworkTask{
				Name: taskName(svc.Service.Name, t.Slot, node), TaskId: t.TaskId, NodeId: node, NodeAddr: addr, Addr: t.Addr, Addr6: t.Addr6, Serving: t.Serving,
			})
		}
	}
	slices.SortFunc(out.Services, func(a, b *skepv1.MeshNetworkService) int { return strings.Compare(a.Service.Name, b.Service.Name) })
	if size := proto.Size(out); size > maxReply {
		return nil, fault.Exhausted("%d tasks of %d services on %d nodes are too many for one answer (%d bytes, the broker takes %d): ask single nodes with `skep mesh ls --node NODE`",
			tasks, len(out.Services), len(out.Peers), size, maxReply)
	}
	return out, nil
}

func taskName(service string, slot uint64, node string) string {
	if slot == 0 {
		return service + "." + node
	}
	return fmt.Sprintf("%s.%d", service, slot)
}
