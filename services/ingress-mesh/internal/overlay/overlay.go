// Package overlay is the data plane of a node's overlay networks: per network a namespace of its own that holds a
// bridge, a VXLAN device to the other nodes and one link for each task of this node.
//
// It owns the namespaces mounted under its directory, by network id, and everything in them; and, in the namespaces of
// tasks, the devices it was told to make. In the host's namespace it has nothing but the VXLAN devices' UDP socket: a
// VXLAN device is made through the host's namespace into the network's, so its outer packets are the host's and its
// inner ones are not. It refuses to decide who is on a network, and to change namespaces or devices it did not make.
//
// Nothing here is learned. Who is where is written down: at the VXLAN device a forwarding entry for each remote task
// (its MAC, derived from its address, and its node) and a neighbour from which the device answers ARP and neighbour
// solicitations itself; at the bridge an entry for each local task. What is not written down is dropped: no broadcast,
// no multicast and no unknown address leaves the node, and no task sees frames of another. Two networks have two
// namespaces between which nothing is forwarded, so their subnets may be equal.
//
// Failure story: the kernel needs nothing of this process, so a crash or a restart loses no packet. Every call reads
// the kernel, compares and writes the difference: what a crash left half done, or an administrator took away, is there
// after the next Ensure, and what is right is not touched. A namespace that was unmounted while this process held it is
// mounted again with all that is in it; one that is gone is made anew, with the links of the tasks that were attached.
package overlay

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"skep.dev/libs/fault"
	"skep.dev/libs/id"
	"skep.dev/services/ingress-mesh/internal/nsfs"
)

const (
	defaultPort     = 4789
	defaultUnderlay = 1500
)

// Config is what a Plane needs to know of its node.
type Config struct {
	Log *zap.Logger
	// Dir is where the namespaces of the networks are mounted, by network id.
	Dir string
	// Underlay is the address other nodes reach this one's data path by; invalid leaves the choice to the kernel, over IPv4.
	Underlay netip.Addr
	// Port is the UDP port of every node's data path, 0 = 4789.
	Port uint16
	// UnderlayMTU is asked at every Ensure; 0 and nil mean 1500.
	UnderlayMTU func() int
}

// Plane keeps the overlay networks of one node. Its methods may be called from any goroutine; those about one network
// wait for one another.
type Plane struct {
	log     *zap.Logger
	cfg     Config
	home    netns.NsHandle // the host's: where New was called
	homeErr error

	mu     sync.Mutex
	host   *netlink.Handle // in home, opened when first needed
	spaces map[string]*space
}

// New takes hold of the network namespace it is called in as the host's, and changes nothing.
func New(cfg Config) *Plane {
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	if cfg.Port == 0 {
		cfg.Port = defaultPort
	}
	cfg.Underlay = cfg.Underlay.Unmap()
	p := &Plane{log: cfg.Log, cfg: cfg, spaces: map[string]*space{}}
	p.home, p.homeErr = nsfs.Current() // said by the first call that needs it
	return p
}

