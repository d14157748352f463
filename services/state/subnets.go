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

// autoSubnet is the first subnet of the cluster's pools, after skip others, that is free: no network has any of it and
// no node is reached by an address in it.
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
	var last netip.Prefix
	for p := range freeSubnets(pools, int(c.SubnetSize), taken) {
		if last = p; skip == 0 {
			break
		}
		skip--
	}
	if last.IsValid() {
		return last, nil
	}
	total := uint64(0)
	for _, p := range pools {
		total += 1 << max(0, int(c.SubnetSize)-p.Bits())
	}
	return last, fault.Exhausted("the default address pool %s holds %d subnets of /%d and each is in use by a network or holds a node's address (%d networks): remove networks, or name a subnet elsewhere",
		strings.Join(c.DefaultAddrPools, ", "), total, c.SubnetSize, len(s.ix.Networks()))
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
