package ingress

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"skep.dev/libs/ipam"
)

// Config is what a Plane needs to know about its node.
type Config struct {
	Log *zap.Logger
	// Bridge is the link all tasks of the node are on (skep0). It must exist before Apply.
	Bridge string
	// Number is the node's, unique in the cluster, from 1.
	Number uint16
	// Subnet is the bridge's network and Gateway the node's address in it.
	Subnet  netip.Prefix
	Gateway netip.Addr
	// Underlay is the address other nodes send VXLAN packets to.
	Underlay netip.Addr
	// Port is the VXLAN UDP port, the same on all nodes.
	Port uint16
	// UnderlayMTU returns the MTU of the interface that carries VXLAN packets.
	UnderlayMTU func() int
}

// Peer is another node.
type Peer struct {
	ID       string
	Number   uint16
	Subnet   netip.Prefix
	Underlay netip.Addr
}

// Backend is a task that serves a published port: the addresses are the task's on its node's bridge.
type Backend struct {
	Addr  netip.Addr
	Addr6 netip.Addr // invalid where the task has none: IPv6 clients are sent to others
	Port  uint16
	Task  string
}

// Service is one port published on the mesh. Protocol is tcp, udp or sctp.
type Service struct {
	Protocol string
	Port     uint16
	ID       string
	Backends []Backend
}

// HostPort is a port published by one task of this node at the node's own addresses.
type HostPort struct {
	Protocol  string
	Published uint16
	At        netip.Addr // the only address of the host it is published at, invalid: at all
	Addr      netip.Addr
	Addr6     netip.Addr // invalid where the task has none
	Target    uint16
	Task      string
}

// State is all that a node's part of the mesh should be.
type State struct {
	Peers     []Peer
	Services  []Service
	HostPorts []HostPort
	Lost      []netip.Addr // of tasks that run no more and cannot say so: connections to them are ended
}

// clone shares nothing with st: the caller may reuse its slices.
func (st State) clone() State {
	out := State{slices.Clone(st.Peers), slices.Clone(st.Services), slices.Clone(st.HostPorts), slices.Clone(st.Lost)}
	for i, s := range out.Services {
		out.Services[i].Backends = slices.Clone(s.Backends)
	}
	return out
}

const (
	// maxNumber leaves the number of fabricMAC's dummy, 0xffff, unused.
	maxNumber = 0xfffe
	// markBit tells our marks from others'; the low 16 bits are the entry node's number.
	markBit = 0x10000
	// vni is that of the routed fabric: below those of networks.
	vni = 4000
	// Link is the name of the fabric's VXLAN device.
	Link = "skin0"
	// overheads of VXLAN over IPv4 and IPv6.
	overhead4, overhead6 = 50, 70
)

func (c *Config) check() error {
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	switch {
	case c.Bridge == "" || len(c.Bridge) >= unix.IFNAMSIZ:
		return fmt.Errorf("ingress: bridge name %q is empty or too long", c.Bridge)
	case c.Number == 0 || c.Number > maxNumber:
		return fmt.Errorf("ingress: node number %d is not between 1 and %d", c.Number, maxNumber)
	case !c.Subnet.IsValid() || !c.Subnet.Addr().Is4() || c.Subnet.Bits() > 30:
		return fmt.Errorf("ingress: node subnet %s is not an IPv4 network of /30 or wider", c.Subnet)
	case !c.Gateway.Is4() || !c.Subnet.Contains(c.Gateway):
		return fmt.Errorf("ingress: gateway %s is not in node subnet %s", c.Gateway, c.Subnet)
	case !c.Underlay.IsValid():
		return errors.New("ingress: the node's data path address is needed")
	case c.Port == 0:
		return errors.New("ingress: the data path port is needed")
	case c.UnderlayMTU == nil:
		return errors.New("ingress: the underlay's MTU is needed")
	}
	c.Subnet, c.Underlay = c.Subnet.Masked(), c.Underlay.Unmap()
	return nil
}

// subnet6 and gateway6 are the IPv6 side of Subnet and Gateway.
func (c *Config) subnet6() netip.Prefix { return ipam.NodeSubnet6(c.Subnet) }
func (c *Config) gateway6() netip.Addr  { return ipam.NodeAddr6(c.Gateway) }

func (c *Config) mtu() int {
	if c.Underlay.Is4() {
		return max(c.UnderlayMTU()-overhead4, 576)
	}
	return max(c.UnderlayMTU()-overhead6, 576)
}

// protocolNumber is 0 for a protocol that has no ports we know of.
func protocolNumber(name string) uint8 {
	switch name {
	case "tcp":
		return unix.IPPROTO_TCP
	case "udp":
		return unix.IPPROTO_UDP
	case "sctp":
		return unix.IPPROTO_SCTP
	}
	return 0
}

func protocolName(n uint8) string {
	switch n {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_SCTP:
		return "sctp"
	}
	return fmt.Sprintf("protocol %d", n)
}
