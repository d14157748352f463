package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// fabric6 are the fabric's IPv6 addresses: each ends in the IPv4 address of whom it belongs to.
var fabric6 = netip.MustParsePrefix("fd00:90::/64")

func ip6Of(ip string) string {
	b, v4 := fabric6.Addr().As16(), netip.MustParseAddr(ip).As4()
	copy(b[12:], v4[:])
	return netip.AddrFrom16(b).String()
}

// IP6 is the host's IPv6 address on the fabric.
func (h *Host) IP6() string { return ip6Of(h.IP) }

// The fabric: one bridge, one /16. Hosts have 10.90.1.x (managers) and 10.90.2.x (workers).
const (
	gatewayIP  = "10.90.0.1"   // the bridge; every host's default route and name server, neither of which leads anywhere
	registryIP = "10.90.0.250" // plain HTTP on port 5000
	outsideIP  = "203.0.113.1" // an address "on the internet", behind the gateway: egress can be seen to work
)

func netnsName(lab, host string) string { return "skep-" + lab + "-" + host }
func fabricName(lab string) string      { return netnsName(lab, "fabric") }
func portName(h *Host) string           { return "p-" + h.Name }

// ip runs iproute2 commands as one batch; ns "" is the machine's own namespace, where only names are made.
func ip(ctx context.Context, ns string, lines ...string) error {
	args := []string{"-batch", "-"}
	if ns != "" {
		args = append([]string{"-n", ns}, args...)
	}
	cmd := exec.CommandContext(ctx, "ip", args...)
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip in %q: %w: %s", ns, err, strings.TrimSpace(string(out)))
	}
	return nil
}

func (l *Lab) makeFabric(ctx context.Context) error {
	fab := fabricName(l.Name)
	if err := ip(ctx, "", "netns add "+fab); err != nil {
		return fmt.Errorf("make the fabric of lab %s: %w", l.Name, err)
	}
	err := ip(ctx, fab,
		"link set lo up",
		"addr add "+outsideIP+"/32 dev lo",
		"link add br0 type bridge",
		"addr add "+gatewayIP+"/16 dev br0",
		"addr add "+ip6Of(gatewayIP)+"/64 dev br0 nodad",
		"link set br0 up")
	if err != nil {
		return fmt.Errorf("make the fabric of lab %s: %w", l.Name, err)
	}
	return nil
}

// plug gives the host a fresh network namespace and a cable to the fabric. Both ends of the cable are made in place:
// never in the machine's own namespace.
func (l *Lab) plug(ctx context.Context, h *Host) error {
	ns, fab, port := netnsName(l.Name, h.Name), fabricName(l.Name), portName(h)
	if err := ip(ctx, "", "netns add "+ns, fmt.Sprintf("link add eth0 netns %s address %s mtu 1500 type veth peer name %s netns %s", ns, h.mac(), port, fab)); err != nil {
		return fmt.Errorf("plug in %s: %w", h.Name, err)
	}
	if err := ip(ctx, fab, "link set "+port+" master br0 up"); err != nil {
		return fmt.Errorf("plug in %s: %w", h.Name, err)
	}
	err := ip(ctx, ns, "link set lo up", "addr add "+h.IP+"/16 dev eth0", "addr add "+h.IP6()+"/64 dev eth0 nodad", "link set eth0 up",
		"route add default via "+gatewayIP, "route add default via "+ip6Of(gatewayIP))
	if err != nil {
		return fmt.Errorf("plug in %s: %w", h.Name, err)
	}
	return nil
}

// mac is the hardware address of a host's card: the same after every power-off, as its peers remember it.
func (h *Host) mac() string {
	ip := net.ParseIP(h.IP).To4()
	return fmt.Sprintf("0a:5e:%02x:%02x:%02x:%02x", ip[0], ip[1], ip[2], ip[3])
}

// unplug removes the cable and the host's network namespace. The cable goes by name: a namespace that lost its last
// process is taken apart by the kernel later, and until then its cable would be in the way of a new one.
func (l *Lab) unplug(ctx context.Context, h *Host) error {
	if netnsExists(fabricName(l.Name)) {
		_ = ip(ctx, fabricName(l.Name), "link del "+portName(h)) // it may be gone already
	}
	if !netnsExists(netnsName(l.Name, h.Name)) {
		return nil
	}
	return ip(ctx, "", "netns del "+netnsName(l.Name, h.Name))
}

func netnsExists(name string) bool {
	_, err := os.Lstat(filepath.Join("/run/netns", name))
	return err == nil
}

// Cut pulls the host's cable at the fabric; the host goes on running and sees no peer.
func (l *Lab) Cut(ctx context.Context, host string) error { return l.cable(ctx, host, true) }

// Heal puts the cable back.
func (l *Lab) Heal(ctx context.Context, host string) error { return l.cable(ctx, host, false) }

func (l *Lab) cable(ctx context.Context, host string, cut bool) error {
	h, err := l.Host(host)
	if err != nil {
		return err
	}
	if h.PID == 0 {
		return fmt.Errorf("host %s is off: `skep-lab start %s` first", host, host)
	}
	state := "up"
	if cut {
		state = "down"
	}
	if err := ip(ctx, fabricName(l.Name), "link set "+portName(h)+" "+state); err != nil {
		return fmt.Errorf("set the cable of %s %s: %w", host, state, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	h.Cut = cut
	return l.save()
}
