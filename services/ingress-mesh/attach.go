package mesh

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"skep.dev/libs/attach"
	"skep.dev/libs/fault"
	"skep.dev/libs/id"
	"skep.dev/libs/keys"
	"skep.dev/services/ingress-mesh/internal/antispoof"
	"skep.dev/services/ingress-mesh/internal/nsfs"
	"skep.dev/services/ingress-mesh/internal/overlay"
)

// taskDevice is the task's interface on skep0, as the task sees it.
const taskDevice = "eth0"

const vethPrefix = "sk"

// resolverAddr is where a task on overlay networks finds the resolver, inside its own namespace.
var resolverAddr = netip.AddrFrom4([4]byte{127, 0, 0, 11})

// overlayDevice is a task's interface on the i-th network it named.
func overlayDevice(i int) string { return fmt.Sprintf("eth%d", i+1) }

// vethName is the host's end of a task's link; the kernel allows 15 characters.
func vethName(task string) string {
	if id.Valid(task) {
		return vethPrefix + task[:13]
	}
	h := sha256.Sum256([]byte(task))
	return vethPrefix + hex.EncodeToString(h[:])[:13]
}

// Attach implements attach.Attacher.
func (s *Service) Attach(ctx context.Context, r attach.Request) (attach.Attachment, error) {
	if r.HostNetwork {
		return attach.Attachment{}, nil
	}
	if !id.Safe(r.TaskID) {
		return attach.Attachment{}, fault.Invalid("attach: %q is not a task id", r.TaskID)
	}
	if r.Isolated && len(r.Networks)+len(r.Ports) > 0 {
		return attach.Attachment{}, fault.Invalid("attach task %s: a task without a network has neither networks nor ports", r.TaskID)
	}
	if err := s.awaitReady(ctx); err != nil {
		return attach.Attachment{}, err
	}
	unlock := s.tasks.lock(r.TaskID)
	defer unlock()
	rec, known, err := s.records.load(r.TaskID)
	if err != nil {
		return attach.Attachment{}, err
	}
	if known {
		known = s.claim(rec) == nil
	}
	if !known {
		if rec, err = s.newRecord(ctx, r); err != nil {
			return attach.Attachment{}, fmt.Errorf("attach task %s: %w", r.TaskID, err)
		}
		if err := s.records.save(rec); err != nil {
			s.unclaim(rec)
			return attach.Attachment{}, err
		}
	}
	s.setLive(rec)
	if err := s.connect(ctx, rec); err != nil {
		err = fmt.Errorf("attach task %s: %w", r.TaskID, err)
		if !known { // what was there before stays: a process may use it
			err = errors.Join(err, s.dismantle(ctx, rec))
		}
		return attach.Attachment{}, err
	}
	s.dirty.add(keys.ScopeIngress) // its link is a new port of the bridge, and it may publish ports of the host
	return s.attachment(rec), nil
}

// newRecord gives a task its addresses and ports.
func (s *Service) newRecord(ctx context.Context, r attach.Request) (rec record, err error) {
	rec = record{Task: r.TaskID, Service: r.ServiceID, Nameservers: r.Nameservers, Attached: time.Now().UnixMilli()}
	defer func() {
		if err != nil {
			s.unclaim(rec)
		}
	}()
	wayOut := len(r.Networks) == 0
	for i, id := range r.Networks {
		m, err := s.join(ctx, rec, id, overlayDevice(i), r.Fixed[id])
		if err != nil {
			return rec, err
		}
		rec.Networks = append(rec.Networks, m)
		wayOut = wayOut || !s.follow.Network(id).GetNetwork().GetSpec().GetInternal()
	}
	// A task whose networks are all internal has no interface that leads out, unless it publishes a port.
	publishes := len(r.Ports) > 0 || s.follow != nil && s.follow.Publishes(r.ServiceID)
	if !r.Isolated && (wayOut || publishes) {
		if rec.Address, err = s.pool.take(r.TaskID); err != nil {
			return rec, err
		}
		rec.IPv6 = s.ipv6.Load()
	}
	rec.Ports, err = s.bindPorts(r.Ports)
	return rec, err
}

