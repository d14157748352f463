package bus

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	// joinersPerSource and joinersMost bound connections without a certificate, each 10 s at most. A new one takes the place
	// of the oldest: a flood makes joining a race that takes milliseconds to win, never a locked door, and never for those
	// behind the same address.
	joinersPerSource = 64
	joinersMost      = 512
	// joinerAsks is how often a joiner may ask; skep join asks once a connection.
	joinerAsks = 5

	// mistakesPerSecond and mistakeBurst bound forbidden publications and subscriptions of a connection with a certificate.
	mistakesPerSecond = 1
	mistakeBurst      = 20
	// outFor is how long an identity that was cut off may not connect again. It exceeds WriteDeadline, after which the
	// broker lets go of what waited.
	outFor = 15 * time.Second
)

// allowance is what one identity may take of the broker; 0 means no bound but the broker's own.
type allowance struct {
	conns   int
	pending int64  // bytes that wait for it, over all its connections
	subs    uint32 // subscriptions of a connection
}

func allowanceOf(role Role) allowance {
	switch role {
	case RoleWorker, RoleWitness:
		// A node has two programs that connect; 1,024 streams take two subscriptions each, a network one.
		return allowance{conns: 8, pending: 16 << 20, subs: 4096}
	case RoleAdmin, RoleOperator, RoleViewer:
		return allowance{conns: 64, pending: 64 << 20} // one a command in work
	case RoleJoiner:
		return allowance{pending: 256 << 10} // how many connections: joinersPerSource, joinersMost
	}
	return allowance{} // a manager's services are trusted, and their first look at the store takes room
}

// guest is a connection from outside this process.
type guest struct {
	cid      uint64
	id       string // node, user-<name>, join-<id>
	role     Role
	source   string // address; IPv6: its /64
	since    time.Time
	mistakes *rate.Limiter
	serial   string   // of a user's certificate
	root     *rootKey // that signed its certificate

	// A joiner's.
	asked int
	busy  bool
	gone  context.CancelFunc // ends what it asked for
}

// guests knows the connections from outside, and bounds what each identity takes.
type guests struct {
	kick  func(cid uint64)
	alive func(cid uint64) bool

	mu      sync.Mutex
	conns   map[uint64]*guest
	ids     map[string][]*guest // oldest first
	joiners []*guest            // oldest first
	out     map[string]time.Time
	cut     uint64 // connections closed for what they did, and those that gave way
}

func newGuests(kick func(uint64), alive func(uint64) bool) *guests {
	return &guests{kick: kick, alive: alive, conns: map[uint64]*guest{}, ids: map[string][]*guest{}, out: map[string]time.Time{}}
}

// admit takes in a connection, or says why not. It closes the oldest of its kind when there are too many.
func (g *guests) admit(cid uint64, id string, role Role, from net.Addr) error {
	now := time.Now()
	x := &guest{cid: cid, id: id, role: role, source: sourceOf(from), since: now, mistakes: rate.NewLimiter(mistakesPerSecond, mistakeBurst)}
	g.mu.Lock()
	var err error
	switch {
	case g.conns[cid] != nil:
		err = errors.New("it introduces itself a second time")
	case now.Before(g.out[id]):
		err = fmt.Errorf("it was cut off less than %s ago", outFor)
	case role == RoleJoiner && len(g.ids[id]) > 0:
		err = errors.New("its name is in use")
	}
	if err != nil {
		g.mu.Unlock()
		return err
	}
	g.conns[cid] = x
	g.ids[id] = append(g.ids[id], x)
	if role == RoleJoiner {
		g.joiners = append(g.joiners, x)
	}
	crowd := g.crowdLocked(x)
	g.mu.Unlock()
	if crowd == nil {
		return nil
	}
	// Those that ended by themselves make room first. The broker is asked without our lock: it logs under its own.
	var ended []*guest
	for _, c := range crowd {
		if c != x && !g.alive(c.cid) {
			ended = append(ended, c)
		}
	}
	g.mu.Lock()
	for _, c := range ended {
		g.forgetLocked(c)
	}
	var oldest *guest
	if crowd = g.crowdLocked(x); crowd != nil {
		oldest = crowd[0]
		g.forgetLocked(oldest)
		g.cut++
	}
	g.mu.Unlock()
	if oldest != nil {
		g.kick(oldest.cid)
	}
	return nil
}

// crowdLocked is the connections x is one too many of, oldest first, or nil.
func (g *guests) crowdLocked(x *guest) []*guest {
	if x.role != RoleJoiner {
		if most := allowanceOf(x.role).conns; most > 0 && len(g.ids[x.id]) > most {
			return slices.Clone(g.ids[x.id])
		}
		return nil
	}
	count, most := map[string]int{}, x.source
	for _, j := range g.joiners {
		if count[j.source]++; count[j.source] > count[most] {
			most = j.source
		}
	}
	from := ""
	switch {
	case count[x.source] > joinersPerSource:
		from = x.source
	case len(g.joiners) > joinersMost:
		from = most
	default:
		return nil
	}
	var out []*guest
	for _, j := range g.joiners {
		if j.source == from {
			out = append(out, j)
		}
	}
	return out
}

