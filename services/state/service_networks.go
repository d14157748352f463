package state

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/fault"
	"skep.dev/libs/spec"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/state/internal/index"
)

// maxNetworks leaves room in one atomic batch for all ports and all virtual addresses of a service (see maxPorts).
const maxNetworks = 40

// undoFor bounds taking a service off a network again, whatever is left of the client's patience.
const undoFor = 15 * time.Second

// resolveNetworks replaces what a spec calls its networks by their ids, and returns what it called them. Words stay
// words.
func (s *Service) resolveNetworks(ctx context.Context, want *skepv1.ServiceSpec) (called map[string]string, err error) {
	called = map[string]string{}
	for _, n := range want.GetTask().GetNetworks() {
		ref := n.Target
		id, err := s.serviceNetwork(ctx, ref)
		switch {
		case err != nil:
			return nil, err
		case id == spec.NetworkIngress:
			return nil, fault.Invalid("Service cannot be explicitly attached to the ingress network")
		case called[id] != "":
			return nil, fault.Invalid("service is already attached to network %s", ref)
		}
		n.Target, called[id] = id, ref
	}
	return called, nil
}

func (s *Service) serviceNetwork(ctx context.Context, ref string) (string, error) {
	id, err := s.findNetwork(ctx, ref)
	if fault.Is(err, fault.CodeNotFound) {
		return "", networkNotFound(ref, nil)
	}
	if st, ok := s.ix.NetworkState(id); ok && st.Removing {
		// Its removal may have been given up.
		catchUp(ctx, s.feeds.Of(subject.Spec))
	}
	return id, err
}

// mayJoin refuses networks that are gone or going, except those a service is on already, and such that overlap.
func (s *Service) mayJoin(want, had *skepv1.ServiceSpec, called map[string]string) error {
	ids := spec.Overlays(want)
	if len(ids) > maxNetworks {
		return fault.Invalid("service %s would be on %d networks: at most %d for one service", want.Name, len(ids), maxNetworks)
	}
	on := spec.Overlays(had)
	var seen []index.Subnet
	for _, id := range ids {
		st, ok := s.ix.NetworkState(id)
		if !ok || st.Removing && !slices.Contains(on, id) {
			return s.notThere(id, called)
		}
		for _, p := range st.Subnets {
			for _, o := range seen {
				if o.Prefix.Overlaps(p) && o.Network.ID != id {
					return fault.Invalid("networks %s and %s overlap (%s and %s): a service can be on one of them only", o.Network.Name, st.Name, o.Prefix, p)
				}
			}
			seen = append(seen, index.Subnet{Network: index.Named{ID: id, Name: st.Name}, Prefix: p})
		}
	}
	return nil
}

// notThere names a network as its user did.
func (s *Service) notThere(id string, called map[string]string) error {
	return networkNotFound(s.networkCalled(id, called), nil)
}

// networkCalled is what the user called a network, or its name, or its id.
func (s *Service) networkCalled(id string, called map[string]string) string {
	if name := called[id]; name != "" {
		return name
	}
	if st, ok := s.ix.NetworkState(id); ok {
		return st.Name
	}
	return id
}

// lostNetwork is a network which a stored service joined too late, "" when there is none: it is gone, or its removal
// had begun before the service was written (network_remove.go has the argument). Networks the service was on before
// are the remover's affair.
func (s *Service) lostNetwork(svc *skepv1.Service, before *skepv1.ServiceSpec) string {
	on := spec.Overlays(before)
	for _, id := range spec.Overlays(svc.GetSpec()) {
		if slices.Contains(on, id) {
			continue
		}
		st, ok := s.ix.NetworkState(id)
		if !ok || st.Removing && st.Revision < svc.Meta.Version {
			return id
		}
	}
	return ""
}

// undoContext outlives the request: what was written too late must go.
func undoContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), undoFor)
}

// keepOffLost looks at the networks of a new service once more and removes it when one was lost.
func (s *Service) keepOffLost(ctx context.Context, id string, called map[string]string) error {
	svc := s.ix.Service(id)
	if svc == nil {
		return nil
	}
	if lost := s.lostNetwork(svc, nil); lost != "" {
		return s.takeOff(ctx, svc, lost, called)
	}
	return nil
}

// takeOff removes a new service that lost a network. It stays, and all is well, when the network does: its removal is
// given up when both sides saw each other.
func (s *Service) takeOff(ctx context.Context, svc *skepv1.Service, lost string, called map[string]string) error {
	ctx, cancel := undoContext(ctx)
	defer cancel()
	id, stays := svc.Meta.Id, false
	err := s.retry(ctx, func() error {
		cur := s.ix.Service(id)
		stays = cur != nil && s.lostNetwork(cur, nil) == ""
		if cur == nil || stays {
			return nil
		}
		return s.commitRemoval(ctx, cur, nil)
	})
	if err == nil && stays {
		return nil
	}
	if err != nil {
		return fault.Unavailable("network %s was removed while service %s was created, and the service could not be removed again: remove it (%v)", s.networkCalled(lost, called), svc.Spec.Name, err)
	}
	if err := s.dropRevisions(ctx, id); err != nil {
		s.log.Warn("revisions of a service that lost its network left for the sweep", zap.String("service", id), zap.Error(err))
	}
	return s.notThere(lost, called)
}