// errHeld: an address a record names has another holder by now.
var errHeld = errors.New("the address belongs to another task")

// claim takes the addresses a record names.
func (s *Service) claim(rec record) error {
	if rec.Address.IsValid() && !s.pool.claim(rec.Address, rec.Task) {
		return fmt.Errorf("%s: %w", rec.Address, errHeld)
	}
	for _, m := range rec.Networks {
		n, err := s.enter(s.Life(), m.Network)
		if err != nil {
			return err
		}
		if n.pool.claim(m.Addr.Addr(), rec.Task) != rec.Task {
			return fmt.Errorf("%s: %w", m.Addr.Addr(), errHeld)
		}
	}
	return nil
}

func (s *Service) unclaim(rec record) {
	if rec.Address.IsValid() {
		s.pool.release(rec.Address, rec.Task)
	}
	for _, m := range rec.Networks {
		s.release(rec.Task, m)
	}
}

func (s *Service) attachment(rec record) attach.Attachment {
	a := attach.Attachment{Netns: s.nsPath(rec.Task), Ports: rec.Ports}
	if rec.Address.IsValid() {
		a.Addresses, a.Gateway = []netip.Prefix{netip.PrefixFrom(rec.Address, s.subnet.Bits())}, s.gateway
		if rec.IPv6 {
			a.Addresses = append(a.Addresses, s.prefix6(rec.Address))
		}
	}
	for _, m := range rec.Networks {
		a.Networks = append(a.Networks, attach.Address{Network: m.Network, Addr: m.Addr, Addr6: m.Addr6})
	}
	if len(rec.Networks) > 0 {
		a.DNS = []netip.Addr{resolverAddr}
	}
	return a
}

// connect makes a task's namespace, its interfaces, its translations and its resolver, or what of them is missing.
func (s *Service) connect(ctx context.Context, rec record) error {
	if rec.Address.IsValid() {
		s.plane.Expect(rec.sender())
	}
	if !s.intact(rec) {
		if err := s.link(rec); err != nil {
			return err
		}
	}
	for _, m := range rec.Networks {
		if err := s.connectOverlay(ctx, rec, m); err != nil {
			return err
		}
	}
	if len(rec.Networks) == 0 {
		return nil
	}
	if err := s.applyTask(rec); err != nil {
		return err
	}
	var servers []netip.AddrPort
	for _, n := range rec.Nameservers {
		if a := address(n); a.IsValid() {
			servers = append(servers, netip.AddrPortFrom(a, 53))
		}
	}
	if err := s.resolver.Open(rec.Task, s.nsPath(rec.Task), newZone(s.tables, rec.networks()), servers); err != nil {
		return fmt.Errorf("open the resolver of task %s: %w", rec.Task, err)
	}
	return nil
}

func (s *Service) connectOverlay(ctx context.Context, rec record, m membership) error {
	unlock := s.netLock.lock(m.Network)
	defer unlock()
	scope, err := s.ensureKnown(ctx, m.Network)
	if err != nil {
		return err
	}
	draining := s.drainingNow()
	s.tables.setVirtual(m.Network, virtual(scope, draining, s.node))
	s.tables.setNames(m.Network, names(scope, draining))
	return s.overlays.Attach(ctx, m.Network, overlay.Attachment{
		Task: rec.Task, Netns: s.nsPath(rec.Task), Device: m.Device, Addr: m.Addr, Addr6: m.Addr6,
	})
}

// intact reports whether a task's namespace and its link to the bridge are there.
func (s *Service) intact(rec record) bool {
	if !nsfs.At(s.nsPath(rec.Task)) {
		return false
	}
	if !rec.Address.IsValid() {
		return true
	}
	l, err := s.nl.LinkByName(vethName(rec.Task))
	return err == nil && l.Attrs().MasterIndex == int(s.bridge.Load()) && l.Attrs().Flags&net.FlagUp != 0
}

