package bus

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	skepv1 "skep.dev/proto/skep/v1"
)

const (
	joining = skepv1.ManagerState_MANAGER_STATE_JOINING
	voter   = skepv1.ManagerState_MANAGER_STATE_VOTER
	leaving = skepv1.ManagerState_MANAGER_STATE_LEAVING

	// joinWithin is how long a manager that was let in may be silent before its place is taken back.
	joinWithin = 90 * time.Second
	// countedFor is how long streams may go on counting on a server that was removed before the next change begins.
	countedFor = 30 * time.Second
	// witnessWithin is how long a witness may be away from a host that is there: after that it gets another name.
	witnessWithin = time.Minute
	// maxManagers: more copies of the group's decisions make every one slower and no store safer.
	maxManagers = 7
)

// view is all that is known when the next step is chosen.
type view struct {
	now     time.Time
	me      string          // the server that plans
	desired map[string]bool // nodes that are to be managers
	set     *skepv1.ManagerSet
	members []Member             // of the JetStream group, by its leader's word; nil: there is none
	heard   map[string]bool      // servers whose beats come
	missing map[string]time.Time // members that are offline: since when
	beats   map[string]*skepv1.ManagerBeat
	streams *streamsView // nil: not known
}

// streamsView is where the streams are.
type streamsView struct {
	differ   []string            // that have another number of replicas configured than the set
	unsettle []string            // whose replicas are not all there, or not current
	leadless []string            // that have no leader, or do not answer
	on       map[string][]string // by server: streams that count on it
	led      map[string][]string // by server: streams that it leads
}

// plan is the next step: a set to write, or something to do, or what is waited for. Nothing of all: the group is as it
// should be.
type plan struct {
	write *skepv1.ManagerSet
	event string // that the write is: joined, left

	do           string // an action
	node, server string // whom it is about

	waits string
}

func (p plan) String() string {
	switch {
	case p.write != nil:
		return fmt.Sprintf("write step %s %s %s", p.event, p.write.GetStep().GetAction(), p.write.GetStep().GetServer())
	case p.do != "":
		return p.do + " " + p.server
	case p.waits != "":
		return "wait: " + p.waits
	}
	return "nothing"
}

// planGroup says what is next. It is level-triggered: whoever leads after a crash at any point goes on from what there is.
// Only one change is under way at a time (one that waits for a majority gives way to the removal of a dead one); it is in the set (a member that is JOINING or LEAVING, and the step) before
// anything of it is done.
func planGroup(v *view) plan {
	if v.members == nil {
		return plan{waits: "the group of managers has no leader"}
	}
	j, l := v.first(joining), v.leaver()
	if j != nil && (l == nil || l.GetNodeId() != j.GetNodeId()) {
		return v.planJoin(j)
	}
	if l != nil { // of a node that joins anew, it goes first
		p := v.planLeave(l)
		if d := v.unwantedDead(); d != nil && p.waits != "" {
			// It may be what is missing for a majority: it can go, and then the other.
			return v.leaves(d)
		}
		return p
	}
	if l, why := v.nextToLeave(); l != nil {
		return v.leaves(l)
	} else if why != "" {
		return v.waitsFor(why)
	}
	return v.planShape()
}

// planJoin goes on with a manager that was let in.
func (v *view) planJoin(j *skepv1.Manager) plan {
	m := v.member(j.GetServer())
	lost := !v.heard[j.GetServer()] && v.now.Sub(v.since(j.GetServer())) > joinWithin
	switch {
	case !v.desired[j.GetNodeId()] || lost:
		return v.leaves(j)
	case m != nil && m.Current && !m.Offline && v.heard[j.GetServer()]:
		// Where it takes the place of one that lost its store, copies are made now: nothing else is begun before they are there.
		p := v.writes("joined", actScale, "", "", func(s *skepv1.ManagerSet) { memberOf(s, j.GetServer()).State = voter })
		p.node, p.server = j.GetNodeId(), j.GetServer()
		return p
	case m == nil:
		return v.waitsFor("its server has not started yet")
	}
	return v.waitsFor("its store is not current yet")
}

