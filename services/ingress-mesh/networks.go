package mesh

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"go.uber.org/zap"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/ipam"
	"skep.dev/libs/keys"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/ingress-mesh/internal/picture"
)

const (
	// askController bounds one request to the mesh controller.
	askController = 3 * time.Second
	// keepEmpty is how long a network without tasks stays on a node: a task that is replaced finds it there.
	keepEmpty = 10 * time.Second
	// spareLow is when a node asks for the next block ahead of need.
	spareLow = 2
)

// network is one overlay network on this node.
type network struct {
	id     string
	pool   *blocks
	emptyT time.Time // since when no task is on it
	lease  keyedMutex
	// sure: the controller has said in this process' life which blocks are the node's. What was kept on disk may name
	// some that were given back since, and are another node's by now.
	sure bool // guarded by lease
}

// join puts a task on a network: an address, any or those its service names, and an interface.
func (s *Service) join(ctx context.Context, rec record, id, device string, fixed []netip.Addr) (membership, error) {
	n, err := s.enter(ctx, id)
	if err != nil {
		return membership{}, err
	}
	var a, six netip.Addr
	for _, f := range fixed {
		if f.Is4() {
			a = f
		} else {
			six = f
		}
	}
	if a.IsValid() {
		if holder := n.pool.claim(a, rec.Task); holder != rec.Task {
			return membership{}, fault.Conflict("address %s is still that of task %s on this node: waiting until that one has ended", a, holder)
		}
	} else if a, err = s.addressOn(ctx, n, rec.Task); err != nil {
		return membership{}, err
	}
	if len(fixed) > 0 {
		if err := s.leaseFixed(ctx, n, fixed); err != nil {
			n.pool.release(a, rec.Task)
			return membership{}, err
		}
	}
	v4, v6 := subnets(s.follow.Network(id).GetNetwork())
	m := membership{Network: id, Device: device, Addr: netip.PrefixFrom(a, v4.Bits()), Fixed: len(fixed) > 0}
	if v6.IsValid() {
		if !six.IsValid() {
			six = ipam.Embed(v6, a)
		}
		m.Addr6 = netip.PrefixFrom(six, v6.Bits())
	}
	return m, nil
}

// leaseFixed asks for addresses that a task's service names: the node has them until the task has ended.
func (s *Service) leaseFixed(ctx context.Context, n *network, fixed []netip.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, askController)
	defer cancel()
	req := &skepv1.LeaseBlockRequest{NodeId: s.node, NetworkId: n.id}
	for _, a := range fixed {
		req.Addresses = append(req.Addresses, a.String())
	}
	_, err := api.Call(ctx, s.nc, api.MeshLease.At(s.node), req)
	if err != nil && !fault.Is(err, fault.CodeConflict) { // which says it all
		return fmt.Errorf("lease the address of the service's task: %w", err)
	}
	return err
}

// enter makes sure that the node follows a network and knows what it is.
func (s *Service) enter(ctx context.Context, id string) (*network, error) {
	if s.follow == nil {
		return nil, fault.Unavailable("this node is not connected to its managers: it cannot join network %s", id)
	}
	if err := s.follow.Want(id); err != nil {
		return nil, err
	}
	info := s.follow.Network(id)
	if info == nil {
		if err := s.follow.Compare(ctx); err != nil {
			return nil, fmt.Errorf("learn what network %s is: %w", id, err)
		}
		if info = s.follow.Network(id); info == nil {
			return nil, fault.Unavailable("network %s is not known to the mesh controller (yet)", id)
		}
	}
	v4, _ := subnets(info.GetNetwork())
	if !v4.IsValid() {
		return nil, fault.Invalid("network %s has no IPv4 subnet", info.GetNetwork().GetSpec().GetName())
	}
	s.netMu.Lock()
	defer s.netMu.Unlock()
	n := s.nets[id]
	if n == nil {
		l, err := spec.NetworkLayout(info.GetNetwork())
		if err != nil {
			return nil, err
		}
		n = &network{id: id, pool: newBlocks(l)}
		n.pool.reserved = func() []string { return s.follow.Network(id).GetReserved() }
		n.pool.set(prefixes(s.follow.Endpoints(id, s.node).GetBlocks()))
		s.nets[id] = n
	}
	n.emptyT = time.Time{}
	return n, nil
}

func prefixes(list []string) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(list))
	for _, s := range list {
		if p := prefix(s); p.IsValid() {
			out = append(out, p)
		}
	}
	return out
}

