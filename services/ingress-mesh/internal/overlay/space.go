package overlay

import (
	"errors"
	"fmt"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"skep.dev/libs/fault"
	"skep.dev/services/ingress-mesh/internal/antispoof"
	"skep.dev/services/ingress-mesh/internal/nsfs"
)

// space is the namespace of one network, with the sockets into it that are kept between calls.
type space struct {
	mu    sync.Mutex
	users int // under Plane.mu

	nl    *netlink.Handle  // nil while not open
	raw   *nl.SocketHandle // for what netlink.Handle does not tell
	watch *watch
	guard *antispoof.Table
	ns    netns.NsHandle
	id    nsfs.ID
	tasks map[string]Attachment // by task: what this process attached

	said    string   // of what was left out of the network last
	settled *settled // nil while the namespace is not known to be right
}

// lock gives the caller a network for himself.
func (p *Plane) lock(network string) (s *space, unlock func()) {
	p.mu.Lock()
	s = p.spaces[network]
	if s == nil {
		s = &space{tasks: map[string]Attachment{}}
		p.spaces[network] = s
	}
	s.users++
	p.mu.Unlock()
	s.mu.Lock()
	return s, func() {
		s.mu.Unlock()
		p.mu.Lock()
		if s.users--; s.users == 0 && !s.isOpen() && len(s.tasks) == 0 {
			delete(p.spaces, network)
		}
		p.mu.Unlock()
	}
}

func (s *space) isOpen() bool { return s.nl != nil }

// enter opens the network's namespace; it is made if it is not there and create says so.
func (s *space) enter(path string, create bool) error {
	id, mounted := nsfs.IDAt(path)
	if s.isOpen() {
		if mounted && id == s.id {
			return nil
		}
		if !mounted { // by somebody's hand; what is in it still runs
			return nsfs.Keep(s.ns, path)
		}
		s.close() // another one is in its place
	}
	if !mounted && !create {
		return errAbsent
	}
	ns, h, err := nsfs.Make(path)
	if err != nil {
		return err
	}
	return s.take(ns, h)
}

// errAbsent: the network has no namespace on this node.
var errAbsent = fault.Unavailable("it is not set up on this node")

// look opens the network's namespace if there is one, and mounts and makes nothing.
func (s *space) look(path string) (bool, error) {
	id, mounted := nsfs.IDAt(path)
	if s.isOpen() && mounted && id == s.id {
		return true, nil
	}
	if !mounted {
		return false, nil
	}
	s.close()
	ns, h, err := nsfs.Open(path)
	if err != nil {
		return false, err
	}
	return true, s.take(ns, h)
}

func (s *space) take(ns netns.NsHandle, h *netlink.Handle) error {
	id, err := nsfs.IDOf(ns)
	if err == nil {
		var sock *nl.NetlinkSocket
		var w *watch
		if w, err = newWatch(ns); err == nil {
			if sock, err = nl.GetNetlinkSocketAt(ns, netns.None(), unix.NETLINK_ROUTE); err == nil {
				s.nl, s.ns, s.id, s.watch, s.raw = h, ns, id, w, &nl.SocketHandle{Socket: sock}
				s.guard = antispoof.New(ns, vxlanName)
				return nil
			}
			w.close()
		}
	}
	h.Close()
	_ = ns.Close()
	return fmt.Errorf("open a socket in the network's namespace: %w", err)
}

// close lets go of the namespace; without a mount or a process in it the kernel frees it.
func (s *space) close() {
	if !s.isOpen() {
		return
	}
	s.nl.Close()
	s.raw.Close()
	s.watch.close()
	s.guard.Close()
	_ = s.ns.Close()
	s.nl, s.raw, s.watch, s.guard, s.settled, s.ns = nil, nil, nil, nil, nil, netns.None()
}

// empty removes every device of the namespace.
func (s *space) empty() error {
	links, err := retryDump(s.nl.LinkList)
	if err != nil {
		return fmt.Errorf("list its devices: %w", err)
	}
	var errs []error
	for _, l := range links {
		if l.Type() != "vxlan" && l.Type() != "veth" && l.Type() != "bridge" && l.Type() != "tuntap" && l.Type() != "wireguard" {
			continue // lo, and fallback devices that cannot be removed
		}
		if err := s.nl.LinkDel(l); err != nil && !gone(err) {
			errs = append(errs, fmt.Errorf("remove device %s: %w", l.Attrs().Name, err))
		}
	}
	return errors.Join(errs...)
}

// retryDump repeats a listing that a change interrupted.
func retryDump[T any](list func() (T, error)) (out T, err error) {
	for range 10 {
		if out, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return out, err
}

// gone reports whether err says that the device is not there any more.
func gone(err error) bool {
	var e netlink.LinkNotFoundError
	return errors.As(err, &e) || errors.Is(err, unix.ENODEV)
}
