package state

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/rpc"
	"skep.dev/libs/spec"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/state/internal/index"
)

// A network goes in two steps, so that no service can end up on one that is gone and none has to write to the networks
// it joins. First the object is marked: removing. Both sides write before they look, and the bucket has one order:
//
//	the service was written before the mark  → the remover, who looks once its index has the mark, sees the service;
//	the service was written after the mark   → its writer, who looks once its index has the service, sees the mark, or
//	                                           that the network is gone, and takes the service off again.
//
// Then the object and its keys are deleted, on the condition that the mark is still the one that was looked at.
// Whoever finds a mark may do the rest: a second remover, or the sweep when the first one is gone.

// goneNetwork is the answer to a removal that is asked again.
func goneNetwork(id string) *skepv1.NetworkReply {
	return &skepv1.NetworkReply{Network: &skepv1.Network{Meta: &skepv1.Meta{Id: id}, Removing: true}}
}

func (s *Service) removeNetwork(ctx context.Context, r *skepv1.Ref) (*skepv1.NetworkReply, error) {
	id, err := s.findNetwork(ctx, r.Ref)
	if rpc.Removed(ctx, r.Ref, err) {
		return goneNetwork(r.Ref), nil
	}
	if err != nil {
		return nil, err
	}
	if word := spec.Predefined(id); word != "" {
		return nil, fault.Invalid("%s is a pre-defined network and cannot be removed", word)
	}
	gone, err := s.dropNetwork(ctx, id, r.Ref, nil)
	if rpc.Removed(ctx, r.Ref, err) {
		return goneNetwork(id), nil
	}
	return &skepv1.NetworkReply{Network: gone}, err
}

// dropNetwork removes a network that is called ref, with what else is written then.
func (s *Service) dropNetwork(ctx context.Context, id, ref string, with also) (gone *skepv1.Network, err error) {
	err = s.retry(ctx, func() error {
		cur := s.viewNetwork(id)
		switch {
		case cur == nil && gone != nil:
			return nil // ours, its acknowledgement lost, or somebody else was as fast
		case cur == nil:
			return networkNotFound(ref, nil)
		}
		gone = cur
		if !cur.Removing {
			if inUse := s.networkInUse(id, cur.Spec.Name); inUse != nil {
				// The service may have been removed a moment ago by another instance.
				catchUp(ctx, s.feeds.Of(subject.Spec))
				if s.networkInUse(id, cur.Spec.Name) != nil {
					return inUse
				}
			}
			if err := s.markRemoving(ctx, cur, true); err != nil {
				return err
			}
		}
		s.letLeave(ctx, id)
		return s.finishRemoval(ctx, id, with)
	})
	if err != nil {
		return nil, err
	}
	s.events.send(ctx, networkEvent(gone, "remove"))
	gone.Removing = true
	return gone, nil
}

// leaveWait is how long a removal waits for services that are about to leave.
const leaveWait = time.Second

// letLeave gives services that joined after the mark, and will see it, the time to go: else both sides give way.
func (s *Service) letLeave(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(ctx, leaveWait)
	defer cancel()
	for {
		changed := s.ix.Changed()
		st, ok := s.ix.NetworkState(id)
		if !ok || !st.Removing || s.ix.NetworkUserCount(id) == 0 || s.ix.NetworkUsedBefore(id, st.Revision) {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// finishRemoval is the second step for a network whose mark the index shows: delete it, or take the mark off again
// when services are on it.
func (s *Service) finishRemoval(ctx context.Context, id string, with also) error {
	cur := s.ix.Network(id)
	if cur == nil {
		return nil
	}
	if !cur.Removing {
		return kv.ErrConflict // somebody took the mark off: begin anew
	}
	if inUse := s.networkInUse(id, cur.Spec.Name); inUse != nil {
		if err := s.markRemoving(ctx, cur, false); err != nil {
			return err
		}
		return inUse
	}
	batch := s.spec.Batch()
	batch.Delete(keys.Network.Key(id), cur.Meta.Version)
	taken := []string{keys.Name(keys.NetworkName, cur.Spec.Name), keys.Number(keys.VNI, cur.Vni), keys.Number(keys.Tunnel, spec.EncryptedPort(cur.Vni))}
	for _, c := range cur.Ipam {
		if p, err := netip.ParsePrefix(c.Subnet); err == nil && p.Addr().Is4() {
			taken = append(taken, keys.SubnetKey(p))
		}
	}
	for _, key := range taken {
		if k, ok := s.ix.Key(key); ok && k.Value == id {
			batch.Delete(key, k.Revision)
		}
	}
	if err := with.to(batch); err != nil {
		return err
	}
	return s.commit(ctx, batch, func() bool { return s.ix.Network(id) == nil })
}

// markRemoving writes the network with its mark on or off, over the version that was read.
func (s *Service) markRemoving(ctx context.Context, n *skepv1.Network, on bool) error {
	version := n.Meta.Version
	n.Removing, n.Meta.UpdatedAt = on, timestamppb.Now()
	body, err := encodeNetwork(n)
	if err != nil {
		return err
	}
	rev, err := s.spec.Update(ctx, keys.Network.Key(n.Meta.Id), body, version)
	switch {
	case errors.Is(err, kv.ErrConflict):
		return err
	case err != nil:
		return fault.Unavailable("begin the removal of network %s: %v", n.Spec.Name, err)
	}
	return seen(ctx, s.feeds.Of(subject.Spec), rev)
}

// mostNamed is how many services one error names.
const mostNamed = 10

// networkInUse says who is on a network, nil when nobody is.
func (s *Service) networkInUse(id, name string) error {
	users := s.ix.NetworkUsers(id)
	if len(users) == 0 {
		return nil
	}
	return fault.Conflict("network %s is in use by service %s", name, nameList(users))
}

func nameList(all []index.Named) string {
	var names []string
	for _, u := range all[:min(len(all), mostNamed)] {
		names = append(names, u.Name)
	}
	out := strings.Join(names, ", ")
	if more := len(all) - mostNamed; more > 0 {
		out += fmt.Sprintf(" and %d more", more)
	}
	return out
}

// sweepRemovals ends removals whose maker is gone.
func (s *Service) sweepRemovals(ctx context.Context, before time.Time) {
	for _, id := range s.ix.StaleRemovals(before.UnixMilli()) {
		n := s.ix.Network(id)
		if n == nil || !n.Removing {
			continue
		}
		log := s.log.With(zap.String("network", id), zap.String("name", n.Spec.Name))
		switch err := s.finishRemoval(ctx, id, nil); {
		case err == nil:
			log.Info("finished the removal of a network that was left half done")
			s.events.send(ctx, networkEvent(n, "remove"))
		case fault.Is(err, fault.CodeConflict):
			log.Info("kept a network whose removal was left half done", zap.Error(err))
		case !errors.Is(err, kv.ErrConflict):
			log.Warn("removal of a network stays half done for now", zap.Error(err))
		}
	}
}
