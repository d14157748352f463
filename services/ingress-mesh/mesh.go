// Package mesh is the network of one node: the bridge skep0, a network namespace for each task, the overlay networks
// its tasks are on, the names and virtual addresses they use, the ports the cluster publishes, and the host rules that
// let tasks out.
//
// It owns, and marks with its name: the bridge skep0 and the device skin0; the veths sk…; the namespaces under
// <run>/netns and <run>/overlays; the nftables tables named skep…; the iptables chain SKEP-FORWARD and the one jump to
// it; routing table 4000 and its rule; the files under <data>/mesh. It refuses to touch anything else: no other table,
// chain, link or route is ever flushed or changed. It decides nothing about the cluster: which task is where, and who
// may be reached, is the mesh controller's word (internal/picture), and what the kernel has is brought to it.
//
// Failure story: nothing here is needed for a running task to keep its network, so a crash, an upgrade or a restart
// drops no packet; only names are not answered until the new process is up. A restart reads its records and the last
// picture, compares them with the kernel, repairs what is missing and removes what belongs to no task. A host that
// reboots has neither namespaces nor links; the records of that time are dropped.
package mesh

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netlink"
	"go.uber.org/zap"

	"skep.dev/libs/attach"
	"skep.dev/libs/life"
	"skep.dev/services/ingress-mesh/internal/dns"
	"skep.dev/services/ingress-mesh/internal/ingress"
	"skep.dev/services/ingress-mesh/internal/overlay"
	"skep.dev/services/ingress-mesh/internal/picture"
	"skep.dev/services/ingress-mesh/internal/vip"
	"skep.dev/services/ingress-mesh/internal/wgnet"
)

// Bridge is the node's bridge; every task has an interface on it.
const Bridge = "skep0"

// defaultDataPort is the UDP port of the data path where the cluster does not say.
const defaultDataPort = 4789

// Config is everything the service needs.
type Config struct {
	// NC reaches the managers. Without it there is skep0 and nothing else: no overlay networks, no published ports.
	NC      *nats.Conn
	Log     *zap.Logger
	NodeID  string
	Version string
	DataDir string // files go to <DataDir>/mesh
	RunDir  string // namespaces go to <RunDir>/netns and <RunDir>/overlays
	Subnet  string // the node's skep0 subnet, CIDR; its first address is the gateway
	Number  uint32 // the node's, 1.. ; names it in the data path
	// Underlay is the address nodes reach one another by; its interface gives the MTU. Empty: the default route's.
	Underlay string
	// DataPathPort is the UDP port of all nodes' data path, 0 = 4789.
	DataPathPort uint32
	// Metrics is where the mesh shows what it does, nil = nowhere.
	Metrics prometheus.Registerer
}

// Service implements attach.Attacher on this host.
type Service struct {
	*life.Span // ready once tasks can be attached

	log     *zap.Logger
	nc      *nats.Conn
	node    string
	version string
	subnet  netip.Prefix
	gateway netip.Addr
	under   netip.Addr
	port    uint16 // UDP, of the data path
	netns   string // directory
	records records
	nl      *netlink.Handle

	bridge atomic.Int64 // index of skep0
	mtu    atomic.Int64
	ipv6   atomic.Bool // tasks get IPv6 addresses on skep0

	host sync.Mutex // held by who changes the host's own objects
	// ipv6Trouble is what was said last about IPv6 that does not work.
	ipv6Trouble string
	cleaned     atomic.Bool // Cleanup was called: nothing is made any more

	pool  *pool
	tasks keyedMutex

	follow   *picture.Follower // nil without NC
	overlays *overlay.Plane
	tunnels  *wgnet.Plane
	plane    *ingress.Plane
	resolver *dns.Server
	vips     vip.Cache
	tables   *tables
	dirty    *dirty
	applied  *progress
	meter    *meter
	turn     turn // of the converging goroutine
	paths    *paths
	tracking *tracking

	netMu   sync.Mutex
	nets    map[string]*network // by id
	netLock keyedMutex          // by network: who changes its kernel objects
	vipLock keyedMutex          // by task: who changes its translations

	liveMu   sync.Mutex
	live     map[string]record          // tasks that have a network here
	liveOn   map[string]map[string]bool // the same by overlay network
	draining map[string]bool
	nextPort int

	flowMu sync.Mutex
	behind map[string]behind // by task: where its flows may go

	closeOnce sync.Once
}

var _ attach.Attacher = (*Service)(nil)