func (g *guests) forgetLocked(x *guest) {
	if g.conns[x.cid] != x {
		return
	}
	delete(g.conns, x.cid)
	is := func(y *guest) bool { return y == x }
	if g.ids[x.id] = slices.DeleteFunc(g.ids[x.id], is); len(g.ids[x.id]) == 0 {
		delete(g.ids, x.id)
	}
	if x.role == RoleJoiner {
		g.joiners = slices.DeleteFunc(g.joiners, is)
	}
	if x.gone != nil {
		x.gone()
	}
}

// holds notes with which certificate a user's connection came.
func (g *guests) holds(cid uint64, serial string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if x := g.conns[cid]; x != nil {
		x.serial = serial
	}
}

// holding is the connections that came with such certificates.
func (g *guests) holding(such func(serial string) bool) (cids []uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for cid, x := range g.conns {
		if x.serial != "" && such(x.serial) {
			cids = append(cids, cid)
		}
	}
	return cids
}

// who is the identity of a connection, "" if it has none (yet).
func (g *guests) who(cid uint64) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	if x := g.conns[cid]; x != nil {
		return x.id
	}
	return ""
}

// mistake counts what a connection tried and may not, and cuts it off if it goes on: a joiner at once. It may be called
// with the broker's locks held.
func (g *guests) mistake(cid uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	x := g.conns[cid]
	if x == nil || x.role != RoleJoiner && x.mistakes.Allow() {
		return
	}
	g.cutLocked(x)
	go g.kick(cid)
}

func (g *guests) cutLocked(x *guest) {
	g.forgetLocked(x)
	g.cut++
	if x.role != RoleJoiner { // whose names are used once
		g.out[x.id] = time.Now().Add(outFor)
	}
}

// ask notes a joiner's request, which end ends. Not ok: it is nobody's, or one too many, and then its connection is cut.
func (g *guests) ask(name string, limit time.Duration) (ctx context.Context, end func(), ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	of := g.ids[name]
	if len(of) == 0 || of[0].role != RoleJoiner {
		return nil, nil, false
	}
	x := of[0]
	if x.asked++; x.busy || x.asked > joinerAsks {
		g.cutLocked(x)
		go g.kick(x.cid)
		return nil, nil, false
	}
	x.busy = true
	ctx, x.gone = context.WithTimeout(context.Background(), limit)
	return ctx, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		x.busy = false
		x.gone()
	}, true
}

// weight is what a connection costs: bytes that wait for it, subscriptions.
type weight struct {
	cid     uint64
	pending int64
	subs    uint32
}

// weigh forgets the connections that ended before the broker was asked for these, and cuts off the heaviest of each identity
// that takes too much. It reports those identities.
func (g *guests) weigh(asked time.Time, open []weight) (cut []string) {
	g.mu.Lock()
	sum := map[string]int64{}
	there := make(map[uint64]bool, len(open))
	for _, w := range open {
		there[w.cid] = true
		if x := g.conns[w.cid]; x != nil && w.pending > 0 {
			sum[x.id] += w.pending
		}
	}
	for cid, x := range g.conns {
		if !there[cid] && x.since.Before(asked) {
			g.forgetLocked(x)
		}
	}
	for id, until := range g.out {
		if asked.After(until) {
			delete(g.out, id)
		}
	}
	slices.SortFunc(open, func(a, b weight) int { return int(b.pending - a.pending) })
	var kicked []uint64
	for _, w := range open {
		x := g.conns[w.cid]
		if x == nil {
			continue
		}
		may := allowanceOf(x.role)
		if deaf := may.pending > 0 && w.pending > 0 && sum[x.id] > may.pending; !deaf && (may.subs == 0 || w.subs <= may.subs) {
			continue
		}
		sum[x.id] -= w.pending
		kicked = append(kicked, w.cid)
		if !slices.Contains(cut, x.id) {
			cut = append(cut, x.id)
		}
		g.cutLocked(x)
	}
	g.mu.Unlock()
	for _, cid := range kicked {
		g.kick(cid)
	}
	return cut
}

// count is how many connections there are, how many of them joiners', and how many were closed so far.
func (g *guests) count() (conns, joiners int, cut uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.conns), len(g.joiners), g.cut
}

// sourceOf is the part of an address that one stranger has.
func sourceOf(a net.Addr) string {
	host, _, err := net.SplitHostPort(a.String())
	if err != nil {
		return a.String()
	}
	if ip := net.ParseIP(host); ip != nil && ip.To4() == nil {
		return ip.Mask(net.CIDRMask(64, 128)).String()
	}
	return host
}
