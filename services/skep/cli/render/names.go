package render

import (
	"net/netip"
	"regexp"
	"strings"

	skepv1 "skep.dev/proto/skep/v1"
)

// Names are what people call the objects that nodes know by ids and addresses alone.
type Names map[string]string

// NamesOf are the names in a cluster: of nodes, services and tasks by their ids, and by the addresses that only one of them has.
func NamesOf(nodes []*skepv1.Node, services []*skepv1.Service, tasks []*skepv1.Task) Names {
	n := Names{}
	for _, x := range nodes {
		name := "node " + Hostname(x)
		n[x.GetMeta().GetId()] = name
		n.addr(x.GetDescription().GetAddr(), name)
		if p, err := netip.ParsePrefix(x.GetSubnet()); err == nil {
			n.addr(p.Masked().Addr().Next().String(), name) // its gateway, by which the others reach its containers
		}
	}
	for _, x := range services {
		n[x.GetMeta().GetId()] = x.GetSpec().GetName()
		for _, v := range x.GetEndpoint().GetVirtualIps() {
			n.addr(v.GetAddr(), "service "+x.GetSpec().GetName())
		}
	}
	for _, x := range tasks {
		name := x.GetName()
		if x.GetNodeHostname() != "" {
			name += " on " + x.GetNodeHostname()
		}
		n[x.GetMeta().GetId()] = name
		if x.GetStatus().GetState() != skepv1.TaskState_TASK_STATE_RUNNING && x.GetStatus().GetState() != skepv1.TaskState_TASK_STATE_STARTING {
			continue // its addresses may be another's by now
		}
		for _, a := range x.GetStatus().GetAddresses() {
			n.addr(a, name)
		}
		for _, w := range x.GetStatus().GetNetworks() {
			n.addr(w.GetAddr(), name)
			n.addr(w.GetAddr6(), name)
		}
	}
	delete(n, "")
	return n
}

// addr names an address, which may have a mask or a port.
func (n Names) addr(s, name string) {
	if a, ok := anyAddr(s); ok {
		n[a] = name
	}
}

// anyAddr is the address in s: alone, with a mask or with a port.
func anyAddr(s string) (string, bool) {
	if a, err := netip.ParseAddr(s); err == nil {
		return a.Unmap().String(), true
	}
	if p, err := netip.ParsePrefix(s); err == nil {
		return p.Addr().Unmap().String(), true
	}
	if p, err := netip.ParseAddrPort(s); err == nil {
		return p.Addr().Unmap().String(), true
	}
	return "", false
}

// words are what an id or an address can be.
var words = regexp.MustCompile(`\[?[0-9A-Za-z][0-9A-Za-z:.]*(\]:[0-9]+)?|::[0-9a-f:.]*`)

// In is a text with the name behind each id and address in it, each name once.
func (n Names) In(text string) string {
	said := map[string]bool{}
	return words.ReplaceAllStringFunc(text, func(w string) string {
		end := len(strings.TrimRight(w, ".,:"))
		key := w[:end]
		name, known := n[key]
		if a, is := anyAddr(key); is {
			name, known = n[a]
		}
		if !known || said[name] || name == key {
			return w
		}
		said[name] = true
		return key + " (" + name + ")" + w[end:]
	})
}
