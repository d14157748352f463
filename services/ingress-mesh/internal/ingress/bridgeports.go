package ingress

import (
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// portSteps make the ports of the bridge such that tasks reach one another by published ports and networks alone.
//
// A port is isolated: it talks to the node, not to other ports. But where bridged packets pass iptables (docker and
// Kubernetes switch that on) the destination is changed while the packet is still in the bridge, which then has to send
// it out of another port, or of the one it came in by: there ports are open and in hairpin mode, and the chain
// "isolate", which sees bridged packets then, keeps tasks apart; see bridgeSteps.
func (p *Plane) portSteps() ([]step, error) {
	filtered := p.filtered.Load()
	bridge, err := findLink(p.nl, p.cfg.Bridge)
	if err != nil || bridge == nil {
		return nil, err
	}
	ports, err := p.bridgePorts(bridge.Attrs().Index)
	if err != nil {
		return nil, err
	}
	var out []step
	for _, port := range ports {
		l := port.link()
		// The task may be gone by the time a step is made.
		if filtered && !port.hairpin {
			out = append(out, step{fmt.Sprintf("port %s of bridge %s does not send back what came from it", port.name, p.cfg.Bridge), func() error {
				return ignoring(p.nl.LinkSetHairpin(l, true), unix.ENODEV)
			}})
		}
		if port.isolated == filtered {
			what := fmt.Sprintf("port %s of bridge %s is not isolated from other tasks", port.name, p.cfg.Bridge)
			if filtered {
				what = fmt.Sprintf("port %s of bridge %s is isolated from tasks that a published port leads to", port.name, p.cfg.Bridge)
			}
			out = append(out, step{what, func() error { return ignoring(p.nl.LinkSetIsolated(l, !filtered), unix.ENODEV) }})
		}
	}
	return out, nil
}

// bridgePorts are the links on the bridge with that index.
func (p *Plane) bridgePorts(index int) (out []onBridge, err error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
	req.AddData(nl.NewIfInfomsg(unix.AF_BRIDGE))
	msgs, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if err != nil {
		return nil, fmt.Errorf("list the ports of bridge %s: %w", p.cfg.Bridge, err)
	}
	for _, m := range msgs {
		port, err := bridgePort(m)
		if err != nil {
			return nil, fmt.Errorf("read the ports of bridge %s: %w", p.cfg.Bridge, err)
		}
		if port.master == index {
			out = append(out, port)
		}
	}
	return out, nil
}

// bridgeFilter reports whether bridged packets of either family pass iptables on this host.
func bridgeFilter() bool {
	for _, key := range []string{"net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"} {
		if v, err := readSysctl(key); err == nil && v == "1" { // else there is no such filter in this kernel, or it is off
			return true
		}
	}
	return false
}

// bridgeSteps: where bridged packets of one family pass iptables, those of our bridge do in both. Ports are open there,
// and what the chain "isolate" does not see would get from task to task, by link-local addresses for one.
func (p *Plane) bridgeSteps() ([]step, error) {
	bridge, err := findLink(p.nl, p.cfg.Bridge)
	if err != nil || bridge == nil {
		return nil, err
	}
	have, err := p.bridgeFilters(bridge.Attrs().Index)
	if err != nil {
		return nil, fmt.Errorf("read what bridge %s filters: %w", p.cfg.Bridge, err)
	}
	var out []step
	for kind, name := range map[uint16]string{nl.IFLA_BR_NF_CALL_IPTABLES: "IPv4", nl.IFLA_BR_NF_CALL_IP6TABLES: "IPv6"} {
		if have[kind] == p.filtered.Load() {
			continue
		}
		what := fmt.Sprintf("bridge %s filters %s, and the host does not", p.cfg.Bridge, name)
		if p.filtered.Load() {
			what = fmt.Sprintf("bridge %s does not filter %s, and its ports are open", p.cfg.Bridge, name)
		}
		out = append(out, step{what, func() error { return p.setBridge(bridge.Attrs().Index, kind, p.filtered.Load()) }})
	}
	return out, nil
}

// bridgeFilters are which of the bridge's own switches are on.
func (p *Plane) bridgeFilters(index int) (map[uint16]bool, error) {
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
	req.AddData(msg)
	msgs, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if err != nil || len(msgs) == 0 {
		return nil, err
	}
	out := map[uint16]bool{}
	attrs, err := nl.ParseRouteAttr(msgs[0][unix.SizeofIfInfomsg:])
	for depth := 0; err == nil && depth < 2; depth++ {
		var inner []byte
		for _, a := range attrs {
			if kind := a.Attr.Type &^ unix.NLA_F_NESTED; depth == 0 && kind == unix.IFLA_LINKINFO || depth == 1 && kind == nl.IFLA_INFO_DATA {
				inner = a.Value
			}
		}
		attrs, err = nl.ParseRouteAttr(inner)
	}
	for _, a := range attrs {
		out[a.Attr.Type] = len(a.Value) == 1 && a.Value[0] == 1
	}
	return out, err
}

func (p *Plane) setBridge(index int, kind uint16, on bool) error {
	value := []byte{0}
	if on {
		value[0] = 1
	}
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))
	info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(int(kind), value)
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	req.AddData(msg)
	req.AddData(info)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// onBridge is one link on a bridge.
type onBridge struct {
	name              string
	index, master     int
	hairpin, isolated bool
	learning, flood   bool
}

func (o onBridge) link() netlink.Link {
	return &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Index: o.index, Name: o.name}}
}

func bridgePort(m []byte) (out onBridge, err error) {
	attrs, err := nl.ParseRouteAttr(m[unix.SizeofIfInfomsg:])
	if err != nil {
		return out, err
	}
	out.index = int(nl.DeserializeIfInfomsg(m).Index)
	for _, a := range attrs {
		switch a.Attr.Type &^ unix.NLA_F_NESTED {
		case unix.IFLA_IFNAME:
			out.name = string(a.Value[:max(0, len(a.Value)-1)])
		case unix.IFLA_MASTER:
			out.master = int(nl.NativeEndian().Uint32(a.Value))
		case unix.IFLA_PROTINFO:
			parts, err := nl.ParseRouteAttr(a.Value)
			if err != nil {
				return out, err
			}
			for _, q := range parts {
				on := len(q.Value) == 1 && q.Value[0] == 1
				switch q.Attr.Type {
				case nl.IFLA_BRPORT_MODE:
					out.hairpin = on
				case nl.IFLA_BRPORT_ISOLATED:
					out.isolated = on
				case nl.IFLA_BRPORT_LEARNING:
					out.learning = on
				case nl.IFLA_BRPORT_UNICAST_FLOOD:
					out.flood = on
				}
			}
		}
	}
	return out, nil
}
