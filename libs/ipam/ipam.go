// Package ipam divides the addresses of a network: a part for virtual addresses of services, which the state service
// hands out one by one, and a part for tasks, cut into blocks which the mesh controller leases to nodes, so that a
// node starts containers without asking anybody. It is arithmetic alone: who holds what is stored elsewhere.
package ipam

import (
	"encoding/binary"
	"fmt"
	"iter"
	"net/netip"
)

// MinBits is the smallest network that is any use: one block for tasks and two virtual addresses.
const MinBits = 29

// Layout is how one IPv4 network is divided. The network's, the gateway's and the broadcast address are nobody's.
type Layout struct {
	Subnet    netip.Prefix
	Gateway   netip.Addr
	BlockBits int // prefix length of a block

	first, vips, end uint32 // [first,vips) is for tasks, [vips,end) for services
}

// NewLayout divides subnet, or the part of it that pool names (an invalid Prefix: all of it). The last quarter is for services.
// A network has room for a few hundred blocks where it is large enough for that, and blocks of 64 addresses at most.
func NewLayout(subnet, pool netip.Prefix, gateway netip.Addr) (Layout, error) {
	if !subnet.IsValid() || !subnet.Addr().Is4() || subnet != subnet.Masked() {
		return Layout{}, fmt.Errorf("%s is not an IPv4 network", subnet)
	}
	if !pool.IsValid() {
		pool = subnet
	}
	if pool.Bits() < subnet.Bits() || !subnet.Contains(pool.Addr()) || pool != pool.Masked() {
		return Layout{}, fmt.Errorf("range %s is not a part of network %s", pool, subnet)
	}
	if pool.Bits() > MinBits {
		return Layout{}, fmt.Errorf("network %s has too few addresses: use a /%d or larger", pool, MinBits)
	}
	if !gateway.IsValid() {
		gateway = subnet.Addr().Next()
	}
	if !subnet.Contains(gateway) || gateway == subnet.Addr() || gateway == lastOf(subnet) {
		return Layout{}, fmt.Errorf("gateway %s is not a host address of network %s", gateway, subnet)
	}
	first, size := toUint(pool.Addr()), uint32(1)<<(32-pool.Bits())
	return Layout{
		Subnet: subnet, Gateway: gateway, BlockBits: blockBits(pool.Bits()),
		first: first, vips: first + size - size/4, end: first + size,
	}, nil
}

// blockBits: /12 to /18 are cut into blocks of 64 addresses, /20 of 16, /24 of 4, and from /25 on each address is leased
// by itself.
func blockBits(bits int) int {
	switch {
	case bits > 24:
		return 32
	case bits > 22:
		return 30
	}
	return max(bits+8, 26)
}

// Blocks are the blocks for tasks, in order.
func (l Layout) Blocks() iter.Seq[netip.Prefix] {
	return func(yield func(netip.Prefix) bool) {
		step := uint32(1) << (32 - l.BlockBits)
		for a := l.first; a < l.vips; a += step {
			if !yield(netip.PrefixFrom(fromUint(a), l.BlockBits)) {
				return
			}
		}
	}
}

// BlockCount is how many blocks there are.
func (l Layout) BlockCount() int { return int((l.vips - l.first) >> (32 - l.BlockBits)) }

// Hosts are the addresses of a block that a task may have.
func (l Layout) Hosts(block netip.Prefix) iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		for a := block.Masked().Addr(); block.Contains(a); a = a.Next() {
			if l.usable(a) && !yield(a) {
				return
			}
		}
	}
}

// VIPCount is how many virtual addresses there are.
func (l Layout) VIPCount() int {
	n := 0
	for range l.VIPs(0) {
		n++
		if n == int(l.end-l.vips) {
			break
		}
	}
	return n
}

// VIPs are the virtual addresses, beginning with the offset-th (modulo their number) and going round once.
func (l Layout) VIPs(offset uint32) iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		n := l.end - l.vips
		for i := range n {
			a := fromUint(l.vips + (offset%n+i)%n)
			if l.usable(a) && !yield(a) {
				return
			}
		}
	}
}

// IsTask says whether a task may have an address: it is of the tasks' part, and nobody else's.
func (l Layout) IsTask(a netip.Addr) bool {
	if !a.Is4() {
		return false
	}
	n := toUint(a)
	return l.first <= n && n < l.vips && l.usable(a)
}

// IsHost says whether an address of the network may be a task's or a service's at all.
func (l Layout) IsHost(a netip.Addr) bool { return a.Is4() && l.Subnet.Contains(a) && l.usable(a) }

func (l Layout) usable(a netip.Addr) bool {
	return a != l.Gateway && a != l.Subnet.Addr() && a != lastOf(l.Subnet)
}

// Unicast reports whether an address may be one host's: it is neither nobody's nor many hosts'.
func Unicast(a netip.Addr) bool {
	a = a.Unmap()
	return a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// Elsewhere reports whether an address may be one other host's than that at own.
func Elsewhere(a, own netip.Addr) bool {
	return a != own && Unicast(a) && (!a.IsLoopback() || own.IsLoopback())
}

// MAC is the hardware address that goes with an IPv4 address on every link of ours: 02:42 and the address.
func MAC(a netip.Addr) [6]byte {
	b := a.As4()
	return [6]byte{0x02, 0x42, b[0], b[1], b[2], b[3]}
}

func lastOf(p netip.Prefix) netip.Addr {
	return fromUint(toUint(p.Masked().Addr()) | (1<<(32-p.Bits()) - 1))
}

func toUint(a netip.Addr) uint32 { b := a.As4(); return binary.BigEndian.Uint32(b[:]) }

func fromUint(v uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], v)
	return netip.AddrFrom4(b)
}
