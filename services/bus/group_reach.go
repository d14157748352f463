package bus

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"skep.dev/libs/pki"
)

// reachFor bounds one attempt to reach an address.
const reachFor = 4 * time.Second

type tlsConfig = tls.Config

// handshake is the server's end of reach.
func handshake(c net.Conn, tc *tls.Config) {
	ctx, cancel := context.WithTimeout(context.Background(), reachFor)
	defer cancel()
	_ = tls.Server(c, tc).HandshakeContext(ctx) // the dialler judges
}

// reach dials an address as another manager would and looks who answers: it must be that node, as a manager of this cluster.
func reach(ctx context.Context, creds *pki.Store, addr, node string) error {
	ctx, cancel := context.WithTimeout(ctx, reachFor)
	defer cancel()
	d := tls.Dialer{NetDialer: &net.Dialer{}, Config: pki.PeerTLS(creds)}
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("no answer within %s", reachFor)
		}
		var op *net.OpError
		if errors.As(err, &op) && op.Op == "dial" {
			return op.Err
		}
		return err
	}
	defer c.Close()
	peer := c.(*tls.Conn).ConnectionState().PeerCertificates
	ident, err := pki.FromCertificate(peer[0])
	if err != nil {
		return err
	}
	if node != "" && ident.NodeID != node {
		return fmt.Errorf("node %s answers there", ident.NodeID)
	}
	return nil
}
