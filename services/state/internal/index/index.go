// Package index is the state service's picture of the cluster: one in-memory store per bucket, fed by one watcher
// each. It holds what was read in the encoding it came in and decodes on demand, because a 5,000-node cluster has
// many more records than anybody looks at.
//
// It decides nothing and writes nothing. Everything it returns is a private copy of the caller's.
package index

import (
	"slices"
	"sync"
	"time"

	"skep.dev/libs/kv"
	skepv1 "skep.dev/proto/skep/v1"
)

// Index is the whole picture. Its Apply methods are the feeds' callbacks; all methods are safe for concurrent use.
type Index struct {
	mu      sync.RWMutex
	changed chan struct{} // closed and replaced at every change

	cluster  stored
	services map[string]*service // by id
	names    map[string]string   // lower-case name → service id
	order    []string            // lower-case service names, sorted
	nodes    map[string]*node    // by id
	keys     map[string]Key      // the idx.* keys
	nets     networks
	stacks   map[string]*stack // by id

	revs      map[string][]revision // by service, ascending
	stackRevs map[string][]revision // by stack, ascending
	revSize   int

	groups   map[string]*group   // task sets by node id, "_.<service>" for unplaced ones
	dirty    map[string]struct{} // groups whose counts are out of date
	counts   map[string]*tallies // by service
	members  map[string][]string // group → services counted in it
	numbers  map[string]uint32   // group → its number; named is the reverse, spare are numbers to use again
	named    []string
	spare    []uint32
	rollouts map[string]stored              // by service
	claims   map[string]*skepv1.VolumeClaim // by key
	fenced   map[string]bool                // nodes
	statuses map[string]*report             // by node

	leases map[string]string // lease → holder

	group    *skepv1.ManagerSet  // nil while the bus has not written it down
	managers map[string]struct{} // the nodes that are managers, or are to be
	beats    map[string]beat     // of managers, by node
	began    time.Time           // when this process began to listen to them, zero: it does not yet
	turned   []string            // nodes whose certified role has changed, see Turned
}

// stored is a value as read, with the revision of its key.
type stored struct {
	raw []byte
	rev uint64
}

// Key is an index key of the spec bucket: its value and revision, and when this process first saw it so.
type Key struct {
	Value    string
	Revision uint64
	Seen     time.Time
}

// New is an empty index.
func New() *Index {
	x := &Index{changed: make(chan struct{}), leases: map[string]string{}, managers: map[string]struct{}{}, beats: map[string]beat{}}
	x.resetSpec()
	x.resetRevs()
	x.resetTasks()
	x.resetStatus()
	x.resetNodes()
	return x
}

// Changed returns a channel that is closed at the next change: take it, look, and wait when what you look for is
// not there yet.
func (x *Index) Changed() <-chan struct{} {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.changed
}

func (x *Index) notifyLocked() {
	close(x.changed)
	x.changed = make(chan struct{})
}

func keep(e kv.Entry) stored { return stored{raw: slices.Clip(slices.Clone(e.Value)), rev: e.Revision} }

func millis(t time.Time) int64 { return t.UnixMilli() }
