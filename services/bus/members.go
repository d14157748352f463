package bus

import (
	"context"
	"maps"
	"path/filepath"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"skep.dev/libs/id"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/subject"
)

// membersFile is in the data directory: the nodes as they were last known, for a start without a quorum.
const membersFile = "members.json"

// saveAfter is how long a new node may be missing in the file: many come at once. Until the store is read it is then
// refused by a manager that starts, as one that was removed is.
const saveAfter = time.Second

// Members knows which nodes the cluster has, so that the broker can refuse one that was removed although its
// certificate is good for months. Give its Revoked to Config, then Follow the store.
type Members struct {
	file roster
	log  *zap.Logger

	mu    sync.RWMutex
	known map[string]bool // nil until the feed has caught up, unless there is a file
	// unknown: the file cannot be read. Until the store has been looked at every node may be a removed one.
	unknown bool
	fresh   bool        // the list is the store's, not the file's
	save    *time.Timer // set while new nodes are not in the file yet

	removed func(id string)
	loaded  func() // after the first look at the store
}

// OpenMembers reads the nodes as they were last known to this manager.
func OpenMembers(dataDir string, log *zap.Logger) *Members {
	m := &Members{file: roster{filepath.Join(dataDir, membersFile), "list of nodes", id.Valid}, log: log}
	var err error
	if m.known, err = m.file.read(); err != nil {
		m.unknown = true
		log.Error("no other node is let in before the store has been read: the list of nodes is unreadable", zap.String("path", m.file.path), zap.Error(err))
	}
	return m
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
		m.known, m.unknown = map[string]bool{}, false
		m.fresh = m.fresh || d.Reset
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
	switch {
	case len(gone) > 0 || d.Reset && !maps.Equal(before, m.known):
		m.saveLocked()
	case len(d.Entries) > 0 && !d.Reset && m.save == nil:
		m.save = time.AfterFunc(saveAfter, m.Save)
	}
	m.mu.Unlock()
	if d.Reset {
		m.loaded()
	}
	for _, id := range gone {
		m.removed(id)
	}
}

// Save writes what is not in the file yet: it is called when the broker stops, and a moment after a node came.
func (m *Members) Save() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.save != nil {
		m.saveLocked()
	}
}

func (m *Members) saveLocked() {
	if m.save != nil {
		m.save.Stop()
		m.save = nil
	}
	if len(m.known) == 0 {
		return // the cluster is being founded: the first nodes must get in after a restart too
	}
	if err := m.file.write(m.known); err != nil {
		m.log.Error("the list of nodes is kept in memory alone", zap.Error(err))
	}
}

// Fresh reports whether the list was read from the store since the start.
func (m *Members) Fresh() bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.fresh
}

// Revoked is asked by the broker on every connection. While no node at all is known nobody is: then the cluster is being
// founded, by services of this very manager.
func (m *Members) Revoked(id string) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.unknown || len(m.known) > 0 && !m.known[id]
}