// sender is the task as it may send on skep0.
func (r record) sender() antispoof.Port {
	return antispoof.Port{Link: vethName(r.Task), Addr: r.Address, Addr6: r.address6Of()}
}

// link makes the namespace and its link to skep0, or what of them is missing.
func (s *Service) link(rec record) error {
	ns, inside, err := nsfs.Make(s.nsPath(rec.Task))
	if err != nil {
		return err
	}
	defer ns.Close()
	defer inside.Close()
	if err := loopbackUp(inside); err != nil || !rec.Address.IsValid() {
		return err
	}
	name, mtu := vethName(rec.Task), int(s.mtu.Load())
	if old, err := s.nl.LinkByName(name); err == nil {
		if s.rejoin(old, inside, rec) == nil {
			return s.configure(ns, inside, rec)
		}
		if err := s.nl.LinkDel(old); err != nil && !notFound(err) {
			return fmt.Errorf("remove the broken link %s: %w", name, err)
		}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Alias, attrs.MTU, attrs.MasterIndex, attrs.Flags = name, "skep task "+rec.Task, mtu, int(s.bridge.Load()), net.FlagUp
	veth := &netlink.Veth{
		LinkAttrs: attrs, PeerName: taskDevice, PeerNamespace: netlink.NsFd(int(ns)), PeerHardwareAddr: macOf(rec.Address), PeerMTU: uint32(mtu), PeerTxQLen: -1,
	}
	if err := s.nl.LinkAdd(veth); err != nil {
		return fmt.Errorf("make link %s: %w", name, err)
	}
	// The kernel takes no alias with a new link.
	made, err := s.nl.LinkByName(name)
	if err == nil {
		err = s.nl.LinkSetAlias(made, attrs.Alias)
	}
	if err != nil {
		return fmt.Errorf("mark link %s as ours: %w", name, err)
	}
	if err := s.plane.Admit(s.nl, made, rec.sender()); err != nil {
		return fmt.Errorf("make link %s a port of its bridge: %w", name, err)
	}
	return s.configure(ns, inside, rec)
}

// rejoin puts an existing link back on the bridge, so that the task keeps its interface and its connections.
func (s *Service) rejoin(l netlink.Link, inside *netlink.Handle, rec record) error {
	if _, err := inside.LinkByName(taskDevice); err != nil {
		return err
	}
	if err := s.nl.LinkSetMasterByIndex(l, int(s.bridge.Load())); err != nil {
		return err
	}
	if err := s.plane.Admit(s.nl, l, rec.sender()); err != nil { // before it is up: a new port is open to all others
		return err
	}
	return s.nl.LinkSetUp(l)
}

// reconnect repairs a task that lost a part of its network.
func (s *Service) reconnect(ctx context.Context, task string) error {
	unlock := s.tasks.lock(task)
	defer unlock()
	rec, ok, err := s.records.load(task)
	if err != nil || !ok {
		return err
	}
	if err := s.connect(ctx, rec); err != nil {
		return fmt.Errorf("repair the network of task %s: %w", task, err)
	}
	return nil
}

func loopbackUp(h *netlink.Handle) error {
	lo, err := h.LinkByName("lo")
	if err == nil {
		err = h.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("set the loopback up: %w", err)
	}
	return nil
}

// configure sets up eth0 inside a task's namespace.
func (s *Service) configure(ns netns.NsHandle, h *netlink.Handle, rec record) error {
	dev, err := h.LinkByName(taskDevice)
	if err != nil {
		return fmt.Errorf("look up %s in the task's namespace: %w", taskDevice, err)
	}
	addr := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(rec.Address, s.subnet.Bits()))}
	if err := h.AddrReplace(dev, addr); err != nil {
		return fmt.Errorf("add address %s: %w", addr.IPNet, err)
	}
	if rec.IPv6 { // before it is up, so that it asks for no router
		if err := nsfs.Inside(ns, func() error { return settings6(taskDevice) }); err != nil {
			return err
		}
	}
	if err := h.LinkSetUp(dev); err != nil {
		return fmt.Errorf("set %s up: %w", taskDevice, err)
	}
	route := &netlink.Route{LinkIndex: dev.Attrs().Index, Gw: s.gateway.AsSlice()}
	if err := h.RouteReplace(route); err != nil {
		return fmt.Errorf("add the default route: %w", err)
	}
	if rec.IPv6 {
		return s.configure6(h, dev, rec)
	}
	return nil
}

