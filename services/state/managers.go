package state

import (
	"context"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/member"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

const (
	workerRole  = skepv1.NodeRole_NODE_ROLE_WORKER
	managerRole = skepv1.NodeRole_NODE_ROLE_MANAGER
)

// listen takes the managers' signs of life until ctx ends.
func (s *Service) listen(ctx context.Context) {
	sub, err := s.cfg.NC.Subscribe(subject.AllManagerBeats, func(m *nats.Msg) {
		b := &skepv1.ManagerBeat{}
		// The broker lets a manager's services alone publish there; a beat in another's name is a fault of ours.
		if proto.Unmarshal(m.Data, b) == nil && m.Subject == subject.ManagerBeat(b.NodeId) {
			s.ix.Heard(b, time.Now())
		}
	})
	if err != nil {
		s.log.Error("the managers' signs of life are not heard", zap.Error(err))
		return
	}
	s.ix.Listens(time.Now())
	<-ctx.Done()
	_ = sub.Unsubscribe() // the connection may be gone
}

// tellRoles tells nodes whose certified role has changed that they are to ask (nodeManagers). Every instance does, when it
// knows itself: whichever is asked by the last of them has the new role.
func (s *Service) tellRoles(ctx context.Context) {
	body, err := proto.Marshal(&skepv1.Empty{})
	if err != nil {
		return
	}
	for {
		changed := s.ix.Changed()
		for _, id := range s.ix.Turned() {
			if err := s.cfg.NC.Publish(subject.PushRole(id), body); err != nil {
				s.log.Warn("a node is not told that its role changed; it asks by itself", zap.String("node", id), zap.Error(err))
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// nodeManagers answers a node what it should be, and where the managers are.
func (s *Service) nodeManagers(ctx context.Context, node string, _ *skepv1.Empty) (*skepv1.NodeManagersReply, error) {
	if err := s.ownNode(ctx, node, ""); err != nil {
		return nil, err
	}
	role, ok := s.ix.Role(node)
	if !ok {
		return nil, notPart(node)
	}
	return &skepv1.NodeManagersReply{Role: role, Addrs: s.managerAddrs(), Epoch: s.ix.ManagerSet().GetEpoch()}, nil
}

// managerAddrs are where nodes reach the managers: those of the group, or while there is none what this instance was told.
func (s *Service) managerAddrs() []string {
	if addrs := member.Addrs(s.ix.ManagerSet(), ""); len(addrs) > 0 {
		return addrs
	}
	if s.cfg.ManagerAddrs != nil {
		return s.cfg.ManagerAddrs()
	}
	addrs := s.ix.ManagerHosts()
	for i, a := range addrs {
		if _, _, err := net.SplitHostPort(a); err != nil {
			addrs[i] = net.JoinHostPort(a, busPort)
		}
	}
	return addrs
}

// turn brings a node's object in line with the role that its spec has come to have. A promotion is certified at once; the
// certificate of who is demoted stays a manager's until the group has let it go (settleNode). It returns a manager that has
// to stay what it is for the change to be right, "" when none has to.
func (s *Service) turn(ctx context.Context, n *skepv1.NodeObject, was skepv1.NodeRole) (stays string, err error) {
	switch id := n.Meta.Id; {
	case n.Spec.Role == managerRole:
		n.Role = managerRole
		return "", nil
	case was != managerRole:
		return "", nil
	default:
		// The group may have changed a moment ago, by another's hand.
		catchUp(ctx, s.feeds.Of(subject.NodeB))
		st := s.standing()
		if stays, err = st.without(id); err != nil {
			return "", err
		}
		if st.group != nil && !st.in(id) {
			n.Role = workerRole // it never came in: nobody has to let it go
		}
		return stays, nil
	}
}

// putTurned is putNode for a node that ceases to be a manager, on the condition that another stays one: of two managers that
// are demoted at the same time in two places the second is looked at again.
func (s *Service) putTurned(ctx context.Context, o *skepv1.NodeObject, stays string) error {
	if stays == "" {
		return s.putNode(ctx, o)
	}
	batch := s.spec.Batch()
	body, err := encodeNode(o)
	if err != nil {
		return err
	}
	batch.Update(keys.Node.Key(o.Meta.Id), body, o.Meta.Version)
	if err := s.hold(batch, stays); err != nil {
		return err
	}
	return s.commit(ctx, batch, func() bool { return proto.Equal(s.ix.NodeObject(o.Meta.Id).GetSpec(), o.Spec) })
}

// hold makes a batch fail unless a node stays a manager until it is committed: it writes its object as it is.
func (s *Service) hold(batch *kv.Batch, stays string) error {
	n := s.ix.NodeObject(stays)
	if n == nil || n.Spec.Role != managerRole {
		return kv.ErrConflict // not any more: look again
	}
	body, err := encodeNode(n)
	if err != nil {
		return err
	}
	batch.Update(keys.Node.Key(stays), body, n.Meta.Version)
	return nil
}

// encodeNode is a node's object as it is stored.
func encodeNode(o *skepv1.NodeObject) ([]byte, error) {
	o = proto.CloneOf(o)
	o.Meta.Version, o.Meta.UpdatedAt = 0, timestamppb.Now()
	body, err := proto.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("encode node %s: %w", o.Meta.Id, err)
	}
	return body, nil
}

// settleNode makes a worker of a node that is to be one: its server has left the group. Asked again it changes nothing.
func (s *Service) settleNode(ctx context.Context, r *skepv1.SettleNodeRequest) (*skepv1.NodeReply, error) {
	catchUp(ctx, s.feeds.Of(subject.Spec))
	catchUp(ctx, s.feeds.Of(subject.NodeB))
	settled := false
	err := s.retry(ctx, func() error {
		settled = false
		cur := s.ix.NodeObject(r.NodeId)
		switch {
		case cur == nil:
			return notPart(r.NodeId)
		case cur.Spec.Role == managerRole:
			return fault.Conflict("settle node %s: it is to be a manager", r.NodeId)
		case cur.Role == workerRole:
			return nil
		case s.standing().in(r.NodeId):
			return fault.Conflict("settle node %s: its server is in the group", r.NodeId)
		}
		cur.Role, settled = workerRole, true
		return s.putNode(ctx, cur)
	})
	if err != nil {
		return nil, err
	}
	if settled {
		name := s.ix.Hostname(r.NodeId)
		s.events.send(ctx, &skepv1.Event{Kind: "node", Id: r.NodeId, Name: name, Verb: "update",
			Attributes: map[string]string{"name": name, "certified.old": "manager", "certified.new": "worker"}})
	}
	return &skepv1.NodeReply{Node: s.ix.Node(r.NodeId)}, nil
}

// mayRemoveManager refuses to remove a manager that is there, or that the others need; it names one that has to stay. One that
// is gone goes with its server, which the bus removes from the group without it.
func (s *Service) mayRemoveManager(ctx context.Context, n *skepv1.Node, force bool) (stays string, err error) {
	id := n.Meta.Id
	if !force {
		return "", fault.Invalid("node %s is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal", id)
	}
	catchUp(ctx, s.feeds.Of(subject.NodeB))
	st := s.standing()
	if st.group == nil {
		return "", fault.Invalid("node %s is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal", id)
	}
	name := s.nameOf(id)
	in := slices.ContainsFunc(st.group.Managers, func(m *skepv1.Manager) bool { return m.NodeId == id })
	switch m := s.ix.Node(id).GetManager(); {
	case m.GetReachability() == "reachable":
		return "", fault.Invalid("node %s is a cluster manager and it is reachable. It must be demoted to worker before removal (skep node demote %s); --force removes a manager that is gone", id, name)
	case !in: // it was refused before it had a server
		return "", nil
	case m.GetReachability() == "unknown" && n.Status.State != skepv1.NodeState_NODE_STATE_DOWN:
		return "", fault.Unavailable("node %s is a cluster manager, and it is not known yet whether it is gone: look with skep node ls and try again in a few seconds", id)
	}
	if stays, err = st.without(id); fault.Is(err, fault.CodeInvalid) && len(st.desired) <= 1 {
		err = fault.Invalid("node %s is the last manager of the swarm and can't be removed", id)
	}
	return stays, err
}
