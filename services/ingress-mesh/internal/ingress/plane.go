package ingress

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"

	"skep.dev/services/ingress-mesh/internal/antispoof"
	"skep.dev/services/ingress-mesh/internal/nsfs"
)

// forwardEvery is how often an iptables that keeps its rules outside nftables is asked: it must be run for that.
const forwardEvery = 30 * time.Second

// Plane is the node's part of the mesh. Its methods may be called from any goroutine; they take turns.
type Plane struct {
	cfg  Config
	home netns.NsHandle // the namespace it works in, whichever thread calls
	nl   *netlink.Handle

	mu      sync.Mutex
	state   State
	applied bool                // state is what Apply was called with last
	pending bool                // and is not in the kernel yet
	ended   map[netip.Addr]bool // of state.Lost, those whose connections were ended
	cleaned bool

	// What was found right last, to spare the comparison while nobody changed anything.
	known      snapshot   // with the ruleset's generation; 0: compare
	linkIndex  int        // of skin0 when its netdev table was made; 0: make it anew
	firewalls  []firewall // iptables and ip6tables, where the host has them
	forwardAt  time.Time
	forwardNft bool        // they write nftables
	ipv6       bool        // the node has IPv6: see hasIPv6
	filtered   atomic.Bool // bridged packets pass iptables: see bridgeFilter. Admit reads it without mu
	problems   []string

	mended atomic.Uint64

	// Tasks of this node, by their links. Admit and Forget come at any time, also while a mu is held for long.
	localMu  sync.Mutex
	locals   map[string]antispoof.Port
	guard    *antispoof.Table
	guarding atomic.Bool // its table is in the kernel
}

// New takes the network namespace of the calling thread and works there from then on. It changes nothing.
func New(cfg Config) (*Plane, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	home, err := nsfs.Current()
	if err != nil {
		return nil, fmt.Errorf("open the host's network namespace: %w", err)
	}
	nl, err := netlink.NewHandleAt(home, unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER)
	if err != nil {
		_ = home.Close()
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	walls, err := openFirewalls(cfg.Log)
	if err != nil {
		nl.Close()
		_ = home.Close()
		return nil, err
	}
	return &Plane{
		cfg: cfg, home: home, nl: nl, firewalls: walls, forwardNft: len(walls) > 0 && overNftables(),
		locals: map[string]antispoof.Port{}, guard: antispoof.New(home, ""),
	}, nil
}

// Close gives up what the process holds. The kernel keeps working as it was told.
func (p *Plane) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.nl.Close()
	p.guard.Close()
	return p.home.Close()
}

// Apply makes the kernel what st says and remembers it for Verify and Repair. It writes differences only: connections
// in progress go on, with two exceptions: UDP flows to backends that left, and UDP flows that began before their port
// was published, go the new way from their next packet on.
func (p *Plane) Apply(ctx context.Context, st State) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cleaned {
		return errors.New("apply to the ingress mesh: it was removed, the node leaves its cluster")
	}
	if !p.applied || !reflect.DeepEqual(st, p.state) {
		p.state, p.applied, p.pending = st.clone(), true, true
	}
	return nsfs.Inside(p.home, func() error { return p.converge(ctx, zap.DebugLevel) })
}

// Repair does what Apply did, for a kernel that somebody else changed since. It costs little when nobody did.
func (p *Plane) Repair(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.applied || p.cleaned {
		return nil
	}
	return nsfs.Inside(p.home, func() error { return p.converge(ctx, zap.InfoLevel) })
}

// Verify compares the kernel with the last applied state and says what differs and what cannot work, without changing
// anything. Nothing is found before the first Apply.
func (p *Plane) Verify(ctx context.Context) (findings []string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.applied || p.cleaned {
		return nil, nil
	}
	err = nsfs.Inside(p.home, func() error {
		findings, err = p.verify(ctx)
		return err
	})
	return findings, err
}