// Detach implements attach.Attacher.
func (s *Service) Detach(ctx context.Context, task string) error {
	if !id.Safe(task) {
		return fault.Invalid("detach: %q is not a task id", task)
	}
	if err := s.awaitReady(ctx); err != nil {
		return err
	}
	unlock := s.tasks.lock(task)
	defer unlock()
	rec, _, err := s.records.load(task)
	if err != nil {
		return err
	}
	rec.Task = task
	return s.dismantle(ctx, rec)
}

// dismantle removes every trace of a task's network; the record goes last, so that a crash repeats the rest.
func (s *Service) dismantle(ctx context.Context, rec record) error {
	s.resolver.Close(rec.Task)
	for _, m := range rec.Networks {
		if err := s.overlays.Detach(ctx, m.Network, rec.Task); err != nil {
			return fmt.Errorf("take task %s off network %s: %w", rec.Task, m.Network, err)
		}
		s.unlearn(rec.Task, m)
	}
	name := vethName(rec.Task)
	l, err := s.nl.LinkByName(name)
	if err == nil {
		err = s.nl.LinkDel(l)
	}
	if err != nil && !notFound(err) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove link %s of task %s: %w", name, rec.Task, err)
	}
	if err := nsfs.Remove(s.nsPath(rec.Task)); err != nil {
		return err
	}
	if err := s.records.remove(rec.Task); err != nil {
		return err
	}
	s.unclaim(rec)
	s.forget(rec.Task)
	if rec.Address.IsValid() {
		if err := s.plane.Forget(rec.Address); err != nil {
			return fmt.Errorf("forget the connections of task %s: %w", rec.Task, err)
		}
	}
	if len(rec.Ports) > 0 {
		s.dirty.add(keys.ScopeIngress)
	}
	return nil
}

// List implements attach.Attacher.
func (s *Service) List(ctx context.Context) ([]string, error) {
	if err := s.awaitReady(ctx); err != nil {
		return nil, err
	}
	ids, err := s.records.list()
	sort.Strings(ids)
	return ids, err
}

// Sweep removes the network of every task that is not in keep. A task being attached meanwhile is not touched
// unless it was listed before.
func (s *Service) Sweep(ctx context.Context, keep map[string]bool) error {
	ids, err := s.List(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, task := range ids {
		if !keep[task] {
			s.log.Info("remove the network of a task that is gone", zap.String("task", task))
			errs = append(errs, s.Detach(ctx, task))
		}
	}
	return errors.Join(errs...)
}

// ours reports whether a link is the host's end of a task's.
func ours(l netlink.Link) bool {
	return l.Type() == "veth" && strings.HasPrefix(l.Attrs().Name, vethPrefix) && strings.HasPrefix(l.Attrs().Alias, "skep task ")
}

// keyedMutex locks by task id, so that different tasks attach at the same time.
type keyedMutex struct {
	mu   sync.Mutex
	held map[string]*keyLock
}

type keyLock struct {
	mu    sync.Mutex
	users int
}

func (k *keyedMutex) lock(key string) (unlock func()) {
	k.mu.Lock()
	if k.held == nil {
		k.held = map[string]*keyLock{}
	}
	l := k.held[key]
	if l == nil {
		l = &keyLock{}
		k.held[key] = l
	}
	l.users++
	k.mu.Unlock()
	l.mu.Lock()
	return func() {
		l.mu.Unlock()
		k.mu.Lock()
		if l.users--; l.users == 0 {
			delete(k.held, key)
		}
		k.mu.Unlock()
	}
}
