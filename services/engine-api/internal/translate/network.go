package translate

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/network"

	"skep.dev/libs/fault"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

const (
	ipamDriver = "default"
	scopeSwarm = "swarm"
)

// NetworkFromDocker is the spec of a new network. A driver that none was asked for is overlay: others make networks of a single node,
// which libs/spec refuses.
func NetworkFromDocker(in network.CreateRequest) (*skepv1.NetworkSpec, error) {
	switch {
	case in.Ingress:
		return nil, notKept("Ingress", "every cluster has its network of published ports, ingress, and it needs no settings")
	case in.ConfigOnly:
		return nil, notKept("ConfigOnly", "it is for networks of a single node; give an overlay network its settings directly")
	case in.ConfigFrom != nil && in.ConfigFrom.Network != "":
		return nil, notKept("ConfigFrom", "it is for networks of a single node; give an overlay network its settings directly")
	case in.EnableIPv4 != nil && !*in.EnableIPv4:
		return nil, notKept("EnableIPv4=false", "every network has IPv4, and EnableIPv6 gives it IPv6 as well")
	case in.Scope != "" && in.Scope != scopeSwarm:
		return nil, notKept("Scope "+in.Scope, "networks exist in the whole cluster, their scope is swarm")
	}
	out := &skepv1.NetworkSpec{
		Name: in.Name, Labels: in.Labels, Driver: in.Driver, DriverOpts: in.Options, Internal: in.Internal, Attachable: in.Attachable,
		Ipv6: in.EnableIPv6 != nil && *in.EnableIPv6,
	}
	if out.Driver == "" {
		out.Driver = spec.DriverOverlay
	}
	var err error
	if out.Ipam, err = ipamFromDocker(in.IPAM); err != nil {
		return nil, err
	}
	return out, checkText(out.ProtoReflect(), "")
}

func ipamFromDocker(in *network.IPAM) ([]*skepv1.IPAMConfig, error) {
	if in == nil {
		return nil, nil
	}
	switch {
	case in.Driver != "" && in.Driver != ipamDriver:
		return nil, notKept("IPAM.Driver "+in.Driver, "skep hands out the addresses itself; Subnet, Gateway and IPRange say which")
	case len(in.Options) > 0:
		return nil, notKept("IPAM.Options", "skep hands out the addresses itself; Subnet, Gateway and IPRange say which")
	}
	var out []*skepv1.IPAMConfig
	for _, c := range in.Config {
		if len(c.AuxAddress) > 0 {
			return nil, notKept("IPAM.Config.AuxiliaryAddresses", "keep addresses free for other uses with IPRange, which says where services and tasks get theirs from")
		}
		one := &skepv1.IPAMConfig{}
		if c.Subnet.IsValid() {
			one.Subnet = c.Subnet.String()
		}
		if c.IPRange.IsValid() {
			one.IpRange = c.IPRange.String()
		}
		if c.Gateway.IsValid() {
			one.Gateway = c.Gateway.String()
		}
		if one.Subnet == "" && one.IpRange == "" && one.Gateway == "" {
			continue // an empty entry asks for nothing
		}
		if one.Subnet == "" {
			return nil, fault.Invalid("every ip-range or gateway must have a corresponding subnet")
		}
		out = append(out, one)
	}
	return out, nil
}

// NetworkToDocker is a network in Docker's form. Who is on it, mesh, is told to who asks for more (verbose); nil: it is not known.
// Lists show networks in this form too: clients older than 1.52 read its Containers.
func NetworkToDocker(n *skepv1.Network, mesh *skepv1.MeshNetworkReply, verbose bool) network.Inspect {
	s := n.GetSpec()
	out := network.Inspect{Network: network.Network{
		Name: s.GetName(), ID: n.GetMeta().GetId(), Created: timeOf(n.GetMeta().GetCreatedAt()), Scope: n.GetScope(), Driver: s.GetDriver(),
		EnableIPv4: true, EnableIPv6: s.GetIpv6(), IPAM: network.IPAM{Driver: ipamDriver, Config: []network.IPAMConfig{}},
		Internal: s.GetInternal(), Attachable: s.GetAttachable(), Ingress: n.GetMeta().GetId() == spec.NetworkIngress,
		Options: networkOptions(n), Labels: filled(s.GetLabels()),
	}, Containers: map[string]network.EndpointResource{}}
	if out.Scope == "" {
		out.Scope = scopeSwarm
	}
	if out.Ingress { // what is published is so in the whole cluster
		out.Scope = scopeSwarm
	}
	for _, c := range n.GetIpam() {
		subnet, part, gateway := ipamParts(c)
		out.IPAM.Config = append(out.IPAM.Config, network.IPAMConfig{Subnet: subnet, IPRange: part, Gateway: gateway})
	}
	for _, p := range mesh.GetPeers() {
		out.Peers = append(out.Peers, network.PeerInfo{Name: p.GetHostname(), IP: address(p.GetAddr())})
	}
	if verbose {
		out.Services = map[string]network.ServiceInfo{}
		for _, x := range mesh.GetServices() {
			out.Services[x.GetService().GetName()] = serviceInfo(x)
		}
	}
	return out
}

// InScope is a network as a client asks for it that names a scope, false: it has none such. The networks that every node has, such as host,
// are there in both in Docker, and a service joins one by that of scope swarm.
func InScope(n network.Inspect, scope string) (network.Inspect, bool) {
	if scope == scopeSwarm && spec.Predefined(n.ID) != "" {
		n.Scope = scopeSwarm
	}
	return n, scope == "" || scope == n.Scope
}

// networkOptions are what was asked for, and the number that the network was given.
func networkOptions(n *skepv1.Network) map[string]string {
	out := filled(maps.Clone(n.GetSpec().GetDriverOpts()))
	if n.GetVni() != 0 {
		out[spec.OptVXLANID] = fmt.Sprint(n.GetVni())
	}
	return out
}

func serviceInfo(x *skepv1.MeshNetworkService) network.ServiceInfo {
	out := network.ServiceInfo{VIP: address(x.GetService().GetVip()), Ports: []string{}, Tasks: []network.Task{}}
	for _, p := range x.GetService().GetPorts() {
		out.Ports = append(out.Ports, fmt.Sprintf("Target: %d, Publish: %d", p.GetTargetPort(), p.GetPublishedPort()))
	}
	for _, t := range x.GetTasks() {
		out.Tasks = append(out.Tasks, network.Task{Name: t.GetName(), EndpointID: t.GetTaskId(), EndpointIP: address(t.GetAddr()), Info: map[string]string{"Host IP": t.GetNodeAddr()}})
	}
	slices.SortStableFunc(out.Tasks, func(a, b network.Task) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// address reads an address, with or without its length; the zero Addr is none.
func address(s string) netip.Addr {
	p, ok := prefix(s)
	if !ok {
		return netip.Addr{}
	}
	return p.Addr()
}