// planLeave goes on with a manager that leaves: a witness comes in first where fewer than three stay, then streams go off
// it, it stops, its name goes out of the group, and out of the set.
func (v *view) planLeave(l *skepv1.Manager) plan {
	rest := v.voters()
	if len(rest) == 0 {
		return v.waitsFor("it is the last manager: make another one first")
	}
	member := v.member(l.GetServer())
	next := v.first(joining)
	if member != nil && len(rest) < 3 && next == nil {
		if p, ok := v.needWitness(rest); !ok {
			return p
		}
	}
	if l.GetWitness() != "" {
		return v.dropWitness(l)
	}
	alive := v.heard[l.GetServer()]
	if member == nil {
		if alive {
			return v.acts(actRetire, l.GetNodeId(), l.GetServer()) // it returned from the dead
		}
		if why := v.stillCounted(l); why != "" {
			return v.waitsFor(why)
		}
		action := ""
		if next != nil {
			action = actJoin // now its turn has come, and its time begins
		}
		p := v.writes("left", action, next.GetNodeId(), next.GetServer(), func(s *skepv1.ManagerSet) {
			s.Managers = slices.DeleteFunc(s.Managers, func(m *skepv1.Manager) bool { return m.GetServer() == l.GetServer() })
		})
		p.node, p.server = l.GetNodeId(), l.GetServer()
		return p
	}
	if v.streams == nil {
		return v.waitsFor("the streams do not tell where they are")
	}
	if !alive && len(v.streams.leadless) > 0 {
		return v.waitsFor(fmt.Sprintf("it is not there, and without it %s cannot be read: start it again, or restore a backup", listed(v.streams.leadless)))
	}
	// A node that leaves and is wanted comes again under another name: it lost its store. nats-server takes a server that was
	// killed for online for up to 150 s, and a stream that moves off it waits for consumers that only this server could hand over.
	lost := v.desired[l.GetNodeId()]
	if !alive && (member.Offline || lost) {
		// There is nobody to hand anything over. Evacuation moves streams off a server one by one, and waits for what does not
		// answer; a removal takes it out of every stream first.
		return v.acts(actRemove, l.GetNodeId(), l.GetServer())
	}
	if len(v.streams.on[l.GetServer()]) > 0 {
		return v.acts(actEvacuate, l.GetNodeId(), l.GetServer())
	}
	if alive {
		if why := v.withoutQuorum(l.GetServer()); why != "" {
			return v.waitsFor(why)
		}
		return v.acts(actRetire, l.GetNodeId(), l.GetServer())
	}
	return v.acts(actRemove, l.GetNodeId(), l.GetServer())
}

// stillCounted says which streams count on a server that was removed, "" when none does, or for long enough: they go on taking
// it out by themselves, and a change that may be what they wait for must not wait for them.
func (v *view) stillCounted(l *skepv1.Manager) string {
	if v.streams == nil || len(v.streams.on[l.GetServer()]) == 0 || v.now.Sub(v.since(l.GetServer())) > countedFor {
		return ""
	}
	return "it is still counted by " + listed(v.streams.on[l.GetServer()])
}

// leaves begins to let a manager go.
func (v *view) leaves(l *skepv1.Manager) plan {
	return v.writes("", actEvacuate, l.GetNodeId(), l.GetServer(), func(s *skepv1.ManagerSet) { memberOf(s, l.GetServer()).State = leaving })
}

// leaver is the manager that is leaving, of several the one that is dead.
func (v *view) leaver() (l *skepv1.Manager) {
	for _, m := range v.set.GetManagers() {
		if m.GetState() == leaving && (l == nil || v.heard[l.GetServer()] && !v.heard[m.GetServer()]) {
			l = m
		}
	}
	return l
}

// unwantedDead is a manager that is to be none and is not there, nil when there is none, or nobody else would stay.
func (v *view) unwantedDead() *skepv1.Manager {
	all := v.voters()
	for _, m := range all {
		if !v.desired[m.GetNodeId()] && !v.heard[m.GetServer()] && len(all) > 1 {
			return m
		}
	}
	return nil
}

// nextToLeave is the manager that is to leave next: the dead before the living, who plans last. why says that one cannot.
func (v *view) nextToLeave() (next *skepv1.Manager, why string) {
	var out []*skepv1.Manager
	for _, m := range v.set.GetManagers() {
		if !v.desired[m.GetNodeId()] {
			out = append(out, m)
		}
	}
	slices.SortStableFunc(out, func(a, b *skepv1.Manager) int {
		rank := func(m *skepv1.Manager) int {
			switch {
			case !v.heard[m.GetServer()]:
				return 0
			case m.GetServer() == v.me:
				return 2
			}
			return 1
		}
		return cmp.Compare(rank(a), rank(b))
	})
	for _, m := range out {
		switch {
		case len(v.voters()) == 1, !m.GetBare() && len(v.full()) == 1:
			return nil, fmt.Sprintf("%s is the last manager: make another one first", m.GetServer())
		case v.heard[m.GetServer()] && v.withoutQuorum(m.GetServer()) != "":
			why = v.withoutQuorum(m.GetServer())
		default:
			return m, ""
		}
	}
	return nil, why
}

