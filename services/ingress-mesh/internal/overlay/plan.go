package overlay

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"

	"skep.dev/libs/ipam"
)

// step is one difference between what is and what should be, and how it is removed.
type step struct {
	words string // what is wrong, "" if an earlier step says it
	run   func(*hand) error
	vital bool // the steps after it make no sense without it
}

func macOf(a netip.Addr) mac { return mac(ipam.MAC(a)) }

// plan compares; the steps are in the order they must be taken. A namespace that is right has none.
func plan(w want, k kernel) []step {
	var out []step
	add := func(s step) { out = append(out, s) }
	for _, name := range k.wrong {
		add(step{words: "device " + name + " is of a wrong type", vital: true, run: func(h *hand) error { return h.drop(name) }})
	}
	for _, name := range k.strays {
		if !slices.Contains(k.wrong, name) {
			add(step{words: "link " + name + " is of no task", run: func(h *hand) error { return h.drop(name) }})
		}
	}
	if k.bridge == nil {
		add(step{words: "its bridge is missing", vital: true, run: (*hand).makeBridge})
	} else {
		planDevice(add, "the bridge", *k.bridge, w.mtu, func(h *hand) int { return h.bridge })
	}
	planVXLAN(add, w, &k)
	bridge := 0
	if k.bridge != nil {
		bridge = k.bridge.index
	}
	for _, p := range k.ports {
		planPort(add, w, p, bridge)
	}
	planForwards(add, w, k)
	planNeighbours(add, w, k)
	return out
}

func planVXLAN(add func(step), w want, k *kernel) {
	v := k.vxlan
	if v != nil {
		if why := differs(w, *v); why != "" {
			add(step{words: "its VXLAN device " + why, vital: true, run: func(h *hand) error { return h.drop(vxlanName) }})
			// The entries go with the device.
			k.vxlan, k.fdb, k.neigh = nil, nil, nil
			if w.vni != 0 {
				add(step{vital: true, run: (*hand).makeVXLAN})
			}
			return
		}
	}
	if w.vni == 0 {
		return
	}
	if v == nil {
		add(step{words: "its VXLAN device is missing", vital: true, run: (*hand).makeVXLAN})
		return
	}
	index := func(h *hand) int { return h.vxlan }
	planDevice(add, "the VXLAN device", v.device, w.mtu, index)
	bridge := 0
	if k.bridge != nil {
		bridge = k.bridge.index
	}
	planMember(add, "the VXLAN device", v.device, bridge, true, index)
}

// differs says what of a VXLAN device cannot be changed while it exists.
func differs(w want, v vxlanDevice) string {
	switch {
	case w.vni == 0:
		return "is there though the network has none"
	case v.vni != w.vni:
		return fmt.Sprintf("has VNI %d, not %d", v.vni, w.vni)
	case v.port != w.port:
		return fmt.Sprintf("uses UDP port %d, not %d", v.port, w.port)
	case v.local != w.local:
		return fmt.Sprintf("sends from %s, not from %s", orAny(v.local), orAny(w.local))
	case v.learns:
		return "learns"
	case !v.proxies:
		return "does not answer for the remote tasks, or sends to a group"
	case !v.home:
		return "does not send through the host's namespace"
	}
	return ""
}

func orAny(a netip.Addr) string {
	if !a.IsValid() {
		return "any address"
	}
	return a.String()
}

// planDevice is about MTU and being up.
func planDevice(add func(step), what string, d device, mtu int, index func(*hand) int) {
	if d.mtu != mtu {
		add(step{words: fmt.Sprintf("%s has MTU %d, not %d", what, d.mtu, mtu), run: func(h *hand) error { return h.setMTU(index(h), mtu) }})
	}
	if !d.up {
		add(step{words: what + " is down", run: func(h *hand) error { return h.setUp(index(h)) }})
	}
}

// planMember is about a port of the bridge: where it is, and that it neither learns nor, but to other nodes, floods.
func planMember(add func(step), what string, d device, bridge int, flood bool, index func(*hand) int) {
	switch {
	case bridge == 0 || d.master != bridge:
		words := what + " is not on the bridge"
		if bridge == 0 {
			words = ""
		}
		add(step{words: words, run: func(h *hand) error { return h.join(index(h), flood) }})
	case d.learning || d.flood != flood:
		add(step{words: what + " learns or floods", run: func(h *hand) error { return h.setFlags(index(h), flood) }})
	}
}

