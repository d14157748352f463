package bus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/event"
	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/lease"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

const (
	// busyEvery is the pause between two looks at a group that changes, idleEvery at one that is as it should be.
	busyEvery = 200 * time.Millisecond
	idleEvery = 5 * time.Second
	// actFor bounds one action; what is not done then is looked at again.
	actFor = 30 * time.Second
	// settleEvery is the pause between two requests to make a worker of a node that left.
	settleEvery = 2 * time.Second
	// sayAfter is how long the group may wait for something before it is worth a line.
	sayAfter = 10 * time.Second
)

// replicas are those that new streams get.
func (g *group) replicas() int {
	set, _ := g.known()
	return max(1, int(set.GetReplicas()))
}

// lead follows the set, and leads the group whenever this manager has the lease, until ctx ends.
func (g *group) lead(ctx context.Context, nc *nats.Conn, js jetstream.JetStream) {
	feed := g.follow(ctx, func(apply func(kv.Delta)) *kv.Feed {
		return kv.Follow(ctx, js, subject.NodeB, apply, keys.Managers.Key())
	})
	defer feed.Close()
	if g.b.cfg.Bare { // a witness votes; who comes and goes is the managers' to say
		<-ctx.Done()
		return
	}
	l := lease.New(js, lease.Config{Name: keys.LeaseManagers.Key(), Holder: g.b.cfg.NodeID, Log: g.log})
	err := l.Run(ctx, func(ctx context.Context, _ uint64) error {
		return (&leader{
			g: g, nc: nc, js: js, set: kv.Open(js, subject.NodeB), spec: kv.Open(js, subject.Spec),
			missing: map[string]time.Time{}, quiet: map[string]time.Time{},
		}).run(ctx)
	})
	if err != nil {
		g.log.Error("this manager does not lead the group any more", zap.Error(err))
	}
}

// errHandOver has a leader give the lease up (tests do).
var errHandOver = errors.New("the lease is handed over")

// leader is the group's while this manager has the lease. Two may believe to be it for a moment: each step is written
// down on the condition that nobody else wrote, and doing a step twice is as good as once.
type leader struct {
	g         *group
	nc        *nats.Conn
	js        jetstream.JetStream
	set, spec *kv.Bucket

	turn sync.Mutex // held by whoever changes the set: the loop, or who lets a node in

	nodesMu sync.Mutex
	nodes   map[string]*skepv1.NodeObject
	knows   func(ctx context.Context, rev uint64) error // waits until nodes are those of a revision, or newer

	missing map[string]time.Time // members that are offline: since when
	quiet   map[string]time.Time // servers that were retired: when
	settled time.Time            // when nodes were last settled
	waits   time.Time            // since when the group does not go on
	said    time.Time            // when that was last logged
	pushed  time.Time            // when the JetStream group was last told to elect its leader anew
}

func (l *leader) run(ctx context.Context) error {
	feed := kv.Follow(ctx, l.js, subject.Spec, l.hearNodes, keys.Node.Key("*"))
	defer feed.Close()
	l.knows = feed.Wait
	select {
	case <-feed.Ready():
	case <-ctx.Done():
		return ctx.Err()
	}
	srv, err := rpc.NewServer(l.nc, rpc.Config{Name: "skep-bus-leader", Version: l.g.b.cfg.Version, Description: "lets managers into the group", Log: l.g.log})
	if err != nil {
		return fmt.Errorf("lead the group of managers: %w", err)
	}
	defer srv.Close() //nolint:errcheck // it ends with the connection anyway
	if err := api.HandleNode(srv, api.BusEnlist, l.enlist); err != nil {
		return fmt.Errorf("lead the group of managers: %w", err)
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		case <-l.g.wake:
		}
		l.turn.Lock()
		pause, err := l.step(ctx)
		l.turn.Unlock()
		if pause == 0 && err == nil && l.g.stepped != nil {
			err = l.g.stepped()
		}
		if errors.Is(err, errHandOver) {
			return err
		}
		if err != nil && ctx.Err() == nil {
			l.say(err.Error())
		}
		timer.Reset(pause)
	}
}

