package mesh

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestProbe(t *testing.T) {
	run(t, strings.Fields("ip link set lo up")...)
	run(t, strings.Fields("nft add table inet probed")...)
	t.Cleanup(func() {
		run(t, strings.Fields("nft delete table inet probed")...)
		run(t, strings.Fields("ip link set lo down")...)
	})
	run(t, strings.Fields("nft add chain inet probed in { type filter hook input priority 0; }")...)
	local := netip.MustParseAddr("127.0.0.1")
	s := &Service{gateway: local}
	look := func(what string, answers bool, atLeast, atMost time.Duration) {
		t.Helper()
		began := time.Now()
		err := s.probe(t.Context(), local)
		if d := time.Since(began); (err == nil) != answers || d < atLeast || d > atMost {
			t.Errorf("%s: %v after %s", what, err, d)
		}
	}
	look("nobody listens, which is an answer", true, 0, pingAfter)
	run(t, strings.Fields("nft add rule inet probed in tcp dport 9 drop")...)
	look("a firewall that drops the port", true, pingAfter, probeFor)
	run(t, strings.Fields("nft add rule inet probed in icmp type echo-request drop")...)
	look("no answer at all", false, probeFor-50*time.Millisecond, 5*probeFor)
	run(t, strings.Fields("nft flush chain inet probed in")...)
	run(t, strings.Fields("nft add rule inet probed in icmp type echo-request drop")...)
	look("a firewall that drops pings", true, 0, pingAfter)
	run(t, strings.Fields("ip link set lo down")...)
	look("no way there", false, 0, 5*probeFor)
	run(t, strings.Fields("ip link set lo up")...)
}

// The checksum makes the sum over the message all ones.
func TestEcho(t *testing.T) {
	for _, mark := range []uint32{0, 1, 0x12345678, 0xffffffff} {
		sum, b := uint32(0), echo(mark)
		for i := 0; i < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
		for sum>>16 != 0 {
			sum = sum&0xffff + sum>>16
		}
		if sum != 0xffff {
			t.Errorf("checksum of %x: %x", mark, sum)
		}
	}
}
