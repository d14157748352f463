package member

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"
	"google.golang.org/protobuf/encoding/protojson"

	"skep.dev/libs/api"
	skepv1 "skep.dev/proto/skep/v1"
)

// Found stores what `skep init` asked for, if the record still holds it: the cluster and its first node. It may run
// again after a crash, or twice at once: both requests are idempotent for the same ids. nc must be a manager's own.
func Found(ctx context.Context, nc *nats.Conn, p Paths) (*Record, error) {
	r, err := Load(p)
	if err != nil || r.Init == nil {
		return r, err
	}
	spec := &skepv1.ClusterSpec{}
	if err := protojson.Unmarshal(r.Init.Cluster, spec); err != nil {
		return nil, fmt.Errorf("read the cluster's initial settings: %w", err)
	}
	req := &skepv1.InitClusterRequest{Spec: spec, ClusterId: r.ClusterID, CaDigest: r.Init.CADigest}
	if _, err := api.Call(ctx, nc, api.ClusterInit, req); err != nil {
		return nil, fmt.Errorf("store the new cluster: %w", err)
	}
	admit := &skepv1.AdmitNodeRequest{
		NodeId: r.NodeID, Role: skepv1.NodeRole_NODE_ROLE_MANAGER, Hostname: r.Hostname, Addr: r.Host(),
		Availability: skepv1.Availability(skepv1.Availability_value["AVAILABILITY_"+r.Init.Availability]),
	}
	if _, err := api.Call(ctx, nc, api.NodeAdmit, admit); err != nil {
		return nil, fmt.Errorf("admit this node: %w", err)
	}
	return Update(p, func(r *Record) { r.Init = nil })
}

// LearnSubnet asks the managers for this node's subnet and number, once: the record keeps them, so a node starts with its last known
// network when no manager answers. It blocks until there is one.
func LearnSubnet(ctx context.Context, nc *nats.Conn, p Paths, log *zap.Logger) (*Record, error) {
	for said := false; ; {
		r, err := Load(p)
		if err != nil || r.Subnet != "" && r.Number != 0 { // another process of this node may have learnt it
			return r, err
		}
		try, cancel := context.WithTimeout(ctx, 2*time.Second)
		var reply *skepv1.SnapshotReply
		err = errors.New("not connected to any manager")
		if nc.IsConnected() {
			reply, err = api.Call(try, nc, api.StateSnapshot.At(r.NodeID), &skepv1.SnapshotRequest{NodeId: r.NodeID})
		}
		cancel()
		if err == nil && reply.GetNode().GetSubnet() == "" {
			err = errors.New("it has no subnet yet")
		}
		if err == nil {
			return Update(p, func(r *Record) {
				r.Subnet, r.Number, r.DataPathPort = reply.Node.Subnet, reply.Node.Number, reply.GetCluster().GetDataPathPort()
			})
		}
		if !said && ctx.Err() == nil {
			log.Info("waiting for the managers to tell this node's subnet", zap.Error(err))
			said = true
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("learn this node's subnet: %w", err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
