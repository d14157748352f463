package overlay

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
)

func whole(w want) kernel {
	d := device{index: 2, mtu: w.mtu, up: true}
	member := device{index: 3, mtu: w.mtu, up: true, master: 2, flood: true}
	k := kernel{bridge: &d, vxlan: &vxlanDevice{device: member, vni: w.vni, local: w.local, port: w.port, proxies: true, home: true}}
	k.ports = []taskPort{{device: device{index: 4, mtu: w.mtu, up: true, master: 2}, name: "skx", task: "x", addr: addr("10.7.0.2"), static: true}}
	for m, dst := range w.fdb {
		k.fdb = append(k.fdb, forward{mac: m, dst: dst, permanent: true})
	}
	for a, m := range w.neigh {
		k.neigh = append(k.neigh, neighbour{addr: a, mac: m, permanent: true})
	}
	return k
}

func wantOf(remotes int) want {
	w := want{vni: 7, local: addr("10.90.0.1"), port: 4789, mtu: 1450, fdb: map[mac]netip.Addr{}, neigh: map[netip.Addr]mac{}}
	for i := range remotes {
		a := netip.AddrFrom4([4]byte{10, 7, 1, byte(i)})
		w.fdb[macOf(a)], w.neigh[a] = addr("10.90.0.2"), macOf(a)
	}
	return w
}

func words(steps []step) string {
	var out []string
	for _, s := range steps {
		out = append(out, s.words)
	}
	return strings.Join(out, "; ")
}

func TestPlan(t *testing.T) {
	w := wantOf(2)
	for _, c := range []struct {
		name string
		harm func(*kernel)
		want string
	}{
		{"right", func(*kernel) {}, ""},
		{"an entry for nobody's VLAN port", func(k *kernel) {
			k.fdb[0] = forward{mac: macOf(addr("10.7.1.0")), dst: addr("10.90.0.2"), port: 9, permanent: true}
			k.fdb = k.fdb[:1]
		},
			"the forwarding entry for 02:42:0a:07:01:00 uses a UDP port or VNI of its own; the forwarding entry for 02:42:0a:07:01:00 to node 10.90.0.2 is missing; the forwarding entry for 02:42:0a:07:01:01 to node 10.90.0.2 is missing"},
		// What goes with a device is not said again, but done.
		{"no bridge", func(k *kernel) { k.bridge = nil; k.vxlan.master = 0; k.ports[0].master = 0; k.ports[0].static = false }, "its bridge is missing; ; ; "},
		{"no device", func(k *kernel) { k.vxlan, k.fdb, k.neigh = nil, nil, nil }, "its VXLAN device is missing; ; ; ; "},
		{"another VNI", func(k *kernel) { k.vxlan.vni = 8 }, "its VXLAN device has VNI 8, not 7; ; ; ; ; "},
		{"a stray link", func(k *kernel) { k.strays = []string{"sky"} }, "link sky is of no task"},
		{"not permanent", func(k *kernel) {
			k.neigh = k.neigh[:0]
			k.neigh = append(k.neigh, neighbour{addr: addr("10.7.1.0"), mac: macOf(addr("10.7.1.0"))})
		},
			"the neighbour 10.7.1.0 is 02:42:0a:07:01:00, not permanently 02:42:0a:07:01:00; the neighbour 10.7.1.1 (02:42:0a:07:01:01) is missing"},
	} {
		k := whole(w)
		c.harm(&k)
		if got := words(plan(w, k)); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
	}
	w.vni = 0
	w.fdb, w.neigh = nil, nil
	k := whole(w)
	if got := words(plan(w, k)); got != "its VXLAN device is there though the network has none" {
		t.Error(got)
	}
	k.vxlan = nil
	if got := plan(w, k); len(got) != 0 {
		t.Error(words(got))
	}
}

// From any mixture of entries to any other, every difference costs one write, and one more a deletion where the entry
// cannot be replaced.
func TestPlanIsMinimal(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		w := want{vni: 7, local: addr("10.90.0.1"), port: 4789, mtu: 1450, fdb: map[mac]netip.Addr{}, neigh: map[netip.Addr]mac{}}
		k := whole(w)
		differ := 0
		for i := range 40 {
			a, other := netip.AddrFrom4([4]byte{10, 7, 1, byte(i)}), addr("10.90.0.3")
			m, dst := macOf(a), addr("10.90.0.2")
			want, have := r.IntN(2) == 0, r.IntN(4)
			if want {
				w.fdb[m], w.neigh[a] = dst, m
			}
			switch have {
			case 0: // right
				k.fdb, k.neigh = append(k.fdb, forward{mac: m, dst: dst, permanent: true}), append(k.neigh, neighbour{a, m, true})
			case 1: // another place
				k.fdb, k.neigh = append(k.fdb, forward{mac: m, dst: other, permanent: true}), append(k.neigh, neighbour{a, mac{2}, true})
			}
			if want == (have > 1) || want && have == 1 {
				differ += 2
			}
		}
		if got := plan(w, k); len(got) != differ {
			t.Fatal(fmt.Sprint(len(got), " steps for ", differ, " differences: "), words(got))
		}
	}
}
