package node

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"skep.dev/libs/ownaddr"
	"skep.dev/services/skep/cli/plain"
)

// DefaultPort is where managers listen, Swarm's own.
const DefaultPort = 2377

// resolveAdvertise turns --advertise-addr (<ip|interface>[:port], or "" = find one) into host:port.
// Errors are Swarm's.
func resolveAdvertise(flag string, defaultPort int) (string, error) {
	host, port, err := splitAddr(flag, defaultPort)
	if err != nil {
		return "", fmt.Errorf("advertise address %q: %w", flag, err)
	}
	if host == "" {
		ip, err := systemAddr()
		if err != nil {
			return "", err
		}
		return net.JoinHostPort(ip.String(), port), nil
	}
	ip, err := ipOrInterface(host)
	if err != nil {
		return "", fmt.Errorf("advertise address %q: %w", flag, err)
	}
	if ip.IsUnspecified() {
		return "", errors.New("advertise address must be a non-zero IP address or network interface (with optional port number)")
	}
	return net.JoinHostPort(ip.String(), port), nil
}

// resolveListen turns --listen-addr into host:port.
func resolveListen(flag string) (string, error) {
	host, port, err := splitAddr(flag, DefaultPort)
	if err != nil {
		return "", fmt.Errorf("listen address %q: %w", flag, err)
	}
	if host == "" {
		host = "0.0.0.0"
	}
	ip, err := ipOrInterface(host)
	if err != nil {
		return "", fmt.Errorf("listen address %q: %w", flag, err)
	}
	return net.JoinHostPort(ip.String(), port), nil
}

// resolveDataPath turns --data-path-addr (<ip|interface>) into an IP, "" stays "".
func resolveDataPath(flag string) (string, error) {
	if flag == "" {
		return "", nil
	}
	ip, err := ipOrInterface(flag)
	if err != nil {
		return "", fmt.Errorf("data path address %q: %w", flag, err)
	}
	return ip.String(), nil
}

func splitAddr(s string, defaultPort int) (host, port string, err error) {
	port = strconv.Itoa(defaultPort)
	if s == "" {
		return "", port, nil
	}
	if _, perr := netip.ParseAddr(s); perr == nil { // a bare IPv6 address has colons too
		return s, port, nil
	}
	if len(s) > 2 && strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") { // in brackets, without a port
		return s[1 : len(s)-1], port, nil
	}
	if !strings.Contains(s, ":") {
		return s, port, nil
	}
	host, p, err := net.SplitHostPort(s)
	if err != nil {
		return "", "", errors.New("want <ip|interface>[:port]")
	}
	if n, err := strconv.Atoi(p); err != nil || n < 1 || n > 65535 {
		return "", "", fmt.Errorf("port %q is not between 1 and 65535", p)
	}
	return host, p, nil
}

func ipOrInterface(s string) (netip.Addr, error) {
	if ip, err := netip.ParseAddr(s); err == nil {
		return ip, nil
	}
	ifc, err := net.InterfaceByName(s)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("neither an IP address nor an interface of this machine: %s", s)
	}
	addrs, err := ifc.Addrs()
	if err != nil {
		return netip.Addr{}, fmt.Errorf("read the addresses of %s: %w", s, err)
	}
	for _, family := range families {
		var found []netip.Addr
		for _, a := range addrs {
			if ip, ok := ownaddr.Of(a); ok && family.takes(ip) {
				found = append(found, ip)
			}
		}
		switch len(found) {
		case 0:
		case 1:
			return found[0], nil
		default:
			return netip.Addr{}, fmt.Errorf("interface %s has more than one %s address (%s and %s): name one of them", s, family.name, found[0], found[1])
		}
	}
	return netip.Addr{}, fmt.Errorf("interface %s has no usable address", s)
}

// warnForeign says that the address named with --advertise-addr is not this machine's. Behind a NAT that is right; a
// slip of the finger is found here, not by the nodes that never reach this one.
func (m *membership) warnForeign(cmd *cobra.Command, rec *Record) {
	if m.advertise == "" {
		return
	}
	if text := foreign(rec.Host()); text != "" {
		plain.Fprintf(cmd.ErrOrStderr(), "Warning: %s\n", text)
	}
}

// foreign is what is to be said of an advertised host that no interface of this machine has, "" of one that it has.
func foreign(host string) string {
	ip, err := netip.ParseAddr(host)
	if err != nil || isHere(ip) {
		return ""
	}
	has := "this machine has none that others could reach"
	if own := reachable(); len(own) > 0 {
		has = "this machine has " + strings.Join(own, ", ")
	}
	return fmt.Sprintf("the advertised address %s is no address of this machine: the other nodes reach this one only if something forwards it here, such as a NAT; %s", host, has)
}

// reachable are the addresses of this machine that mean something on another one.
func reachable() []string {
	all, _ := ownaddr.All() // what is unknown is left out
	var out []string
	for _, a := range all {
		if !a.IsLoopback() && !a.IsLinkLocalUnicast() {
			out = append(out, a.String())
		}
	}
	return out
}

// families are looked through in order: a machine without IPv4 addresses is reached over IPv6. Link-local addresses of IPv6 mean
// nothing on another machine.
var families = []struct {
	name  string
	takes func(netip.Addr) bool
}{
	{"IPv4", netip.Addr.Is4},
	{"IPv6", func(a netip.Addr) bool { return a.Is6() && a.IsGlobalUnicast() }},
}

// systemAddr is the machine's only address, if it has exactly one.
func systemAddr() (netip.Addr, error) {
	ifs, err := net.Interfaces()
	if err != nil {
		return netip.Addr{}, fmt.Errorf("list the network interfaces: %w", err)
	}
	for _, family := range families {
		ip, err := onlyAddr(ifs, family.takes)
		if ip.IsValid() || err != nil {
			return ip, err
		}
	}
	return netip.Addr{}, errors.New("could not find the system's IP address - specify one with --advertise-addr")
}

// onlyAddr is the one address of that kind that the machine has, none when it has none.
func onlyAddr(ifs []net.Interface, takes func(netip.Addr) bool) (netip.Addr, error) {
	var ip netip.Addr
	var on string
	for _, i := range ifs {
		if i.Flags&net.FlagLoopback != 0 || i.Flags&net.FlagUp == 0 || strings.HasPrefix(i.Name, "docker") ||
			strings.HasPrefix(i.Name, "veth") || strings.HasPrefix(i.Name, "br-") || strings.HasPrefix(i.Name, "sk") {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			continue
		}
		for _, a := range addrs {
			got, ok := ownaddr.Of(a)
			if !ok || !takes(got) || got.IsLinkLocalUnicast() {
				continue
			}
			if ip.IsValid() {
				where := fmt.Sprintf("on different interfaces (%s on %s and %s on %s)", ip, on, got, i.Name)
				if on == i.Name {
					where = fmt.Sprintf("on interface %s (%s and %s)", on, ip, got)
				}
				return netip.Addr{}, fmt.Errorf("could not choose an IP address to advertise since this system has multiple addresses %s - specify one with --advertise-addr", where)
			}
			ip, on = got, i.Name
		}
	}
	return ip, nil
}
