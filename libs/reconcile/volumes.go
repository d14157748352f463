package reconcile

import (
	"slices"
	"strings"

	specs "skep.dev/libs/spec"
	"skep.dev/libs/taskname"
	skepv1 "skep.dev/proto/skep/v1"
)

// volumeID names a volume. The same one of a plug-in whose scope is global is everywhere.
type volumeID struct{ driver, name string }

func newVolumeID(driver, name string) volumeID {
	return volumeID{specs.VolumeDriver(driver), name}
}

// String is the volume for people, as messages and commands name it.
func (v volumeID) String() string { return specs.VolumeTitle(v.driver, v.name) }

// mount is one of a revision that may need a claim.
type mount struct {
	volumeID        // its name may be a template
	sharing  string // as in the spec
	ofNode   bool   // only a task that has a node knows its name
}

// storage is what a revision mounts.
type storage struct {
	mounts []mount
	local  []string            // drivers of its other named volumes: of those that are not shared, a node has its own
	pin    bool                // its tasks stay where those are
	names  *skepv1.ServiceSpec // what the mounts' names ask for, nil when none is a template
	bad    string              // why a name cannot be filled in
}

func newStorage(spec *skepv1.ServiceSpec) storage {
	st := storage{pin: spec.GetTask().GetPlacement().GetVolumePin()}
	for _, m := range spec.GetTask().GetContainer().GetMounts() {
		if m.GetType() != skepv1.Mount_TYPE_VOLUME || m.GetSource() == "" {
			continue
		}
		x := mount{volumeID: newVolumeID(m.GetVolumeDriver(), m.GetSource()), sharing: m.GetVolumeSharing()}
		if specs.NodeLocal(m) {
			st.local = append(st.local, x.driver)
		}
		if !specs.MayBeExclusive(m) {
			continue
		}
		if strings.Contains(x.name, "{{") {
			st.names = &skepv1.ServiceSpec{Name: spec.GetName(), Labels: spec.GetLabels()}
			of, err := taskname.Plain(x.name)
			if err != nil && st.bad == "" {
				st.bad = err.Error()
			}
			x.ofNode = of
		}
		st.mounts = append(st.mounts, x)
	}
	return st
}

// bound: where a task goes may depend on its volumes.
func (st *storage) bound() bool { return len(st.mounts) > 0 || st.pin && len(st.local) > 0 }

// use is a volume that a task may have only while no other node has it.
type use struct {
	volumeID
	alone bool // nor any other task
}

// exclusive: the mount needs a claim.
func (s *State) exclusive(m *mount) bool { return m.sharing != "" || s.global[m.driver] > 0 }

// single names a volume of a revision that has one writer, "" when none has.
func (s *State) single(r *revision) string {
	if r == nil {
		return ""
	}
	for i := range r.mounts {
		if m := &r.mounts[i]; s.exclusive(m) {
			return m.String()
		}
	}
	return ""
}

// needsClaim: the task may not be on two nodes, for a volume's sake.
func (s *State) needsClaim(t *Task) bool { return s.single(t.Service.revs[t.Revision]) != "" }

// uses are the volumes with a single writer of a task on node n, nil = before it has one: then those whose names depend on
// the node are left out.
func (s *State) uses(t *Task, r *revision, n *Node) (out []use, why string) {
	if r == nil || len(r.mounts) == 0 {
		return nil, ""
	}
	if r.bad != "" {
		return nil, r.bad
	}
	var names *taskname.Names
	for i := range r.mounts {
		m := &r.mounts[i]
		if !s.exclusive(m) || m.ofNode && n == nil {
			continue
		}
		u := use{m.volumeID, m.sharing == specs.SharingNone}
		if r.names != nil {
			if names == nil {
				names = namesOf(t, r, n)
			}
			name, err := names.Expand(m.name)
			if err != nil {
				return nil, err.Error()
			}
			u.name = name
		}
		if at := slices.IndexFunc(out, func(o use) bool { return o.volumeID == u.volumeID }); at >= 0 {
			out[at].alone = out[at].alone || u.alone
			continue
		}
		out = append(out, u)
	}
	return out, ""
}

