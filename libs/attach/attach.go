// Package attach is what the node-agent asks of the node's mesh: a network namespace for a task, with its
// interfaces, and its removal. services/ingress-mesh implements it; services/skep hands the implementation to
// the agent when both run in one process, and Serve/Dial carry it over a unix socket when they do not.
package attach

import (
	"context"
	"net/netip"
)

// Request asks for the network of one task.
type Request struct {
	TaskID    string   `json:"task_id"`
	ServiceID string   `json:"service_id"`
	Hostname  string   `json:"hostname"`
	Networks  []string `json:"networks,omitempty"` // overlay network ids
	// Fixed are the addresses the task has on some of these by its service's word, by network id: IPv4, IPv6 or both.
	Fixed map[string][]netip.Addr `json:"fixed,omitempty"`
	// HostNetwork asks for no namespace at all: the task shares the host's.
	HostNetwork bool `json:"host_network,omitempty"`
	// Isolated asks for a namespace with a loopback and nothing else (network "none").
	Isolated bool `json:"isolated,omitempty"`
	// Ports are what the task publishes on this host alone (mode=host).
	Ports []Port `json:"ports,omitempty"`
	// Nameservers replace the host's own for names that are not the cluster's.
	Nameservers []string `json:"nameservers,omitempty"`
}

// Port is one published port of a task on its host. Published 0 asks for any free one.
type Port struct {
	Protocol  string `json:"protocol"` // tcp, udp, sctp
	Target    uint16 `json:"target"`
	Published uint16 `json:"published"`
	// HostIP is the only address of the host it is bound to; invalid: all of them.
	HostIP netip.Addr `json:"host_ip,omitzero"`
}

// Address is a task's address on an overlay network.
type Address struct {
	Network string       `json:"network"` // id
	Addr    netip.Prefix `json:"addr"`
	Addr6   netip.Prefix `json:"addr6,omitzero"`
}

// Attachment is a ready network namespace.
type Attachment struct {
	Netns     string         `json:"netns"`     // path of the namespace, "" for the host's own
	Addresses []netip.Prefix `json:"addresses"` // on skep0: IPv4, then IPv6 where the node has it
	Gateway   netip.Addr     `json:"gateway"`
	DNS       []netip.Addr   `json:"dns,omitempty"` // resolvers to write into resolv.conf; empty = the host's
	Networks  []Address      `json:"networks,omitempty"`
	Ports     []Port         `json:"ports,omitempty"` // as bound
}

// Attacher makes and removes task networks. Every method is idempotent: attaching twice returns the
// same addresses, detaching what does not exist is no error.
type Attacher interface {
	Attach(ctx context.Context, r Request) (Attachment, error)
	// Drain takes a task out of names, VIPs and published ports ahead of its end. It returns once nodes had the time to
	// act on it, or after a bounded time: a stop must not depend on managers. A task that serves nobody drains at once.
	Drain(ctx context.Context, taskID string) error
	Detach(ctx context.Context, taskID string) error
	// List returns the ids of all tasks that have a network on this node.
	List(ctx context.Context) ([]string, error)
}
