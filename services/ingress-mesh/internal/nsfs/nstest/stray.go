package nstest

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// SentUpTo is the sequence number of the next byte that the connection will send, ReceivedUpTo of the next it expects.
func SentUpTo(t testing.TB, c *net.TCPConn) uint32     { t.Helper(); return sequence(t, c, 2) }
func ReceivedUpTo(t testing.TB, c *net.TCPConn) uint32 { t.Helper(); return sequence(t, c, 1) }

func sequence(t testing.TB, c *net.TCPConn, queue int) (seq uint32) {
	t.Helper()
	raw, err := c.SyscallConn()
	Must(t, err)
	var failed error
	err = raw.Control(func(fd uintptr) {
		const off = -1
		s := int(fd)
		failed = errors.Join(unix.SetsockoptInt(s, unix.IPPROTO_TCP, unix.TCP_REPAIR, 1), unix.SetsockoptInt(s, unix.IPPROTO_TCP, unix.TCP_REPAIR_QUEUE, queue))
		n, err := unix.GetsockoptInt(s, unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ)
		seq = uint32(n)
		failed = errors.Join(failed, err, unix.SetsockoptInt(s, unix.IPPROTO_TCP, unix.TCP_REPAIR, off))
	})
	Must(t, errors.Join(err, failed))
	return seq
}

// Stray sends data far out of the window, as a late duplicate is, with what was acknowledged last: a reset that answers it
// would count. It is for the namespace from is in.
func Stray(from, to netip.AddrPort, ack uint32) error {
	family := unix.AF_INET
	if to.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // nothing is left to be sent
	sa := func(a netip.Addr) unix.Sockaddr {
		if a.Is6() {
			return &unix.SockaddrInet6{Addr: a.As16()}
		}
		return &unix.SockaddrInet4{Addr: a.As4()}
	}
	if err := unix.Bind(fd, sa(from.Addr())); err != nil {
		return err
	}
	p := make([]byte, 24)
	binary.BigEndian.PutUint16(p, from.Port())
	binary.BigEndian.PutUint16(p[2:], to.Port())
	binary.BigEndian.PutUint32(p[4:], 0x12345678)
	binary.BigEndian.PutUint32(p[8:], ack)
	p[12], p[13] = 5<<4, 0x18
	binary.BigEndian.PutUint16(p[14:], 1000)
	binary.BigEndian.PutUint16(p[16:], checksum(from.Addr(), to.Addr(), p))
	return unix.Sendto(fd, p, 0, sa(to.Addr()))
}

func checksum(from, to netip.Addr, segment []byte) uint16 {
	pseudo := append(from.AsSlice(), to.AsSlice()...)
	pseudo = append(pseudo, 0, unix.IPPROTO_TCP, 0, byte(len(segment)))
	sum := uint32(0)
	for _, b := range [][]byte{pseudo, segment} {
		for i := 0; i+1 < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
