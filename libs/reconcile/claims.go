package reconcile

import (
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	specs "skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// A volume with a single writer is mounted on one node at a time, whatever happens to nodes, leaders and messages:
//
//  1. A task that mounts one is given a node only in a batch that writes the volume's claim for that node, unless that
//     stands already. A claim names one node, so no two nodes are ever given such a task.
//  2. A claim ends when no task on its node can use the volume any more and the node has said that it does not hold it, in a
//     report on a task set at least as new as the one without them (over). What cannot be asked keeps its claims.
//  3. Or when the node was fenced, once the records say of its tasks that they shall stop; or by a person's word.
//
// Like everything here this is decided from records and reports alone, so it does not matter who decides, or how often.

const (
	// maxClaims bounds how many there are: each plan looks at all of them.
	maxClaims = 10_000
	// maxVolumes is how many volumes with a single writer a task may mount: their claims are part of one batch.
	maxVolumes = 32
)

// claim is a record in the store and the revision of its key; without a record it is what is left of one that was deleted.
type claim struct {
	*skepv1.VolumeClaim
	rev uint64
}

func (c *claim) id() volumeID { return volumeID{c.GetDriver(), c.GetName()} }

// ClaimChange is a new claim, or the end of one (nil).
type ClaimChange struct {
	Key   string
	Claim *skepv1.VolumeClaim
	Was   *skepv1.VolumeClaim // what it replaces or ends
}

func (s *State) putClaim(key string, val []byte, rev uint64) error {
	if val == nil {
		s.setClaim(key, nil, rev, true)
		return nil
	}
	r := &skepv1.VolumeClaim{}
	if err := proto.Unmarshal(val, r); err != nil {
		return fmt.Errorf("decode task/%s: %w", key, err)
	}
	s.setClaim(key, r, rev, false)
	return nil
}

// setClaim notes what a key holds at a revision. told: by the feed, which tells nothing older after it.
func (s *State) setClaim(key string, r *skepv1.VolumeClaim, rev uint64, told bool) {
	was := s.claims[key]
	if was != nil && (rev < was.rev || rev == was.rev && r != nil) {
		return
	}
	if was != nil && was.VolumeClaim != nil {
		s.held--
		s.node(was.GetNodeId()).claims--
	}
	switch {
	case r != nil:
		s.held++
		s.node(r.GetNodeId()).claims++
		s.claims[key] = &claim{r, rev}
	case told:
		delete(s.claims, key)
	default:
		s.claims[key] = &claim{nil, rev}
	}
	s.touchClaims()
}

// touchClaims has claims looked at again, and the services that may wait for one.
func (s *State) touchClaims() {
	s.claimsTouched = true
	for v := range s.unplaced {
		if _, ok := s.claimants[v]; ok {
			s.mark(v)
		}
	}
}

// ClaimsTouched reports whether claims should be looked at although no service changed, once.
func (s *State) ClaimsTouched() bool {
	t := s.claimsTouched
	s.claimsTouched = false
	return t
}

// occupies: the task may have the volume on its node, now or as soon as its agent has read its record.
func (t *Task) occupies() bool {
	if n := t.Node(); n != nil && n.fenced {
		return t.wanted() // it was cut off: only what the records want of it could bring it back
	}
	return t.held()
}

// over: a claim may end.
func (s *State) over(c *claim) bool {
	n := s.nodes[c.GetNodeId()]
	if n == nil || !n.Exists {
		return false // nobody can say what that machine does
	}
	for _, t := range s.users()[c.id()] {
		if t.Node() == n && t.occupies() {
			return false
		}
	}
	if n.page != nil {
		for _, t := range n.page.Tasks {
			if t.Service.revs[t.Revision] == nil && t.occupies() {
				return false // what it mounts is not known yet
			}
		}
	}
	if n.fenced {
		return true
	}
	return n.hasStatus && n.applied >= n.moved && n.applied > c.GetGeneration() && !n.holds[c.id()]
}

// review ends claims that are over, and makes those that are missing: for tasks that were there before their volume was
// known to have one writer.
func (p *planner) review() {
	s := p.s
	if len(s.claims) == 0 && len(s.claimants) == 0 {
		return
	}
	for key, c := range s.claims {
		if c.VolumeClaim != nil && s.over(c) {
			p.claim(key, nil)
		}
	}
	for id, users := range s.users() {
		key := keys.ClaimKey(id.driver, id.name)
		if p.claimOf(key) != nil {
			continue
		}
		for _, t := range users {
			if n := t.Node(); t.wanted() && n.Exists && !n.fenced {
				p.claim(key, p.newClaim(id, t.Task, n))
				break
			}
		}
	}
}

// planned is what a plan does to a claim.
type planned struct {
	*skepv1.VolumeClaim
	carried bool // by a change, in one batch
}

func (p *planner) claim(key string, c *skepv1.VolumeClaim) {
	if p.claims == nil {
		p.claims = map[string]*planned{}
	}
	p.claims[key] = &planned{VolumeClaim: c}
}

// claimOf is a volume's claim as the plan has it so far, nil without.
func (p *planner) claimOf(key string) *skepv1.VolumeClaim {
	if c, ok := p.claims[key]; ok {
		return c.VolumeClaim
	}
	if c := p.s.claims[key]; c != nil {
		return c.VolumeClaim
	}
	return nil
}

func (p *planner) newClaim(id volumeID, t *Task, n *Node) *skepv1.VolumeClaim {
	c := &skepv1.VolumeClaim{
		Driver: id.driver, Name: id.name, NodeId: n.ID, NodeHostname: n.Hostname(), ServiceId: t.Service.ID, TaskId: t.ID, SinceUnixMs: p.now,
	}
	if n.page != nil {
		c.Generation = n.page.Revision
	}
	if t.Node() != nil {
		c.Generation = t.DesiredAt - min(t.DesiredAt, 1) // it stands there already
	}
	return c
}

// carry writes the claims that a placed task needs into its change.
func (p *planner) carry(c *Change, uses []use) {
	for _, u := range uses {
		key := keys.ClaimKey(u.driver, u.name)
		have := p.claimOf(key)
		if have == nil || have.GetNodeId() != c.Node.ID {
			have = p.newClaim(u.volumeID, c.New, c.Node)
			p.claim(key, have)
		}
		if x := p.claims[key]; x != nil { // not recorded yet
			x.carried = true
			c.Claims = append(c.Claims, ClaimChange{Key: key, Claim: have})
		}
		if p.taken == nil {
			p.taken = map[volumeID][]user{}
		}
		p.taken[u.volumeID] = append(p.taken[u.volumeID], user{c.New, u.alone})
	}
}

// settleClaims puts the claims that go with no task into the plan.
func (p *planner) settleClaims() {
	for _, key := range slices.Sorted(maps.Keys(p.claims)) {
		c := p.claims[key]
		var was *skepv1.VolumeClaim
		if x := p.s.claims[key]; x != nil {
			was = x.VolumeClaim
		}
		if !c.carried && (c.VolumeClaim != nil || was != nil) {
			p.out.Claims = append(p.out.Claims, ClaimChange{Key: key, Claim: c.VolumeClaim, Was: was})
		}
	}
}

// writer is the node that may write a volume, nil = none does.
func (p *planner) writer(id volumeID) *Node {
	c := p.claimOf(keys.ClaimKey(id.driver, id.name))
	if c == nil {
		return nil
	}
	if n := p.s.nodes[c.GetNodeId()]; n != nil && (n.Exists || n.Hostname() != n.ID) {
		return n
	}
	return &Node{ID: c.GetNodeId(), Name: c.GetNodeHostname(), index: -1}
}

// bonds says where its volumes let a task go: nowhere for now (why), to one node, or anywhere (nil). on is the node it is
// to have, nil = not known yet.
func (p *planner) bonds(w *want, uses []use) (only *Node, by use, why string) {
	for _, u := range uses {
		n := p.writer(u.volumeID)
		for _, o := range p.s.users()[u.volumeID] {
			if o.ID == w.task.ID || !o.occupies() || n == nil && !o.wanted() { // without a claim what stops has lost it: by a fence, or a person's word
				continue
			}
			if n != nil && o.Node() != n && o.wanted() {
				return nil, u, fmt.Sprintf("volume %s is held by node %s, and %s on node %s has it too: scale one of them to 0", u, n.Hostname(), o.title(), o.Node().Hostname())
			}
			if (u.alone || o.alone) && (n == nil || o.Node() == n) && !p.makesWay(w, o.Task) {
				return nil, u, fmt.Sprintf("volume %s is in use by %s on node %s, and with volume-sharing=none one task may have it", u, o.title(), o.Node().Hostname())
			}
		}
		for _, o := range p.taken[u.volumeID] {
			if !u.alone && !o.alone {
				continue
			}
			return nil, u, fmt.Sprintf("volume %s is in use by %s, and with volume-sharing=none one task may have it", u, o.title())
		}
		if n == nil {
			continue
		}
		if only != nil && only != n && only.ID != n.ID {
			return nil, u, fmt.Sprintf("volume %s is held by node %s and volume %s by node %s: a task can have both only where one node has", by, only.Hostname(), u, n.Hostname())
		}
		only, by = n, u
	}
	return only, by, ""
}

// makesWay: the wanted task is prepared and begins only when o has ended, on the same node (advance).
func (p *planner) makesWay(w *want, o *Task) bool {
	return w.task.Desired == Ready && o.Service == p.v && o.Slot == w.task.Slot && (!p.v.perNode() || o.Node() == w.pin)
}

// title names a task for people.
func (t *Task) title() string {
	name := t.Service.Name
	if name == "" {
		name = t.Service.ID
	}
	if t.Slot > 0 {
		return fmt.Sprintf("%s.%d", name, t.Slot)
	}
	return name
}

// Claims are all claims, composed for people: by driver and name.
func (s *State) Claims() []*skepv1.VolumeClaim {
	var out []*skepv1.VolumeClaim
	for _, c := range s.claims {
		if c.VolumeClaim != nil {
			out = append(out, s.view(c))
		}
	}
	slices.SortFunc(out, func(a, b *skepv1.VolumeClaim) int {
		if a.GetName() != b.GetName() {
			return compare(a.GetName(), b.GetName())
		}
		return compare(a.GetDriver(), b.GetDriver())
	})
	return out
}

// What a claim's state is called.
const (
	ClaimInUse     = "in use"
	ClaimReleasing = "releasing"
	ClaimLost      = "lost"
	ClaimFenced    = "fenced"
)

const shownTasks = 50

func (s *State) view(c *claim) *skepv1.VolumeClaim {
	out := proto.CloneOf(c.VolumeClaim)
	n := s.nodes[c.GetNodeId()]
	if n != nil && n.Exists {
		out.NodeHostname = n.Hostname()
	}
	if v := s.services[c.GetServiceId()]; v != nil {
		out.ServiceName = v.Name
	}
	for _, t := range s.users()[c.id()] {
		if t.Node() == n && t.occupies() && len(out.TaskIds) < shownTasks {
			out.TaskIds = append(out.TaskIds, t.ID)
		}
	}
	for v := range s.unplaced {
		if _, ok := s.claimants[v]; !ok {
			continue
		}
		for _, p := range v.spare {
			for _, t := range p.Tasks {
				if s.waitsFor(t, c.id()) && len(out.WaitingTaskIds) < shownTasks {
					out.WaitingTaskIds = append(out.WaitingTaskIds, t.ID)
				}
			}
		}
	}
	slices.Sort(out.WaitingTaskIds)
	switch {
	case n != nil && n.Exists && n.fenced:
		out.State = ClaimFenced
	case n == nil || !n.Exists || n.State != skepv1.NodeState_NODE_STATE_READY:
		out.State = ClaimLost
	case len(out.TaskIds) > 0:
		out.State = ClaimInUse
	default:
		out.State = ClaimReleasing
	}
	return out
}

func (s *State) waitsFor(t *Task, id volumeID) bool {
	if t.Desired > Complete {
		return false
	}
	uses, _ := s.uses(t, t.Service.revs[t.Revision], nil)
	return slices.ContainsFunc(uses, func(u use) bool { return u.volumeID == id })
}

// ClaimKey is the key of a claim.
func ClaimKey(c *skepv1.VolumeClaim) string { return keys.ClaimKey(c.GetDriver(), c.GetName()) }

// MayRelease refuses to end a claim by a person's word where that would do harm, or nothing.
func (s *State) MayRelease(c *skepv1.VolumeClaim, force bool) error {
	id, n := volumeID{c.GetDriver(), c.GetName()}, s.nodes[c.GetNodeId()]
	if n == nil || !n.Exists {
		return nil
	}
	name := n.Hostname()
	for _, t := range s.users()[id] {
		if t.Node() == n && t.wanted() && !n.fenced {
			if n.State != skepv1.NodeState_NODE_STATE_READY {
				return fault.Conflict("release volume %s: %s is to run on node %s again once that is back: skep node fence %s if it is certainly off, or remove the service", id, t.title(), name, name)
			}
			return fault.Conflict("release volume %s: %s uses it on node %s: scale its service to 0, or remove it, first", id, t.title(), name)
		}
	}
	if n.State == skepv1.NodeState_NODE_STATE_READY && !force {
		return fault.Conflict("release volume %s: node %s is up and will release it when it has unmounted it: look there, or say --force if nothing there writes to it", id, name)
	}
	return nil
}

// FindClaim addresses a claim by the volume's name, and its driver where several drivers have one of that name.
func (s *State) FindClaim(driver, name string) (key string, c *skepv1.VolumeClaim, err error) {
	var found []*claim
	for _, x := range s.claims {
		if x.VolumeClaim != nil && x.GetName() == name && (driver == "" || x.GetDriver() == specs.VolumeDriver(driver)) {
			found = append(found, x)
		}
	}
	switch len(found) {
	case 0:
		return "", nil, noClaim(driver, name)
	case 1:
		x := found[0]
		return keys.ClaimKey(x.GetDriver(), x.GetName()), s.view(x), nil
	}
	return "", nil, severalClaims(name, found)
}
