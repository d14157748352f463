package overlay

import (
	"fmt"
	"net"
	"net/netip"

	"skep.dev/libs/fault"
	"skep.dev/libs/ipam"
)

const (
	// What VXLAN adds to a packet: Ethernet 14, VXLAN 8, UDP 8 and the outer IP header.
	overhead4 = 50
	overhead6 = 70
	// minMTU6 is the smallest MTU IPv6 works with; below it the kernel takes IPv6 off a device.
	minMTU6 = 1280
	minMTU  = 68
	maxVNI  = 1<<24 - 1
)

// Network is an overlay network as this node is to have it.
type Network struct {
	ID   string
	Name string
	// VNI tells networks apart on the wire. 0 makes a network without VXLAN: namespace, bridge and links, whose way to
	// other nodes somebody else adds.
	VNI             uint32
	Subnet, Subnet6 netip.Prefix
	MTU             int      // 0 = the underlay's less what VXLAN adds
	Remotes         []Remote // the addresses of the tasks of other nodes
}

// Remote is where a task of another node is.
type Remote struct {
	Addr, Addr6 netip.Addr
	Node        netip.Addr // of its node on the underlay
}

func (n Network) label() string {
	if n.Name != "" {
		return n.Name
	}
	return n.ID
}

type mac [6]byte

func (m mac) String() string { return m.hw().String() }

func (m mac) hw() net.HardwareAddr { return net.HardwareAddr(m[:]) }

// want is what a network's namespace should hold.
type want struct {
	vni   uint32
	local netip.Addr // of the VXLAN socket
	port  uint16
	mtu   int
	v6    bool
	fdb   map[mac]netip.Addr // where a MAC is
	neigh map[netip.Addr]mac
}

// want works out what to have. What of it makes no sense is left out and said, so that one bad entry does not keep the
// others away.
func (p *Plane) want(n Network) (w want, problems []string, err error) {
	if err := validID(n.ID); err != nil {
		return w, nil, err
	}
	if n.VNI > maxVNI {
		return w, nil, fault.Invalid("network %s: VNI %d is above %d", n.label(), n.VNI, maxVNI)
	}
	w = want{vni: n.VNI, local: p.cfg.Underlay, port: p.cfg.Port, mtu: n.MTU, v6: n.Subnet6.IsValid()}
	if w.mtu == 0 {
		w.mtu = p.underlayMTU() - overhead4
		if w.local.Is6() {
			w.mtu = p.underlayMTU() - overhead6
		}
	}
	if w.mtu < minMTU || w.mtu > 65535 {
		return w, nil, fault.Invalid("network %s: an MTU of %d is not possible", n.label(), w.mtu)
	}
	if w.v6 && w.mtu < minMTU6 {
		return w, nil, fault.Invalid("network %s: IPv6 needs an MTU of at least %d, not %d: raise the underlay's MTU, or make the network without IPv6", n.label(), minMTU6, w.mtu)
	}
	if n.VNI == 0 {
		return w, nil, nil
	}
	w.fdb, w.neigh = make(map[mac]netip.Addr, len(n.Remotes)), make(map[netip.Addr]mac, len(n.Remotes))
	for _, r := range n.Remotes {
		addr, node := r.Addr.Unmap(), r.Node.Unmap()
		switch {
		case !addr.Is4() || n.Subnet.IsValid() && !n.Subnet.Contains(addr) || !ipam.Unicast(node):
			problems = append(problems, fmt.Sprintf("a remote task with the address %q at node %q cannot be reached", r.Addr, r.Node))
			continue
		case node.Is6() != w.local.Is6(): // an unset local address means IPv4
			problems = append(problems, fmt.Sprintf("node %s is not of the address family of this node's data path (%s)", node, family(w.local)))
			continue
		case !ipam.Elsewhere(node, w.local):
			problems = append(problems, fmt.Sprintf("%s is said to be at another node, which has an address of this node, %s", addr, node))
			continue
		}
		m := mac(ipam.MAC(addr))
		// While a task's record moves, two nodes may claim one address: the choice must not change from call to call.
		if old, ok := w.fdb[m]; !ok || node.Less(old) {
			w.fdb[m] = node
		}
		w.neigh[addr] = m
		switch six := r.Addr6; {
		case !six.IsValid():
		case six.Unmap().Is4() || six.Zone() != "" || !ipam.Unicast(six) || n.Subnet.IsValid() && !n.Subnet6.Contains(six):
			problems = append(problems, fmt.Sprintf("the task with the address %s at node %s has none of the network's IPv6 addresses: %s", addr, node, six))
		default:
			w.v6 = true
			w.neigh[six] = m
		}
	}
	if over := len(problems) - maxProblems; over > 0 {
		problems = append(problems[:maxProblems], fmt.Sprintf("and %d more such entries", over))
	}
	return w, problems, nil
}

// maxProblems is how many entries that make no sense are told one by one.
const maxProblems = 20

func family(a netip.Addr) string {
	if a.Is6() {
		return "IPv6"
	}
	return "IPv4"
}

func (p *Plane) underlayMTU() int {
	if p.cfg.UnderlayMTU != nil {
		if mtu := p.cfg.UnderlayMTU(); mtu > 0 {
			return mtu
		}
	}
	return defaultUnderlay
}
