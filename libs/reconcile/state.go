package reconcile

import (
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/keys"
	specs "skep.dev/libs/spec"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// State is the snapshot a plan is made from, kept up to date key by key. Plans only read it. It is not safe for
// concurrent use: its owner holds a lock over it.
type State struct {
	nodes    map[string]*Node
	byID     []*Node // those that exist, by id: the order of the placement engine
	services map[string]*Service
	pages    map[string]*Page
	tasks    map[string]*Task
	unplaced map[*Service]int // number of unplaced tasks
	dirty    map[*Service]struct{}
	left     map[*Page]struct{} // empty pages of nodes that are gone: their keys should go
	sick     map[*Task]string   // those reported as unhealthy, with the last line of what the probe said
	refused  map[*Task]string   // those their nodes rejected, and why
	// dependents are the services whose tasks wait for a service, by its id.
	dependents map[string]map[*Service]struct{}

	networks map[string]bool // those that may be joined, by id

	claims        map[string]*claim // by key
	held          int               // how many of them hold
	claimsTouched bool
	claimants     map[*Service]struct{} // services that may mount volumes with a single writer
	global        map[string]int        // on how many nodes a volume plug-in has the same volumes everywhere, by its name
	byVolume      map[volumeID][]user
	usersStale    bool
	named         map[*Task]named

	history int64
	period  time.Duration // of heartbeats
	cluster bool          // its object was seen
	fence   skepv1.Fence
}

// Page is one key of bucket task that holds records: a node's, or unplaced ones of a service.
type Page struct {
	Key      string
	Node     *Node    // of a node's page
	Service  *Service // of a page of unplaced tasks
	Tasks    []*Task
	Revision uint64 // of the newest content that is known, also after a deletion
	size     int    // of that content, encoded
	exists   bool   // the key holds a value
}

// NewState is an empty cluster.
func NewState() *State {
	return &State{
		nodes: map[string]*Node{}, services: map[string]*Service{}, pages: map[string]*Page{}, tasks: map[string]*Task{},
		unplaced: map[*Service]int{}, dirty: map[*Service]struct{}{}, left: map[*Page]struct{}{}, sick: map[*Task]string{}, refused: map[*Task]string{}, history: 5,
		dependents: map[string]map[*Service]struct{}{}, networks: map[string]bool{},
		claims: map[string]*claim{}, claimants: map[*Service]struct{}{}, global: map[string]int{},
	}
}

// Dirty returns the ids of services that changed since the last call, or were touched by something that did.
func (s *State) Dirty() []string {
	out := make([]string, 0, len(s.dirty))
	for v := range s.dirty {
		out = append(out, v.ID)
	}
	clear(s.dirty)
	slices.Sort(out)
	return out
}

// HasDirty reports whether there is anything to plan: services that Dirty would return, or claims.
func (s *State) HasDirty() bool { return len(s.dirty) > 0 || s.claimsTouched }

// Services returns the ids of all services that exist or still have tasks.
func (s *State) Services() []string {
	out := make([]string, 0, len(s.services))
	for id := range s.services {
		out = append(out, id)
	}
	slices.Sort(out)
	return out
}

// Sizes tells how much there is, for metrics.
func (s *State) Sizes() (nodes, services, tasks int) {
	return len(s.byID), len(s.services), len(s.tasks)
}

// Pending counts the tasks that should run and have no node.
func (s *State) Pending() int {
	n := 0
	for v := range s.unplaced {
		for _, p := range v.spare {
			for _, t := range p.Tasks {
				if t.Desired <= Complete && t.State() < Running {
					n++
				}
			}
		}
	}
	return n
}

// Nodes returns the nodes in the order the placement engine numbers them.
func (s *State) Nodes() []*Node { return s.byID }

func (s *State) mark(v *Service) {
	s.dirty[v] = struct{}{}
	s.markDependents(v)
}

// Touch has a service looked at again.
func (s *State) Touch(id string) {
	if v := s.services[id]; v != nil {
		s.mark(v)
	}
}

// markUnplaced wakes the services that wait for room.
func (s *State) markUnplaced() {
	for v := range s.unplaced {
		s.mark(v)
	}
}

func (s *State) markAll() {
	for _, v := range s.services {
		s.mark(v)
	}
}

// Known reports whether the cluster's own object was seen. Without it the picture cannot be trusted: a bucket that
// came back empty must not look like a cluster whose services were all removed.
func (s *State) Known() bool { return s.cluster }

// PutSpec applies a key of bucket spec; nil deletes it, here and in the other Puts.
func (s *State) PutSpec(key string, val []byte) error {
	f, id := keys.Of(subject.Spec, key)
	if f == nil {
		return nil
	}
	m, err := f.Decode(val)
	if err != nil {
		return fmt.Errorf("decode spec/%s: %w", key, err)
	}
	switch f {
	case keys.Cluster:
		c, _ := m.(*skepv1.Cluster)
		s.cluster = c != nil
		s.putCluster(c.GetSpec())
	case keys.Service:
		v, _ := m.(*skepv1.Service)
		s.putService(id, v)
	case keys.Node:
		v, _ := m.(*skepv1.NodeObject)
		s.putNode(id, v)
	case keys.Network:
		v, _ := m.(*skepv1.Network)
		s.putNetwork(id, v)
	}
	return nil
}

func (s *State) putCluster(c *skepv1.ClusterSpec) {
	s.period = specs.DefaultHeartbeat
	if d := c.GetHeartbeatPeriod(); d != nil {
		s.period = d.AsDuration()
	}
	h := c.GetTaskHistoryLimit()
	if h != s.history {
		s.history = h
		s.markAll()
	}
}

// PutRevision applies a key of bucket rev: service.<id>.<number>.
func (s *State) PutRevision(key string, val []byte) error {
	service, number, ok := keys.ParseRevision(key)
	if !ok {
		return nil
	}
	if val == nil {
		s.dropRevision(service, number)
		return nil
	}
	var r skepv1.Revision
	if err := proto.Unmarshal(val, &r); err != nil {
		return fmt.Errorf("decode rev/%s: %w", key, err)
	}
	v := s.service(r.GetServiceId())
	if was := v.revs[r.GetNumber()]; was == nil || was.gone {
		v.revs[r.GetNumber()] = newRevision(r.GetSpec(), v.current)
		v.touchNodes(r.GetNumber())
		s.storageChanged(v, v.revs[r.GetNumber()])
		s.mark(v)
	}
	return nil
}

// dropRevision forgets a revision, unless a task still reserves what it says. A service that is known by its
// revision alone was never stored, or is gone.
func (s *State) dropRevision(service string, n uint64) {
	v := s.services[service]
	if v == nil || len(v.tasks) > 0 && !v.Exists {
		return
	}
	switch r := v.revs[n]; {
	case n == v.revision || r == nil:
	case slices.ContainsFunc(v.tasks, func(t *Task) bool { return t.Revision == n }):
		kept := *r // it may be shared with one of the same content
		kept.gone = true
		v.revs[n] = &kept
		s.mark(v)
	default:
		delete(v.revs, n)
	}
	s.forget(v)
}

// PutNodeBucket applies a key of bucket node: desc.<id> or live.<id>.
func (s *State) PutNodeBucket(key string, val []byte) error {
	f, id := keys.Of(subject.NodeB, key)
	if f == nil {
		return nil
	}
	n := s.node(id)
	switch f {
	case keys.Description:
		var d skepv1.NodeDescription
		if err := proto.Unmarshal(val, &d); err != nil {
			return fmt.Errorf("decode node/%s: %w", key, err)
		}
		s.describeVolumes(n, d.GetPlugins())
		if n.describe(&d) {
			s.nodeChanged(n)
		}
	case keys.Live:
		var l skepv1.NodeLive
		if err := proto.Unmarshal(val, &l); err != nil {
			return fmt.Errorf("decode node/%s: %w", key, err)
		}
		if n.State != l.GetState() || n.Since != l.GetSinceUnixMs() {
			n.State, n.Since = l.GetState(), l.GetSinceUnixMs()
			s.nodeChanged(n)
		}
	}
	return nil
}

// PutStatus applies a key of bucket status, written at.
func (s *State) PutStatus(node string, val []byte, at time.Time) error {
	n := s.node(node)
	var st skepv1.NodeStatus
	if err := proto.Unmarshal(val, &st); err != nil {
		return fmt.Errorf("decode status/%s: %w", node, err)
	}
	s.putStatus(n, &st, val != nil, at.UnixMilli())
	return nil
}

// PutTask applies a key of bucket task at its revision; anything not newer than what is known is ignored.
func (s *State) PutTask(key string, val []byte, rev uint64) error {
	switch f, id := keys.Of(subject.Task, key); f {
	case keys.TaskFence:
		s.fence.Reset()
		if err := proto.Unmarshal(val, &s.fence); err != nil {
			return fmt.Errorf("decode task/%s: %w", key, err)
		}
		return nil
	case keys.Rollout:
		return s.putRollout(id, val, rev)
	case keys.Claim:
		return s.putClaim(key, val, rev)
	}
	p := s.page(key)
	if p == nil || rev <= p.Revision {
		return nil
	}
	return s.putPage(p, val, rev)
}

// ResetTasks forgets the keys of bucket task that are not in keep: a feed that begins anew does not tell deletions. upTo
// is the newest revision it told; what is newer was written by us since.
func (s *State) ResetTasks(keep map[string]bool, upTo uint64) {
	for key, p := range s.pages {
		if !keep[key] && p.exists && p.Revision <= upTo {
			s.putPage(p, nil, p.Revision) //nolint:errcheck // nothing to decode
		}
	}
	for key, c := range s.claims {
		if !keep[key] && c.rev <= upTo {
			s.setClaim(key, nil, c.rev, true)
		}
	}
	for _, v := range s.services {
		if v.rollout != nil && !keep[keys.Rollout.Key(v.ID)] && v.rollout.key <= upTo {
			v.rollout = nil
			s.mark(v)
		}
	}
}

// ResetSpecs forgets services, nodes and networks that are not in keep.
func (s *State) ResetSpecs(keep map[string]bool) {
	for id, v := range s.services {
		if v.Exists && !keep[keys.Service.Key(id)] {
			s.putService(id, nil)
		}
	}
	for id, n := range s.nodes {
		if n.Exists && !keep[keys.Node.Key(id)] {
			s.putNode(id, nil)
		}
	}
	for id := range s.networks {
		if !keep[keys.Network.Key(id)] {
			s.putNetwork(id, nil)
		}
	}
}