func (p *Plane) verify(ctx context.Context) ([]string, error) {
	if err := p.look(); err != nil {
		return nil, err
	}
	var out []string
	note := func(steps []step, err error) error {
		for _, s := range steps {
			out = append(out, s.what)
		}
		return err
	}
	if err := note(p.linkSteps()); err != nil {
		return nil, err
	}
	s, err := p.readSnapshot()
	if err != nil {
		return nil, err
	}
	pl := p.plan(s)
	out = append(out, pl.problems...)
	add, remove, err := p.fabricSteps(pl.peers)
	if err := note(append(add, remove...), err); err != nil {
		return nil, err
	}
	for _, f := range []func() ([]step, error){p.loopbackSteps, p.bridgeSteps, p.portSteps, p.localSteps, p.ruleSteps, p.forwardSteps} {
		if err := errors.Join(ctx.Err(), note(f())); err != nil {
			return nil, err
		}
	}
	_ = note(p.sysctlSteps(), nil)
	open, err := p.guardFindings()
	if err != nil {
		return nil, err
	}
	out = append(out, open...)
	for _, c := range nftChanges(wantedTables(&p.cfg, pl), s, false) {
		if c.what != "" {
			out = append(out, c.what)
		}
	}
	if zonesWrong(s) {
		out = append(out, "nft table inet "+zonesTableName+" is missing or has other rules")
	}
	return append(out, p.foreignFindings(s)...), nil
}

func (p *Plane) plan(s snapshot) plan {
	pl := planState(&p.cfg, p.state, s.backends(), p.ipv6)
	pl.filtered = p.filtered.Load()
	return pl
}

func nftChanges(tables []wantedTable, s snapshot, newLink bool) []change {
	fabric := s.fabric
	if newLink {
		fabric = nil // its hook was on a link that is no more
	}
	var twins []change // before those that are made now
	for _, t := range s.twins {
		twins = append(twins, change{sweep, "nft table " + t.Name + " was left behind", func(c *nftables.Conn) error {
			c.AddTable(t) // so that the removal succeeds when it was of a table that is made anew now
			c.DelTable(t)
			return nil
		}})
	}
	return slices.Concat(tables[0].changes(s.host), tables[1].changes(fabric), twins)
}

// converge goes through everything, in an order in which each part finds what it needs.
func (p *Plane) converge(ctx context.Context, level zapcore.Level) (err error) {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("converge the ingress mesh: %w", err)
	}
	guarded := p.guardPorts(level)
	defer func() { err = errors.Join(err, guarded) }()
	do := func(steps []step, err error) error { return p.run(level, steps, err) }
	if err := p.look(); err != nil {
		return err
	}
	if err := do(p.linkSteps()); err != nil {
		return err
	}
	l, err := p.nl.LinkByName(Link)
	if err != nil {
		return fmt.Errorf("look up link %s: %w", Link, err)
	}
	index := l.Attrs().Index
	if err := do(p.sysctlSteps(), nil); err != nil {
		return err
	}
	peers := planState(&p.cfg, State{Peers: p.state.Peers}, backends{}, p.ipv6).peers
	add, remove, err := p.fabricSteps(peers)
	if err := do(add, err); err != nil {
		return err
	}
	if err := do(p.loopbackSteps()); err != nil {
		return err
	}
	if err := do(p.bridgeSteps()); err != nil {
		return err
	}
	if err := do(p.portSteps()); err != nil {
		return err
	}
	if err := do(p.localSteps()); err != nil {
		return err
	}
	if err := do(p.ruleSteps()); err != nil {
		return err
	}
	if err := p.convergeRules(level, index); err != nil {
		return err
	}
	return do(remove, nil)
}

// convergeRules is the part about nftables and iptables; neither waits for the other to be well. While the ruleset's
// generation and the link are what they were when all was right, nothing is read.
func (p *Plane) convergeRules(level zapcore.Level, index int) error {
	gen, err := p.ruleset()
	if err != nil {
		return err
	}
	same := gen == p.known.generation && index == p.linkIndex && gen != 0
	var forward error
	if !same || !p.forwardNft && time.Since(p.forwardAt) >= forwardEvery {
		steps, err := p.forwardSteps()
		if forward = p.run(level, steps, err); forward == nil {
			p.forwardAt = time.Now()
		}
	}
	if !same || p.pending {
		err = p.convergeTables(level, index, same)
	}
	if forward != nil {
		p.known = snapshot{} // ask again the next time
	}
	return errors.Join(forward, err)
}