// say logs what keeps the group from going on, when it lasts.
func (l *leader) say(text string) {
	now := time.Now()
	switch {
	case text == "":
		l.waits, l.said = time.Time{}, time.Time{}
	case l.waits.IsZero():
		l.waits = now
	case now.Sub(l.waits) > sayAfter && now.Sub(l.said) > sayEvery:
		l.said = now
		l.g.log.Warn("the group of managers waits", zap.String("for", text), zap.Duration("dur", now.Sub(l.waits).Round(time.Second)))
	}
}

func (l *leader) hearNodes(d kv.Delta) {
	l.nodesMu.Lock()
	if d.Reset || l.nodes == nil {
		l.nodes = map[string]*skepv1.NodeObject{}
	}
	for _, e := range d.Entries {
		id, _ := keys.Node.ID(e.Key)
		o := &skepv1.NodeObject{}
		switch err := proto.Unmarshal(e.Value, o); {
		case e.Deleted:
			delete(l.nodes, id)
		case err != nil:
			l.g.log.Error("unreadable node", nodeField(id), zap.Error(err)) // it stays what it was
		default:
			l.nodes[id] = o
		}
	}
	l.nodesMu.Unlock()
	l.g.nudge()
}

// step looks at the group and does what is next.
func (l *leader) step(ctx context.Context) (pause time.Duration, err error) {
	set, rev, err := l.read(ctx)
	if err != nil {
		return busyEvery, err
	}
	if len(set.GetManagers()) == 0 {
		return 0, l.write(ctx, l.seed(), rev)
	}
	v := l.look(ctx, set)
	p := planGroup(v)
	switch {
	case p.write != nil:
		if err := l.write(ctx, p.write, rev); err != nil {
			return busyEvery, err
		}
		l.tell(p, set)
		return 0, nil
	case p.do != "":
		ctx, cancel := context.WithTimeout(ctx, actFor)
		defer cancel()
		if err := l.act(ctx, p, set); err != nil {
			return busyEvery, fmt.Errorf("%s %s: %w", p.do, p.server, err)
		}
		l.say("") // not before: what fails again and again is said
		return 0, nil
	case p.waits != "":
		l.say(p.waits)
		l.settle(ctx, set)
		return busyEvery, nil
	}
	l.say("")
	if l.settle(ctx, set) {
		return busyEvery, nil
	}
	return idleEvery, nil
}

// read reads the set from the store itself.
func (l *leader) read(ctx context.Context) (*skepv1.ManagerSet, uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	set := &skepv1.ManagerSet{}
	e, err := l.set.Get(ctx, keys.Managers.Key())
	switch {
	case errors.Is(err, kv.ErrNotFound):
		return set, 0, nil
	case err != nil:
		return nil, 0, fault.Unavailable("read the group of managers: %v", err)
	}
	if err := proto.Unmarshal(e.Value, set); err != nil {
		return nil, 0, fmt.Errorf("read the group of managers: %w", err)
	}
	return set, e.Revision, nil
}

// write replaces the set on the condition that nobody did meanwhile.
func (l *leader) write(ctx context.Context, set *skepv1.ManagerSet, rev uint64) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	body, err := proto.Marshal(set)
	if err != nil {
		return fmt.Errorf("encode the group of managers: %w", err)
	}
	now, err := l.set.Set(ctx, keys.Managers.Key(), body, rev)
	if err != nil {
		return fmt.Errorf("write the group of managers: %w", err)
	}
	l.g.learn(ctx, proto.CloneOf(set), now)
	return nil
}

// seed is the set of a group that was not written down yet: this manager alone.
func (l *leader) seed() *skepv1.ManagerSet {
	cfg := &l.g.b.cfg
	l.g.mu.Lock()
	server, epoch := l.g.mine.Server, l.g.mine.Epoch
	l.g.mu.Unlock()
	witness := l.g.b.witnessName()
	used := uint32(max(numberOf(server, cfg.NodeID), numberOf(witness, cfg.NodeID)))
	return &skepv1.ManagerSet{
		Managers: []*skepv1.Manager{{
			NodeId: cfg.NodeID, Server: server, Addr: cfg.Advertise, Route: cfg.RouteAddr(), Witness: witness, State: voter, Hostname: cfg.Hostname, Bare: cfg.Bare,
		}},
		Replicas: 1, Used: map[string]uint32{cfg.NodeID: used}, Epoch: max(epoch, 1),
	}
}

