package state

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/constraint"
	"skep.dev/libs/fault"
	"skep.dev/libs/id"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/spec"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

func notPart(node string) error {
	return fault.NotFound("node %s is not part of this cluster (it may have been removed)", node)
}

// admitNode makes the node object of a node the vault has certified: its number and with it the subnet of its
// skep0 bridge. Asked again it records that the newest certificate is a manager's. A manager it does not make a worker:
// whoever joined, and asks again because the answer was lost, may have been promoted since.
func (s *Service) admitNode(ctx context.Context, r *skepv1.AdmitNodeRequest) (*skepv1.NodeReply, error) {
	if !id.Valid(r.NodeId) {
		return nil, fault.Invalid("invalid node id %q: it must be %d characters of 0-9 and a-z", r.NodeId, id.Len)
	}
	want := &skepv1.NodeSpec{Role: r.Role, Availability: r.Availability}
	if err := spec.ValidateNode(want); err != nil {
		return nil, err
	}
	if err := checkDescription(&skepv1.NodeDescription{Hostname: r.Hostname, Addr: r.Addr}); err != nil {
		return nil, err
	}
	if r.Witness {
		if r.Role != managerRole {
			return nil, fault.Invalid("admit node %s as a witness: it votes, so it is a manager", r.NodeId)
		}
		want.Availability = skepv1.Availability_AVAILABILITY_DRAIN
	}
	s.admitMu.Lock()
	defer s.admitMu.Unlock()
	created := false
	err := s.retry(ctx, func() error {
		if cur := s.ix.NodeObject(r.NodeId); cur != nil {
			if cur.Witness != r.Witness {
				return fault.Conflict("node %s is in the cluster already, and what it joined as does not change: take it out with `skep leave --force` and join it again", r.NodeId)
			}
			if r.Role != managerRole || cur.Role == managerRole && cur.Spec.Role == managerRole {
				return nil
			}
			cur.Role, cur.Spec.Role = r.Role, r.Role
			return s.putNode(ctx, cur)
		}
		c := s.ix.Cluster()
		if c == nil {
			return errNoCluster()
		}
		if other := s.called(r.Hostname, r.NodeId); other != "" {
			return fault.Conflict("node %s is called %s already: give this machine another host name, or remove that node if it is gone", other, r.Hostname)
		}
		now := timestamppb.Now()
		o := &skepv1.NodeObject{
			Meta: &skepv1.Meta{Id: r.NodeId, CreatedAt: now, UpdatedAt: now},
			Spec: want, Role: r.Role, Witness: r.Witness,
		}
		batch := s.spec.Batch()
		if !r.Witness { // which has no containers to address
			var err error
			if o.Number, o.Subnet, err = s.freeNumber(c.Spec); err != nil {
				return err
			}
			batch.Create(keys.Number(keys.NodeNumber, o.Number), []byte(r.NodeId))
		}
		body, err := proto.Marshal(o)
		if err != nil {
			return fmt.Errorf("encode node %s: %w", r.NodeId, err)
		}
		batch.Create(keys.Node.Key(r.NodeId), body)
		created = true
		return s.commit(ctx, batch, func() bool { return s.ix.HasNode(r.NodeId) })
	})
	if err != nil {
		return nil, err
	}
	if created {
		s.firstDescription(ctx, r)
		s.events.send(ctx, &skepv1.Event{Kind: "node", Id: r.NodeId, Name: r.Hostname, Verb: "create", Attributes: map[string]string{"name": r.Hostname, "role": spec.Word(r.Role)}})
	}
	return &skepv1.NodeReply{Node: s.ix.Node(r.NodeId)}, nil
}

// firstDescription gives a node its name until it describes itself.
func (s *Service) firstDescription(ctx context.Context, r *skepv1.AdmitNodeRequest) {
	if r.Hostname == "" {
		return
	}
	body, err := proto.Marshal(&skepv1.NodeDescription{Hostname: r.Hostname, Addr: r.Addr})
	if err == nil {
		var rev uint64
		if rev, err = s.nodes.Create(ctx, keys.Description.Key(r.NodeId), body); err == nil {
			err = seen(ctx, s.feeds.Of(subject.NodeB), rev)
		}
	}
	if err != nil && !errors.Is(err, kv.ErrConflict) {
		s.log.Warn("host name of a new node not stored, it will describe itself", zap.String("node", r.NodeId), zap.Error(err))
	}
}

