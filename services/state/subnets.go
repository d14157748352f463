package state

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"iter"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sort"
	"strings"

	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	skepv1 "skep.dev/proto/skep/v1"
)

// spread is how many free numbers or subnets to pass over in a try: none at first, later more and more at random, so
// that several instances stop taking the same ones from one another.
func spread(tries int) int {
	if tries == 0 {
		return 0
	}
	return rand.IntN(4*tries + 1)
}

// autoSubnet is the first subnet of the cluster's pools, after skip others, that is free: no network has any of it, no node
// is reached by an address in it, and as long as there are such no node has a route to any of it.
func (s *Service) autoSubnet(c *skepv1.ClusterSpec, skip int) (netip.Prefix, error) {
	var pools, taken []netip.Prefix
	for _, text := range c.DefaultAddrPools {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return netip.Prefix{}, fmt.Errorf("read the address pool %q: %w", text, err)
		}
		pools = append(pools, p)
	}
	if p, err := netip.ParsePrefix(c.NodeSubnetPool); err == nil {
		taken = append(taken, p)
	}
	for _, o := range s.ix.Subnets() {
		taken = append(taken, o.Prefix)
	}
	for key := range s.ix.Keys(keys.Subnet.Prefix()) {
		if p, ok := keys.ParseSubnet(key); ok {
			taken = append(taken, p)
		}
	}
	for _, a := range s.ix.NodeAddrs() {
		taken = append(taken, netip.PrefixFrom(a, a.BitLen()))
	}
	var routes []netip.Prefix
	for _, r := range s.ix.Routes() {
		routes = append(routes, r.Prefix)
	}
	if p := pickSubnet(pools, int(c.SubnetSize), taken, routes, skip); p.IsValid() {
		return p, nil
	}
	total := uint64(0)
	for _, p := range pools {
		total += 1 << max(0, int(c.SubnetSize)-p.Bits())
	}
	return netip.Prefix{}, fault.Exhausted("the default address pool %s holds %d subnets of /%d and each is in use by a network or holds a node's address (%d networks): remove networks, or name a subnet elsewhere",
		strings.Join(c.DefaultAddrPools, ", "), total, c.SubnetSize, len(s.ix.Networks()))
}

// pickSubnet is a free subnet of the pools, after skip others, that is best beside the nodes' routes; invalid: none is free.
// Tasks on a network do not reach what a route of their host leads to where the two overlap, so one beside all routes goes
// first. A host whose routes cover the pools, as 10.0.0.0/8 of a company's VPN may, keeps nobody from making networks: next
// come those beside the routes to less than a pool, which are the likelier to matter, then any.
func pickSubnet(pools []netip.Prefix, bits int, taken, routes []netip.Prefix, skip int) netip.Prefix {
	narrow := slices.DeleteFunc(slices.Clone(routes), func(r netip.Prefix) bool {
		return slices.ContainsFunc(pools, func(p netip.Prefix) bool { return r.Bits() <= p.Bits() && r.Contains(p.Addr()) })
	})
	for _, avoid := range [][]netip.Prefix{routes, narrow, nil} {
		if p := freeSubnet(pools, bits, slices.Concat(taken, avoid), skip); p.IsValid() {
			return p
		}
	}
	return netip.Prefix{}
}

// freeSubnet is the first of freeSubnets after skip others, or the last of fewer; invalid: there are none.
func freeSubnet(pools []netip.Prefix, bits int, taken []netip.Prefix, skip int) (last netip.Prefix) {
	for p := range freeSubnets(pools, bits, taken) {
		if last = p; skip == 0 {
			break
		}
		skip--
	}
	return last
}

// span is a closed interval of IPv4 addresses.
type span struct{ first, last uint64 }

func spanOf(p netip.Prefix) span {
	b := p.Masked().Addr().As4()
	first := uint64(binary.BigEndian.Uint32(b[:]))
	return span{first, first + 1<<(32-p.Bits()) - 1}
}

// freeSubnets are the IPv4 subnets of a size, cut from pools, that overlap nothing in taken; in order.
func freeSubnets(pools []netip.Prefix, bits int, taken []netip.Prefix) iter.Seq[netip.Prefix] {
	busy := merge(taken)
	return func(yield func(netip.Prefix) bool) {
		step := uint64(1) << (32 - bits)
		for _, pool := range pools {
			in := spanOf(pool)
			for a := in.first; a+step-1 <= in.last; {
				// The first busy span that ends at a or beyond it.
				i := sort.Search(len(busy), func(i int) bool { return busy[i].last >= a })
				if i < len(busy) && busy[i].first < a+step {
					a = (busy[i].last/step + 1) * step
					continue
				}
				var b [4]byte
				binary.BigEndian.PutUint32(b[:], uint32(a))
				if !yield(netip.PrefixFrom(netip.AddrFrom4(b), bits)) {
					return
				}
				a += step
			}
		}
	}
}

// merge sorts the IPv4 ones of some prefixes and joins those that overlap.
func merge(all []netip.Prefix) []span {
	var out []span
	for _, p := range all {
		if p.Addr().Is4() {
			out = append(out, spanOf(p))
		}
	}
	slices.SortFunc(out, func(a, b span) int { return cmp.Compare(a.first, b.first) })
	n := 0
	for _, x := range out {
		if n > 0 && x.first <= out[n-1].last {
			out[n-1].last = max(out[n-1].last, x.last)
			continue
		}
		out[n] = x
		n++
	}
	return out[:n]
}

// ulaSubnet is the IPv6 subnet of a network that names none: one of the 2^56 unique local ones, by the network's id.
func ulaSubnet(network string) netip.Prefix {
	sum := sha256.Sum256([]byte("skep network " + network))
	var b [16]byte
	b[0] = 0xfd
	copy(b[1:8], sum[:])
	return netip.PrefixFrom(netip.AddrFrom16(b), 64)
}