// errSettled ends a change that turned out to be unnecessary.
var errSettled = errors.New("nothing is left to do")

// backOffLost looks at the networks of an updated service once more. When one was lost the former spec is put back,
// as far as its networks are still there.
func (s *Service) backOffLost(ctx context.Context, before, after *skepv1.Service, called map[string]string) error {
	cur, kept := s.ix.Service(after.Meta.Id), before.Spec
	if lost := s.lostNetwork(cur, kept); lost != "" {
		return s.putBack(ctx, before, after, lost, called)
	}
	return nil
}

// putBack gives a service that lost a network its former spec again. The new one stands, and all is well, when the
// network stays after all.
func (s *Service) putBack(ctx context.Context, before, after *skepv1.Service, lost string, called map[string]string) error {
	kept := before.Spec
	ctx, cancel := undoContext(ctx)
	defer cancel()
	for range attempts {
		_, _, err := s.apply(ctx, after.Meta.Id, false, func(cur *skepv1.Service) (step, error) {
			if s.lostNetwork(cur, kept) == "" {
				return step{}, errSettled
			}
			return s.back(cur, before, after, s.networkCalled(lost, called)), nil
		})
		kept = nil // what the service came back to it joined anew
		switch {
		case errors.Is(err, errSettled) && slices.Contains(spec.Overlays(s.ix.Service(after.Meta.Id).GetSpec()), lost):
			return nil
		case errors.Is(err, errSettled), fault.Is(err, fault.CodeNotFound) && s.ix.Service(after.Meta.Id) == nil:
			return s.notThere(lost, called)
		case err != nil && !fault.Is(err, fault.CodeNotFound): // a network that went between two looks: look again
			return fault.Unavailable("network %s was removed while service %s was updated, and the former spec could not be put back: update it again (%v)",
				s.networkCalled(lost, called), after.Spec.Name, err)
		}
	}
	return fault.Unavailable("networks of service %s come and go: look at it, then update it again", after.Spec.Name)
}

// back is the step from a spec with a network that was lost to the one before, without what is not there any more.
func (s *Service) back(cur, before, after *skepv1.Service, lost string) step {
	out := step{summary: fmt.Sprintf("network %s was removed meanwhile", lost)}
	if cur.Revision == after.Revision {
		out.spec, out.rollbackTo = proto.CloneOf(before.Spec), before.Revision
		if !proto.Equal(cur.Spec, after.Spec) {
			out.spec.Mode = proto.CloneOf(cur.Spec.Mode) // scaled meanwhile
		}
	} else {
		out.spec = proto.CloneOf(cur.Spec)
		out.spec.Task.Networks = proto.CloneOf(before.Spec).GetTask().GetNetworks()
	}
	out.spec.Task.Networks = slices.DeleteFunc(out.spec.Task.Networks, func(n *skepv1.NetworkAttachment) bool {
		st, ok := s.ix.NetworkState(n.Target)
		return spec.Predefined(n.Target) == "" && (!ok || st.Removing)
	})
	return out
}

// withNames is a spec with its networks' names for their ids, for people to read.
func (s *Service) withNames(in *skepv1.ServiceSpec) *skepv1.ServiceSpec {
	if len(spec.Overlays(in)) == 0 {
		return in
	}
	out := proto.CloneOf(in)
	for _, n := range out.Task.Networks {
		if st, ok := s.ix.NetworkState(n.Target); ok {
			n.Target = st.Name
		}
	}
	return out
}

// networkNames are what a spec's networks are called now, by id: a revision keeps them for the day one of them is gone.
func (s *Service) networkNames(in *skepv1.ServiceSpec) map[string]string {
	out := map[string]string{}
	for _, id := range spec.Overlays(in) {
		if st, ok := s.ix.NetworkState(id); ok {
			out[id] = st.Name
		}
	}
	return out
}

// rejoin makes a spec of an earlier revision one of today: a network that was removed and made anew is joined by its name.
func (s *Service) rejoin(next *skepv1.ServiceSpec, from *skepv1.Revision) error {
	overlay := spec.Overlays(next)
	for _, n := range next.GetTask().GetNetworks() {
		if _, ok := s.ix.NetworkState(n.Target); ok || !slices.Contains(overlay, n.Target) {
			continue
		}
		name := from.Networks[n.Target]
		id, ok := s.ix.NetworkByName(name)
		if name == "" {
			name = n.Target
		}
		if !ok {
			return fault.NotFound("revision %d needs network %s, which is gone: create it again, or go back to another revision", from.Number, name)
		}
		n.Target = id
	}
	return nil
}