// freeNumber finds the lowest free node number and cuts its subnet from the pool.
func (s *Service) freeNumber(c *skepv1.ClusterSpec) (uint32, string, error) {
	pool, err := netip.ParsePrefix(c.NodeSubnetPool)
	if err != nil {
		return 0, "", fmt.Errorf("read the node subnet pool %q: %w", c.NodeSubnetPool, err)
	}
	size := int(c.NodeSubnetSize)
	most := uint32(1) << (size - pool.Bits())
	taken := s.ix.Keys(keys.NodeNumber.Prefix())
	for n := uint32(1); n <= most; n++ {
		if _, used := taken[keys.Number(keys.NodeNumber, n)]; used {
			continue
		}
		b := pool.Addr().As4()
		base := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
		base += (n - 1) << (32 - size)
		addr := netip.AddrFrom4([4]byte{byte(base >> 24), byte(base >> 16), byte(base >> 8), byte(base)})
		return n, netip.PrefixFrom(addr, size).String(), nil
	}
	return 0, "", fault.Exhausted("the node subnet pool %s holds %d subnets of /%d and all are in use: remove nodes that are gone", pool, most, size)
}

// putNode writes a node object over the version it was read at.
func (s *Service) putNode(ctx context.Context, o *skepv1.NodeObject) error {
	body, err := encodeNode(o)
	if err != nil {
		return err
	}
	rev, err := s.spec.Update(ctx, keys.Node.Key(o.Meta.Id), body, o.Meta.Version)
	switch {
	case errors.Is(err, kv.ErrConflict):
		return err
	case err != nil:
		return fault.Unavailable("store node %s: %v", o.Meta.Id, err)
	}
	return seen(ctx, s.feeds.Of(subject.Spec), rev)
}

func (s *Service) inspectNode(ctx context.Context, r *skepv1.Ref) (*skepv1.NodeReply, error) {
	id, err := s.findNode(ctx, r.Ref)
	if err != nil {
		return nil, err
	}
	n := s.viewNode(id)
	if n == nil {
		return nil, noSuch("node", r.Ref, nil)
	}
	return &skepv1.NodeReply{Node: n}, nil
}

func (s *Service) listNodes(_ context.Context, r *skepv1.ListNodesRequest) (*skepv1.ListNodesReply, error) {
	f, err := parseFilters(r.Filters, "id", "name", "role", "membership", "label", "node.label", "status", "availability")
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.checkValues("role", "manager", "worker"), f.checkValues("membership", "accepted", "pending"),
		f.checkValues("status", "ready", "sick", "down", "unknown", "disconnected"), f.checkValues("availability", "active", "pause", "drain")); err != nil {
		return nil, err
	}
	out := &skepv1.ListNodesReply{}
	p := newPage(r.Page)
	for _, id := range s.ix.NodeIDs() {
		if id <= r.Page.GetAfter() || !f.prefix("id", id) {
			continue
		}
		n := s.viewNode(id)
		if n == nil || !f.prefix("name", n.Description.Hostname, n.Spec.Name) || !f.exact("role", spec.Word(n.Role)) ||
			!f.exact("membership", "accepted") || !f.labels("label", n.Description.EngineLabels) || !f.labels("node.label", n.Spec.Labels) ||
			!f.exact("status", spec.NodeStatus(n)) || !f.exact("availability", spec.Word(n.Spec.Availability)) {
			continue
		}
		if !p.takes(n) {
			out.Next = out.Nodes[len(out.Nodes)-1].Meta.Id
			break
		}
		out.Nodes = append(out.Nodes, n)
	}
	return out, nil
}

func (s *Service) updateNode(ctx context.Context, r *skepv1.UpdateNodeRequest) (*skepv1.NodeReply, error) {
	id, err := s.findNode(ctx, r.Ref)
	if err != nil {
		return nil, err
	}
	if err := s.atLeast(ctx, r.Version); err != nil {
		return nil, err
	}
	var before, after *skepv1.NodeSpec
	err = s.retry(ctx, func() error {
		cur := s.ix.NodeObject(id)
		if cur == nil {
			return noSuch("node", r.Ref, nil)
		}
		if r.Version != 0 && r.Version != cur.Meta.Version {
			return errOutOfSequence
		}
		before = proto.CloneOf(cur.Spec)
		certified := cur.Role
		if err := applyNode(cur.Spec, r); err != nil {
			return err
		}
		after = cur.Spec
		if err := spec.ValidateNode(after); err != nil {
			return err
		}
		if cur.Witness && after.Availability != skepv1.Availability_AVAILABILITY_DRAIN {
			return fault.Invalid("node %s is a witness: it has nothing to run tasks with, so its availability stays drain", s.nameOf(id))
		}
		if err := matchable(before.Labels, after.Labels); err != nil {
			return err
		}
		stays, err := s.turn(ctx, cur, before.Role)
		if err != nil || proto.Equal(before, after) && cur.Role == certified {
			return err
		}
		return s.putTurned(ctx, cur, stays)
	})
	if err != nil {
		return nil, err
	}
	if !proto.Equal(before, after) {
		s.events.send(ctx, nodeEvent(id, s.ix.Hostname(id), before, after))
	}
	return &skepv1.NodeReply{Node: s.ix.Node(id)}, nil
}