// addressOn gives a task an address, from a new block if those the node holds are used up.
func (s *Service) addressOn(ctx context.Context, n *network, task string) (netip.Addr, error) {
	if err := s.confirm(ctx, n); err != nil {
		return netip.Addr{}, err
	}
	if a, ok := n.pool.take(task, false); ok {
		if n.pool.spare() < spareLow {
			go s.leaseAhead(n)
		}
		return a, nil
	}
	unlock := n.lease.lock(n.id)
	defer unlock()
	if a, ok := n.pool.take(task, false); ok { // somebody else leased one meanwhile
		return a, nil
	}
	err := s.leaseBlock(ctx, n)
	if a, ok := n.pool.take(task, true); ok {
		return a, nil
	}
	if err == nil {
		err = fault.Exhausted("no free address in the blocks of network %s on this node", n.id)
	}
	return netip.Addr{}, err
}

// confirm asks the controller which blocks of a network this node holds, once.
func (s *Service) confirm(ctx context.Context, n *network) error {
	unlock := n.lease.lock(n.id)
	defer unlock()
	if n.sure {
		return nil
	}
	if err := s.follow.Compare(ctx); err != nil {
		return fmt.Errorf("learn which addresses of network %s are this node's: %w", n.id, err)
	}
	n.pool.set(prefixes(s.follow.Endpoints(n.id, s.node).GetBlocks()))
	n.sure = true
	return nil
}

// leaseAhead asks for a block before the last address is gone, so that the next task need not wait.
func (s *Service) leaseAhead(n *network) {
	unlock := n.lease.lock(n.id)
	defer unlock()
	if n.pool.spare() >= spareLow {
		return
	}
	ctx, cancel := context.WithTimeout(s.Life(), askController)
	defer cancel()
	if err := s.leaseBlock(ctx, n); err != nil && ctx.Err() == nil {
		s.log.Debug("no further address block yet", zap.String("network", n.id), zap.Error(err))
	}
}

func (s *Service) leaseBlock(ctx context.Context, n *network) error {
	ctx, cancel := context.WithTimeout(ctx, askController)
	defer cancel()
	req := &skepv1.LeaseBlockRequest{NodeId: s.node, NetworkId: n.id, WantBlock: true}
	reply, err := api.Call(ctx, s.nc, api.MeshLease.At(s.node), req)
	if err != nil {
		return fmt.Errorf("lease addresses of network %s: %w", n.id, err)
	}
	n.pool.set(prefixes(reply.Blocks))
	return nil
}

// release gives a task's address on a network back.
func (s *Service) release(task string, m membership) {
	s.netMu.Lock()
	n := s.nets[m.Network]
	s.netMu.Unlock()
	if n != nil {
		n.pool.release(m.Addr.Addr(), task)
	}
}

// applyNetwork makes the kernel and the resolvers have what is known of one network.
func (s *Service) applyNetwork(ctx context.Context, id string) error {
	unlock := s.netLock.lock(id)
	defer unlock()
	return s.applyNetworkLocked(ctx, id)
}

// healNetwork puts back what others took of a network; whole includes its tasks' own namespaces.
func (s *Service) healNetwork(ctx context.Context, id string, whole bool) error {
	unlock := s.netLock.lock(id)
	defer unlock()
	if whole {
		return s.applyNetworkLocked(ctx, id)
	}
	_, err := s.ensureKnown(ctx, id)
	return err
}

// errNotKnown: the controller does not tell of a network any more, or not yet. One that is being removed goes through it.
type errNotKnown struct{ id string }

func (e errNotKnown) Error() string { return "network " + e.id + " is not known" }

// ensureKnown makes a network's own kernel objects by what is known of it, and returns that.
func (s *Service) ensureKnown(ctx context.Context, id string) (picture.Scope, error) {
	scope := s.follow.Scope(id)
	if scope.Info == nil {
		return scope, errNotKnown{id}
	}
	return scope, s.ensureNetwork(ctx, scope)
}

func (s *Service) applyNetworkLocked(ctx context.Context, id string) error {
	scope, err := s.ensureKnown(ctx, id)
	if err != nil {
		return err
	}
	draining := s.drainingNow()
	// What a name stands for has to lead somewhere by the time it is told.
	s.tables.setVirtual(id, virtual(scope, draining, s.node))
	var errs []error
	for _, rec := range s.tasksOn(id) {
		errs = append(errs, s.applyTask(rec))
	}
	s.tables.setNames(id, names(scope, draining))
	return errors.Join(errs...)
}