// planShape gives a group that nobody joins or leaves its replicas and its witness.
func (v *view) planShape() plan {
	all := v.voters()
	if len(all) < 3 {
		if p, ok := v.needWitness(all); !ok {
			return p
		}
	}
	if v.streams == nil {
		return v.waitsFor("the streams do not tell how they are")
	}
	want := replicasFor(len(all))
	if v.set.GetReplicas() != want || len(v.streams.differ) > 0 {
		// Which copies go cannot be chosen: with one away it could be the others.
		if m := v.away(all); m != nil {
			return v.waitsFor(fmt.Sprintf("manager %s is not there", m.GetServer()))
		}
		if want < v.set.GetReplicas() { // the leader's copy stays
			if p, ok := v.handOver(); ok {
				return p
			}
		}
		if v.set.GetReplicas() != want {
			return v.writes("", actScale, "", "", func(s *skepv1.ManagerSet) { s.Replicas = want })
		}
		return v.acts(actScale, "", "")
	}
	if v.set.GetStep().GetAction() == actScale && len(v.streams.unsettle) > 0 {
		if v.away(all) != nil {
			return v.waitsFor("copies are being made of " + listed(v.streams.unsettle))
		}
		return v.acts(actScale, "", "") // it waits, and sees to copies that come no nearer
	}
	if host := v.witnessHost(); host != nil && len(all) >= 3 {
		// Once begun it is finished: the name is good for nothing any more.
		begun := v.set.GetStep().GetAction() == actStopWitness || v.member(host.GetWitness()) == nil
		if begun || len(v.streams.unsettle) == 0 {
			return v.dropWitness(host)
		}
		return v.waitsFor("before the witness goes, all copies must be current of " + listed(v.streams.unsettle))
	}
	if p, ok := v.moved(); ok {
		return p
	}
	if v.set.GetStep() != nil {
		return v.writes("", "", "", "", func(*skepv1.ManagerSet) {})
	}
	if p, ok := v.handOver(); ok {
		return p
	}
	return plan{}
}

// needWitness: false says that p comes first, until a witness runs beside one of the hosts.
func (v *view) needWitness(hosts []*skepv1.Manager) (p plan, ok bool) {
	for _, h := range hosts {
		w := h.GetWitness()
		if w == "" {
			continue
		}
		m := v.member(w)
		starting := v.set.GetStep().GetAction() == actStartWitness && v.set.GetStep().GetServer() == w
		switch {
		case m != nil && m.Current && !m.Offline:
			return plan{}, true
		case starting && v.heard[h.GetServer()]:
			return v.acts(actStartWitness, h.GetNodeId(), w), false
		case starting && v.now.Sub(v.since(w)) > heardFor*3:
			return v.dropWitness(h), false // its host went meanwhile
		case starting:
			return v.waitsFor("its host is not there"), false
		case v.heard[h.GetServer()] && (m == nil || !v.missing[w].IsZero() && v.now.Sub(v.missing[w]) > witnessWithin):
			// A voter without its store must not come back under its name.
			return v.dropWitness(h), false
		}
		return plan{}, true // it is away for a moment, or with its host
	}
	var host *skepv1.Manager
	best := -1
	for _, h := range hosts {
		if !v.there(h.GetServer()) {
			continue
		}
		rank := 0
		if !h.GetBare() { // what has only this manager left has its data there
			rank += 4
		}
		if v.desired[h.GetNodeId()] {
			rank += 2
		}
		if h.GetServer() == v.me {
			rank++
		}
		if rank > best {
			host, best = h, rank
		}
	}
	if host == nil {
		return v.waitsFor("no manager that stays is there to run a witness"), false
	}
	n := v.set.GetUsed()[host.GetNodeId()] + 1
	name := witnessName(host.GetNodeId(), n)
	return v.writes("", actStartWitness, host.GetNodeId(), name, func(s *skepv1.ManagerSet) {
		s.Used[host.GetNodeId()] = n
		memberOf(s, host.GetServer()).Witness = name
	}), false
}

// dropWitness takes a witness out of the group, then out of the set.
func (v *view) dropWitness(host *skepv1.Manager) plan {
	w := host.GetWitness()
	m := v.member(w)
	if m == nil {
		return v.writes("", "", "", "", func(s *skepv1.ManagerSet) { memberOf(s, host.GetServer()).Witness = "" })
	}
	if !m.Offline {
		if why := v.withoutQuorum(w); why != "" {
			return v.waitsFor(why)
		}
	}
	return v.acts(actStopWitness, host.GetNodeId(), w)
}

