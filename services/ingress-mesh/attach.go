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

	"github.com/vishvananda/netlink"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"skep.dev/libs/attach"
	"skep.dev/libs/fault"
	"skep.dev/libs/id"
)

// taskDevice is the task's interface on skep0, as the task sees it.
const taskDevice = "eth0"

const vethPrefix = "sk"

// vethName is the host's end of a task's link; the kernel allows 15 characters.
func vethName(task string) string {
	if id.Valid(task) {
		return vethPrefix + task[:13]
	}
	h := sha256.Sum256([]byte(task))
	return vethPrefix + hex.EncodeToString(h[:])[:13]
}

// validTask keeps task ids usable as file names.
func validTask(task string) bool {
	if task == "" || len(task) > 64 {
		return false
	}
	for _, c := range task {
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '-' && c != '_' {
			return false
		}
	}
	return true
}

// Attach implements attach.Attacher.
func (s *Service) Attach(ctx context.Context, r attach.Request) (attach.Attachment, error) {
	if r.HostNetwork {
		return attach.Attachment{}, nil
	}
	if !validTask(r.TaskID) {
		return attach.Attachment{}, fault.Invalid("attach: %q is not a task id", r.TaskID)
	}
	if len(r.Networks) > 0 {
		return attach.Attachment{}, fault.Invalid("attach task %s: this node has no overlay networks yet", r.TaskID)
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
	known = known && s.pool.claim(rec.Address, r.TaskID)
	if known && s.intact(r.TaskID) {
		return s.attachment(rec), nil
	}
	if !known {
		a, err := s.pool.take(r.TaskID)
		if err != nil {
			return attach.Attachment{}, err
		}
		rec = record{Task: r.TaskID, Service: r.ServiceID, Address: a}
		if err := s.records.save(rec); err != nil {
			s.pool.release(a, r.TaskID)
			return attach.Attachment{}, err
		}
	}
	if err := s.connect(rec); err != nil {
		err = fmt.Errorf("attach task %s: %w", r.TaskID, err)
		if !known { // what was there before stays: a process may use it
			err = errors.Join(err, s.dismantle(rec))
		}
		return attach.Attachment{}, err
	}
	return s.attachment(rec), nil
}

func (s *Service) attachment(rec record) attach.Attachment {
	return attach.Attachment{
		Netns:     s.nsPath(rec.Task),
		Addresses: []netip.Prefix{netip.PrefixFrom(rec.Address, s.subnet.Bits())},
		Gateway:   s.gateway,
	}
}

// intact reports whether a task's namespace and its link to the bridge are there.
func (s *Service) intact(task string) bool {
	if !namespaceAt(s.nsPath(task)) {
		return false
	}
	l, err := s.nl.LinkByName(vethName(task))
	return err == nil && l.Attrs().MasterIndex == int(s.bridge.Load()) && l.Attrs().Flags&net.FlagUp != 0
}

// connect makes the namespace and its link, or what of them is missing.
func (s *Service) connect(rec record) error {
	ns, inside, err := makeNamespace(s.nsPath(rec.Task))
	if err != nil {
		return err
	}
	defer ns.Close()
	defer inside.Close()
	name, mtu := vethName(rec.Task), int(s.mtu.Load())
	if old, err := s.nl.LinkByName(name); err == nil {
		if s.rejoin(old, inside) == nil {
			return s.configure(inside, rec)
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
	return s.configure(inside, rec)
}

// rejoin puts an existing link back on the bridge, so that the task keeps its interface and its connections.
func (s *Service) rejoin(l netlink.Link, inside *netlink.Handle) error {
	if _, err := inside.LinkByName(taskDevice); err != nil {
		return err
	}
	if err := s.nl.LinkSetMasterByIndex(l, int(s.bridge.Load())); err != nil {
		return err
	}
	return s.nl.LinkSetUp(l)
}

// reconnect repairs a task that lost its link.
func (s *Service) reconnect(task string) error {
	unlock := s.tasks.lock(task)
	defer unlock()
	rec, ok, err := s.records.load(task)
	if err != nil || !ok || s.intact(task) {
		return err
	}
	if err := s.connect(rec); err != nil {
		return fmt.Errorf("repair the network of task %s: %w", task, err)
	}
	return nil
}

// configure sets up the interfaces inside a task's namespace.
func (s *Service) configure(h *netlink.Handle, rec record) error {
	lo, err := h.LinkByName("lo")
	if err == nil {
		err = h.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("set the loopback up: %w", err)
	}
	dev, err := h.LinkByName(taskDevice)
	if err != nil {
		return fmt.Errorf("look up %s in the task's namespace: %w", taskDevice, err)
	}
	addr := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(rec.Address, s.subnet.Bits()))}
	if err := h.AddrReplace(dev, addr); err != nil {
		return fmt.Errorf("add address %s: %w", addr.IPNet, err)
	}
	if err := h.LinkSetUp(dev); err != nil {
		return fmt.Errorf("set %s up: %w", taskDevice, err)
	}
	route := &netlink.Route{LinkIndex: dev.Attrs().Index, Gw: s.gateway.AsSlice()}
	if err := h.RouteReplace(route); err != nil {
		return fmt.Errorf("add the default route: %w", err)
	}
	return nil
}

// Detach implements attach.Attacher.
func (s *Service) Detach(ctx context.Context, task string) error {
	if !validTask(task) {
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
	return s.dismantle(rec)
}

// dismantle removes every trace of a task's network; the record goes last, so that a crash repeats the rest.
func (s *Service) dismantle(rec record) error {
	name := vethName(rec.Task)
	l, err := s.nl.LinkByName(name)
	if err == nil {
		err = s.nl.LinkDel(l)
	}
	if err != nil && !notFound(err) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove link %s of task %s: %w", name, rec.Task, err)
	}
	if err := removeNamespace(s.nsPath(rec.Task)); err != nil {
		return err
	}
	if err := s.records.remove(rec.Task); err != nil {
		return err
	}
	if rec.Address.IsValid() {
		s.pool.release(rec.Address, rec.Task)
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