// ensureNetwork makes the network's own kernel objects.
func (s *Service) ensureNetwork(ctx context.Context, scope picture.Scope) error {
	nodes := s.follow.Scope(keys.ScopeNodes).Nodes
	var err error
	if encrypted(scope.Info.GetNetwork()) {
		err = s.ensureEncrypted(ctx, scope, nodes)
	} else {
		err = s.overlays.Ensure(ctx, plain(scope, nodes, s.node))
	}
	if err != nil {
		return fmt.Errorf("set network %s up on this node: %w", scope.Info.GetNetwork().GetSpec().GetName(), err)
	}
	return nil
}

// verifyNetwork says where the kernel differs from what is known of a network.
func (s *Service) verifyNetwork(ctx context.Context, scope picture.Scope) ([]string, error) {
	nodes := s.follow.Scope(keys.ScopeNodes).Nodes
	n := plain(scope, nodes, s.node)
	if encrypted(scope.Info.GetNetwork()) {
		n.VNI, n.Remotes, n.MTU = 0, nil, min(cmp.Or(n.MTU, s.tunnels.MTU()), s.tunnels.MTU())
	}
	return s.overlays.Verify(ctx, n)
}

// sweepNetworks removes networks that have had no task for a while, and gives their addresses back.
func (s *Service) sweepNetworks(ctx context.Context) {
	s.netMu.Lock()
	var empty []*network
	for _, n := range s.nets {
		switch {
		case s.tasksCount(n.id) > 0:
			n.emptyT = time.Time{}
		case n.emptyT.IsZero():
			n.emptyT = time.Now()
		case time.Since(n.emptyT) > keepEmpty:
			empty = append(empty, n)
		}
	}
	s.netMu.Unlock()
	for _, n := range empty {
		if err := s.leaveNetwork(ctx, n); err != nil {
			s.log.Warn("remove a network without tasks", zap.String("network", n.id), zap.Error(err))
		}
	}
}

func (s *Service) leaveNetwork(ctx context.Context, n *network) error {
	unlock := s.netLock.lock(n.id)
	defer unlock()
	s.netMu.Lock()
	if n.emptyT.IsZero() || s.tasksCount(n.id) > 0 { // entered meanwhile
		s.netMu.Unlock()
		return nil
	}
	delete(s.nets, n.id)
	s.netMu.Unlock()
	if err := s.removeNetwork(ctx, n.id); err != nil {
		undo := n.lease.lock(n.id)
		n.sure = false // its blocks are taken back if this goes on for long
		undo()
		s.netMu.Lock()
		if s.nets[n.id] == nil {
			s.nets[n.id] = n
		}
		s.netMu.Unlock()
		return err
	}
	s.tables.drop(n.id)
	s.giveBack(ctx, n)
	s.follow.Drop(n.id)
	return nil
}

// removeNetwork takes a network's kernel objects away.
func (s *Service) removeNetwork(ctx context.Context, id string) error {
	return errors.Join(s.tunnels.Remove(ctx, id), s.overlays.Remove(ctx, id))
}

// giveBack returns the blocks no task uses. Managers that are away learn it when the node has been gone for good, or
// when it joins the network again.
func (s *Service) giveBack(ctx context.Context, n *network) {
	idle := n.pool.idle()
	if len(idle) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, askController)
	defer cancel()
	req := &skepv1.ReturnBlocksRequest{NodeId: s.node, NetworkId: n.id}
	for _, p := range idle {
		req.Blocks = append(req.Blocks, p.String())
	}
	reply, err := api.Call(ctx, s.nc, api.MeshReturn.At(s.node), req)
	if err != nil {
		s.log.Debug("addresses stay leased", zap.String("network", n.id), zap.Error(err))
		return
	}
	n.pool.set(prefixes(reply.Blocks))
}

// tasksOn are the records of this node's tasks on a network, ordered by task.
func (s *Service) tasksOn(network string) []record {
	s.liveMu.Lock()
	defer s.liveMu.Unlock()
	out := make([]record, 0, len(s.liveOn[network]))
	for _, task := range slices.Sorted(maps.Keys(s.liveOn[network])) {
		out = append(out, s.live[task])
	}
	return out
}

func (s *Service) tasksCount(network string) int {
	s.liveMu.Lock()
	defer s.liveMu.Unlock()
	return len(s.liveOn[network])
}
