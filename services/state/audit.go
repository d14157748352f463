package state

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/state/internal/index"
)

// stray is an index key that names an object which does not exist.
type stray struct {
	key   string
	as    index.Key
	owner string // the object's id
	of    string // and key
}

// ownerKinds are the objects that index keys name.
var ownerKinds = []struct {
	taken, owner *keys.Family
	there        func(*index.Index, string) bool
}{
	{keys.NetworkName, keys.Network, hasNetwork},
	{keys.StackName, keys.Stack, hasStack},
	{keys.VNI, keys.Network, hasNetwork},
	{keys.Tunnel, keys.Network, hasNetwork},
	{keys.Subnet, keys.Network, hasNetwork},
	{keys.VIP, keys.Service, hasService},
	{keys.Port, keys.Service, hasService},
}

func hasNetwork(x *index.Index, id string) bool { _, ok := x.NetworkState(id); return ok }
func hasStack(x *index.Index, id string) bool   { return x.Stack(id) != nil }
func hasService(x *index.Index, id string) bool { return x.ServiceName(id) != "" }

// strays are the keys of names, numbers, addresses and ports whose owner is gone, in order.
func strays(x *index.Index) []stray {
	var out []stray
	for _, kind := range ownerKinds {
		for key, k := range x.Keys(kind.taken.Prefix()) {
			for _, id := range owners(key, k.Value) {
				if !kind.there(x, id) {
					out = append(out, stray{key: key, as: k, owner: id, of: kind.owner.Key(id)})
				}
			}
		}
	}
	slices.SortFunc(out, func(a, b stray) int { return strings.Compare(a.key+" "+a.owner, b.key+" "+b.owner) })
	return out
}

func owners(key, value string) []string {
	if _, isPort := keys.Port.ID(key); !isPort {
		return []string{value}
	}
	h := parseHolder(value)
	if h.ingress != "" {
		return []string{h.ingress}
	}
	return h.hosts
}

// sweepStrays deletes stray keys that have been there since a time, each after the leader said that its owner is gone
// for good: an id never comes back.
func (s *Service) sweepStrays(ctx context.Context, before time.Time) {
	for _, x := range strays(s.ix) {
		if !x.as.Seen.Before(before) || !s.gone(ctx, x.of) {
			continue
		}
		var err error
		_, isPort := keys.Port.ID(x.key)
		if rest := parseHolder(x.as.Value).without(x.owner).String(); isPort && rest != "" {
			_, err = s.spec.Update(ctx, x.key, []byte(rest), x.as.Revision)
		} else {
			err = s.spec.Delete(ctx, x.key, x.as.Revision)
		}
		log := s.log.With(zap.String("key", x.key), zap.String("owner", x.of))
		switch {
		case err == nil:
			log.Warn("released what an object that is gone still took up")
		case !errors.Is(err, kv.ErrConflict):
			log.Warn("what an object that is gone still takes up stays for now", zap.Error(err))
		}
	}
}

// audit compares objects with the keys that make what they take up theirs, both ways: one sentence for each
// difference, nothing when all is well. It looks at the index alone, which is behind for a moment after every change:
// only what stays is a finding.
func audit(x *index.Index) []string {
	var out []string
	add := func(format string, a ...any) { out = append(out, fmt.Sprintf(format, a...)) }
	for _, k := range strays(x) {
		add("%s is taken by %s, which does not exist", k.key, k.of)
	}
	claimed := map[string]bool{} // every key some object should have
	claim := func(what, key, id string) {
		claimed[key] = true
		if k, ok := x.Key(key); !ok {
			add("%s has no key %s: it can be given away twice", what, key)
		} else if !slices.Contains(owners(key, k.Value), id) {
			add("%s has a key %s that names %s", what, key, k.Value)
		}
	}
	for _, n := range x.Networks() {
		if o := x.Network(n.ID); o != nil {
			claim("the name of network "+n.Name, keys.Name(keys.NetworkName, n.Name), n.ID)
			claim("the VXLAN id of network "+n.Name, keys.Number(keys.VNI, o.Vni), n.ID)
			if spec.Encrypted(o.Spec) {
				claim("the UDP port of encrypted network "+n.Name, keys.Number(keys.Tunnel, spec.EncryptedPort(o.Vni)), n.ID)
			}
		}
	}
	for _, n := range x.Stacks() {
		claim("the name of stack "+n.Name, keys.Name(keys.StackName, n.Name), n.ID)
	}
	for _, n := range x.ServicesAfter("") {
		o := x.Service(n.ID)
		if o == nil {
			continue
		}
		claim("the name of service "+n.Name, keys.Name(keys.ServiceName, n.Name), n.ID)
		for key := range vip4s(o.Endpoint.GetVirtualIps()) {
			claim("a virtual address of service "+n.Name, key, n.ID)
		}
		for _, p := range o.Endpoint.GetPorts() {
			if p.PublishedPort != 0 {
				claim("a published port of service "+n.Name, keys.PortKey(p.Protocol, p.PublishedPort), n.ID)
			}
		}
	}
	for _, kind := range ownerKinds {
		if kind.taken == keys.Subnet {
			continue // only subnets that nobody named have a key, and which those are is not stored
		}
		taken := x.Keys(kind.taken.Prefix())
		for _, key := range slices.Sorted(maps.Keys(taken)) {
			if !claimed[key] && anyThere(x, key, taken[key].Value) {
				add("%s is taken by %s, which does not use it", key, taken[key].Value)
			}
		}
	}
	return append(out, auditUsers(x)...)
}

// anyThere leaves to strays what names nobody that exists.
func anyThere(x *index.Index, key, value string) bool {
	return slices.ContainsFunc(owners(key, value), func(id string) bool { return hasNetwork(x, id) || hasService(x, id) || hasStack(x, id) })
}

// auditUsers looks at who is on which network: each must be there, and have given every service that wants one a
// virtual address.
func auditUsers(x *index.Index) (out []string) {
	for _, id := range x.NetworksInUse() {
		if spec.Predefined(id) != "" {
			continue
		}
		users := x.NetworkUsers(id)
		st, ok := x.NetworkState(id)
		if !ok {
			out = append(out, fmt.Sprintf("network %s does not exist and is used by service %s: take it off with service update --network-rm", id, nameList(users)))
			continue
		}
		for _, u := range users {
			svc := x.Service(u.ID)
			if svc == nil || svc.Spec.GetEndpoint().GetMode() == skepv1.EndpointSpec_MODE_DNSRR {
				continue
			}
			if !slices.ContainsFunc(svc.Endpoint.GetVirtualIps(), func(v *skepv1.VirtualIP) bool { return v.NetworkId == id }) {
				out = append(out, fmt.Sprintf("service %s has no virtual address on network %s", u.Name, st.Name))
			}
		}
	}
	return out
}