// look gathers what the plan is made from.
func (l *leader) look(ctx context.Context, set *skepv1.ManagerSet) *view {
	v := &view{now: time.Now(), me: l.g.me(), set: set, desired: map[string]bool{}, missing: l.missing, members: l.members()}
	v.heard, v.beats = l.hearing(v.now)
	l.nodesMu.Lock()
	for id, o := range l.nodes {
		if o.GetSpec().GetRole() == skepv1.NodeRole_NODE_ROLE_MANAGER {
			v.desired[id] = true
		}
	}
	l.nodesMu.Unlock()
	if len(v.desired) == 0 { // the cluster is being founded, or its nodes cannot be read
		for _, m := range set.GetManagers() {
			v.desired[m.GetNodeId()] = true
		}
	}
	if v.members != nil {
		l.push(ctx, v)
		v.streams = l.where(ctx, set, v.members)
	}
	return v
}

// behindFor is how long a server whose beats come may not be current before the group elects its leader anew.
const behindFor = 20 * time.Second

// push has the JetStream group elect its leader anew when that takes a server for behind that is there: as with streams (laggards),
// it may have missed the server's answers, and then whoever waits for that server waits for ever.
func (l *leader) push(ctx context.Context, v *view) {
	name := v.behind(l.pushed)
	if name == "" {
		return
	}
	l.pushed = v.now
	sys := l.g.b.system()
	if sys == nil {
		return
	}
	err := request(ctx, sys, server.JSApiLeaderStepDown, nil)
	l.g.log.Warn("a server of the group is there and does not become current: the group elects its leader anew", serverField(name), zap.Error(err))
}

// behind is a server that is heard of and has not been current for long, "" when there is none, or the group was pushed lately.
func (v *view) behind(pushed time.Time) string {
	if v.now.Sub(pushed) < behindFor {
		return ""
	}
	for _, m := range v.members {
		since := v.missing[m.Name]
		if v.heard[m.Name] && !m.Leader && !m.Offline && !m.Current && !since.IsZero() && v.now.Sub(since) >= behindFor {
			return m.Name
		}
	}
	return ""
}

// hearing are the servers that are there by their beats. One that was told to retire is not, whatever was still under way.
func (l *leader) hearing(now time.Time) (map[string]bool, map[string]*skepv1.ManagerBeat) {
	heard, beats := map[string]bool{}, map[string]*skepv1.ManagerBeat{}
	for s, h := range l.g.heardOf() {
		if now.Sub(h.at) < heardFor && (l.quiet[s].IsZero() || h.at.Sub(l.quiet[s]) > heardFor) {
			heard[s], beats[s] = true, h.ManagerBeat
		}
	}
	return heard, beats
}

// members are those of the JetStream group by its leader's word, nil when there is none.
func (l *leader) members() []Member {
	if !l.g.b.led() {
		return nil
	}
	list, err := l.g.b.Members()
	if err != nil || !slices.ContainsFunc(list, func(m Member) bool { return m.Leader }) {
		return nil
	}
	set, _ := l.g.known()
	known := names(set)
	seen := map[string]bool{}
	for i := range list {
		list[i].Name = nameOf(list[i].Name, list[i].peer, known)
		n := list[i].Name
		seen[n] = true
		if !list[i].Offline && list[i].Current {
			delete(l.missing, n)
		} else if l.missing[n].IsZero() {
			l.missing[n] = time.Now()
		}
	}
	for n := range l.missing {
		if !seen[n] {
			delete(l.missing, n)
		}
	}
	return list
}

// where asks every stream how it is; nil when their names cannot be read.
func (l *leader) where(ctx context.Context, set *skepv1.ManagerSet, members []Member) *streamsView {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	var list []string
	n := l.js.StreamNames(ctx)
	for s := range n.Name() {
		list = append(list, s)
	}
	if n.Err() != nil || len(list) == 0 {
		return nil
	}
	slices.Sort(list)
	infos := make([]*jetstream.StreamInfo, len(list))
	var all sync.WaitGroup
	for i, name := range list {
		all.Go(func() {
			if s, err := l.js.Stream(ctx, name); err == nil {
				infos[i] = s.CachedInfo()
			}
		})
	}
	all.Wait()
	out := &streamsView{on: map[string][]string{}, led: map[string][]string{}}
	servers := names(set)
	for _, m := range members {
		if !slices.Contains(servers, m.Name) {
			servers = append(servers, m.Name)
		}
	}
	for i, name := range list {
		out.add(name, infos[i], int(set.GetReplicas()), servers)
	}
	return out
}

