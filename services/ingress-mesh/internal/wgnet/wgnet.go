// Package wgnet is the way between nodes of a node's encrypted networks: per network one WireGuard device, in the
// namespace that package overlay made for the network without VXLAN.
//
// It owns, in that namespace, the device wg0, the routes that lead there, forwarding, and what makes the bridge answer
// for the addresses behind it; in the host's namespace the device's UDP socket; and the files <Dir>/<network>.key and
// .port. It leaves out peers whose key is none or another's, and address blocks that are not the network's or another's.
//
// Packets are routed, not bridged: the bridge answers a task's question for an address of another node, the namespace
// routes the packet to wg0, and there the peer that holds the address block is found and the packet encrypted for it.
// A packet that comes in is accepted only from the peer that holds its source's block. So a node needs of each other
// node its key, address and blocks, and nothing per task. The private key never leaves the node.
//
// WireGuard is the kernel's where it has it, else this process': then packets stop while the process does, the device
// is made anew by the first Ensure, and the connections of tasks go on from there. The kernel's goes on by itself.
//
// All nodes of a network must have it with one MTU, as with VXLAN: the namespace has no address to complain from about
// packets that are too large.
//
// Failure story: Ensure compares and writes the difference, as in package overlay; a device that was removed is made
// anew. Nodes that know one another's key speak at once, whichever learns of the other last, and every 25 s.
package wgnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"skep.dev/libs/fault"
	"skep.dev/libs/id"
	"skep.dev/services/ingress-mesh/internal/nsfs"
)

const (
	deviceName = "wg0"
	bridgeName = "br0" // of package overlay
	// Overhead is what WireGuard adds to a packet at most, over IPv6.
	Overhead        = 80
	defaultUnderlay = 1500
	minMTU6         = 1280
)

// Config is what a Plane needs to know of its node.
type Config struct {
	Log *zap.Logger
	// Dir is where the keys are kept, from start to start.
	Dir string
	// Namespaces is where package overlay mounts the namespaces of the networks, by network id.
	Namespaces string
	// UnderlayMTU is asked at every Ensure; 0 and nil mean 1500.
	UnderlayMTU func() int
	// Userspace keeps from using the kernel's WireGuard where there is one.
	Userspace bool
}

// Network is an encrypted network as this node is to have it.
type Network struct {
	ID              string
	Name            string
	Subnet, Subnet6 netip.Prefix
	MTU             int    // 0 = Plane.MTU; the bridge and the tasks' links must have the same
	ListenPort      uint16 // 0 = any, the same after a restart where possible
	Peers           []Peer
	// Remotes6 are the IPv6 addresses of the tasks of other nodes: the bridge answers for each by name.
	Remotes6 []netip.Addr
	// Own are the addresses that tasks here have by themselves, in whoever's block they are.
	Own []netip.Addr
}

// Peer is another node.
type Peer struct {
	Node      string         // for people
	PublicKey string         // base64
	Endpoint  netip.AddrPort // invalid: it speaks first
	Blocks    []netip.Prefix // whose addresses are behind it
	// Addresses are behind it though they may be in another node's block.
	Addresses []netip.Addr
}

// Plane keeps the encrypted networks of one node. Its methods may be called from any goroutine; those about one network
// wait for one another.
type Plane struct {
	log     *zap.Logger
	cfg     Config
	home    netns.NsHandle // the host's: where New was called
	homeErr error

	mu   sync.Mutex
	nets map[string]*network // stay when a network goes: somebody may wait for it
}

// network is one network with its device.
type network struct {
	mu     sync.Mutex
	tunnel tunnel                    // nil while there is none
	space  nsfs.ID                   // where it is
	asked  map[string]netip.AddrPort // the endpoints of peers as last asked for, see planPeers
	peers  map[wgtypes.Key]Peer      // as last asked for
	// problems is what of the peers last asked for was left out.
	problems []string
	// contacts counts the rounds of contact: a new one ends the one before.
	contacts int
}

// MTU is the largest packet that fits into one of the underlay with encryption.
func (p *Plane) MTU() int {
	if p.cfg.UnderlayMTU != nil {
		if mtu := p.cfg.UnderlayMTU(); mtu > 0 {
			return mtu - Overhead
		}
	}
	return defaultUnderlay - Overhead
}

// New takes hold of the network namespace it is called in as the host's, and changes nothing.
func New(cfg Config) *Plane {
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	p := &Plane{log: cfg.Log, cfg: cfg, nets: map[string]*network{}}
	p.home, p.homeErr = nsfs.Current() // said by the first call that needs it
	return p
}

