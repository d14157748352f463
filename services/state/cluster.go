package state

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/id"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/rpc"
	"skep.dev/libs/spec"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

func errNoCluster() error {
	return fault.Unavailable("there is no cluster yet: run skep init first")
}

// initCluster makes the cluster object. It succeeds once; the same request again gets the same answer.
func (s *Service) initCluster(ctx context.Context, r *skepv1.InitClusterRequest) (*skepv1.ClusterReply, error) {
	c := r.Spec
	if c == nil {
		c = &skepv1.ClusterSpec{}
	}
	spec.ClusterDefaults(c)
	if err := spec.ValidateCluster(c); err != nil {
		return nil, err
	}
	backupsSince(c, nil)
	cid := r.ClusterId
	if cid == "" {
		cid = id.New()
	}
	if !id.Valid(cid) {
		return nil, fault.Invalid("invalid cluster id %q: it must be %d characters of 0-9 and a-z", cid, id.Len)
	}
	now := timestamppb.Now()
	body, err := proto.Marshal(&skepv1.Cluster{Meta: &skepv1.Meta{Id: cid, CreatedAt: now, UpdatedAt: now}, Spec: c, CaDigest: r.CaDigest})
	if err != nil {
		return nil, fmt.Errorf("encode the cluster: %w", err)
	}
	err = s.retry(ctx, func() error {
		if cur := s.ix.Cluster(); cur != nil {
			if cur.Meta.Id == cid && cur.CaDigest == r.CaDigest {
				return nil
			}
			return fault.Conflict("the cluster is initialised already, its id is %s", cur.Meta.Id)
		}
		rev, err := s.spec.Create(ctx, keys.Cluster.Key(), body)
		switch {
		case errors.Is(err, kv.ErrConflict):
			return err
		case err != nil:
			return fault.Unavailable("store the cluster: %v", err)
		}
		s.events.send(ctx, &skepv1.Event{Kind: "cluster", Id: cid, Name: c.Name, Verb: "create"})
		return seen(ctx, s.feeds.Of(subject.Spec), rev)
	})
	if err != nil {
		return nil, err
	}
	return &skepv1.ClusterReply{Cluster: s.ix.Cluster()}, nil
}

func (s *Service) inspectCluster(context.Context, *skepv1.Empty) (*skepv1.ClusterReply, error) {
	c := s.ix.Cluster()
	if c == nil {
		return nil, errNoCluster()
	}
	return &skepv1.ClusterReply{Cluster: c}, nil
}

func (s *Service) updateCluster(ctx context.Context, r *skepv1.UpdateClusterRequest) (*skepv1.ClusterReply, error) {
	if r.Spec == nil {
		return nil, fault.Invalid("cluster spec is missing")
	}
	if err := s.atLeast(ctx, r.Version); err != nil {
		return nil, err
	}
	err := s.retry(ctx, func() error {
		cur := s.ix.Cluster()
		if cur == nil {
			return errNoCluster()
		}
		if r.Version != 0 && r.Version != cur.Meta.Version {
			return errOutOfSequence
		}
		next := proto.CloneOf(r.Spec)
		keepPools(next, cur.Spec)
		spec.ClusterDefaults(next)
		if err := spec.ValidateCluster(next); err != nil {
			return err
		}
		if err := poolsKept(next, cur.Spec); err != nil {
			return err
		}
		backupsSince(next, cur.Spec)
		if proto.Equal(next, cur.Spec) {
			return nil
		}
		if cur.Spec.Autolock && !next.Autolock && r.Version == 0 {
			return fault.Invalid("update the cluster: a spec without autolock would turn it off and have the master key in clear on every manager: read the cluster, change its spec, and send the version it had")
		}
		if err := s.setAutolock(ctx, next, cur.Spec); err != nil {
			return err
		}
		version := cur.Meta.Version
		cur.Spec, cur.Meta.Version, cur.Meta.UpdatedAt = next, 0, timestamppb.Now()
		body, err := proto.Marshal(cur)
		if err != nil {
			return fmt.Errorf("encode the cluster: %w", err)
		}
		rev, err := s.spec.Update(ctx, keys.Cluster.Key(), body, version)
		switch {
		case errors.Is(err, kv.ErrConflict):
			return err
		case err != nil:
			return fault.Unavailable("store the cluster: %v", err)
		}
		s.events.send(ctx, &skepv1.Event{Kind: "cluster", Id: cur.Meta.Id, Name: next.Name, Verb: "update"})
		defer s.tellNodes()
		return seen(ctx, s.feeds.Of(subject.Spec), rev)
	})
	if err != nil {
		return nil, err
	}
	return &skepv1.ClusterReply{Cluster: s.ix.Cluster()}, nil
}

// setAutolock has the vault turn autolock on or off before the spec says so. The vault's own record is what counts: it is
// sealed, and the spec could be altered by whoever can write the store's files.
func (s *Service) setAutolock(ctx context.Context, next, cur *skepv1.ClusterSpec) error {
	if next.Autolock == cur.Autolock {
		return nil
	}
	_, err := api.Call(ctx, s.cfg.NC, api.AutolockSet, &skepv1.SetAutolockRequest{On: next.Autolock, By: rpc.Asker(ctx), ByAddress: rpc.AskerAddress(ctx)})
	return err
}

// backupsSince writes down when the schedule of backups was set: by it every manager knows the same times.
func backupsSince(next, cur *skepv1.ClusterSpec) {
	n, c := next.Backups, cur.GetBackups()
	switch {
	case n == nil:
	case c.GetSince() != nil && n.Cron == c.Cron && n.TimeZone == c.TimeZone:
		n.Since = c.Since
	default:
		n.Since = timestamppb.Now()
	}
}

// keepPools carries over what an update left open and could not change anyway.
func keepPools(next, cur *skepv1.ClusterSpec) {
	if len(next.DefaultAddrPools) == 0 {
		next.DefaultAddrPools = cur.DefaultAddrPools
	}
	if next.SubnetSize == 0 {
		next.SubnetSize = cur.SubnetSize
	}
	if next.DataPathPort == 0 {
		next.DataPathPort = cur.DataPathPort
	}
	if next.NodeSubnetPool == "" {
		next.NodeSubnetPool = cur.NodeSubnetPool
	}
	if next.NodeSubnetSize == 0 {
		next.NodeSubnetSize = cur.NodeSubnetSize
	}
	if next.HeartbeatPeriod == nil {
		next.HeartbeatPeriod = cur.HeartbeatPeriod
	}
	if next.NodeCertExpiry == nil {
		next.NodeCertExpiry = cur.NodeCertExpiry
	}
}

// poolsKept refuses what nodes and networks have been built on.
func poolsKept(next, cur *skepv1.ClusterSpec) error {
	pools := func(c *skepv1.ClusterSpec) *skepv1.ClusterSpec {
		return &skepv1.ClusterSpec{
			DefaultAddrPools: c.DefaultAddrPools, SubnetSize: c.SubnetSize, DataPathPort: c.DataPathPort,
			NodeSubnetPool: c.NodeSubnetPool, NodeSubnetSize: c.NodeSubnetSize,
		}
	}
	if !proto.Equal(pools(next), pools(cur)) {
		return fault.Invalid("address pools, subnet sizes and the data path port cannot be changed after skep init: nodes and networks are built on them")
	}
	return nil
}
