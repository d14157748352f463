package dns

import (
	"net/netip"
	"strconv"
	"strings"

	"skep.dev/libs/id"
)

// Zone is what one task's networks know. Its methods are called for every query, from several goroutines.
type Zone interface {
	// A gives the addresses of a name (lower case, no final dot), of both families. A name that exists and has no
	// address is true with none; false says that the name is not the cluster's. The list is not changed.
	A(name string) (addrs []netip.Addr, ok bool)
	// PTR gives the name of an address.
	PTR(addr netip.Addr) (name string, ok bool)
	// Owns reports whether an address is in a subnet of one of the networks. Nobody else is asked for its name.
	Owns(addr netip.Addr) bool
}

// Holder may be implemented by a Zone: names for which Holds is true, and which A does not know, do not exist and are
// not asked of others.
type Holder interface{ Holds(name string) bool }

const tasksPrefix = "tasks."

// internal reports whether a name (lower case, no final dot) that the zone does not know can only be one of the
// cluster, so that no one else is told of it:
//   - a name of a single label, as services have; what a search domain makes of it has more labels, for the client's
//     resolver appends the domain before it asks;
//   - `tasks.` and one label;
//   - `<service>.<slot>.<task>`, by the looks of the last label;
//   - what the zone says it holds.
func internal(name string, z Zone) bool {
	if name == "" {
		return false // the root
	}
	dots := strings.Count(name, ".")
	if dots == 0 || dots == 1 && strings.HasPrefix(name, tasksPrefix) || ofTask(name) {
		return true
	}
	h, ok := z.(Holder)
	return ok && h.Holds(name)
}

// ofTask: three labels, the last of which is an id.
func ofTask(name string) bool {
	return strings.Count(name, ".") == 2 && id.Valid(name[strings.LastIndexByte(name, '.')+1:])
}

// publicTLD reports whether a label (lower case) is written as those of the Internet's top level are: letters only, or
// an internationalised one.
func publicTLD(label string) bool {
	if strings.HasPrefix(label, "xn--") {
		return true
	}
	for _, c := range []byte(label) {
		if c < 'a' || c > 'z' {
			return false
		}
	}
	return label != ""
}

const suffix4, suffix6 = ".in-addr.arpa", ".ip6.arpa"

// reverse reads the name of an address. Of an incomplete one, the rest of the address is zero.
func reverse(name string) (addr netip.Addr, complete, ok bool) {
	if rest, cut := strings.CutSuffix(name, suffix4); cut {
		var b [4]byte
		n, valid := labels(rest, len(b), func(i int, label string) bool {
			v, err := strconv.ParseUint(label, 10, 8)
			b[i] = byte(v)
			return err == nil && (label[0] != '0' || len(label) == 1)
		})
		return netip.AddrFrom4(b), n == len(b), valid
	}
	if rest, cut := strings.CutSuffix(name, suffix6); cut {
		var b [16]byte
		n, valid := labels(rest, 2*len(b), func(i int, label string) bool {
			v, err := strconv.ParseUint(label, 16, 4)
			b[i/2] |= byte(v) << (4 * (1 - i%2))
			return err == nil && len(label) == 1
		})
		return netip.AddrFrom16(b), n == 2*len(b), valid
	}
	return netip.Addr{}, false, false
}

// labels calls f for each label, the last one first, and gives their number.
func labels(name string, most int, f func(i int, label string) bool) (n int, ok bool) {
	for name != "" {
		i := strings.LastIndexByte(name, '.')
		if n == most || i == 0 || len(name) == i+1 || !f(n, name[i+1:]) {
			return n, false
		}
		n++
		name = name[:max(i, 0)]
	}
	return n, n > 0
}
