package dns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"

	"github.com/miekg/dns"
	"go.uber.org/zap"
)

// maxDatagram is what is read of an answer over UDP; a longer one is asked for again over TCP.
const maxDatagram = 4096

var datagrams = sync.Pool{New: func() any { b := make([]byte, maxDatagram+1); return &b }}

var errTruncated = errors.New("the answer is longer than a datagram")

// forward asks name servers one after the other until one answers, and gives its answer as it is; nil if none did.
func (s *Server) forward(ctx context.Context, nameservers []netip.AddrPort, query []byte) []byte {
	if len(nameservers) == 0 && s.cfg.Upstreams != nil {
		nameservers = s.cfg.Upstreams()
	}
	for _, server := range nameservers[:min(len(nameservers), maxUpstreams)] {
		out, err := s.exchange(ctx, server, query)
		if err == nil {
			return out
		}
		s.cfg.Log.Debug("ask a name server", zap.Stringer("server", server), zap.Error(err))
	}
	return nil
}

// exchange asks one name server, over UDP and, if the answer does not fit, over TCP.
func (s *Server) exchange(ctx context.Context, server netip.AddrPort, query []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	// The task's number for the query may be one that is easy to guess, and its port is not seen by the server.
	number := rand.Uint32()
	query[0], query[1] = byte(number>>8), byte(number)
	short, err := overUDP(ctx, server, query)
	if errors.Is(err, errTruncated) {
		long, err := overTCP(ctx, server, query)
		switch {
		case err == nil:
			return long, accepted(long)
		case short == nil:
			return nil, err
		}
		return short, nil // cut, and it says so
	}
	if err != nil {
		return nil, err
	}
	return short, accepted(short)
}

// accepted says whether another server need not be asked. What a server does not understand it tells the client, which
// may ask in another way.
func accepted(answer []byte) error {
	if code := int(answer[3] & 0xf); code == dns.RcodeServerFailure || code == dns.RcodeRefused {
		return fmt.Errorf("it answered %s", dns.RcodeToString[code])
	}
	return nil
}

// overUDP gives the answer. One that is cut comes with errTruncated, if it could be read at all.
func overUDP(ctx context.Context, server netip.AddrPort, query []byte) ([]byte, error) {
	c, end, err := dial(ctx, "udp", server)
	if err != nil {
		return nil, err
	}
	defer end()
	if _, err := c.Write(query); err != nil {
		return nil, err
	}
	buf := datagrams.Get().(*[]byte)
	defer datagrams.Put(buf)
	for {
		n, err := c.Read(*buf)
		if err != nil {
			return nil, err
		}
		b := (*buf)[:n]
		switch {
		case !answers(b, query):
			continue // somebody guesses, or an answer that is late
		case n > maxDatagram:
			return nil, errTruncated
		case b[2]&0x02 != 0:
			return bytes.Clone(b), errTruncated
		}
		return bytes.Clone(b), nil
	}
}

func overTCP(ctx context.Context, server netip.AddrPort, query []byte) ([]byte, error) {
	c, end, err := dial(ctx, "tcp", server)
	if err != nil {
		return nil, err
	}
	defer end()
	if err := writeMessage(c, query); err != nil {
		return nil, err
	}
	b := make([]byte, dns.MaxMsgSize)
	n, err := readMessage(c, b)
	if err != nil {
		return nil, err
	}
	if !answers(b[:n], query) {
		return nil, errors.New("it answered another question")
	}
	return b[:n:n], nil
}

// dial connects to a name server. The connection is closed by end, or when ctx ends.
func dial(ctx context.Context, network string, server netip.AddrPort) (c net.Conn, end func(), err error) {
	if c, err = new(net.Dialer).DialContext(ctx, network, server.String()); err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	return c, func() { stop(); _ = c.Close() }, nil
}

// answers reports whether b is an answer to the query: the number, and the question unless the server says that it
// did not understand it.
func answers(b, query []byte) bool {
	if len(b) < 12 || b[0] != query[0] || b[1] != query[1] || b[2]&0x80 == 0 {
		return false
	}
	if b[4] == 0 && b[5] == 0 {
		return b[3]&0xf != dns.RcodeSuccess
	}
	q := question(query)
	return len(q) > 0 && len(b) >= 12+len(q) && b[5] == 1 && bytes.EqualFold(b[12:12+len(q)], q)
}

// question is the first question of a message as it is encoded, nil if it is not whole.
func question(msg []byte) []byte {
	i := 12
	for i < len(msg) && msg[i] != 0 {
		if msg[i] > 63 {
			return nil // compressed; there is nothing before it to refer to
		}
		i += 1 + int(msg[i])
	}
	if i += 5; i > len(msg) {
		return nil
	}
	return msg[12:i]
}