// Ensure makes a network's device, or makes what is there have what n says, and returns the node's public key and UDP
// port, for the others.
func (p *Plane) Ensure(ctx context.Context, n Network) (publicKey string, port uint16, err error) {
	if err := validID(n.ID); err != nil {
		return "", 0, err
	}
	if !n.Subnet.Addr().Is4() {
		return "", 0, fault.Invalid("encrypted network %s has no IPv4 subnet", n.label())
	}
	nw := p.network(n.ID)
	nw.mu.Lock()
	defer nw.mu.Unlock()
	publicKey, port, err = p.ensure(ctx, nw, n)
	if err != nil {
		return "", 0, fmt.Errorf("encrypted network %s: %w", n.label(), err)
	}
	return publicKey, port, nil
}

func (p *Plane) ensure(ctx context.Context, nw *network, n Network) (string, uint16, error) {
	if err := errors.Join(p.homeErr, ctx.Err()); err != nil {
		return "", 0, err
	}
	mtu := n.MTU
	if mtu == 0 {
		mtu = p.MTU()
	}
	if n.Subnet6.IsValid() && mtu < minMTU6 {
		return "", 0, fault.Invalid("IPv6 needs an MTU of at least %d, not %d", minMTU6, mtu)
	}
	key, err := loadKey(p.cfg.Dir, n.ID)
	if err != nil {
		return "", 0, err
	}
	peers, problems := checkNetwork(n, key.PublicKey())
	if !slices.Equal(problems, nw.problems) {
		if nw.problems = problems; len(problems) > 0 {
			p.log.Warn("peers of an encrypted network make no sense and are left out", zap.String("network", n.ID), zap.Strings("peers", problems))
		}
	}
	path := filepath.Join(p.cfg.Namespaces, n.ID)
	ns, h, err := nsfs.Open(path)
	if err != nil {
		return "", 0, fault.Unavailable("the network's namespace is not set up: %v", err)
	}
	defer ns.Close()
	defer h.Close()
	if err := p.revive(nw, n, key, ns, h, mtu); err != nil {
		return "", 0, err
	}
	have, port, err := nw.tunnel.read()
	if err != nil {
		return "", 0, fmt.Errorf("read the WireGuard device: %w", err)
	}
	if n.ListenPort == 0 && port != 0 {
		if err := savePort(p.cfg.Dir, n.ID, port); err != nil {
			return "", 0, err
		}
	}
	if err := nw.setPeers(key, peers, have); err != nil {
		return "", 0, err
	}
	nw.asked = map[string]netip.AddrPort{}
	for k, peer := range peers {
		nw.asked[k.String()] = peer.Endpoint
	}
	if err := route(h, ns, n, mtu, peers); err != nil {
		return "", 0, err
	}
	nw.tunnel.setMTU(mtu)
	return key.PublicKey().String(), port, nil
}

// setPeers writes the differences.
func (nw *network) setPeers(key wgtypes.Key, peers map[wgtypes.Key]Peer, have []PeerState) error {
	own := key.PublicKey()
	nw.peers = peers
	changes := planPeers(own, peers, have, nw.asked)
	if len(changes) == 0 {
		return nil
	}
	if err := nw.tunnel.write(wgtypes.Config{Peers: changes}); err != nil {
		return fmt.Errorf("write the peers of the WireGuard device: %w", err)
	}
	if slices.ContainsFunc(changes, func(c wgtypes.PeerConfig) bool { return !c.Remove && !c.UpdateOnly }) {
		nw.contact(own)
	}
	return nil
}

// revive makes sure that there is a device that works, in the namespace that is there now.
func (p *Plane) revive(nw *network, n Network, key wgtypes.Key, ns netns.NsHandle, h *netlink.Handle, mtu int) error {
	id, err := nsfs.IDOf(ns)
	if err != nil {
		return err
	}
	l, err := h.LinkByName(deviceName)
	if err != nil && !gone(err) {
		return fmt.Errorf("look up %s: %w", deviceName, err)
	}
	there := err == nil
	if nw.tunnel != nil {
		if there && id == nw.space && nw.tunnel.alive(l.Attrs().Index) && (n.ListenPort == 0 || nw.tunnel.port() == n.ListenPort) {
			return nil
		}
		nw.drop()
		if there {
			if l, err = h.LinkByName(deviceName); err != nil {
				there = false // it went with the process' end of it
			}
		}
	}
	port := n.ListenPort
	if port == 0 {
		port = loadPort(p.cfg.Dir, n.ID)
	}
	if there && l.Type() == "wireguard" && !p.cfg.Userspace { // from before a restart
		if nw.tunnel, err = adoptKernel(ns, l.Attrs().Index); err != nil {
			return err
		}
		nw.space = id
		return nw.tunnel.write(wgtypes.Config{PrivateKey: &key})
	}
	if there {
		if err := h.LinkDel(l); err != nil && !gone(err) {
			return fmt.Errorf("remove what is in the place of the WireGuard device: %w", err)
		}
	}
	if nw.tunnel, err = p.open(ns, h, key, port, mtu); errors.Is(err, unix.EADDRINUSE) && n.ListenPort == 0 {
		nw.tunnel, err = p.open(ns, h, key, 0, mtu) // somebody has the port of last time by now
	}
	if errors.Is(err, unix.EADDRINUSE) {
		return fault.Conflict("open the encrypted data path: UDP port %d is in use on this host by another program", port)
	}
	if err != nil {
		return err
	}
	nw.space = id
	return nil
}