// moved writes the addresses and names that members say they have now.
func (v *view) moved() (plan, bool) {
	next := proto.CloneOf(v.set)
	changed := false
	for _, m := range next.GetManagers() {
		b := v.beats[m.GetServer()]
		if b == nil || !v.heard[m.GetServer()] || b.GetNodeId() != m.GetNodeId() || b.GetAddr() == "" || b.GetRoute() == "" {
			continue
		}
		if m.Addr != b.GetAddr() || m.Route != b.GetRoute() || m.Hostname != b.GetHostname() {
			m.Addr, m.Route, m.Hostname, changed = b.GetAddr(), b.GetRoute(), b.GetHostname(), true
		}
	}
	return plan{write: next, event: "moved"}, changed
}

// withoutQuorum says why the group cannot do without a server that is there, "" when it can: removing it takes a majority of
// the group it is still in.
func (v *view) withoutQuorum(server string) string {
	present := 0
	var away []string
	for _, m := range v.members {
		switch {
		case m.Name == server:
		case m.Offline || !m.Current:
			away = append(away, m.Name)
		default:
			present++
		}
	}
	if present >= len(v.members)/2+1 {
		return ""
	}
	return fmt.Sprintf("without %s no majority of the %d servers is there: %s is missing", server, len(v.members), listed(away))
}

// writes plans a set, with a step (action "" for none) and a change.
func (v *view) writes(event, action, node, server string, change func(*skepv1.ManagerSet)) plan {
	next := proto.CloneOf(v.set)
	if next.Used == nil {
		next.Used = map[string]uint32{}
	}
	next.Step = nil
	if action != "" {
		next.Step = &skepv1.ManagerStep{Action: action, NodeId: node, Server: server, Since: timestamppb.New(v.now)}
	}
	change(next)
	return plan{write: next, event: event, node: node, server: server}
}

// acts plans an action. It is written down before it is done.
func (v *view) acts(action, node, server string) plan {
	if s := v.set.GetStep(); s.GetAction() != action || s.GetNodeId() != node || s.GetServer() != server {
		return v.writes("", action, node, server, func(*skepv1.ManagerSet) {})
	}
	return plan{do: action, node: node, server: server}
}

// waitsFor waits; people see in the step for what.
func (v *view) waitsFor(why string) plan {
	if s := v.set.GetStep(); s != nil && s.GetWaitsFor() == "" {
		next := proto.CloneOf(v.set)
		next.Step.WaitsFor = why
		return plan{write: next, waits: why}
	}
	return plan{waits: why}
}

func (v *view) first(state skepv1.ManagerState) *skepv1.Manager {
	for _, m := range v.set.GetManagers() {
		if m.GetState() == state {
			return m
		}
	}
	return nil
}

func (v *view) voters() (out []*skepv1.Manager) {
	for _, m := range v.set.GetManagers() {
		if m.GetState() == voter {
			out = append(out, m)
		}
	}
	return out
}

// full are the voters that have a manager's services, too.
func (v *view) full() []*skepv1.Manager {
	return slices.DeleteFunc(v.voters(), (*skepv1.Manager).GetBare)
}

func (v *view) witnessHost() *skepv1.Manager {
	for _, m := range v.set.GetManagers() {
		if m.GetWitness() != "" {
			return m
		}
	}
	return nil
}

func (v *view) member(name string) *Member {
	for i := range v.members {
		if v.members[i].Name == name {
			return &v.members[i]
		}
	}
	return nil
}

// there reports whether a server is heard of and its store is current.
func (v *view) there(server string) bool {
	m := v.member(server)
	return v.heard[server] && m != nil && m.Current && !m.Offline
}

// away is the first of them that is not there, nil when all are.
func (v *view) away(list []*skepv1.Manager) *skepv1.Manager {
	for _, m := range list {
		if !v.there(m.GetServer()) {
			return m
		}
	}
	return nil
}

// since is when the step about a server began.
func (v *view) since(server string) time.Time {
	if s := v.set.GetStep(); s.GetServer() == server && s.GetSince() != nil {
		return s.GetSince().AsTime()
	}
	return time.Time{}
}

// replicasFor is how many copies of each stream a number of managers keeps.
func replicasFor(managers int) uint32 {
	switch {
	case managers >= 5:
		return 5
	case managers >= 3:
		return 3
	}
	return 1
}

// listed is a list for a sentence, cut short.
func listed(names []string) string {
	if len(names) > 4 {
		names = append(slices.Clone(names[:3]), fmt.Sprintf("%d more", len(names)-3))
	}
	return strings.Join(names, ", ")
}
