package join

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"syscall"

	"skep.dev/libs/fault"
	"skep.dev/libs/pki"
)

// probe finds out what is at addr, with a handshake of its own: a client library tells a person too little.
func probe(ctx context.Context, addr, digest string) error {
	d := net.Dialer{Timeout: dialWithin}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return unreachable(addr, err)
	}
	defer conn.Close()
	tctx, cancel := context.WithTimeout(ctx, dialWithin)
	defer cancel()
	tc := tls.Client(conn, pki.JoinTLS(digest))
	err = tc.HandshakeContext(tctx)
	if err == nil {
		_ = tc.Close() // best effort; the server sees the end of the connection either way
		return nil
	}
	var record tls.RecordHeaderError
	var alert tls.AlertError
	switch {
	case errors.Is(err, pki.ErrWrongCluster):
		return fault.Denied("join %s: the manager there belongs to another cluster than the join token; use the address of a manager of the token's cluster, or get a token from this one: skep join-token worker", addr)
	case errors.Is(err, pki.ErrNotManager), errors.As(err, &record), errors.As(err, &alert):
		return fault.Invalid("join %s: what listens there is not a skep manager; give the address a manager advertises (skep info on a manager shows it)", addr)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		return fault.Invalid("join %s: what listens there hung up, it is probably not a skep manager; give the address a manager advertises (skep info on a manager shows it)", addr)
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return fault.Unavailable("join %s: what listens there does not answer as a skep manager within %s; is it one?", addr, dialWithin)
	}
	return fault.Denied("join %s: %v", addr, err)
}

func unreachable(addr string, err error) error {
	var dns *net.DNSError
	var op *net.OpError
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, syscall.ECONNREFUSED):
		return fault.Unavailable("join %s: connection refused: nothing listens there; is it a manager's address, and does skep run on it?", addr)
	case errors.As(err, &dns):
		return fault.Invalid("join %s: no such host: %s", addr, dns.Name)
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return fault.Unavailable("join %s: this machine has no route to it; check the address and the network", addr)
	case errors.As(err, &op) && op.Timeout(), errors.Is(err, context.DeadlineExceeded):
		return fault.Unavailable("join %s: no answer within %s; check the address, and that no firewall keeps TCP port 2377 from this machine", addr, dialWithin)
	}
	return fault.Unavailable("join %s: %v", addr, err)
}
