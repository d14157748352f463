package vip

import (
	"net"
	"net/netip"
	"testing"

	"skep.dev/services/ingress-mesh/internal/nsfs/nstest"
)

// A segment far out of the window, as a late duplicate is, does not end a connection to a virtual address.
func TestStraySegmentResetsNothing(t *testing.T) {
	hs := newHosts(t, 2)
	a, b := hs[0], hs[1]
	a.apply(service(0, b))
	for network, x := range map[string]struct{ vip, from netip.Addr }{"tcp4": {v4(200), v4(2)}, "tcp6": {v6(200), v6(2)}} {
		t.Run(network, func(t *testing.T) {
			c, err := a.dial(network, x.vip)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close() //nolint:errcheck // its end is not what is tested
			if _, _, err := ask(c); err != nil {
				t.Fatal(err)
			}
			sent := nstest.SentUpTo(t, c.(*net.TCPConn))
			mine := c.LocalAddr().(*net.TCPAddr).AddrPort()
			b.in(func() error {
				return nstest.Stray(netip.AddrPortFrom(x.from, port), netip.AddrPortFrom(mine.Addr().Unmap(), mine.Port()), sent)
			})
			if task, _, err := ask(c); err != nil || task == "" {
				t.Errorf("after a stray segment: %q, %v", task, err)
			}
		})
	}
}
