package node

import (
	"context"
	"strings"
	"sync"

	"github.com/nats-io/nats.go/jetstream"

	"skep.dev/libs/kv"
	"skep.dev/libs/subject"
)

// members knows which nodes the cluster has, so that the broker can refuse one that was removed although its
// certificate is good for months.
type members struct {
	removed func(id string)
	loaded  func() // after the first look at the store

	mu    sync.RWMutex
	known map[string]bool // nil until the feed has caught up
}

func followMembers(ctx context.Context, js jetstream.JetStream, m *members) (*kv.Feed, error) {
	return kv.Follow(ctx, js, subject.Spec, m.apply, "node.*")
}

func (m *members) apply(d kv.Delta) {
	m.mu.Lock()
	before := m.known
	if d.Reset || m.known == nil {
		m.known = map[string]bool{}
	}
	var gone []string
	for _, e := range d.Entries {
		id := strings.TrimPrefix(e.Key, "node.")
		if e.Deleted {
			delete(m.known, id)
			gone = append(gone, id)
		} else {
			m.known[id] = true
		}
	}
	if d.Reset {
		for id := range before {
			if !m.known[id] {
				gone = append(gone, id)
			}
		}
	}
	m.mu.Unlock()
	if d.Reset {
		m.loaded()
	}
	for _, id := range gone {
		m.removed(id)
	}
}

// revoked is asked by the broker on every connection. Until the first look at the store nobody is.
func (m *members) revoked(id string) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.known != nil && !m.known[id]
}