// New checks the configuration and touches nothing.
func New(cfg Config) (*Service, error) {
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	if cfg.DataDir == "" || cfg.RunDir == "" {
		return nil, errors.New("mesh: data and run directories are needed")
	}
	p, err := netip.ParsePrefix(cfg.Subnet)
	if err != nil || !p.Addr().Is4() || p.Bits() > 29 || p.Bits() < 8 {
		return nil, fmt.Errorf("mesh: node subnet %q is not an IPv4 network of /8 to /29", cfg.Subnet)
	}
	p = p.Masked()
	var under netip.Addr
	if cfg.Underlay != "" {
		if under, err = netip.ParseAddr(cfg.Underlay); err != nil {
			return nil, fmt.Errorf("mesh: underlay address: %w", err)
		}
	}
	gw := p.Addr().Next()
	port := uint16(defaultDataPort)
	if cfg.DataPathPort != 0 {
		port = uint16(cfg.DataPathPort)
	}
	s := &Service{
		log: cfg.Log, nc: cfg.NC, node: cfg.NodeID, version: cfg.Version, subnet: p, gateway: gw, under: under, port: port,
		netns:    filepath.Join(cfg.RunDir, "netns"),
		records:  records{dir: filepath.Join(cfg.DataDir, "mesh")},
		Span:     life.New(),
		pool:     newPool(p, gw),
		tables:   newTables(),
		dirty:    newDirty(),
		applied:  newProgress(),
		meter:    newMeter(cfg.Metrics),
		paths:    newPaths(),
		tracking: newTracking(),
		nets:     map[string]*network{},
		live:     map[string]record{}, liveOn: map[string]map[string]bool{},
		draining: map[string]bool{},
		behind:   map[string]behind{},
	}
	mtuOf := func() int { return int(s.mtu.Load()) }
	s.overlays = overlay.New(overlay.Config{
		Log: cfg.Log, Dir: filepath.Join(cfg.RunDir, "overlays"), Underlay: under, Port: port, UnderlayMTU: mtuOf,
	})
	s.tunnels = wgnet.New(wgnet.Config{
		Log: cfg.Log, Dir: filepath.Join(cfg.DataDir, "mesh", "keys"), Namespaces: filepath.Join(cfg.RunDir, "overlays"), UnderlayMTU: mtuOf,
	})
	s.resolver = dns.New(dns.Config{Log: cfg.Log, Upstreams: new(resolvers).now})
	s.plane, err = ingress.New(ingress.Config{
		Log: cfg.Log, Bridge: Bridge, Number: uint16(cfg.Number), Subnet: p, Gateway: gw, Underlay: under, Port: port, UnderlayMTU: mtuOf,
	})
	if err != nil {
		return nil, err
	}
	if cfg.NC != nil {
		s.follow, err = picture.Follow(picture.Config{
			NC: cfg.NC, Log: cfg.Log, NodeID: cfg.NodeID, Path: s.records.picture(), Changed: func(scopes []string) { s.dirty.add(scopes...) },
		})
		if err != nil {
			return nil, err
		}
	}
	s.register(cfg.Metrics)
	return s, nil
}

// Run sets the host up, then keeps it so until ctx ends. What it made stays: see Cleanup.
func (s *Service) Run(ctx context.Context) error {
	ctx, cancel := s.Begin(ctx)
	defer cancel()
	defer s.resolver.Shutdown()
	if err := s.setup(ctx); err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	failed := make(chan error, 2)
	if s.follow != nil {
		srv, err := s.serve()
		if err != nil {
			return err
		}
		defer srv.Close() //nolint:errcheck // the connection is closing with us
		wg.Go(func() { failed <- s.follow.Run(ctx) })
	}
	s.Begun()
	if s.follow != nil {
		wg.Go(func() { s.watch(ctx) })
	}
	wg.Go(func() { s.converge(ctx) })
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return err
	}
}

// Close frees what the process holds, once Run has ended. The network of the tasks stays as it is.
func (s *Service) Close() (err error) {
	s.closeOnce.Do(func() {
		_ = s.Span.Close() // it returns nil
		select {
		case <-s.Ready():
			s.nl.Close()
		default:
		}
		err = errors.Join(s.tunnels.Close(), s.overlays.Close(), s.plane.Close())
	})
	return err
}

func (s *Service) setup(ctx context.Context) error {
	for _, d := range []string{s.records.dir, s.records.tasks(), s.netns} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("prepare the mesh's directories: %w", err)
		}
	}
	if s.nl == nil {
		h, err := netlink.NewHandle()
		if err != nil {
			return fmt.Errorf("open netlink: %w", err)
		}
		s.nl = h
	}
	if err := s.checkOverlap(); err != nil {
		return err
	}
	if err := s.ensureHost(); err != nil {
		return err
	}
	return s.recover(ctx)
}

// ensureHost makes the bridge and the rules what they should be; it changes nothing that is right already.
func (s *Service) ensureHost() error {
	mtu, err := s.underlayMTU()
	if err != nil {
		return err
	}
	s.mtu.Store(int64(mtu))
	index, err := s.ensureBridge(mtu)
	if err != nil {
		return err
	}
	s.bridge.Store(int64(index))
	return enableForwarding()
}

// repair does what setup did, for a host that somebody changed; tasks follow if the bridge had to be made anew.
func (s *Service) repair() error {
	s.host.Lock()
	defer s.host.Unlock()
	if s.cleaned.Load() {
		return nil
	}
	before := s.bridge.Load()
	if err := s.ensureHost(); err != nil {
		return err
	}
	if err := s.plane.Repair(s.Life()); err != nil {
		return err
	}
	if s.bridge.Load() == before {
		return nil
	}
	s.log.Warn("the bridge was gone and is made anew", zap.String("bridge", Bridge))
	tasks, err := s.records.list()
	if err != nil {
		return err
	}
	var errs []error
	for _, task := range tasks {
		errs = append(errs, s.reconnect(s.Life(), task))
	}
	return errors.Join(errs...)
}

// awaitReady blocks until the host is set up.
func (s *Service) awaitReady(ctx context.Context) error {
	select {
	case <-s.Ready():
		if s.cleaned.Load() {
			return errCleaned
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the node's network is not set up yet: %w", ctx.Err())
	}
}
