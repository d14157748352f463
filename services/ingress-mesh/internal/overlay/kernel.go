package overlay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	bridgeName = "br0"
	vxlanName  = "vx0"
	vethPrefix = "sk"
	// taskAlias marks a task's link: "skep task <id> <address>".
	taskAlias = "skep task "
	// NDA_PORT and NDA_VNI: where an entry has another UDP port or VNI than its device.
	ndaPort = 6
	ndaVNI  = 7
	// nlaTypeMask takes the flags off an attribute's type.
	nlaTypeMask = 0x3fff
)

// device is what all devices have in common.
type device struct {
	index, mtu, master int
	up                 bool
	learning, flood    bool // as a port of the bridge
}

type vxlanDevice struct {
	device
	vni             uint32
	local           netip.Addr
	port            uint16
	learns, proxies bool
	home            bool // its socket is in the host's namespace
}

// taskPort is the bridge's end of a task's link.
type taskPort struct {
	device
	name   string
	task   string
	addr   netip.Addr
	netns  int  // where the other end is, as this namespace numbers it
	peer   int  // its index there
	static bool // the bridge has an entry for the task's MAC at this port
}

// forward is a forwarding entry of the VXLAN device.
type forward struct {
	mac       mac
	dst       netip.Addr
	port      uint16 // 0 = the device's
	vni       uint32 // 0 = the device's
	permanent bool
}

type neighbour struct {
	addr      netip.Addr
	mac       mac
	permanent bool
}

// kernel is what one network's namespace holds.
type kernel struct {
	bridge *device
	vxlan  *vxlanDevice
	ports  []taskPort
	fdb    []forward
	neigh  []neighbour
	// wrong are devices of our names that are of another type.
	wrong []string
	// strays are links without a task: a crash within Attach left them before they were marked.
	strays []string
}

// observe reads a network's namespace.
func (s *space) observe(p *Plane) (kernel, error) {
	k, err := s.devices(p)
	if err == nil {
		err = s.tables(&k)
	}
	return k, err
}

// devices reads the devices without the tables.
func (s *space) devices(p *Plane) (kernel, error) {
	var k kernel
	links, err := retryDump(s.nl.LinkList)
	if err != nil {
		return k, fmt.Errorf("list its devices: %w", err)
	}
	flags, err := retryDump(s.portFlags)
	if err != nil {
		return k, fmt.Errorf("list the ports of its bridge: %w", err)
	}
	for _, l := range links {
		a := l.Attrs()
		d := device{index: a.Index, mtu: a.MTU, master: a.MasterIndex, up: a.Flags&net.FlagUp != 0}
		if f, ok := flags[a.Index]; ok {
			d.learning, d.flood = f.learning, f.flood
		}
		switch l := l.(type) {
		case *netlink.Bridge:
			if a.Name == bridgeName {
				k.bridge = &d
				continue
			}
		case *netlink.Vxlan:
			if a.Name == vxlanName {
				v := &vxlanDevice{device: d, vni: uint32(l.VxlanId), port: uint16(l.Port), learns: l.Learning, proxies: l.Proxy && !l.FlowBased && len(l.Group) == 0}
				v.local, _ = netip.AddrFromSlice(l.SrcAddr)
				v.home = s.isHost(p, a.NetNsID)
				k.vxlan = v
				continue
			}
		case *netlink.Veth:
			if task, addr, ok := taskOf(a.Alias); ok {
				k.ports = append(k.ports, taskPort{device: d, name: a.Name, task: task, addr: addr, netns: a.NetNsID, peer: a.ParentIndex})
				continue
			}
			k.strays = append(k.strays, a.Name)
		}
		if a.Name == bridgeName || a.Name == vxlanName {
			k.wrong = append(k.wrong, a.Name)
		}
	}
	return k, nil
}

// isHost reports whether a namespace, as this one numbers it, is the host's.
func (s *space) isHost(p *Plane, number int) bool {
	if number < 0 || p.homeErr != nil {
		return false
	}
	home, err := s.nl.GetNetNsIdByFd(int(p.home))
	return err == nil && home == number
}

func aliasOf(a Attachment) string { return taskAlias + a.Task + " " + a.Addr.Addr().String() }

func taskOf(alias string) (task string, addr netip.Addr, ok bool) {
	rest, ok := strings.CutPrefix(alias, taskAlias)
	if !ok {
		return "", addr, false
	}
	task, text, _ := strings.Cut(rest, " ")
	addr, err := netip.ParseAddr(text)
	return task, addr, err == nil && addr.Is4() && task != ""
}

