// Package verdict decides which nodes are alive. It is pure: heartbeats, members and the time go in, changes come
// out; it does no I/O, reads no clock and logs nothing.
//
// What it guards against, beside a node's death: that the silence is our own. Time we stood still does not count; after
// a start or a lost connection everyone gets a grace; and when most nodes fall silent at once they become Unknown,
// which moves no task, for a longer grace before they become Down.
package verdict

import (
	"fmt"
	"slices"
	"sort"
	"time"

	skepv1 "skep.dev/proto/skep/v1"
)

// Config holds the limits. Zero fields take the defaults named here.
type Config struct {
	Period time.Duration // heartbeat period (1 s); Down is 3 of them without a heartbeat
	// Grace is how long a node may be unheard after we began to listen (5 s, at least 3 periods).
	Grace time.Duration
	// MassGrace is how long nodes stay Unknown that fell silent together (30 s).
	MassGrace time.Duration
	// RestartGrace is how long a node may be silent that said it restarts (30 s): longer than it takes to start a program that
	// does not come up and the one before it again.
	RestartGrace time.Duration
	// FlapWindow and FlapFree: a node that went down more than FlapFree (3) times within FlapWindow (10 min) must
	// stay up for FlapHold (10 s), doubled with each further time up to FlapHoldMax (5 min), before it is Ready again.
	FlapWindow  time.Duration
	FlapFree    int
	FlapHold    time.Duration
	FlapHoldMax time.Duration
}

func (c Config) withDefaults() Config {
	set := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	set(&c.Period, time.Second)
	set(&c.Grace, 5*time.Second)
	set(&c.MassGrace, 30*time.Second)
	set(&c.RestartGrace, 30*time.Second)
	set(&c.FlapWindow, 10*time.Minute)
	set(&c.FlapHold, 10*time.Second)
	set(&c.FlapHoldMax, 5*time.Minute)
	if c.FlapFree <= 0 {
		c.FlapFree = 3
	}
	return c
}

const (
	ready   = skepv1.NodeState_NODE_STATE_READY
	down    = skepv1.NodeState_NODE_STATE_DOWN
	unknown = skepv1.NodeState_NODE_STATE_UNKNOWN
)

// node is what we know of one member.
type node struct {
	id       string
	state    skepv1.NodeState
	message  string
	since    time.Time
	failures uint32

	last  time.Time // newest heartbeat
	heard bool      // since we began to listen
	left  string    // session that said it leaves: its late heartbeats do not count

	restarts time.Time // it said that it restarts: no silence before this is a failure
	going    string    // session that said so

	downAt time.Time   // Unknown: when it becomes Down
	mass   bool        // Unknown, or Down in the end, for having fallen silent together with others
	alone  bool        // and most of those are back
	downs  []time.Time // times it went down by silence, within the flap window
	holdAt time.Time   // Down, but heard without a gap since then; zero = not
}

// Core is the state of all members. It is not safe for concurrent use.
type Core struct {
	cfg      Config
	nodes    map[string]*node
	list     []*node // the same, for walking: a map of 5,000 takes ten times as long
	began    time.Time
	lastTick time.Time
	changed  map[string]bool
	late     uint64
	waits    bool // see Wait
}

// New starts listening at now.
func New(cfg Config, now time.Time) *Core {
	return &Core{cfg: cfg.withDefaults(), nodes: map[string]*node{}, began: now, lastTick: now, changed: map[string]bool{}}
}

// limit is how long a heard node may be silent.
func (c *Core) limit() time.Duration { return 3 * c.cfg.Period }

func (c *Core) grace() time.Duration { return max(c.cfg.Grace, c.limit()) }

// SetPeriod changes the heartbeat period. A longer one than before gives everyone the grace: nodes learn of it
// after us or before.
func (c *Core) SetPeriod(p time.Duration, now time.Time) {
	if p <= 0 || p == c.cfg.Period {
		return
	}
	c.cfg.Period = p
	c.Restart(now)
}

