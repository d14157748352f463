package render

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sort"
	"strings"

	"github.com/moby/moby/api/types/network"

	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// Networks is `network ls`.
func Networks(list []*skepv1.Network, noTrunc bool) *Table {
	sort.SliceStable(list, func(i, j int) bool { return NaturalLess(list[i].GetSpec().GetName(), list[j].GetSpec().GetName()) })
	t := &Table{
		Key: "ID",
		Columns: []Column{{"ID", "NETWORK ID"}, {"Name", "NAME"}, {"Driver", "DRIVER"}, {"Scope", "SCOPE"}, {"IPv4", "IPV4"}, {"IPv6", "IPV6"},
			{"Internal", "INTERNAL"}, {"Labels", "LABELS"}, {"CreatedAt", "CREATED AT"}},
		Default: "{{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}",
	}
	for _, n := range list {
		id := n.GetMeta().GetId()
		if !noTrunc {
			id = ShortID(id)
		}
		created := ""
		if c := n.GetMeta().GetCreatedAt(); c != nil {
			created = c.AsTime().Format("2006-01-02 15:04:05.999999999 -0700 MST")
		}
		t.Rows = append(t.Rows, Row{
			"ID": id, "Name": n.GetSpec().GetName(), "Driver": n.GetSpec().GetDriver(), "Scope": n.GetScope(), "IPv4": "true", "IPv6": fmt.Sprint(n.GetSpec().GetIpv6()),
			"Internal": fmt.Sprint(n.GetSpec().GetInternal()), "Labels": labelList(n.GetSpec().GetLabels()), "CreatedAt": created,
		})
	}
	return t
}

func labelList(m map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, k+"="+m[k])
	}
	return strings.Join(out, ",")
}

// Label is one of the row's labels: {{.Label "key"}}.
func (l line) Label(key string) string {
	labels, _ := l["Labels"].(string) // it is one
	if labels == "LABELS" {
		return key // the heading
	}
	for _, l := range strings.Split(labels, ",") {
		if v, ok := strings.CutPrefix(l, key+"="); ok {
			return v
		}
	}
	return ""
}

// DockerNetwork is a network in the form of Docker's API; mesh is who is on it, nil when that is not known.
func DockerNetwork(n *skepv1.Network, mesh *skepv1.MeshNetworkReply, verbose bool) any {
	s := n.GetSpec()
	out := network.Inspect{Network: network.Network{
		Name: s.GetName(), ID: n.GetMeta().GetId(), Scope: n.GetScope(), Driver: s.GetDriver(), EnableIPv4: true, EnableIPv6: s.GetIpv6(),
		IPAM: network.IPAM{Driver: "default", Config: []network.IPAMConfig{}}, Internal: s.GetInternal(), Attachable: s.GetAttachable(),
		Ingress: n.GetMeta().GetId() == spec.NetworkIngress, Options: maps.Clone(labels(s.GetDriverOpts())), Labels: labels(s.GetLabels()),
	}, Containers: map[string]network.EndpointResource{}}
	if c := n.GetMeta().GetCreatedAt(); c != nil {
		out.Created = c.AsTime()
	}
	if n.GetVni() != 0 {
		out.Options[spec.OptVXLANID] = fmt.Sprint(n.Vni)
	}
	for _, c := range n.GetIpam() {
		// What is not an address stays away: nothing to show.
		sub, _ := netip.ParsePrefix(c.Subnet)
		part, _ := netip.ParsePrefix(c.IpRange)
		gw, _ := netip.ParseAddr(c.Gateway)
		out.IPAM.Config = append(out.IPAM.Config, network.IPAMConfig{Subnet: sub, IPRange: part, Gateway: gw})
	}
	for _, p := range mesh.GetPeers() {
		out.Peers = append(out.Peers, network.PeerInfo{Name: dash(p.Hostname), IP: address(p.Addr)})
	}
	if verbose {
		out.Services = map[string]network.ServiceInfo{}
		for _, x := range mesh.GetServices() {
			out.Services[x.GetService().GetName()] = dockerServiceInfo(x)
		}
	}
	return out
}

func dockerServiceInfo(x *skepv1.MeshNetworkService) network.ServiceInfo {
	out := network.ServiceInfo{VIP: address(x.GetService().GetVip()), Ports: []string{}, Tasks: []network.Task{}}
	for _, p := range x.GetService().GetPorts() {
		out.Ports = append(out.Ports, fmt.Sprintf("Target: %d, Publish: %d", p.TargetPort, p.PublishedPort))
	}
	for _, k := range x.GetTasks() {
		out.Tasks = append(out.Tasks, network.Task{Name: k.Name, EndpointID: k.TaskId, EndpointIP: address(k.Addr), Info: map[string]string{"Host IP": k.NodeAddr}})
	}
	sort.SliceStable(out.Tasks, func(i, j int) bool { return NaturalLess(out.Tasks[i].Name, out.Tasks[j].Name) })
	return out
}

// address reads an address, with or without its prefix length; the zero Addr is none.
func address(s string) netip.Addr {
	s, _, _ = strings.Cut(s, "/")
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}
	}
	return a
}