func planPort(add func(step), w want, p taskPort, bridge int) {
	what := "the link of task " + p.task
	if p.mtu != w.mtu {
		add(step{words: fmt.Sprintf("%s has MTU %d, not %d", what, p.mtu, w.mtu), run: func(h *hand) error { return h.setTaskMTU(p, w.mtu) }})
		p.mtu = w.mtu
	}
	index := func(*hand) int { return p.index }
	planDevice(add, what, p.device, w.mtu, index)
	planMember(add, what, p.device, bridge, false, index)
	if !p.static || p.master != bridge {
		words := "the bridge does not know task " + p.task
		if p.static || bridge == 0 {
			words = ""
		}
		add(step{words: words, run: func(h *hand) error { return h.addLocal(macOf(p.addr), p.index) }})
	}
}

func planForwards(add func(step), w want, k kernel) {
	seen := make(map[mac]bool, len(k.fdb))
	for _, f := range k.fdb {
		dst, wanted := w.fdb[f.mac]
		switch {
		case !wanted:
			add(step{words: fmt.Sprintf("there is a forwarding entry for %s to node %s, which nobody asked for", f.mac, f.dst), run: func(h *hand) error { return h.delForward(f.mac) }})
			continue
		case f.port != 0 || f.vni != 0: // a replacement would leave those in place
			add(step{words: fmt.Sprintf("the forwarding entry for %s uses a UDP port or VNI of its own", f.mac), run: func(h *hand) error { return h.delForward(f.mac) }})
			continue
		case f.dst != dst:
			add(step{words: fmt.Sprintf("the forwarding entry for %s points to node %s, not %s", f.mac, f.dst, dst), run: func(h *hand) error { return h.setForward(f.mac, dst) }})
		case !f.permanent:
			add(step{words: fmt.Sprintf("the forwarding entry for %s is not permanent", f.mac), run: func(h *hand) error { return h.setForward(f.mac, dst) }})
		}
		seen[f.mac] = true
	}
	fresh := k.vxlan == nil // then it is said already
	for _, m := range slices.SortedFunc(maps.Keys(w.fdb), func(a, b mac) int { return slices.Compare(a[:], b[:]) }) {
		if seen[m] {
			continue
		}
		dst, words := w.fdb[m], ""
		if !fresh {
			words = fmt.Sprintf("the forwarding entry for %s to node %s is missing", m, dst)
		}
		add(step{words: words, run: func(h *hand) error { return h.setForward(m, dst) }})
	}
}

func planNeighbours(add func(step), w want, k kernel) {
	seen := make(map[netip.Addr]bool, len(k.neigh))
	var set []step
	six := false
	for _, n := range k.neigh {
		m, wanted := w.neigh[n.addr]
		if !wanted {
			add(step{words: fmt.Sprintf("there is a neighbour %s (%s), which nobody asked for", n.addr, n.mac), run: func(h *hand) error { return h.delNeighbour(n.addr) }})
			continue
		}
		seen[n.addr] = true
		if n.mac != m || !n.permanent {
			set = append(set, step{words: fmt.Sprintf("the neighbour %s is %s, not permanently %s", n.addr, n.mac, m), run: func(h *hand) error { return h.setNeighbour(n.addr, m) }})
			six = six || n.addr.Is6()
		}
	}
	fresh := k.vxlan == nil
	for _, a := range slices.SortedFunc(maps.Keys(w.neigh), netip.Addr.Compare) {
		if seen[a] {
			continue
		}
		m, words := w.neigh[a], ""
		if !fresh {
			words = fmt.Sprintf("the neighbour %s (%s) is missing", a, m)
		}
		set = append(set, step{words: words, run: func(h *hand) error { return h.setNeighbour(a, m) }})
		six = six || a.Is6()
	}
	if six { // without it the kernel keeps no IPv6 neighbours
		add(step{vital: true, run: (*hand).allowIPv6})
	}
	for _, s := range set {
		add(s)
	}
}

// linkWhole reports whether the two ends of a task's link are one another's.
func linkWhole(p taskPort, a Attachment, number int, inside *netlink.LinkAttrs) bool {
	return p.task == a.Task && p.netns >= 0 && p.netns == number && inside != nil &&
		p.peer == inside.Index && inside.ParentIndex == p.index && cmp.Compare(inside.Name, a.Device) == 0
}
