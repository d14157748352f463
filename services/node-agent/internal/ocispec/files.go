package ocispec

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	skepv1 "skep.dev/proto/skep/v1"
)

// HostsFile is the container's /etc/hosts.
func HostsFile(hostname string, addrs []netip.Prefix, extra []string) string {
	var b strings.Builder
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nff00::0\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	for _, e := range extra {
		f := strings.Fields(e)
		if len(f) > 1 {
			fmt.Fprintf(&b, "%s\t%s\n", f[0], strings.Join(f[1:], " "))
		}
	}
	for _, a := range addrs {
		fmt.Fprintf(&b, "%s\t%s\n", a.Addr(), hostname)
	}
	return b.String()
}

// ResolvConf is the container's /etc/resolv.conf: the mesh's resolver, or the host's own servers, with what
// the spec overrides. hostConf is the node's file.
func ResolvConf(dns []netip.Addr, d *skepv1.DNSConfig, hostConf []byte) string {
	var servers, search, options []string
	for _, line := range strings.Split(string(hostConf), "\n") {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			// A resolver on the host's loopback is not there inside a container.
			if a, err := netip.ParseAddr(f[1]); err == nil && !a.IsLoopback() {
				servers = append(servers, f[1])
			}
		case "search", "domain":
			search = f[1:]
		case "options":
			options = f[1:]
		}
	}
	switch {
	case len(dns) > 0:
		servers = nil
		for _, a := range dns {
			servers = append(servers, a.String())
		}
		options = nil
	case len(d.GetNameservers()) > 0:
		servers = d.Nameservers
	}
	if len(d.GetSearch()) > 0 {
		search = d.Search
		if len(search) == 1 && search[0] == "." {
			search = nil
		}
	}
	if len(d.GetOptions()) > 0 {
		options = d.Options // instead of the host's, as with Docker
	}
	// A short name is a service's first, and only then one of the search domains: other options do not change that.
	if len(dns) > 0 && !slices.ContainsFunc(options, func(o string) bool { return o == "ndots" || strings.HasPrefix(o, "ndots:") }) {
		options = append([]string{"ndots:0"}, options...)
	}
	var b strings.Builder
	for _, s := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(search, " "))
	}
	if len(options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(options, " "))
	}
	return b.String()
}

// HostResolvConf is the node's own file, empty when it has none.
func HostResolvConf() []byte {
	b, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return nil
	}
	return b
}
