package wgnet

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netns"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"skep.dev/services/ingress-mesh/internal/nsfs"
)

// userTunnel is WireGuard in this process: packets come and go through a TUN device in the network's namespace, and a
// UDP socket in the host's.
type userTunnel struct {
	dev   *device.Device
	tun   *tunDevice
	index int
}

func openUserspace(log *zap.Logger, home, ns netns.NsHandle, key wgtypes.Key, port uint16, mtu int) (tunnel, error) {
	t, index, err := openTUN(ns, mtu)
	if err != nil {
		return nil, err
	}
	u := &userTunnel{tun: t, index: index}
	logger := &device.Logger{Verbosef: device.DiscardLogf, Errorf: func(format string, args ...any) {
		log.Debug("WireGuard: " + fmt.Sprintf(format, args...))
	}}
	u.dev = device.NewDevice(t, &homeBind{Bind: conn.NewDefaultBind(), home: home}, logger)
	err = u.dev.IpcSet(fmt.Sprintf("private_key=%s\nlisten_port=%d\n", hex.EncodeToString(key[:]), port))
	if err == nil {
		err = u.dev.Up()
	}
	if err != nil {
		u.dev.Close()
		return nil, fmt.Errorf("start WireGuard: %w", bindError(err))
	}
	return u, nil
}

// bindError finds the error number the device's own errors hide behind text.
func bindError(err error) error {
	if err != nil && !errors.Is(err, unix.EADDRINUSE) && strings.Contains(err.Error(), unix.EADDRINUSE.Error()) {
		return fmt.Errorf("%w (%v)", unix.EADDRINUSE, err)
	}
	return err
}

// openTUN makes wg0 in a namespace.
func openTUN(ns netns.NsHandle, mtu int) (t *tunDevice, index int, err error) {
	err = nsfs.Inside(ns, func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open /dev/net/tun, which encrypted networks need without WireGuard in the kernel (modprobe tun): %w", err)
		}
		ifr, err := unix.NewIfreq(deviceName)
		if err == nil {
			ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
		}
		if err != nil {
			_ = unix.Close(fd)
			return fmt.Errorf("make the TUN device %s: %w", deviceName, err)
		}
		inner, _, err := tun.CreateUnmonitoredTUNFromFD(fd) // has fd from here on
		if err != nil {
			_ = unix.Close(fd)
			return fmt.Errorf("use the TUN device %s: %w", deviceName, err)
		}
		t = &tunDevice{Device: inner, events: make(chan tun.Event, 1)}
		t.mtu.Store(int64(mtu))
		if index, err = ifIndex(deviceName); err != nil {
			_ = t.Close()
			return fmt.Errorf("look up the TUN device %s: %w", deviceName, err)
		}
		return nil
	})
	return t, index, err
}

func ifIndex(name string) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return 0, err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, ifr); err != nil {
		return 0, err
	}
	return int(ifr.Uint32()), nil
}

// tunDevice tells the MTU it was told: the library would ask in the namespace of whichever thread it runs on.
type tunDevice struct {
	tun.Device
	mtu atomic.Int64

	mu     sync.Mutex
	closed bool
	events chan tun.Event
}

func (t *tunDevice) MTU() (int, error)        { return int(t.mtu.Load()), nil }
func (t *tunDevice) Events() <-chan tun.Event { return t.events }

func (t *tunDevice) setMTU(mtu int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.mtu.Swap(int64(mtu)) == int64(mtu) || t.closed {
		return
	}
	select {
	case t.events <- tun.EventMTUUpdate:
	default: // one is on its way and will read this
	}
}

func (t *tunDevice) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	t.closed = true
	close(t.events)
	return t.Device.Close()
}

// homeBind opens the UDP sockets in the host's namespace, whichever thread opens them.
type homeBind struct {
	conn.Bind
	home netns.NsHandle
}

