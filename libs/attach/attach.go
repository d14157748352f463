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
	// HostNetwork asks for no namespace at all: the task shares the host's.
	HostNetwork bool `json:"host_network,omitempty"`
}

// Attachment is a ready network namespace.
type Attachment struct {
	Netns     string         `json:"netns"`     // path of the namespace, "" for the host's own
	Addresses []netip.Prefix `json:"addresses"` // skep0's first
	Gateway   netip.Addr     `json:"gateway"`
	DNS       []netip.Addr   `json:"dns,omitempty"` // resolvers to write into resolv.conf; empty = the host's
}

// Attacher makes and removes task networks. Every method is idempotent: attaching twice returns the
// same addresses, detaching what does not exist is no error.
type Attacher interface {
	Attach(ctx context.Context, r Request) (Attachment, error)
	Detach(ctx context.Context, taskID string) error
	// List returns the ids of all tasks that have a network on this node.
	List(ctx context.Context) ([]string, error)
}
