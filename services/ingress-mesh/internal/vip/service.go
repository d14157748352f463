package vip

import (
	"cmp"
	"encoding/binary"
	"hash/maphash"
	"net/netip"
	"slices"
)

// Service is one service of one network with what is behind its virtual addresses.
type Service struct {
	// VIP and VIP6 are the virtual addresses. An invalid one stands for none.
	VIP, VIP6 netip.Addr
	// Backends and Backends6 are the addresses of the tasks that serve. With none, connections are refused.
	Backends, Backends6 []netip.Addr
	// Lost are the addresses of tasks, of any service, that run no more and cannot say so: who sends them anything is told, by
	// a reset or as ICMP does.
	Lost []netip.Addr
	// Service is the service's id; it is kept in the kernel as a comment.
	Service string
}

// Counted is a Service as the kernel has it.
type Counted struct {
	Service
	// Connections counts the connections that were given a task since the number of tasks last changed, Refused the
	// packets that were refused.
	Connections, Refused uint64
}

// element is one entry of a set or map in a form that can be compared.
type element struct {
	val     string // raw bytes; of a verdict map, the chain that is jumped to
	comment string
	packets uint64 // read only: how often it was looked up
}

func (e element) same(o element) bool { return e.val == o.val && e.comment == o.comment }

// elements are those of one set, by raw key.
type elements map[string]element

// layout is everything the table should hold for some services. It is not changed after it was made.
type layout struct {
	sets   map[string]elements
	chains map[string]bool // the drawing chains that are referred to
	refs   int             // namespaces that have it; guarded by the Cache
}

// comment is kept within what nft itself would take.
func comment(s string) string { return s[:min(len(s), 120)] }

func native(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

// newLayout plans the table. Of two services with one virtual address the first one has it.
func newLayout(want []Service) *layout {
	l := &layout{sets: map[string]elements{}, chains: map[string]bool{}}
	for _, f := range families {
		l.sets[f.services], l.sets[f.backends], l.sets[f.addresses], l.sets[f.refused] = elements{}, elements{}, elements{}, elements{}
		l.sets[f.lost] = elements{}
	}
	for _, s := range want {
		for _, a := range s.Lost {
			a = a.Unmap()
			l.sets[familyOf(a).lost][string(a.AsSlice())] = element{}
		}
		tasks := slices.Concat(s.Backends, s.Backends6)
		for i, a := range tasks {
			tasks[i] = a.Unmap()
		}
		slices.SortFunc(tasks, netip.Addr.Compare) // the order of callers is no difference
		tasks = slices.Compact(tasks)
		for _, v := range []netip.Addr{s.VIP.Unmap(), s.VIP6.Unmap()} {
			if v.IsValid() {
				l.add(v, tasks, comment(s.Service))
			}
		}
	}
	return l
}

func (l *layout) add(v netip.Addr, tasks []netip.Addr, service string) {
	f, key := familyOf(v), string(v.AsSlice())
	if _, taken := l.sets[f.addresses][key]; taken {
		return
	}
	l.sets[f.addresses][key] = element{comment: service}
	n := uint32(0)
	for _, a := range tasks {
		if a.IsValid() && a.Is4() == v.Is4() {
			l.sets[f.backends][key+string(native(n))] = element{val: string(a.AsSlice())}
			n++
		}
	}
	if n == 0 {
		l.sets[f.refused][key] = element{}
	} else {
		chain := f.pick(n)
		l.chains[chain] = true
		l.sets[f.services][key] = element{val: chain, comment: service}
	}
}

// counted reads the sets back.
func counted(sets map[string]elements) []Counted {
	byID := map[string]*Counted{}
	var out []*Counted
	for _, f := range families {
		for key, known := range sets[f.addresses] {
			v, ok := netip.AddrFromSlice([]byte(key))
			if !ok {
				continue
			}
			c := byID[known.comment]
			if c == nil || f.is4 && c.VIP.IsValid() || !f.is4 && c.VIP6.IsValid() {
				c = &Counted{Service: Service{Service: known.comment}}
				byID[known.comment] = c
				out = append(out, c)
			}
			c.Refused += known.packets
			c.Connections += sets[f.services][key].packets
			var tasks []netip.Addr
			for i := uint32(0); ; i++ {
				e, ok := sets[f.backends][key+string(native(i))]
				a, valid := netip.AddrFromSlice([]byte(e.val))
				if !ok || !valid {
					break
				}
				tasks = append(tasks, a)
			}
			if f.is4 {
				c.VIP, c.Backends = v, tasks
			} else {
				c.VIP6, c.Backends6 = v, tasks
			}
		}
	}
	list := make([]Counted, 0, len(out))
	for _, c := range out {
		list = append(list, *c)
	}
	slices.SortFunc(list, func(a, b Counted) int {
		return cmp.Or(cmp.Compare(a.Service.Service, b.Service.Service), a.VIP.Compare(b.VIP), a.VIP6.Compare(b.VIP6))
	})
	return list
}

var seed = maphash.MakeSeed()

// digest stands for a list of services in this process: 64 bits with a secret seed, so that two lists with one digest
// are not met by accident nor made on purpose.
func digest(want []Service) uint64 {
	var h maphash.Hash
	h.SetSeed(seed)
	var b []byte
	for i := range want {
		s := &want[i]
		b = append(binary.AppendUvarint(b[:0], uint64(len(s.Service))), s.Service...)
		b = appendAddrs(appendAddrs(b, []netip.Addr{s.VIP, s.VIP6}), s.Backends)
		b = appendAddrs(appendAddrs(b, s.Backends6), s.Lost)
		_, _ = h.Write(b)
	}
	return h.Sum64()
}

func appendAddrs(b []byte, list []netip.Addr) []byte {
	b = binary.AppendUvarint(b, uint64(len(list)))
	for _, a := range list {
		x := a.As16()
		b = append(append(b, byte(a.BitLen())), x[:]...)
	}
	return b
}