func (b *homeBind) Open(port uint16) (fns []conn.ReceiveFunc, actual uint16, err error) {
	err = nsfs.Inside(b.home, func() (err error) {
		fns, actual, err = b.Bind.Open(port)
		return err
	})
	return fns, actual, err
}

func (u *userTunnel) alive(index int) bool {
	select {
	case <-u.dev.Wait(): // its device was removed
		return false
	default:
		return index == u.index
	}
}

func (u *userTunnel) setMTU(mtu int) { u.tun.setMTU(mtu) }

func (u *userTunnel) close() { u.dev.Close() }

func (u *userTunnel) port() uint16 {
	_, port, _ := u.read() // an error is a closed device, which has none
	return port
}

func (u *userTunnel) write(c wgtypes.Config) error {
	return u.dev.IpcSet(uapi(c))
}

// uapi says a configuration in WireGuard's own words.
func uapi(c wgtypes.Config) string {
	var b strings.Builder
	line := func(key string, value any) { fmt.Fprintf(&b, "%s=%v\n", key, value) }
	if c.PrivateKey != nil {
		line("private_key", hex.EncodeToString(c.PrivateKey[:]))
	}
	for _, p := range c.Peers {
		line("public_key", hex.EncodeToString(p.PublicKey[:]))
		if p.Remove {
			line("remove", true)
			continue
		}
		if p.UpdateOnly {
			line("update_only", true)
		}
		if p.Endpoint != nil {
			line("endpoint", p.Endpoint)
		}
		if p.PersistentKeepaliveInterval != nil {
			line("persistent_keepalive_interval", int(p.PersistentKeepaliveInterval.Seconds()))
		}
		if p.ReplaceAllowedIPs {
			line("replace_allowed_ips", true)
		}
		for _, a := range p.AllowedIPs {
			line("allowed_ip", a.String())
		}
	}
	return b.String()
}

func (u *userTunnel) read() ([]PeerState, uint16, error) {
	text, err := u.dev.IpcGet()
	if err != nil {
		return nil, 0, err
	}
	return parseUAPI(text)
}

func parseUAPI(text string) (peers []PeerState, port uint16, err error) {
	var sec, nsec int64
	for line := range strings.Lines(text) {
		k, v, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok {
			continue
		}
		if k == "public_key" {
			raw, err := hex.DecodeString(v)
			if err != nil || len(raw) != wgtypes.KeyLen {
				return nil, 0, fmt.Errorf("key %q", v)
			}
			peers, sec, nsec = append(peers, PeerState{PublicKey: wgtypes.Key(raw).String()}), 0, 0
			continue
		}
		if k == "listen_port" {
			n, err := strconv.ParseUint(v, 10, 16)
			if err != nil {
				return nil, 0, fmt.Errorf("port %q", v)
			}
			port = uint16(n)
		}
		if len(peers) == 0 {
			continue
		}
		p := &peers[len(peers)-1]
		switch k {
		case "endpoint":
			p.Endpoint, err = netip.ParseAddrPort(v)
			p.Endpoint = netip.AddrPortFrom(p.Endpoint.Addr().Unmap(), p.Endpoint.Port())
		case "allowed_ip":
			var b netip.Prefix
			b, err = netip.ParsePrefix(v)
			p.Blocks = append(p.Blocks, b)
		case "persistent_keepalive_interval":
			p.Keepalive = v != "0"
		case "tx_bytes":
			p.Sent, err = strconv.ParseUint(v, 10, 64)
		case "rx_bytes":
			p.Received, err = strconv.ParseUint(v, 10, 64)
		case "last_handshake_time_sec":
			sec, err = strconv.ParseInt(v, 10, 64)
		case "last_handshake_time_nsec":
			nsec, err = strconv.ParseInt(v, 10, 64)
			if sec != 0 {
				p.Handshake = time.Unix(sec, nsec)
			}
		}
		if err != nil {
			return nil, 0, fmt.Errorf("%s of a peer: %w", k, err)
		}
	}
	return ordered(peers), port, nil
}