func (p *Plane) convergeTables(level zapcore.Level, index int, same bool) (err error) {
	s := p.known
	p.known = snapshot{} // until this is through
	if !same {
		if s, err = p.readSnapshot(); err != nil {
			return err
		}
	}
	writes := uint32(0)
	if zonesWrong(s) {
		p.log(level, "nft table inet "+zonesTableName+" is missing or has other rules")
		n, err := replaceZones(s)
		if err != nil {
			return err
		}
		writes += n
	}
	pl := p.plan(s)
	if !slices.Equal(pl.problems, p.problems) {
		p.problems = pl.problems
		p.cfg.Log.Warn("parts of the published ports cannot be", zap.Strings("problems", pl.problems))
	}
	tables := wantedTables(&p.cfg, pl)
	changes := nftChanges(tables, s, index != p.linkIndex)
	for _, c := range changes {
		if c.what != "" {
			p.log(level, c.what)
		}
	}
	if len(changes) > 0 {
		n, err := commit(changes)
		if err != nil {
			return err
		}
		writes += n
	}
	p.linkIndex = index
	if err := p.clearStale(s, pl); err != nil {
		return err
	}
	p.pending = false
	// If ours were the only writes since the snapshot, the kernel is right now; else the next time compares again.
	gen, err := p.ruleset()
	if err == nil && gen == s.generation+writes {
		p.known = snapshot{generation: gen, host: tables[0].made(), fabric: tables[1].made(), zones: zonesMade()}
	}
	return err
}

func (p *Plane) clearStale(s snapshot, pl plan) error {
	before := s.backends()
	four, six := staleFlows(before.v4, pl.v4.slots()), staleFlows(before.v6, pl.v6.slots())
	six.six = true
	hosts := staleHosts(s.hosts(), pl.hosts)
	if err := p.endLost(); err != nil {
		return err
	}
	if four.empty() && six.empty() && hosts == nil {
		return nil
	}
	local, err := p.localAddrs()
	if err != nil {
		return err
	}
	in4, in6 := four.match(local), six.match(local)
	return p.deleteFlows(func(f *netlink.ConntrackFlow) bool { return in4(f) || in6(f) || hosts != nil && hosts(f) }, "of changed UDP ports")
}

// run does the steps; those that fail do not stop the others.
func (p *Plane) run(level zapcore.Level, steps []step, err error) error {
	if err != nil {
		return err
	}
	var errs []error
	for _, s := range steps {
		p.log(level, s.what)
		if err := s.do(); err != nil {
			errs = append(errs, fmt.Errorf("mend %q: %w", s.what, err))
		}
	}
	return errors.Join(errs...)
}

// log notes one difference that is put right: at level Info one that others made.
func (p *Plane) log(level zapcore.Level, what string) {
	if level == zap.InfoLevel {
		p.mended.Add(1)
	}
	if c := p.cfg.Log.Check(level, "mending the ingress mesh"); c != nil {
		c.Write(zap.String("found", what))
	}
}

// Cleanup removes every trace but ip_forward, which others may rely on by now. Afterwards the Plane does nothing any
// more; a second call is harmless.
func (p *Plane) Cleanup() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cleaned = true
	return nsfs.Inside(p.home, func() error {
		p.ipv6 = true // there may have been some
		s, err := p.readSnapshot()
		return errors.Join(err, p.removeTables(s), writeZones(zonesTableName, true), p.removeForward(), p.removeRule(), p.removeLink(), p.resetBridge(), p.forgetAll(s), p.unguard())
	})
}

func (p *Plane) removeTables(s snapshot) error {
	var changes []change
	for _, t := range []struct {
		table *nftables.Table
		have  *tableState
	}{{hostTable, s.host}, {fabricTable, s.fabric}} {
		if t.have != nil {
			changes = append(changes, change{do: func(c *nftables.Conn) error { c.DelTable(t.table); return nil }})
		}
	}
	for _, t := range s.twins {
		changes = append(changes, change{do: func(c *nftables.Conn) error { c.DelTable(t); return nil }})
	}
	_, err := commit(changes)
	return err
}

// resetBridge takes back what was opened on a link that is not this package's.
func (p *Plane) resetBridge() error {
	l, err := findLink(p.nl, p.cfg.Bridge)
	if err != nil || l == nil {
		return err
	}
	err = writeSysctl(sysctl{"net/ipv4/conf/" + p.cfg.Bridge + "/route_localnet", "0", true})
	return errors.Join(err, p.removeLoopback(l.Attrs().Index))
}

// forgetAll ends the connections that only the removed rules could serve.
func (p *Plane) forgetAll(s snapshot) error {
	tasks := map[netip.Addr]bool{}
	for _, m := range []slotMap{s.backends().v4, s.backends().v6} {
		for _, slots := range m {
			for _, b := range slots {
				tasks[b.addr] = true
			}
		}
	}
	for _, b := range s.hosts() {
		tasks[b.addr] = true
	}
	return p.deleteFlows(func(f *netlink.ConntrackFlow) bool {
		return f.Mark&markBit != 0 || tasks[addrOf(f.Reverse.SrcIP)]
	}, "of the mesh")
}
