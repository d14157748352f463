package vip

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// told is whether a client was told that nobody is there: a reset, or what ICMP says, and no silence. The kernel tells the
// next call of a socket, so a datagram may take two.
func told(c net.Conn) error {
	var last error
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); {
		task, _, err := ask(c)
		if errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EPIPE) {
			return nil
		}
		if err == nil {
			return fmt.Errorf("task %s answers", task)
		}
		last = err
	}
	return fmt.Errorf("silence: %w", last)
}

// The node of a task loses power: clients with an open connection are told at their next packet, over TCP and UDP, IPv4
// and IPv6, whether they came by the virtual address or by the task's own. Who talks to other tasks notices nothing.
func TestConnectionsToALostTaskEnd(t *testing.T) {
	for _, others := range []int{1, 0} {
		t.Run(fmt.Sprintf("%d other tasks", others), func(t *testing.T) {
			hs := newHosts(t, 3)
			a, dead, alive := hs[0], hs[1], hs[2]
			a.apply(service(0, dead), service(1, alive))
			dial := func(network string, to netip.Addr) net.Conn {
				t.Helper()
				c, err := a.dial(network, to)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = c.Close() })
				if _, _, err := ask(c); err != nil {
					t.Fatalf("%s to %s: %v", network, to, err)
				}
				return c
			}
			ends, late, goesOn := map[string]net.Conn{}, map[string]net.Conn{}, map[string]net.Conn{}
			for network, own := range map[string]netip.Addr{"tcp4": v4(0), "udp4": v4(0), "tcp6": v6(0), "udp6": v6(0)} {
				at := func(i int) netip.Addr {
					if own.Is4() {
						return v4(i)
					}
					return v6(i)
				}
				ends[network+" by its own address"] = dial(network, at(2))
				if network[:3] == "tcp" || others == 0 { // a datagram to a virtual address goes to a task that is there
					ends[network+" by the virtual address"] = dial(network, at(200))
				}
				late[network] = dial(network, at(200))
				goesOn[network] = dial(network, at(201))
			}
			dead.sh("ip link set eth1 down")
			want := service(0)
			if others > 0 {
				want = service(0, alive)
			}
			lost := []netip.Addr{dead.ip, dead.ip6}
			a.apply(want, service(1, alive), Service{Lost: lost})
			if err := Clear(a.path, lost, lost); err != nil {
				t.Fatal(err)
			}
			for what, c := range ends {
				if err := told(c); err != nil {
					t.Errorf("%s: %v", what, err)
				}
			}
			for what, c := range goesOn {
				if task, _, err := ask(c); err != nil || task != alive.ip.String() {
					t.Errorf("%s to another task: %q %v", what, task, err)
				}
			}
			// The node comes back, with its old task still: nothing of what was open wakes there.
			dead.sh(fmt.Sprintf("ip link set eth1 up; ip addr replace %s/64 dev eth1 nodad", dead.ip6))
			a.apply(want, service(1, alive))
			for network, c := range late {
				if network[:3] == "udp" && others > 0 {
					if task, _, err := ask(c); err != nil || task != alive.ip.String() {
						t.Errorf("%s, asked late: %q %v", network, task, err)
					}
				} else if err := told(c); err != nil {
					t.Errorf("%s, asked late: %v", network, err)
				}
			}
			if task, _, err := a.get("tcp4", dead.ip); err != nil || task != dead.ip.String() {
				t.Errorf("new connections to what is back: %q %v", task, err)
			}
		})
	}
}

// A task that leaves, and is not lost, finishes its connections.
func TestATaskThatLeavesKeepsItsConnections(t *testing.T) {
	hs := newHosts(t, 3)
	a, old, next := hs[0], hs[1], hs[2]
	a.apply(service(0, old))
	c, err := a.dial("tcp4", v4(200))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // its end is not what is tested
	if _, _, err := ask(c); err != nil {
		t.Fatal(err)
	}
	a.apply(service(0, next))
	if err := Clear(a.path, []netip.Addr{old.ip, old.ip6}, nil); err != nil {
		t.Fatal(err)
	}
	if task, _, err := ask(c); err != nil || task != old.ip.String() {
		t.Errorf("it hears %q, %v", task, err)
	}
}
