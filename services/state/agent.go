package state

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/subject"
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
	if catchUp(ctx, s.feeds.Of(subject.Spec)); s.ix.HasNode(node) {
		return nil
	}
	if !s.gone(ctx, keys.Node.Key(node)) {
		return fault.Unavailable("this manager does not know node %s yet: try again", node)
	}
	return notPart(node)
}

// describeNode stores what a node says of itself, when it is new.
func (s *Service) describeNode(ctx context.Context, node string, r *skepv1.DescribeRequest) (*skepv1.DescribeReply, error) {
	if err := s.ownNode(ctx, node, r.NodeId); err != nil {
		return nil, err
	}
	if err := s.sole(ctx, node, r.Session); err != nil {
		return nil, err
	}
	if r.Description == nil {
		return nil, fault.Invalid("node %s sent no description", node)
	}
	if err := checkDescription(r.Description); err != nil {
		return nil, err
	}
	said := r.Description.Hostname
	err := s.retry(ctx, func() error {
		cur, at := s.ix.Description(node)
		r.Description.Hostname = s.mayBeCalled(ctx, node, cur, said)
		if cur != nil && proto.Equal(cur, r.Description) {
			return nil
		}
		if !s.describes.Allow(node, time.Now()) {
			return fault.Unavailable("node %s describes itself anew too often: once a second is read", node)
		}
		body, err := proto.Marshal(r.Description)
		if err != nil {
			return fmt.Errorf("encode the description of node %s: %w", node, err)
		}
		rev, err := s.nodes.Set(ctx, keys.Description.Key(node), body, at)
		switch {
		case errors.Is(err, kv.ErrConflict):
			return err
		case err != nil:
			return fault.Unavailable("store the description of node %s: %v", node, err)
		}
		s.events.send(ctx, describeEvent(node, cur, r.Description))
		return seen(ctx, s.feeds.Of(subject.NodeB), rev)
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

// describeEvent tells what a node says of itself, and what it said before where the scheduler weighs it.
func describeEvent(node string, was, is *skepv1.NodeDescription) *skepv1.Event {
	attr := map[string]string{"name": is.Hostname}
	differ := func(key string, a, b any) {
		if was != nil && a != b {
			attr[key+".old"], attr[key+".new"] = fmt.Sprint(a), fmt.Sprint(b)
		}
	}
	differ("name", was.GetHostname(), is.Hostname)
	differ("addr", was.GetAddr(), is.Addr)
	differ("nanoCpus", was.GetResources().GetNanoCpus(), is.GetResources().GetNanoCpus())
	differ("memoryBytes", was.GetResources().GetMemoryBytes(), is.GetResources().GetMemoryBytes())
	return &skepv1.Event{Kind: "node", Id: node, Name: is.Hostname, Verb: "describe", Attributes: attr}
}

// mayBeCalled is the host name a node is shown under: what it says, unless that is another node's name. Then it keeps
// the one it had, or is called by its id.
func (s *Service) mayBeCalled(ctx context.Context, node string, cur *skepv1.NodeDescription, said string) string {
	had := cur.GetHostname()
	holder := ""
	if said != had {
		holder = s.called(said, node)
	}
	if holder == "" {
		s.claimed.Delete(node)
		return said
	}
	if was, _ := s.claimed.Swap(node, said); was != said {
		s.log.Warn("a node calls itself what another is called", zap.String("node", node), zap.String("hostname", said), zap.String("other", holder))
		if s.events.nodes.Allow(node, time.Now()) {
			s.events.send(ctx, &skepv1.Event{Kind: "node", Id: node, Name: had, Verb: "describe", Attributes: map[string]string{"name": had, "name.taken": said},
				Message: fmt.Sprintf("it says it is called %s, which is node %s: give one of them another host name", said, holder)})
		}
	}
	if had == "" {
		return node
	}
	return had
}

// called finds a node other than this one that has the name, "" when there is none. One that is down may be the same
// machine before it was set up anew.
func (s *Service) called(name, than string) string {
	if name == "" {
		return ""
	}
	for _, n := range s.ix.NodeNames() {
		if n.ID == than || !strings.EqualFold(n.Name, name) {
			continue
		}
		if other := s.ix.Node(n.ID); other != nil && other.Status.GetState() != skepv1.NodeState_NODE_STATE_DOWN {
			return n.ID
		}
	}
	return ""
}

// snapshot is a node's whole task set, for an agent that starts or has missed a push. It is not older than the question:
// an agent that subscribes and then asks hears of every change, also of one it was not there for. After a restart of the
// broker the index may be seconds behind.
func (s *Service) snapshot(ctx context.Context, node string, r *skepv1.SnapshotRequest) (*skepv1.SnapshotReply, error) {
	if err := s.ownNode(ctx, node, r.NodeId); err != nil {
		return nil, err
	}
	if err := s.sole(ctx, node, r.Session); err != nil {
		return nil, err
	}
	now, cancel := context.WithTimeout(ctx, currentWithin)
	defer cancel()
	if err := s.feeds.Of(subject.Task).Current(now); err != nil {
		return nil, fault.Unavailable("this manager may not know the newest tasks of node %s: try again (%v)", node, err)
	}
	if err := s.feeds.Of(subject.Spec).Current(now); err != nil {
		return nil, fault.Unavailable("this manager may not know whether node %s was fenced: try again (%v)", node, err)
	}
	if s.ix.IsFenced(node) && len(s.ix.ClaimsOf(node)) > 0 {
		return nil, fault.Unavailable("node %s was fenced, and its new task set is not made yet: try again", node)
	}
	records, _, gen := s.ix.Tasks(node)
	out := &skepv1.SnapshotReply{
		Generation: gen, Tasks: &skepv1.NodeTasks{Tasks: records},
		Node: s.ix.NodeObject(node), LastReport: s.ix.Report(node).Number,
	}
	out.State, _ = s.ix.Standing(node)
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
		if !assigned[k.GetServiceId()][k.GetRevision()] {
			continue
		}
		delete(assigned[k.ServiceId], k.Revision) // asked twice, answered once
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