// Wait has members that were not heard since we began to listen stay Unknown, however long: the cluster was restored from
// a backup, and they may have to be told where it is now. What they run is not begun elsewhere meanwhile.
func (c *Core) Wait(on bool, now time.Time) {
	if c.waits && !on {
		c.Restart(now)
	}
	c.waits = on
}

// Restart begins to listen anew, after something kept us from hearing: nobody goes Down for silence before it.
func (c *Core) Restart(now time.Time) {
	c.began, c.lastTick = now, now
	for _, n := range c.list {
		n.heard = false
		if n.state == unknown {
			n.downAt, n.mass = time.Time{}, false
		}
	}
}

// Admit makes id a member; recorded is the last verdict on it, nil if there is none. A member stays as it is.
func (c *Core) Admit(id string, recorded *skepv1.NodeLive, now time.Time) {
	if c.nodes[id] != nil {
		return
	}
	n := &node{id: id, state: unknown, message: "not heard yet", since: now}
	if recorded != nil {
		n.state, n.message, n.failures = recorded.State, recorded.Message, recorded.Failures
		n.since = time.UnixMilli(recorded.SinceUnixMs)
	}
	// A node admitted while we listen gets its own grace.
	n.last = now
	c.nodes[id] = n
	c.list = append(c.list, n)
	c.changed[id] = true
}

// Remove forgets a member.
func (c *Core) Remove(id string) {
	c.list = slices.DeleteFunc(c.list, func(n *node) bool { return n.id == id })
	delete(c.nodes, id)
	delete(c.changed, id)
}

// Members are the ids of all members.
func (c *Core) Members() []string {
	ids := make([]string, 0, len(c.nodes))
	for id := range c.nodes {
		ids = append(ids, id)
	}
	sort.Strings(ids)
	return ids
}

// Live is the present verdict on a member, nil if it is none.
func (c *Core) Live(id string) *skepv1.NodeLive {
	n := c.nodes[id]
	if n == nil {
		return nil
	}
	return &skepv1.NodeLive{State: n.state, Message: n.message, SinceUnixMs: n.since.UnixMilli(), Failures: n.failures}
}

// Late counts the heartbeats of Ready nodes that came more than three quarters of a period after they were due.
func (c *Core) Late() uint64 { return c.late }

// overdue is how long after the one before it a heartbeat is late for sure: nodes vary their period by a tenth.
func (c *Core) overdue() time.Duration { return c.cfg.Period * 7 / 4 }

// Count is how many members are in each state.
func (c *Core) Count() (readyNodes, downNodes, unknownNodes int) {
	for _, n := range c.list {
		switch n.state {
		case ready:
			readyNodes++
		case down:
			downNodes++
		default:
			unknownNodes++
		}
	}
	return readyNodes, downNodes, unknownNodes
}

// Changed returns the members whose verdict changed since the last call, in order.
func (c *Core) Changed() []string {
	if len(c.changed) == 0 {
		return nil
	}
	ids := make([]string, 0, len(c.changed))
	for id := range c.changed {
		ids = append(ids, id)
	}
	clear(c.changed)
	sort.Strings(ids)
	return ids
}

func (c *Core) set(n *node, s skepv1.NodeState, message string, now time.Time) {
	if n.state != s {
		n.state, n.since = s, now
	}
	n.message = message
	c.changed[n.id] = true
}

// Beat takes a heartbeat in. Those of strangers count for nothing.
func (c *Core) Beat(id, session string, leaving bool, now time.Time) {
	n := c.nodes[id]
	if n == nil || (n.left != "" && n.left == session) {
		return
	}
	silent := now.Sub(n.last)
	if n.heard && n.state == ready && silent > c.overdue() {
		c.late++
	}
	n.last, n.heard, n.left = now, true, ""
	if session != n.going {
		n.restarts, n.going = time.Time{}, "" // it is back
	}
	if leaving {
		n.left, n.holdAt, n.mass = session, time.Time{}, false
		if n.state != down || n.message != messageLeft {
			c.set(n, down, messageLeft, now)
		}
		return
	}
	if n.state == ready {
		return
	}
	if n.state == down {
		if hold := c.hold(n, now); hold > 0 {
			c.holdBack(n, hold, silent, now)
			return
		}
	}
	n.holdAt, n.downAt, n.mass = time.Time{}, time.Time{}, false
	n.failures = uint32(len(n.downs))
	c.set(n, ready, "", now)
}

