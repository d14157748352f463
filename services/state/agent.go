package state

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/fault"
	"skep.dev/libs/kv"
	skepv1 "skep.dev/proto/skep/v1"
)

// busPort is where managers take connections when a node's address does not say.
const busPort = "2377"

// specsBytes bounds one reply of revisions; an agent asks again for those it still misses.
const specsBytes = 512 << 10

// currentWithin is how long a snapshot waits for the newest tasks: less than an agent's patience.
const currentWithin = 4 * time.Second

// ownNode refuses a message that speaks for another node than the one the broker let it come from.
func (s *Service) ownNode(ctx context.Context, node, claimed string) error {
	if claimed != "" && claimed != node {
		return fault.Denied("node %s cannot speak for node %s", node, claimed)
	}
	if s.ix.HasNode(node) {
		return nil
	}
	// An agent that hears this cleans up: be sure.
	if catchUp(ctx, s.specFeed) && s.ix.HasNode(node) {
		return nil
	}
	if !s.gone(ctx, nodeKey(node)) {
		return fault.Unavailable("this manager does not know node %s yet: try again", node)
	}
	return notPart(node)
}

// describeNode stores what a node says of itself, when it is new.
func (s *Service) describeNode(ctx context.Context, node string, r *skepv1.DescribeRequest) (*skepv1.DescribeReply, error) {
	if err := s.ownNode(ctx, node, r.NodeId); err != nil {
		return nil, err
	}
	if r.Description == nil {
		return nil, fault.Invalid("node %s sent no description", node)
	}
	body, err := proto.Marshal(r.Description)
	if err != nil {
		return nil, fmt.Errorf("encode the description of node %s: %w", node, err)
	}
	err = s.retry(ctx, func() error {
		cur, at := s.ix.Description(node)
		if cur != nil && proto.Equal(cur, r.Description) {
			return nil
		}
		var rev uint64
		var err error
		if at == 0 {
			rev, err = s.nodes.Create(ctx, descKey(node), body)
		} else {
			rev, err = s.nodes.Update(ctx, descKey(node), body, at)
		}
		switch {
		case errors.Is(err, kv.ErrConflict):
			return err
		case err != nil:
			return fault.Unavailable("store the description of node %s: %v", node, err)
		}
		s.events.send(&skepv1.Event{Kind: "node", Id: node, Name: r.Description.Hostname, Verb: "describe", Attributes: map[string]string{"name": r.Description.Hostname}})
		return seen(ctx, s.nodeFeed, rev)
	})
	if err != nil {
		return nil, err
	}
	out := &skepv1.DescribeReply{Node: s.ix.NodeObject(node)}
	if c := s.ix.Cluster(); c != nil {
		out.Cluster = c.Spec
	}
	out.ManagerAddrs = s.managerAddrs()
	return out, nil
}

func (s *Service) managerAddrs() []string {
	if s.cfg.ManagerAddrs != nil {
		return s.cfg.ManagerAddrs()
	}
	_, _, addrs := s.ix.Managers()
	for i, a := range addrs {
		if _, _, err := net.SplitHostPort(a); err != nil {
			addrs[i] = net.JoinHostPort(a, busPort)
		}
	}
	return addrs
}

// snapshot is a node's whole task set, for an agent that starts or has missed a push. It is not older than the question:
// an agent that subscribes and then asks hears of every change, also of one it was not there for. After a restart of the
// broker the index may be seconds behind.
func (s *Service) snapshot(ctx context.Context, node string, r *skepv1.SnapshotRequest) (*skepv1.SnapshotReply, error) {
	if err := s.ownNode(ctx, node, r.NodeId); err != nil {
		return nil, err
	}
	now, cancel := context.WithTimeout(ctx, currentWithin)
	defer cancel()
	if err := s.taskFeed.Current(now); err != nil {
		return nil, fault.Unavailable("this manager may not know the newest tasks of node %s: try again (%v)", node, err)
	}
	records, _, gen := s.ix.Tasks(node)
	out := &skepv1.SnapshotReply{
		Generation: gen, Tasks: &skepv1.NodeTasks{Tasks: records},
		Node: s.ix.NodeObject(node), LastReport: s.ix.Report(node).Number,
	}
	if c := s.ix.Cluster(); c != nil {
		out.Cluster = c.Spec
	}
	return out, nil
}

// specs answers revisions that some task of the node was made from, and leaves out all others: a node learns only
// what it runs.
func (s *Service) specs(ctx context.Context, node string, r *skepv1.SpecsRequest) (*skepv1.SpecsReply, error) {
	if err := s.ownNode(ctx, node, r.NodeId); err != nil {
		return nil, err
	}
	assigned := s.ix.Assigned(node)
	out := &skepv1.SpecsReply{}
	if c := s.ix.Cluster(); c != nil {
		out.Cluster = c.Spec
	}
	size := 0
	for _, k := range r.Keys {
		if !assigned[k.ServiceId][k.Revision] {
			continue
		}
		rev := s.ix.Revision(k.ServiceId, k.Revision)
		if rev == nil {
			continue
		}
		n := proto.Size(rev)
		if size > 0 && size+n > specsBytes {
			break
		}
		size += n
		out.Revisions = append(out.Revisions, rev)
	}
	return out, nil
}