// open makes a device: the kernel's, or one of this process if the kernel has none.
func (p *Plane) open(ns netns.NsHandle, h *netlink.Handle, key wgtypes.Key, port uint16, mtu int) (tunnel, error) {
	if !p.cfg.Userspace {
		t, err := openKernel(p.home, ns, h, key, port, mtu)
		if err == nil || errors.Is(err, unix.EADDRINUSE) {
			return t, err
		}
		if !errors.Is(err, unix.EOPNOTSUPP) {
			p.log.Warn("the kernel's WireGuard does not work, this process does it instead", zap.Error(err))
		}
	}
	return openUserspace(p.log, p.home, ns, key, port, mtu)
}

func (nw *network) drop() {
	if nw.tunnel != nil {
		nw.tunnel.close()
	}
	nw.tunnel, nw.asked = nil, nil
}

// Rotate gives the node a new key on a network and returns its public half. Until the others have it their packets are
// not accepted: tell them at once.
func (p *Plane) Rotate(_ context.Context, id string) (string, error) {
	if err := validID(id); err != nil {
		return "", err
	}
	nw := p.network(id)
	nw.mu.Lock()
	defer nw.mu.Unlock()
	key, err := makeKey(p.cfg.Dir, id)
	if err == nil && nw.tunnel != nil {
		err = nw.tunnel.write(wgtypes.Config{PrivateKey: &key})
	}
	if err != nil {
		return "", fmt.Errorf("change the key of encrypted network %s: %w", id, err)
	}
	return key.PublicKey().String(), nil
}

// State is what a network's device has.
type State struct {
	Kernel    bool // the kernel's WireGuard
	PublicKey string
	Port      uint16
	Peers     []PeerState // ordered by key
	Problems  []string    // peers that were left out, and why
}

// State reads a network's device. fault.CodeNotFound says that there is none.
func (p *Plane) State(id string) (State, error) {
	if err := validID(id); err != nil {
		return State{}, err
	}
	nw := p.network(id)
	nw.mu.Lock()
	defer nw.mu.Unlock()
	if nw.tunnel == nil {
		return State{}, fault.NotFound("network %s has no encrypted data path on this node", id)
	}
	key, err := loadKey(p.cfg.Dir, id)
	if err != nil {
		return State{}, err
	}
	peers, port, err := nw.tunnel.read()
	if err != nil {
		return State{}, fmt.Errorf("read the WireGuard device of network %s: %w", id, err)
	}
	_, kernel := nw.tunnel.(*kernelTunnel)
	return State{Kernel: kernel, PublicKey: key.PublicKey().String(), Port: port, Peers: peers, Problems: slices.Clone(nw.problems)}, nil
}

// Remove takes a network's device and key off this node; the namespace is package overlay's to remove.
func (p *Plane) Remove(_ context.Context, id string) error {
	if err := validID(id); err != nil {
		return err
	}
	nw := p.network(id)
	nw.mu.Lock()
	defer nw.mu.Unlock()
	nw.drop()
	var errs []error
	if path := filepath.Join(p.cfg.Namespaces, id); nsfs.At(path) {
		ns, h, err := nsfs.Open(path)
		if err == nil {
			if l, e := h.LinkByName(deviceName); e == nil {
				err = h.LinkDel(l)
			}
			h.Close()
			_ = ns.Close()
		}
		if err != nil && !gone(err) {
			errs = append(errs, err)
		}
	}
	errs = append(errs, removeKey(p.cfg.Dir, id))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove encrypted network %s: %w", id, err)
	}
	return nil
}

// Close ends the devices of this process; those of the kernel and the keys stay. The Plane must not be used any more.
func (p *Plane) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, nw := range p.nets {
		nw.mu.Lock()
		nw.drop()
		nw.mu.Unlock()
	}
	if p.homeErr == nil {
		p.homeErr = errors.New("the encrypted data plane is closed")
		if err := p.home.Close(); err != nil {
			return fmt.Errorf("close the host's network namespace: %w", err)
		}
	}
	return nil
}

func (p *Plane) network(id string) *network {
	p.mu.Lock()
	defer p.mu.Unlock()
	nw := p.nets[id]
	if nw == nil {
		nw = &network{}
		p.nets[id] = nw
	}
	return nw
}

func (n Network) label() string {
	if n.Name != "" {
		return n.Name
	}
	return n.ID
}

func gone(err error) bool {
	var e netlink.LinkNotFoundError
	return errors.As(err, &e) || errors.Is(err, unix.ENODEV)
}

// validID keeps names usable as file names.
func validID(name string) error {
	if !id.Safe(name) {
		return fault.Invalid("%q is not the id of a network", name)
	}
	return nil
}
