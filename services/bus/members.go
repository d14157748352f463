package bus

import (
	"context"
	"sync"

	"github.com/nats-io/nats.go/jetstream"

	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/subject"
)

// Members knows which nodes the cluster has, so that the broker can refuse one that was removed although its
// certificate is good for months. Give its Revoked to Config, then Follow the store.
type Members struct {
	mu    sync.RWMutex
	known map[string]bool // nil until the feed has caught up

	removed func(id string)
	loaded  func() // after the first look at the store
}

// Follow keeps the list, and ends the connections of those that leave it, until ctx ends or the feed is closed.
func (m *Members) Follow(ctx context.Context, js jetstream.JetStream, b *Bus) *kv.Feed {
	m.removed = func(id string) { b.Disconnect(id) }
	// A removed node may have connected before the members were known: Sweep closes such connections.
	m.loaded = func() { b.Sweep() }
	return kv.Follow(ctx, js, subject.Spec, m.apply, keys.Node.Key("*"))
}

func (m *Members) apply(d kv.Delta) {
	m.mu.Lock()
	before := m.known
	if d.Reset || m.known == nil {
		m.known = map[string]bool{}
	}
	var gone []string
	for _, e := range d.Entries {
		id, _ := keys.Node.ID(e.Key)
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

// Revoked is asked by the broker on every connection. Until the first look at the store nobody is, nor while it names no
// node at all: then the cluster is being founded, by services of this very manager.
func (m *Members) Revoked(id string) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return len(m.known) > 0 && !m.known[id]
}