func applyNode(n *skepv1.NodeSpec, r *skepv1.UpdateNodeRequest) error {
	if r.Spec != nil {
		proto.Reset(n)
		proto.Merge(n, r.Spec)
	}
	if r.Availability != nil {
		n.Availability = *r.Availability
	}
	if r.Role != nil {
		n.Role = *r.Role
	}
	if n.Labels == nil {
		n.Labels = map[string]string{}
	}
	for _, k := range r.LabelRm {
		if _, ok := n.Labels[k]; !ok {
			has := "it has none"
			if len(n.Labels) > 0 {
				has = "it has " + strings.Join(slices.Sorted(maps.Keys(n.Labels)), ", ")
			}
			return fault.Invalid("key %s doesn't exist in node's labels: %s", k, has)
		}
		delete(n.Labels, k)
	}
	for k, v := range r.LabelAdd {
		n.Labels[k] = v
	}
	return nil
}

// matchable refuses new labels that no constraint could ask for. Those that are there stay.
func matchable(before, after map[string]string) error {
	for _, k := range slices.Sorted(maps.Keys(after)) {
		if old, had := before[k]; had && old == after[k] {
			continue
		}
		if err := constraint.CheckLabel(k, after[k]); err != nil {
			return fault.Invalid("%v", err)
		}
	}
	return nil
}

func nodeEvent(id, name string, before, after *skepv1.NodeSpec) *skepv1.Event {
	attr := map[string]string{"name": name}
	differ := func(key, a, b string) {
		if a != b {
			attr[key+".old"], attr[key+".new"] = a, b
		}
	}
	differ("availability", spec.Word(before.Availability), spec.Word(after.Availability))
	differ("role", spec.Word(before.Role), spec.Word(after.Role))
	for k, v := range after.Labels {
		if old, ok := before.Labels[k]; !ok || old != v {
			attr["label."+k+".new"] = v
		}
	}
	for k, v := range before.Labels {
		if now, ok := after.Labels[k]; !ok || now != v {
			attr["label."+k+".old"] = v
		}
	}
	return &skepv1.Event{Kind: "node", Id: id, Name: name, Verb: "update", Attributes: attr}
}

func (s *Service) removeNode(ctx context.Context, r *skepv1.RemoveNodeRequest) (*skepv1.Empty, error) {
	id, err := s.findNode(ctx, r.Ref)
	if err != nil {
		return nil, err
	}
	name := s.ix.Hostname(id)
	tried := false
	err = s.retry(ctx, func() error {
		n := s.ix.Node(id)
		if n == nil {
			if tried {
				return nil
			}
			return noSuch("node", r.Ref, nil)
		}
		stays := ""
		if n.Role == managerRole || n.Spec.Role == managerRole {
			var err error
			if stays, err = s.mayRemoveManager(ctx, n, r.Force); err != nil {
				return err
			}
		}
		if !r.Force && n.Status.State != skepv1.NodeState_NODE_STATE_DOWN {
			return fault.Invalid("node %s is not down and can't be removed: skep leave there first, or skep node rm --force %s, which ends its tasks", id, id)
		}
		batch := s.spec.Batch()
		batch.Delete(keys.Node.Key(id), n.Meta.Version)
		if k, ok := s.ix.Key(keys.Number(keys.NodeNumber, n.Number)); ok && k.Value == id {
			batch.Delete(keys.Number(keys.NodeNumber, n.Number), k.Revision)
		}
		if stays != "" {
			if err := s.hold(batch, stays); err != nil {
				return err
			}
		}
		tried = true
		return s.commit(ctx, batch, func() bool { return !s.ix.HasNode(id) })
	})
	if err != nil {
		return nil, err
	}
	// What it said of itself goes too; its status goes with the last of its tasks (sweep).
	if err := s.nodes.Delete(ctx, keys.Description.Key(id), 0); err != nil {
		s.log.Warn("description of a removed node left behind", zap.String("node", id), zap.Error(err))
	}
	s.events.send(ctx, &skepv1.Event{Kind: "node", Id: id, Name: name, Verb: "remove", Attributes: map[string]string{"name": name}})
	s.tellLostClaims(ctx, id, name)
	return &skepv1.Empty{}, nil
}