// Restarts takes in a heartbeat that says that the node stops, to start again at once.
func (c *Core) Restarts(id, session string, now time.Time) {
	c.Beat(id, session, false, now)
	if n := c.nodes[id]; n != nil && n.left == "" {
		n.restarts, n.going = now.Add(c.cfg.RestartGrace), session
	}
}

const messageLeft = "the node was stopped"

// hold is how long a node that flapped must stay up before it counts as Ready.
func (c *Core) hold(n *node, now time.Time) time.Duration {
	c.forget(n, now)
	over := len(n.downs) - c.cfg.FlapFree
	if over <= 0 {
		return 0
	}
	d := c.cfg.FlapHold
	for ; over > 1 && d < c.cfg.FlapHoldMax; over-- {
		d *= 2
	}
	return min(d, c.cfg.FlapHoldMax)
}

// forget drops downs older than the window.
func (c *Core) forget(n *node, now time.Time) {
	for len(n.downs) > 0 && now.Sub(n.downs[0]) > c.cfg.FlapWindow {
		n.downs = n.downs[1:]
	}
}

func (c *Core) holdBack(n *node, hold, silent time.Duration, now time.Time) {
	if n.holdAt.IsZero() || silent > c.limit() {
		n.holdAt = now
		n.failures = uint32(len(n.downs))
		c.set(n, down, fmt.Sprintf("up again, but it went down %d times within %s: it must stay up for %s", len(n.downs), c.cfg.FlapWindow, hold), now)
		return
	}
	if now.Sub(n.holdAt) >= hold {
		n.holdAt = time.Time{}
		c.set(n, ready, "", now)
	}
}

// Tick lets time pass. Heartbeats that arrived must be taken in before, and it should be called several times a
// period: time between two ticks in excess of half a period is time we stood still, and counts for nobody.
func (c *Core) Tick(now time.Time) {
	gap := now.Sub(c.lastTick)
	c.lastTick = now
	if gap > c.limit() {
		c.Restart(now)
	} else if stall := gap - c.cfg.Period/2; stall > 0 {
		c.shift(stall, now)
	}
	limit := c.limit()
	var overdue []*node
	mass := false
	for _, n := range c.list {
		mass = mass || n.state == unknown && n.mass && !n.alone
		switch n.state {
		case ready:
			if now.Sub(c.silentSince(n)) >= c.patience(n, limit) {
				overdue = append(overdue, n)
			}
		case down:
			if !n.holdAt.IsZero() && now.Sub(n.last) >= limit {
				n.holdAt = time.Time{}
				c.set(n, down, silence(limit), now)
			}
		default:
			c.tickUnknown(n, now)
		}
	}
	if mass {
		c.othersBack(now)
	}
	if len(overdue) > 0 {
		c.expire(overdue, now)
	}
}

// shift moves what we count from by the time we stood still.
func (c *Core) shift(by time.Duration, now time.Time) {
	move := func(t *time.Time) {
		if !t.IsZero() {
			if *t = t.Add(by); t.After(now) {
				*t = now
			}
		}
	}
	move(&c.began)
	for _, n := range c.list {
		move(&n.last)
		if !n.restarts.IsZero() {
			n.restarts = n.restarts.Add(by)
		}
	}
}

// silentSince is when the silence of a node began, as far as we can tell.
func (c *Core) silentSince(n *node) time.Time {
	if n.last.Before(c.began) {
		return c.began
	}
	return n.last
}

