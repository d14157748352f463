package ingress

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// element is one entry of a set or map in a form that can be compared.
type element struct {
	val     string // raw bytes; of a verdict map, the chain that is jumped to
	comment string
	verdict bool
	packets uint64 // read only: how often it was looked up
}

func (e element) same(o element) bool {
	return e.val == o.val && e.comment == o.comment && e.verdict == o.verdict
}

// elements are those of one set, by raw key.
type elements map[string]element

func (p plan) elements() map[string]elements {
	out := map[string]elements{setPeers: {}, setPeers6: {}, setReturns: {}, setMarks: {}, setMacs: {}}
	for f, m := range map[*family]portMap{inet4: p.v4, inet6: p.v6} {
		ports, backends, refused, published := elements{}, elements{}, elements{}, elements{}
		for k, e := range m.ports {
			published[k.raw()] = element{}
			ports[k.raw()] = element{val: f.pickName(len(e.slots)), comment: clip(e.owner), verdict: true}
			for i, s := range e.slots {
				backends[k.raw()+string(native(uint32(i)))] = element{val: s.raw(), comment: clip(s.task)}
			}
		}
		for k, owner := range m.refused {
			published[k.raw()] = element{}
			refused[k.raw()] = element{comment: clip(owner)}
		}
		out[f.ports], out[f.backends], out[f.refused], out[f.published] = ports, backends, refused, published
	}
	maps.Copy(out, p.hosts.elements())
	for _, e := range p.peers {
		addr, number := string(e.Underlay.AsSlice()), string(native(markBit|uint32(e.Number)))
		mac := string(fabricMAC(e.Number))
		if e.Underlay.Is4() {
			out[setPeers][addr] = element{}
			out[setReturns][addr+string(nextHop(e.Subnet).AsSlice())] = element{}
		} else {
			out[setPeers6][addr] = element{}
		}
		out[setMarks][mac] = element{val: number}
		out[setMacs][number] = element{val: mac}
	}
	return out
}

// clip keeps a comment within what nft itself would take.
func clip(s string) string { return s[:min(len(s), 120)] }

// raw is the key as the kernel has it: every part fills up whole registers of four bytes.
func (k portKey) raw() string {
	return string([]byte{k.proto, 0, 0, 0, byte(k.port >> 8), byte(k.port), 0, 0})
}

func portKeyOf(raw string) (portKey, bool) {
	if len(raw) < 8 {
		return portKey{}, false
	}
	return portKey{raw[0], binary.BigEndian.Uint16([]byte(raw[4:6]))}, true
}

func (t target) raw() string {
	return string(append(t.addr.AsSlice(), byte(t.port>>8), byte(t.port), 0, 0))
}

func targetOf(raw string) (target, bool) {
	size := 4
	if len(raw) >= 18 {
		size = 16
	}
	if len(raw) < size+2 {
		return target{}, false
	}
	a, ok := netip.AddrFromSlice([]byte(raw[:size]))
	return target{a, binary.BigEndian.Uint16([]byte(raw[size : size+2]))}, ok
}

// slotsOf reads the map of backends back.
func slotsOf(have elements) slotMap {
	out := slotMap{}
	for raw, e := range have {
		k, ok := portKeyOf(raw)
		t, valid := targetOf(e.val)
		if !ok || !valid || len(raw) != 12 {
			continue
		}
		i := int(binary.NativeEndian.Uint32([]byte(raw[8:])))
		if i > 1<<16 {
			continue
		}
		for len(out[k]) <= i {
			out[k] = append(out[k], slot{})
		}
		out[k][i] = slot{t, e.comment}
	}
	return out
}

// setElement is e as the library takes it; a removal names the key alone.
func (e element) setElement(key string, remove bool) nftables.SetElement {
	out := nftables.SetElement{Key: []byte(key)}
	switch {
	case remove:
	case e.verdict:
		out.VerdictData, out.Comment = &expr.Verdict{Kind: expr.VerdictGoto, Chain: e.val}, e.comment
	default:
		out.Val, out.Comment = []byte(e.val), e.comment
	}
	return out
}

// elementOf reads what the library returns, which leaves a verdict as the attributes the kernel sent.
func elementOf(s nftables.SetElement, set string) element {
	e := element{val: string(s.Val), comment: s.Comment}
	if s.Counter != nil {
		e.packets = s.Counter.Packets
	}
	if set == setPorts || set == setPorts6 {
		e.verdict, e.val = true, chainOf(s.Val)
	}
	return e
}

func chainOf(b []byte) string {
	kind := ""
	for len(b) >= 4 {
		n := int(binary.NativeEndian.Uint16(b))
		if n < 4 || n > len(b) {
			break
		}
		switch binary.NativeEndian.Uint16(b[2:]) & 0x3fff {
		case unix.NFTA_VERDICT_CODE:
			if n == 8 && int32(binary.BigEndian.Uint32(b[4:])) != unix.NFT_GOTO {
				kind = "not goto "
			}
		case unix.NFTA_VERDICT_CHAIN:
			return kind + string(bytes.TrimRight(b[4:n], "\x00"))
		}
		b = b[min(len(b), (n+3)&^3):]
	}
	return ""
}

// describeKey is a key as an operator would write it.
func describeKey(set, raw string) string {
	switch set {
	case setPorts, setRefused, setBackends, setPublished, setPorts6, setRefused6, setBackends6, setPublished6:
		k, ok := portKeyOf(raw)
		if !ok {
			break
		}
		if len(raw) == 12 {
			return fmt.Sprintf("%s backend %d", k, binary.NativeEndian.Uint32([]byte(raw[8:])))
		}
		return k.String()
	case setHosts, setHosts6:
		if k, ok := hostKeyOf(raw); ok {
			return k.String()
		}
	case setPeers, setPeers6:
		if a, ok := netip.AddrFromSlice([]byte(raw)); ok {
			return a.String()
		}
	}
	return fmt.Sprintf("%x", raw)
}

// describeKeys names a few of many.
func describeKeys(set string, keys []string) string {
	const few = 3
	var out []string
	for _, k := range keys[:min(few, len(keys))] {
		out = append(out, describeKey(set, k))
	}
	if len(keys) > few {
		out = append(out, fmt.Sprintf("and %d more", len(keys)-few))
	}
	return strings.Join(out, ", ")
}
