package state

import (
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	"skep.dev/libs/sctp"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// sshPort is where most people reach their machines.
const sshPort = 22

// ownPorts are the single ports the cluster itself lives by, each with what it is for; see also encrypted. A published
// port takes every packet to it on every node, so publishing one of these would cut the cluster apart.
type ownPorts map[string]string

func (s *Service) ownPorts() ownPorts {
	dataPath := s.ix.Cluster().GetSpec().GetDataPathPort()
	if dataPath == 0 {
		dataPath = spec.DefaultDataPathPort
	}
	out := ownPorts{keys.PortKey("udp", dataPath): "the traffic between the nodes' containers"}
	addrs := s.managerAddrs()
	if len(addrs) == 0 {
		addrs = []string{net.JoinHostPort("", busPort)}
	}
	for _, a := range addrs {
		_, p, err := net.SplitHostPort(a)
		if err != nil {
			continue // an address without a port was given one
		}
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil {
			continue
		}
		out[keys.PortKey("tcp", uint32(n))] = "the connections of nodes and clients to the managers"
		out[keys.PortKey("tcp", uint32(n)+1)] = "the connections of managers to one another"
	}
	return out
}

// encrypted says that a port is one of those by which nodes exchange the packets of encrypted networks, whether there
// are such networks or not: one that is created later must find its port free on every node.
func encrypted(protocol string, port uint32) bool {
	return protocol == "udp" && port >= spec.FirstEncryptedPort && port <= spec.LastEncryptedPort
}

func (o ownPorts) has(protocol string, port uint32) bool {
	_, ours := o[keys.PortKey(protocol, port)]
	return ours || encrypted(protocol, port)
}

// refuse says why a port cannot be published, if the cluster itself lives by it.
func (o ownPorts) refuse(p *skepv1.PortConfig) error {
	if encrypted(p.Protocol, p.PublishedPort) {
		return fault.Invalid("port '%d' cannot be published: skep itself uses %d-%d/udp, for the traffic of encrypted networks, one port each on every node; publish another port",
			p.PublishedPort, spec.FirstEncryptedPort, spec.LastEncryptedPort)
	}
	if what, ours := o[keys.PortKey(p.Protocol, p.PublishedPort)]; ours {
		return fault.Invalid("port '%d' cannot be published: skep itself uses %d/%s, for %s; publish another port", p.PublishedPort, p.PublishedPort, p.Protocol, what)
	}
	return nil
}

// portWarnings tells of ports that are published now and were not before, are allowed and may surprise.
func (s *Service) portWarnings(before, now *skepv1.Endpoint) (out []string) {
	var without []string
	for _, p := range now.GetPorts() {
		switch {
		case publishes(before, p):
		case p.Protocol == "tcp" && p.PublishedPort == sshPort && p.PublishMode == skepv1.PublishMode_PUBLISH_MODE_INGRESS:
			out = append(out, fmt.Sprintf("port %d/tcp is published on every node: SSH connections to any of them now go to the service's tasks (port %d) instead of the node's own SSH server", sshPort, p.TargetPort))
		case p.Protocol == "sctp":
			if without == nil {
				without = s.nodesWithoutSCTP()
			}
			if len(without) > 0 {
				out = append(out, fmt.Sprintf("port %d/sctp: no SCTP in the kernel of %s: the port, or programs that listen on it, will not work there; `skep doctor` says what is missing on each node", p.PublishedPort, someOf(without)))
			}
		}
	}
	return out
}

// nodesWithoutSCTP are the names of nodes that have said what they can do, and not that.
func (s *Service) nodesWithoutSCTP() []string {
	out := []string{}
	for _, id := range s.ix.NodeIDs() {
		d, _ := s.ix.Description(id)
		// Every agent has plugins for logs: without any, only its admission has described the node so far.
		if len(d.GetPlugins()) > 0 && !slices.ContainsFunc(d.Plugins, func(p *skepv1.Plugin) bool { return p.Type == sctp.PluginType && p.Name == sctp.Plugin }) {
			out = append(out, s.ix.Hostname(id))
		}
	}
	slices.Sort(out)
	return out
}

// someOf names a few.
func someOf(names []string) string {
	const few = 5
	if more := len(names) - few; more > 0 {
		return fmt.Sprintf("%s and %d more nodes", strings.Join(names[:few], ", "), more)
	}
	return strings.Join(names, ", ")
}

func publishes(e *skepv1.Endpoint, p *skepv1.PortConfig) bool {
	for _, o := range e.GetPorts() {
		if o.Protocol == p.Protocol && o.PublishedPort == p.PublishedPort && o.PublishMode == p.PublishMode {
			return true
		}
	}
	return false
}