// patience is how long a node may be silent: one not heard since we began may need to find us first, and one that restarts
// said how long it may take.
func (c *Core) patience(n *node, limit time.Duration) time.Duration {
	if !n.heard {
		limit = c.grace()
	}
	if !n.restarts.IsZero() {
		limit = max(limit, n.restarts.Sub(c.silentSince(n)))
	}
	return limit
}

func silence(d time.Duration) string {
	return fmt.Sprintf("heartbeat failure: nothing heard for %s", d)
}

func (c *Core) tickUnknown(n *node, now time.Time) {
	if n.downAt.IsZero() {
		// Admitted or recorded, never heard by us.
		if c.waits || now.Sub(c.silentSince(n)) < c.grace() {
			return
		}
		n.downAt = now
	}
	if !now.Before(n.downAt) {
		n.downAt = time.Time{}
		c.set(n, down, "heartbeat failure: nothing heard while in state unknown", now)
	}
}

// expire passes the verdict on Ready nodes that were silent for too long.
func (c *Core) expire(overdue []*node, now time.Time) {
	vanished, total := c.vanished(now)
	mass := isMass(vanished, total)
	for _, n := range overdue {
		n.alone = false
		switch {
		case c.waits && !n.heard:
			n.mass, n.downAt = false, time.Time{}
			c.set(n, unknown, "not heard since the cluster was restored; it is waited for until skep backup settle", now)
		case mass:
			n.mass, n.downAt = true, c.massEnd(now)
			c.set(n, unknown, fmt.Sprintf("silent, as %d of %d nodes at once: the fault may be this manager's, waiting %s", vanished, total, c.cfg.MassGrace), now)
		case !n.heard:
			n.mass, n.downAt = false, now.Add(c.limit())
			c.set(n, unknown, "not heard since this manager began to listen", now)
		default:
			n.mass = false
			n.downs = append(n.downs, now)
			c.forget(n, now)
			n.failures = uint32(len(n.downs))
			c.set(n, down, silence(c.limit()), now)
		}
	}
}

// isMass reports whether so many at once are rather this manager's fault than theirs.
func isMass(gone, total int) bool { return gone >= 3 && 2*gone > total }

// othersBack judges those that fell silent together with others by themselves once the others are back, as workers do that hung
// on a manager which lost its power: they found another one. The rest have as long as any node has.
func (c *Core) othersBack(now time.Time) {
	if isMass(c.vanished(now)) {
		return
	}
	for _, n := range c.list {
		if n.state != unknown || !n.mass || n.alone {
			continue
		}
		n.alone = true
		if end := now.Add(c.limit()); end.Before(n.downAt) {
			n.downAt = end
		}
		c.set(n, unknown, fmt.Sprintf("silent; others fell silent with it and are back, waiting %s", n.downAt.Sub(now)), now)
	}
}

// massEnd is when the present mass failure is believed: the same moment for all of it.
func (c *Core) massEnd(now time.Time) time.Time {
	for _, n := range c.list {
		if n.state == unknown && n.mass && !n.alone && n.downAt.After(now) {
			return n.downAt
		}
	}
	return now.Add(c.cfg.MassGrace)
}

// vanished counts the nodes that fell silent within the present window, and how many were Ready before it. A node that
// missed a heartbeat for sure counts: heartbeats of one instant of failure run out spread over a period.
func (c *Core) vanished(now time.Time) (gone, total int) {
	late := c.overdue()
	for _, n := range c.list {
		switch {
		case n.state == ready:
			total++
			if now.Before(n.restarts) {
				break // it said why
			}
			if n.heard && now.Sub(n.last) > late || !n.heard && now.Sub(c.silentSince(n)) >= c.grace() {
				gone++
			}
		case n.state == unknown && n.mass,
			n.state == down && !n.mass && n.left == "" && !n.since.IsZero() && now.Sub(n.since) < c.limit() && n.heard:
			total++
			gone++
		}
	}
	return gone, total
}
