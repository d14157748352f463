package keys

import "strings"

// Scopes of bucket endpoint that are no networks: who is in the cluster, and what is published on its nodes. Every node
// follows both. All other scopes are ids of networks.
const (
	ScopeNodes   = "node"
	ScopeIngress = "ingress"
)

// ItemInfo is a network's own record. All other items are ids of nodes, or services' (ServiceItem).
const ItemInfo = "info"

const servicePrefix = "svc_"

// ServiceItem is the item of a service.
func ServiceItem(id string) string { return servicePrefix + id }

// ParseServiceItem is the id of the service that an item belongs to, false when it is another's.
func ParseServiceItem(item string) (id string, ok bool) {
	return strings.CutPrefix(item, servicePrefix)
}

// ParseEndpoint is the scope and item of a key of bucket endpoint, false for one of a single word.
func ParseEndpoint(key string) (scope, item string, ok bool) { return strings.Cut(key, ".") }