// add takes one stream in; info is nil when it does not answer.
func (s *streamsView) add(name string, info *jetstream.StreamInfo, want int, servers []string) {
	if info == nil || info.Cluster == nil || info.Cluster.Leader == "" {
		s.leadless = append(s.leadless, name)
		s.unsettle = append(s.unsettle, name)
		return
	}
	if info.Config.Replicas != want {
		s.differ = append(s.differ, name)
	}
	settled := len(info.Cluster.Replicas) == want-1
	s.on[info.Cluster.Leader] = append(s.on[info.Cluster.Leader], name)
	s.led[info.Cluster.Leader] = append(s.led[info.Cluster.Leader], name)
	for _, r := range info.Cluster.Replicas {
		settled = settled && r.Current && !r.Offline
		for _, n := range servers {
			if n == r.Name || strings.Contains(r.Name, peerID(n)) { // a peer that is not heard of has no name
				s.on[n] = append(s.on[n], name)
			}
		}
	}
	if !settled {
		s.unsettle = append(s.unsettle, name)
	}
}

// act does a step that is written down.
func (l *leader) act(ctx context.Context, p plan, set *skepv1.ManagerSet) error {
	log := l.g.log.With(nodeField(p.node), serverField(p.server))
	switch p.do {
	case actScale:
		return l.g.b.Scale(ctx, int(set.GetReplicas()))
	case actEvacuate:
		log.Info("streams and their leadership move off a manager that leaves")
		return l.g.b.Evacuate(ctx, p.server)
	case actRetire:
		log.Info("a manager that leaves is told to stop")
		_, err := api.Call(ctx, l.nc, api.BusRetire.At(p.node), &skepv1.RetireRequest{Server: p.server})
		if err == nil || errors.Is(err, rpc.ErrNobody) || fault.Is(err, fault.CodeConflict) {
			l.quiet[p.server] = time.Now()
			return nil
		}
		return err
	case actRemove:
		// One that stops hands over first; one that is not heard of but still connected is not yet gone.
		if m := memberNamed(l.members(), p.server); m != nil && !m.Offline && time.Since(l.quiet[p.server]) < heardFor {
			return l.pause(ctx)
		}
		log.Info("a server's name leaves the group for good")
		return ignoreAbsent(l.g.b.Remove(ctx, p.server))
	case actStartWitness:
		_, err := api.Call(ctx, l.nc, api.BusWitness.At(p.node), &skepv1.WitnessRequest{Name: p.server})
		if err != nil {
			return err
		}
		return l.pause(ctx)
	case actStopWitness:
		return l.stopWitness(ctx, p)
	case actHandOver:
		return l.handOver(ctx, p, set)
	}
	return fmt.Errorf("%s is no step of this version", p.do)
}

// stopWitness: it stops, its name leaves the group, and only then its store goes. A host that is away finds in the set that
// it has none any more.
func (l *leader) stopWitness(ctx context.Context, p plan) error {
	heard, _ := l.hearing(time.Now())
	set, _ := l.g.known()
	there := false
	for _, m := range set.GetManagers() {
		there = there || m.GetNodeId() == p.node && heard[m.GetServer()]
	}
	if there {
		if _, err := api.Call(ctx, l.nc, api.BusWitness.At(p.node), &skepv1.WitnessRequest{}); err != nil {
			return err
		}
	}
	if err := ignoreAbsent(l.g.b.Remove(ctx, p.server)); err != nil {
		return err
	}
	l.g.log.Info("the witness left the group", nodeField(p.node), serverField(p.server))
	if there {
		if _, err := api.Call(ctx, l.nc, api.BusWitness.At(p.node), &skepv1.WitnessRequest{Wipe: true}); err != nil {
			return err
		}
	}
	return nil
}

