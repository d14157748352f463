// Package mesh is the network of one node: the bridge skep0, a network namespace for each task, and the host rules
// that let tasks out.
//
// It owns, and marks with its name: the bridge skep0; the veths sk…; the namespaces under <run>/netns; the nftables
// table `inet skep`; the iptables chain SKEP-FORWARD and the one jump to it; the files under <data>/mesh. It refuses
// to touch anything else: no other table, chain, link or route is ever flushed or changed.
//
// Failure story: nothing here is needed for a running task to keep its network, so a crash, an upgrade or a restart
// drops no packet. A restart reads its records, compares them with the kernel, repairs what is missing and removes
// what belongs to no task. A host that reboots has neither namespaces nor links; the records of that time are dropped.
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
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap"

	"skep.dev/libs/attach"
	"skep.dev/libs/fault"
)

// Bridge is the node's bridge; every task has an interface on it.
const Bridge = "skep0"

// repairEvery is how often the host rules are compared with what they should be: firewalls that reload drop them.
const repairEvery = 30 * time.Second

// Config is everything the service needs.
type Config struct {
	Log     *zap.Logger
	NodeID  string
	DataDir string // files go to <DataDir>/mesh
	RunDir  string // namespaces go to <RunDir>/netns
	Subnet  string // the node's skep0 subnet, CIDR; its first address is the gateway
	// Underlay is the address nodes reach one another by; its interface gives the MTU. Empty: the default route's.
	Underlay string
}

// Service implements attach.Attacher on this host.
type Service struct {
	log     *zap.Logger
	subnet  netip.Prefix
	gateway netip.Addr
	under   netip.Addr
	netns   string // directory
	records records
	nl      *netlink.Handle

	ready     chan struct{}
	readyOnce sync.Once
	bridge    atomic.Int64 // index of skep0
	mtu       atomic.Int64

	host    sync.Mutex  // held by who changes the host's own objects
	cleaned atomic.Bool // Cleanup was called: nothing is made any more

	pool  *pool
	tasks keyedMutex

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
	return &Service{
		log: cfg.Log, subnet: p, gateway: gw, under: under,
		netns:   filepath.Join(cfg.RunDir, "netns"),
		records: records{dir: filepath.Join(cfg.DataDir, "mesh")},
		ready:   make(chan struct{}),
		pool:    newPool(p, gw),
	}, nil
}

// Ready is closed once tasks can be attached.
func (s *Service) Ready() <-chan struct{} { return s.ready }

// Run sets the host up, then keeps it so until ctx ends. What it made stays: see Cleanup.
func (s *Service) Run(ctx context.Context) error {
	if err := s.setup(); err != nil {
		return err
	}
	s.readyOnce.Do(func() { close(s.ready) })
	t := time.NewTicker(repairEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			if err := s.repair(); err != nil {
				s.log.Error("repair the host's network", zap.Error(err))
			}
		}
	}
}

// Close frees what the process holds. The network of the tasks stays as it is.
func (s *Service) Close() error {
	s.closeOnce.Do(func() {
		select {
		case <-s.ready:
			s.nl.Close()
		default:
		}
	})
	return nil
}

func (s *Service) setup() error {
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
	return s.recover()
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
	if err := enableForwarding(); err != nil {
		return err
	}
	if err := ensureTable(s.subnet); err != nil {
		return err
	}
	return ensureForward()
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
		errs = append(errs, s.reconnect(task))
	}
	return errors.Join(errs...)
}

// awaitReady blocks until the host is set up.
func (s *Service) awaitReady(ctx context.Context) error {
	select {
	case <-s.ready:
		if s.cleaned.Load() {
			return fault.Unavailable("the node's network was removed: the node leaves its cluster")
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the node's network is not set up yet: %w", ctx.Err())
	}
}
