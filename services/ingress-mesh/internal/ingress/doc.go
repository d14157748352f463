// Package ingress makes one node part of the routing mesh: every published port, reached at any node, leads to a task
// anywhere, and the task sees the client's own address.
//
// How: the node that is asked (the entry node) only changes the destination; the packet travels to the task's node
// through skin0, a routed VXLAN; that node changes nothing and sends the reply back to the node it came from. What is
// kept for that is one mark per connection (the entry node's number), so state grows with nodes, not with clients.
//
// It owns: the link skin0, routes and neighbours on it, routing table 4000 and the one rule of each address family that
// leads there; the nftables tables `inet skep`, `inet skep_zones` and `netdev skep_fabric`; the chain SKEP-FORWARD of
// iptables and ip6tables and the one jump to it; a few sysctls of skin0 and of the node's bridge, what of the bridge's
// packets iptables sees, the hairpin mode of its ports, local routes of ::1 by the two links, and the host's forwarding.
// It refuses to change anything else: no table, chain, rule, link or route of others is touched; links by which the host
// hears routers go on hearing them (accept_ra 2), which the kernel would end with forwarding. Where another nftables
// table drops forwarded packets, which no rule of ours can undo, Verify names that table and what to add.
//
// Failure story: the kernel does the work, so a crash, an upgrade or a restart of the process drops no packet. Every
// operation compares the kernel with what should be there and writes the difference, nftables in an order in which no
// packet meets half a change (order.go), so all of them can be repeated after a crash at any point. A flush of the ruleset by somebody else is healed by the next
// Repair; connections that were silent meanwhile go on, those that sent something were answered with a reset by the
// node itself (nothing translated their packets).
//
// VXLAN packets are taken from the cluster's nodes alone, whichever network they are of: all networks share the UDP
// port. Another overlay on the same host (docker's, while a cluster is moved) must use another port.
//
// It needs Linux 5.16 (egress hook of netdev tables). The underlay may be IPv4 or IPv6, the same for all nodes.
//
// Ports are published over IPv6 as over IPv4, at all addresses of the node but those of one link (fe80::/10), on the same
// fabric with the same marks. A task's IPv6 address follows from its IPv4 one (ipam.NodeAddr6); next hops on the fabric
// are the link-local addresses that go with the nodes' MACs. Clients are sent to those tasks only that have an IPv6
// address, and a node without IPv6, which is one whose bridge has no IPv6 gateway address, has none of this. What differs:
// a node does not know its peers' IPv6 addresses, see alias.go; and [::1]:port is refused where bridged packets pass
// iptables, for the kernel then drops the replies.
//
// A published port belongs to its service on every node: while the service has no backend, new connections are refused
// (TCP reset, ICMP port unreachable) rather than passed to whatever else listens on the host, for a client must not
// find another program behind the port during an outage. In Swarm the daemon holds a socket on the port to that end.
package ingress