func (l *leader) pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(busyEvery):
		return nil
	}
}

// ignoreAbsent: a server that is not in the group was removed from it before.
func ignoreAbsent(err error) error {
	var api *server.ApiError
	if errors.As(err, &api) && api.ErrCode == uint16(server.JSClusterServerNotMemberErr) {
		return nil
	}
	return err
}

func memberNamed(list []Member, name string) *Member {
	for i := range list {
		if list[i].Name == name {
			return &list[i]
		}
	}
	return nil
}

// settle has state make workers of nodes that have left the group and are to be workers. It reports whether there are any.
func (l *leader) settle(ctx context.Context, set *skepv1.ManagerSet) bool {
	var out []string
	l.nodesMu.Lock()
	for id, o := range l.nodes {
		in := slices.ContainsFunc(set.GetManagers(), func(m *skepv1.Manager) bool { return m.GetNodeId() == id })
		if o.GetRole() == skepv1.NodeRole_NODE_ROLE_MANAGER && o.GetSpec().GetRole() != skepv1.NodeRole_NODE_ROLE_MANAGER && !in {
			out = append(out, id)
		}
	}
	l.nodesMu.Unlock()
	if len(out) == 0 || time.Since(l.settled) < settleEvery {
		return len(out) > 0
	}
	l.settled = time.Now()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for _, id := range out {
		if _, err := api.Call(ctx, l.nc, api.NodeSettle, &skepv1.SettleNodeRequest{NodeId: id}); err != nil {
			l.g.log.Warn("a node that left the group of managers is not a worker yet", nodeField(id), zap.Error(err))
		}
	}
	return true
}

// tell says what a set that was written means.
func (l *leader) tell(p plan, was *skepv1.ManagerSet) {
	now := p.write
	if a, b := was.GetReplicas(), now.GetReplicas(); a != b {
		l.g.log.Info(fmt.Sprintf("replicas of all streams: %d -> %d", a, b))
	}
	verb, text := "", ""
	n := 0
	for _, m := range now.GetManagers() {
		if m.GetState() == voter {
			n++
		}
	}
	host := ""
	switch p.event {
	case "joined":
		verb, host = "manager-join", memberOf(now, p.server).GetHostname()
		text = fmt.Sprintf("manager %s joined the group of managers", cmp.Or(host, p.node))
	case "left":
		m := memberOf(was, p.server)
		verb, host = "manager-leave", m.GetHostname()
		text = fmt.Sprintf("manager %s left the group of managers", cmp.Or(host, p.node))
	default:
		return
	}
	text += ": " + standing(n)
	if again := joinsAgain(now, p.node); again != "" {
		text = fmt.Sprintf("manager %s lost its store: the server it was left the group of managers, and it joins as %s", cmp.Or(host, p.node), again)
	}
	l.g.log.Info(text, nodeField(p.node), serverField(p.server), zap.Int("managers", n))
	if err := event.PublishOnce(l.nc, &skepv1.Event{
		Kind: "node", Id: p.node, Name: host, Verb: verb, Actor: "bus", Message: text, Attributes: map[string]string{"server": p.server},
	}, verb+" "+p.server); err != nil {
		l.g.log.Warn("publish an event", zap.Error(err))
	}
}

// joinsAgain is the server that a node is to be next, "" when it is to be none.
func joinsAgain(set *skepv1.ManagerSet, node string) string {
	for _, m := range set.GetManagers() {
		if m.GetNodeId() == node && m.GetState() == joining {
			return m.GetServer()
		}
	}
	return ""
}

// standing says what a number of managers bears.
func standing(n int) string {
	switch {
	case n <= 1:
		return "it is alone: the cluster is as safe as this one machine"
	case n == 2:
		return "there are 2 managers, and the cluster stands still while the one with the witness is away: make it 3"
	case n%2 == 0:
		return fmt.Sprintf("there are %d managers, which bear the loss of %d, as %d would: make it %d", n, (n-1)/2, n-1, n+1)
	}
	return fmt.Sprintf("there are %d managers, which bear the loss of %d", n, (n-1)/2)
}

func nodeField(id string) zap.Field  { return zap.String("node", id) }
func serverField(s string) zap.Field { return zap.String("server", s) }
