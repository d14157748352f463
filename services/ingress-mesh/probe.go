package mesh

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"syscall"
	"time"
)

const (
	// probeFor bounds one look whether a peer answers over the data path.
	probeFor = time.Second
	// pingAfter is how long the first kind of packet is waited for alone.
	pingAfter = 300 * time.Millisecond
	// probePort is where nobody listens: a node that is reached answers so at once.
	probePort = 9
)

// probe asks a peer's gateway address over the data path. An answer of any kind, "nobody listens" included, came
// through the fabric and back. A firewall there may drop one kind of packet to the host although tasks are reached, so
// a connection that is not answered at once is followed by a ping.
func (s *Service) probe(ctx context.Context, gateway netip.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, probeFor)
	defer cancel()
	first, second := make(chan error, 1), make(chan error, 1)
	go func() { first <- knock(ctx, s.gateway, gateway) }()
	var err error
	open := first
	select {
	case err = <-first:
		if err == nil {
			return nil
		}
		open = nil
	case <-time.After(pingAfter):
	}
	go func() { second <- ping(ctx, s.gateway, gateway) }()
	select {
	case err = <-open: // never, if it has failed already
		if err == nil {
			return nil
		}
		return errors.Join(err, <-second)
	case perr := <-second:
		if perr == nil {
			return nil
		}
		if open != nil {
			if err = <-open; err == nil {
				return nil
			}
		}
		return errors.Join(err, perr)
	}
}

// knock connects to a port nobody listens on. It comes from an address the other side has a route back to.
func knock(ctx context.Context, from, to netip.Addr) error {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: from.AsSlice()}}
	c, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(to, probePort).String())
	switch {
	case err == nil:
		return c.Close()
	case refused(err):
		return nil
	}
	return err
}

// refused: somebody answered, if only to say that nobody listens.
func refused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

// ping sends one ICMP echo request and waits for its answer.
func ping(ctx context.Context, from, to netip.Addr) error {
	c, err := net.DialIP("ip4:icmp", &net.IPAddr{IP: from.AsSlice()}, &net.IPAddr{IP: to.AsSlice()})
	if err != nil {
		return fmt.Errorf("ping %s: %w", to, err)
	}
	defer c.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(deadline) // of a socket that is open
	}
	mark := rand.Uint32()
	if _, err := c.Write(echo(mark)); err != nil {
		return fmt.Errorf("ping %s: %w", to, err)
	}
	b := make([]byte, 512)
	for {
		n, _, err := c.ReadFromIP(b) // Read would give the IP header too
		if err != nil {
			return fmt.Errorf("ping %s: %w", to, err)
		}
		if n >= 8 && b[0] == 0 && binary.BigEndian.Uint32(b[4:]) == mark {
			return nil
		}
	}
}

// echo is an ICMP echo request whose identifier and number are mark.
func echo(mark uint32) []byte {
	b := []byte{8, 0, 0, 0, 0, 0, 0, 0}
	binary.BigEndian.PutUint32(b[4:], mark)
	sum := uint32(0)
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(b[2:], ^uint16(sum))
	return b
}