// Close frees what the process holds; the networks stay. The Plane must not be used any more.
func (p *Plane) Close() error {
	p.mu.Lock()
	spaces := slices.Collect(maps.Values(p.spaces))
	p.mu.Unlock()
	for _, s := range spaces {
		s.mu.Lock() // whoever works on it takes p.mu meanwhile
		s.close()
		s.mu.Unlock()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.host != nil {
		p.host.Close()
		p.host = nil
	}
	if p.homeErr == nil {
		p.homeErr = errors.New("the overlay data plane is closed")
		if err := p.home.Close(); err != nil {
			return fmt.Errorf("close the host's network namespace: %w", err)
		}
	}
	return nil
}

// Ensure makes a network, or makes what is there have what n says. A remote that makes no sense is left out, named in the
// log and by Verify: it is another node's fault, and the rest of the network works without it. Only differences are written, and a namespace that
// was right, and in which the kernel tells of no change since, is not read.
func (p *Plane) Ensure(ctx context.Context, n Network) error {
	w, problems, err := p.want(n)
	if err != nil {
		return err
	}
	s, unlock := p.lock(n.ID)
	defer unlock()
	if err := os.MkdirAll(p.cfg.Dir, 0o755); err != nil {
		return fmt.Errorf("make the directory of the networks: %w", err)
	}
	if err := s.enter(p.path(n.ID), true); err != nil {
		return fmt.Errorf("network %s: %w", n.label(), err)
	}
	if said := strings.Join(problems, "; "); said != s.said {
		if s.said = said; said != "" {
			p.log.Warn("entries of an overlay network make no sense and are left out", zap.String("network", n.ID), zap.Strings("entries", problems))
		}
	}
	now := time.Now()
	if s.asSettled(w, now) && s.guard.Unchanged() {
		return nil
	}
	s.settled = nil
	have, err := s.observe(p)
	if err != nil {
		return fmt.Errorf("network %s: %w", n.label(), err)
	}
	steps := plan(w, have)
	errs := p.apply(ctx, s, w, have, steps)
	found, err := s.guard.Apply(s.senders(have, n.Subnet6))
	if found != "" {
		p.log.Info("mended the overlay network", zap.String("network", n.ID), zap.String("found", found))
	}
	errs = append(errs, err)
	errs = append(errs, p.relink(ctx, s, s.missing(have))...)
	if len(steps) == 0 && err == nil && s.allLinked(have) {
		s.settled = &settled{want: w, at: now}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("network %s: %w", n.label(), err)
	}
	if len(steps) > 0 {
		p.log.Debug("overlay network converged", zap.String("network", n.ID), zap.Int("steps", len(steps)))
	}
	return nil
}

// Verify says in words where the kernel differs from n, and changes nothing.
func (p *Plane) Verify(ctx context.Context, n Network) ([]string, error) {
	w, problems, err := p.want(n)
	if err != nil {
		return nil, err
	}
	s, unlock := p.lock(n.ID)
	defer unlock()
	ok, err := s.look(p.path(n.ID))
	if err != nil {
		return nil, fmt.Errorf("network %s: %w", n.label(), err)
	}
	if !ok {
		return append(problems, "its namespace is missing"), nil
	}
	have, err := s.observe(p)
	if err != nil {
		return nil, fmt.Errorf("network %s: %w", n.label(), err)
	}
	for _, st := range plan(w, have) {
		if st.words != "" {
			problems = append(problems, st.words)
		}
	}
	for _, a := range s.missing(have) {
		problems = append(problems, fmt.Sprintf("task %s has no link", a.Task))
	}
	open, err := s.guard.Verify(s.senders(have, n.Subnet6))
	if err != nil {
		return nil, fmt.Errorf("network %s: %w", n.label(), err)
	}
	return append(problems, open...), ctx.Err()
}

// State is what the kernel has of a network.
type State struct {
	VNI    uint32
	MTU    int
	Local  int // links of tasks of this node
	Remote int // tasks of other nodes the VXLAN device knows the way to
	Up     bool
}

// State reads a network from the kernel. fault.CodeNotFound says that it is not on this node.
func (p *Plane) State(network string) (State, error) {
	var out State
	err := p.read(network, func(s *space) error {
		have, err := s.observe(p)
		if err != nil {
			return err
		}
		out.Local, out.Remote = len(have.ports), len(have.fdb)
		if have.bridge != nil {
			out.MTU, out.Up = have.bridge.mtu, have.bridge.up
		}
		if have.vxlan != nil {
			out.VNI, out.Up = have.vxlan.vni, out.Up && have.vxlan.up
		}
		return nil
	})
	return out, err
}

// Tasks are the tasks that have a link on a network, ordered.
func (p *Plane) Tasks(network string) ([]string, error) {
	var out []string
	err := p.read(network, func(s *space) error {
		have, err := s.devices(p)
		for _, port := range have.ports {
			out = append(out, port.task)
		}
		sort.Strings(out)
		return err
	})
	return out, err
}

func (p *Plane) read(network string, f func(*space) error) error {
	if err := validID(network); err != nil {
		return err
	}
	s, unlock := p.lock(network)
	defer unlock()
	ok, err := s.look(p.path(network))
	if err == nil && !ok {
		return fault.NotFound("network %s is not on this node", network)
	}
	if err == nil {
		err = f(s)
	}
	if err != nil {
		return fmt.Errorf("read network %s: %w", network, err)
	}
	return nil
}

// List names the networks that are on this node, also those of which a crash or a reboot left no more than the name.
func (p *Plane) List() ([]string, error) {
	entries, err := os.ReadDir(p.cfg.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list the networks: %w", err)
	}
	var out []string
	for _, e := range entries {
		if !e.IsDir() && validID(e.Name()) == nil {
			out = append(out, e.Name())
		}
	}
	return out, nil
}

// Remove takes a network off this node, with the links of the tasks that are on it. One that is not there is no error.
func (p *Plane) Remove(_ context.Context, network string) error {
	if err := validID(network); err != nil {
		return err
	}
	s, unlock := p.lock(network)
	defer unlock()
	clear(s.tasks)
	ok, err := s.look(p.path(network))
	if err != nil {
		return fmt.Errorf("remove network %s: %w", network, err)
	}
	if ok || s.isOpen() {
		// By name and now: the kernel frees a namespace later, and until then the VNI and the tasks' devices would stay.
		err = s.empty()
	}
	s.close()
	if err := errors.Join(err, nsfs.Remove(p.path(network))); err != nil {
		return fmt.Errorf("remove network %s: %w", network, err)
	}
	return nil
}

// Cleanup removes every network of this node, for one that leaves the cluster.
func (p *Plane) Cleanup() error {
	have, err := p.List()
	errs := []error{err}
	for _, network := range have {
		errs = append(errs, p.Remove(context.Background(), network))
	}
	if err := os.Remove(p.cfg.Dir); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
		errs = append(errs, fmt.Errorf("remove the directory of the networks: %w", err))
	}
	return errors.Join(errs...)
}

func (p *Plane) path(network string) string { return filepath.Join(p.cfg.Dir, network) }

// hostHandle speaks to the kernel in the host's namespace, whichever thread calls.
func (p *Plane) hostHandle() (*netlink.Handle, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.homeErr != nil {
		return nil, p.homeErr
	}
	if p.host == nil {
		h, err := netlink.NewHandleAt(p.home, unix.NETLINK_ROUTE)
		if err != nil {
			return nil, fmt.Errorf("open netlink in the host's namespace: %w", err)
		}
		p.host = h
	}
	return p.host, nil
}

// validID keeps names usable as file names.
func validID(name string) error {
	if !id.Safe(name) {
		return fault.Invalid("%q is not the id of a network or a task", name)
	}
	return nil
}