func namesOf(t *Task, r *revision, n *Node) *taskname.Names {
	var id, host, arch string
	if n != nil {
		id, host, arch = n.ID, n.attrs.Hostname, n.attrs.Arch
	}
	names := taskname.Of(id, host, arch, &skepv1.TaskRecord{Id: t.ID, ServiceId: t.Service.ID, Slot: t.Slot}, r.names)
	return &names
}

// named is a task's uses on a node, kept because names that are templates take time.
type named struct {
	node *Node
	uses []use
}

// user is a task that mounts a volume with a single writer.
type user struct {
	*Task
	alone bool // no other task may have it then
}

// users are the tasks on nodes whose revisions mount a volume with a single writer, by volume.
func (s *State) users() map[volumeID][]user {
	if !s.usersStale {
		return s.byVolume
	}
	s.usersStale = false
	s.byVolume = map[volumeID][]user{}
	for v := range s.claimants {
		for _, t := range v.tasks {
			n, r := t.Node(), v.revs[t.Revision]
			if n == nil || r == nil || len(r.mounts) == 0 {
				continue
			}
			for _, u := range s.placedUses(t, r, n) {
				s.byVolume[u.volumeID] = append(s.byVolume[u.volumeID], user{t, u.alone})
			}
		}
	}
	for _, ts := range s.byVolume {
		slices.SortFunc(ts, func(a, b user) int {
			if a.Created != b.Created {
				return compare(a.Created, b.Created)
			}
			return compare(a.ID, b.ID)
		})
	}
	return s.byVolume
}

func (s *State) placedUses(t *Task, r *revision, n *Node) []use {
	if r.names == nil {
		uses, _ := s.uses(t, r, n)
		return uses
	}
	if x, ok := s.named[t]; ok && x.node == n {
		return x.uses
	}
	uses, _ := s.uses(t, r, n) // a name that cannot be filled in is no volume: the node refuses the task
	if s.named == nil {
		s.named = map[*Task]named{}
	}
	s.named[t] = named{n, uses}
	return uses
}

// storageChanged: which volumes tasks of v use must be looked at anew.
func (s *State) storageChanged(v *Service, r *revision) {
	if r == nil || len(r.mounts) == 0 {
		return
	}
	s.claimants[v] = struct{}{}
	s.forgetUsers()
}

func (s *State) forgetUsers() {
	s.usersStale = true
	clear(s.named)
}

// noteUser is told of every task that comes to a node or leaves it. What the node said of volumes before tells nothing of
// after.
func (s *State) noteUser(t *Task, p *Page) {
	if _, ok := s.claimants[t.Service]; ok {
		s.usersStale = true
	} else if t.Service.revs[t.Revision] != nil {
		return
	}
	if p.Node != nil {
		p.Node.moved = max(p.Node.moved, p.Revision)
	}
}

// describeVolumes takes over which volume plug-ins of a node say that their volumes are the same everywhere.
func (s *State) describeVolumes(n *Node, plugins []*skepv1.Plugin) {
	var global []string
	for _, p := range plugins {
		if strings.EqualFold(p.GetType(), "Volume") && p.GetScope() == "global" {
			global = append(global, specs.VolumeDriver(p.GetName()))
		}
	}
	slices.Sort(global)
	global = slices.Compact(global)
	if slices.Equal(global, n.global) {
		return
	}
	changed := false
	for _, d := range global {
		s.global[d]++
		changed = changed || s.global[d] == 1
	}
	for _, d := range n.global {
		if s.global[d]--; s.global[d] == 0 {
			delete(s.global, d)
			changed = true
		}
	}
	n.global = global
	if changed {
		s.forgetUsers()
		for v := range s.claimants {
			s.mark(v)
		}
	}
}

// holdVolumes takes over which volumes a node says it holds, and tells whether they are others than before.
func (n *Node) holdVolumes(vs []*skepv1.HeldVolume) (changed bool) {
	if len(vs) == 0 && len(n.holds) == 0 {
		return false
	}
	holds := make(map[volumeID]bool, len(vs))
	for _, v := range vs {
		holds[newVolumeID(v.GetDriver(), v.GetName())] = true
	}
	for v := range holds {
		changed = changed || !n.holds[v]
	}
	changed = changed || len(holds) != len(n.holds)
	n.holds = holds
	return changed
}
