package conn

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/nats-io/nats.go"

	"skep.dev/libs/api"
	"skep.dev/libs/atomicfile"
	"skep.dev/libs/pki"
	skepv1 "skep.dev/proto/skep/v1"
)

// exchangeFor bounds the exchange of a certificate, beside the command that is waited for.
const exchangeFor = 5 * time.Second

// exchange replaces the certificate of a context when the cluster's root is being rotated: the manager's certificate is then
// of another root than the user's. The certificate in use goes on being good until the rotation ends.
func (s Store) exchange(ctx context.Context, nc *nats.Conn, c Context, id *pki.Store) error {
	st, err := nc.TLSConnectionState()
	if err != nil || len(st.PeerCertificates) == 0 {
		return nil
	}
	if st.PeerCertificates[0].CheckSignatureFrom(id.CA()) == nil {
		return s.trim(ctx, nc, c, id) // it is of the same root
	}
	ctx, cancel := context.WithTimeout(ctx, exchangeFor)
	defer cancel()
	key, csr, err := pki.NewKeyAndCSR()
	if err != nil {
		return err
	}
	req := &skepv1.ExchangeUserRequest{CsrDer: csr}
	if req.Signature, req.CertDer, err = pki.SignStatement(id, pki.PurposeExchange, csr); err != nil {
		return err
	}
	r, err := api.Call(ctx, nc, api.UserExchange, req)
	if err != nil {
		return err
	}
	c.Cert, c.Key, c.CA = string(r.CertPem), string(key), string(r.CaPem)
	next, err := c.identity()
	if err != nil {
		return err
	}
	// The new root counts only if the old one vouches for it, as the manager shows.
	if !pki.Follows(id.Roots(), st.PeerCertificates[1:], next.Roots()) {
		return fmt.Errorf("it comes with a root that the old one does not vouch for")
	}
	return s.change(c.Name, func(now *Context) bool {
		now.Cert, now.Key, now.CA = c.Cert, c.Key, c.CA
		return true
	})
}

// trim takes the old root out of a context that was exchanged, once its rotation has ended: until then managers may still
// show certificates of it.
func (s Store) trim(ctx context.Context, nc *nats.Conn, c Context, id *pki.Store) error {
	if len(id.Roots()) < 2 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, exchangeFor)
	defer cancel()
	r, err := api.Call(ctx, nc, api.CAInspect, &skepv1.Empty{})
	if err != nil || r.Rotation != nil || r.Root.GetDigest() != pki.Digest(id.CA()) {
		return err
	}
	return s.change(c.Name, func(now *Context) bool {
		if now.Cert != c.Cert {
			return false // exchanged meanwhile
		}
		now.CA = string(pki.EncodeCertificates(id.CA()))
		return true
	})
}

// replace writes a context over the one of its name: the old one is there, or the new one. One that was removed meanwhile
// stays away.
func (s Store) replace(c Context) error {
	b, err := c.Encode()
	if err != nil {
		return err
	}
	if _, err := os.Stat(s.path(c.Name)); err != nil {
		return fmt.Errorf("write context %s: %w", c.Name, err)
	}
	if err := atomicfile.WriteSync(s.path(c.Name), b); err != nil {
		return fmt.Errorf("write context %s: %w", c.Name, err)
	}
	return nil
}