// tables reads the forwarding entries and neighbours.
func (s *space) tables(k *kernel) error {
	type place struct {
		mac   mac
		index int
	}
	static := map[place]bool{}
	err := s.dump(unix.AF_BRIDGE, func(m ndMsg) {
		switch {
		case k.vxlan != nil && m.index == k.vxlan.index && m.flags&unix.NTF_SELF != 0:
			k.fdb = append(k.fdb, forward{mac: m.mac, dst: m.addr, port: m.port, vni: m.vni, permanent: m.state&unix.NUD_PERMANENT != 0})
		case m.master && m.state&unix.NUD_NOARP != 0:
			static[place{m.mac, m.index}] = true
		}
	}, func() { k.fdb, static = nil, map[place]bool{} })
	if err != nil {
		return fmt.Errorf("list its forwarding entries: %w", err)
	}
	for i, p := range k.ports {
		k.ports[i].static = static[place{macOf(p.addr), p.index}]
	}
	if k.vxlan == nil {
		return nil
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		mark := len(k.neigh)
		err := s.dump(family, func(m ndMsg) {
			if m.index == k.vxlan.index && m.state&unix.NUD_NOARP == 0 { // NOARP: the kernel's own, of multicast groups
				k.neigh = append(k.neigh, neighbour{addr: m.addr, mac: m.mac, permanent: m.state&unix.NUD_PERMANENT != 0})
			}
		}, func() { k.neigh = k.neigh[:mark] })
		if err != nil {
			return fmt.Errorf("list its neighbours: %w", err)
		}
	}
	return nil
}

// ndMsg is an entry of a neighbour or forwarding table.
type ndMsg struct {
	index        int
	state, flags int
	mac          mac
	addr         netip.Addr
	port         uint16
	vni          uint32
	master       bool // an entry of the bridge, not of the device
}

// dump reads one table; begin is called before it is read again because it changed meanwhile.
func (s *space) dump(family int, each func(ndMsg), begin func()) (err error) {
	for range 10 {
		req := nl.NewNetlinkRequest(unix.RTM_GETNEIGH, unix.NLM_F_DUMP)
		req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: s.raw}
		req.AddData(&netlink.Ndmsg{Family: uint8(family)})
		begin()
		err = req.ExecuteIter(unix.NETLINK_ROUTE, unix.RTM_NEWNEIGH, func(b []byte) bool {
			if m, ok := parseNd(b); ok {
				each(m)
			}
			return true
		})
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return err
}

// parseNd reads what netlink.NeighDeserialize leaves out too: an entry may name a port of its own.
func parseNd(b []byte) (m ndMsg, ok bool) {
	const header = 12 // struct ndmsg
	if len(b) < header {
		return m, false
	}
	m.index = int(int32(binary.NativeEndian.Uint32(b[4:])))
	m.state, m.flags = int(binary.NativeEndian.Uint16(b[8:])), int(b[10])
	for b = b[header:]; len(b) >= unix.SizeofRtAttr; {
		n, kind := int(binary.NativeEndian.Uint16(b)), binary.NativeEndian.Uint16(b[2:])&nlaTypeMask
		if n < unix.SizeofRtAttr || n > len(b) {
			return m, false
		}
		v := b[unix.SizeofRtAttr:n]
		switch kind {
		case netlink.NDA_DST:
			m.addr, _ = netip.AddrFromSlice(v)
		case netlink.NDA_LLADDR:
			copy(m.mac[:], v)
		case netlink.NDA_MASTER:
			m.master = true
		case ndaPort:
			if len(v) == 2 {
				m.port = binary.BigEndian.Uint16(v)
			}
		case ndaVNI:
			if len(v) == 4 {
				m.vni = binary.NativeEndian.Uint32(v)
			}
		}
		b = b[min(len(b), (n+3)&^3):]
	}
	return m, true
}

type portFlag struct{ learning, flood bool }

// portFlags reads how the bridge treats its ports, all in one request.
func (s *space) portFlags() (map[int]portFlag, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: s.raw}
	req.AddData(nl.NewIfInfomsg(unix.AF_BRIDGE))
	msgs, err := req.Execute(unix.NETLINK_ROUTE, 0)
	if err != nil {
		return nil, err
	}
	out := map[int]portFlag{}
	for _, m := range msgs {
		info := nl.DeserializeIfInfomsg(m)
		attrs, err := nl.ParseRouteAttr(m[info.Len():])
		if err != nil {
			return nil, err
		}
		for _, a := range attrs {
			if a.Attr.Type&nlaTypeMask != unix.IFLA_PROTINFO {
				continue
			}
			fields, err := nl.ParseRouteAttr(a.Value)
			if err != nil {
				return nil, err
			}
			f := out[int(info.Index)]
			for _, x := range fields {
				switch x.Attr.Type {
				case nl.IFLA_BRPORT_LEARNING:
					f.learning = x.Value[0] != 0
				case nl.IFLA_BRPORT_UNICAST_FLOOD:
					f.flood = x.Value[0] != 0
				}
			}
			out[int(info.Index)] = f
		}
	}
	return out, nil
}
