package ingress

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"net/netip"
	"testing"
	"time"
)

// endpoint is one end of an SCTP association as far as its beginning: many kernels have no SCTP sockets, so the packets
// are made here. Ports of these tests are 100 and above.
type endpoint struct {
	t *testing.T
	c *net.IPConn
}

// sctp opens an end in a namespace; while it is open the kernel there does not answer SCTP itself.
func (s space) sctp(t *testing.T) endpoint {
	t.Helper()
	var c *net.IPConn
	if err := s.run(func() (err error) { c, err = net.ListenIP("ip4:132", &net.IPAddr{}); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return endpoint{t, c}
}

const chunkInit, chunkInitAck = 1, 2

// send sends INIT or INIT ACK with a tag of the sender's.
func (e endpoint) send(from uint16, to netip.AddrPort, chunk byte, tag, peerTag uint32) {
	e.t.Helper()
	b := make([]byte, 32)
	binary.BigEndian.PutUint16(b, from)
	binary.BigEndian.PutUint16(b[2:], to.Port())
	binary.BigEndian.PutUint32(b[4:], peerTag)
	b[12] = chunk
	binary.BigEndian.PutUint16(b[14:], 20)
	binary.BigEndian.PutUint32(b[16:], tag)
	binary.BigEndian.PutUint32(b[20:], 65536) // window
	binary.BigEndian.PutUint16(b[24:], 1)     // streams
	binary.BigEndian.PutUint16(b[26:], 1)
	binary.LittleEndian.PutUint32(b[8:], checksum(b))
	if _, err := e.c.WriteToIP(b, &net.IPAddr{IP: to.Addr().AsSlice()}); err != nil {
		e.t.Fatal(err)
	}
}

// checksum is the one of SCTP, over the packet with none.
func checksum(b []byte) uint32 {
	c := append([]byte(nil), b...)
	clear(c[8:12])
	return crc32.Checksum(c, crc32.MakeTable(crc32.Castagnoli))
}

// receive waits for a chunk of that kind to that port, and gives who sent it and the tag.
func (e endpoint) receive(port uint16, chunk byte) (from netip.AddrPort, tag uint32, err error) {
	if err := e.c.SetReadDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return from, 0, err
	}
	for b := make([]byte, 2048); ; {
		n, addr, err := e.c.ReadFromIP(b)
		if err != nil {
			return from, 0, err
		}
		if n < 20 || b[12] != chunk || binary.BigEndian.Uint16(b[2:]) != port {
			continue
		}
		if sum := binary.LittleEndian.Uint32(b[8:]); sum != checksum(b[:n]) {
			return from, 0, errors.New("the checksum is wrong")
		}
		a, _ := netip.AddrFromSlice(addr.IP)
		return netip.AddrPortFrom(a.Unmap(), binary.BigEndian.Uint16(b)), binary.BigEndian.Uint32(b[16:]), nil
	}
}

// TestSCTP: an association by a published port begins with a task of another node, which sees the client's address, and
// the answer comes from the port that was asked.
func TestSCTP(t *testing.T) {
	r := newRig(t)
	entry, far := r.nodes[0], r.nodes[1]
	r.apply(Service{"sctp", 5060, "sip", []Backend{far.tasks[0].backend(8080)}})
	for _, n := range r.nodes {
		n.wantRight()
	}
	client, server := r.clients[0].sctp(t), far.tasks[0].sctp(t)
	for i, n := range []*node{entry, far} {
		t.Run(fmt.Sprintf("by node %d", i), func(t *testing.T) {
			port, at := uint16(40000+i), netip.AddrPortFrom(n.addr, 5060)
			client.send(port, at, chunkInit, 0x1111, 0)
			from, tag, err := server.receive(8080, chunkInit)
			if err != nil {
				t.Fatalf("the task hears nothing: %v", err)
			}
			if want := netip.AddrPortFrom(netip.MustParseAddr("198.51.100.7"), port); from != want {
				t.Errorf("the task sees %s, want %s", from, want)
			}
			server.send(8080, from, chunkInitAck, 0x2222, tag)
			from, tag, err = client.receive(port, chunkInitAck)
			if err != nil || from != at || tag != 0x2222 {
				t.Errorf("answered by %s, tag %#x: %v", from, tag, err)
			}
		})
	}
}
