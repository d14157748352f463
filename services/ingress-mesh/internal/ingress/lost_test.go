package ingress

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
		who, _, err := say(c)
		if errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EPIPE) {
			return nil
		}
		if err == nil {
			return fmt.Errorf("%s answers", who)
		}
		last = err
	}
	return fmt.Errorf("silence: %w", last)
}

// A node loses power: connections by the published ports of others to its tasks end at the client's next packet, with or
// without other tasks. Those to other tasks go on, and nothing that was open wakes when the node is back.
func TestConnectionsToALostNodeEnd(t *testing.T) {
	r := newRig(t)
	entry, dead, alive := r.nodes[0], r.nodes[1].tasks[0], r.nodes[2].tasks[0]
	services := func(tasks ...task) (out []Service) {
		for port, with := range map[uint16][]task{8080: append([]task{dead}, tasks...), 8081: {dead}, 8082: {alive}} {
			var b []Backend
			for _, k := range with {
				if k.name != "" {
					b = append(b, k.backend(80))
				}
			}
			out = append(out, both(port, fmt.Sprint(port), b...)...)
		}
		return out
	}
	r.apply(services()...)
	ways := map[string]struct {
		from space
		at   func(uint16) string
	}{
		"from outside":    {r.clients[0], entry.at},
		"over IPv6":       {r.clients[0], entry.at6},
		"from the node":   {entry.space, func(p uint16) string { return fmt.Sprintf("127.0.0.1:%d", p) }},
		"from its task":   {entry.tasks[0].space, entry.at},
		"from its task 6": {entry.tasks[0].space, entry.at6},
	}
	dial := func(from space, network, to string) net.Conn {
		t.Helper()
		c, err := from.dial(network, "", to)
		if err != nil {
			t.Fatalf("%s %s: %v", network, to, err)
		}
		t.Cleanup(func() { _ = c.Close() })
		if _, _, err := say(c); err != nil {
			t.Fatalf("%s %s: %v", network, to, err)
		}
		return c
	}
	ends, late, moves, goesOn := map[string]net.Conn{}, map[string]net.Conn{}, map[string]net.Conn{}, map[string]net.Conn{}
	for way, w := range ways {
		ends["tcp "+way] = dial(w.from, "tcp", w.at(8080))
		late["tcp "+way] = dial(w.from, "tcp", w.at(8080))
		moves["udp "+way] = dial(w.from, "udp", w.at(8080))
		for _, network := range []string{"tcp", "udp"} {
			ends[network+" without others "+way] = dial(w.from, network, w.at(8081))
			goesOn[network+" "+way] = dial(w.from, network, w.at(8082))
		}
	}
	r.fab.do("ip link set p-n1 down")
	entry.apply(State{Peers: r.peers(entry), Services: append(append(both(8080, "8080", alive.backend(80)), both(8081, "8081")...), both(8082, "8082", alive.backend(80))...),
		Lost: []netip.Addr{dead.addr, dead.addr6()}})
	entry.wantRight()
	for what, c := range ends {
		if err := told(c); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, m := range []map[string]net.Conn{moves, goesOn} {
		for what, c := range m {
			if who, _, err := say(c); err != nil || who != alive.name {
				t.Errorf("%s: %q %v", what, who, err)
			}
		}
	}
	r.fab.do("ip link set p-n1 up")
	entry.apply(State{Peers: r.peers(entry), Services: append(append(both(8080, "8080", alive.backend(80)), both(8081, "8081")...), both(8082, "8082", alive.backend(80))...)})
	for what, c := range late {
		if err := told(c); err != nil {
			t.Errorf("%s, asked when the node is back: %v", what, err)
		}
	}
}
