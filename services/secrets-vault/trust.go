package vault

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/fault"
	"skep.dev/libs/kv"
	"skep.dev/libs/pki"
	"skep.dev/libs/rpc"
)

// maxExchanged bounds the certificates that a user gets by exchange in one rotation: each takes a record. An answer that was
// lost is asked for again, and a user may have several certificates.
const maxExchanged = 64

// trust tells a node which roots to trust, and whether its certificate is of one that goes.
func (s *Service) trust(_ context.Context, _ string, r *skepv1.TrustRequest) (*skepv1.TrustReply, error) {
	a := s.idx.authorities()
	return &skepv1.TrustReply{
		RootsPem: pki.EncodeCertificates(a.roots...), ChainPem: pki.EncodeCertificates(a.chain(s.cfg.Now())...),
		Renew: r.Issuer != pki.Digest(a.signs.Cert),
	}, nil
}

// exchangeUser gives a user a certificate of the current root for one of the root that goes: for the same role, until the
// same time. Who asks is proven by the old certificate's key, not by the inbox.
func (s *Service) exchangeUser(ctx context.Context, r *skepv1.ExchangeUserRequest) (*skepv1.IssueUserReply, error) {
	if len(r.CertDer) > maxCSR || len(r.CsrDer) > maxCSR {
		return nil, fault.Invalid("exchange a user's certificate: the request is too long")
	}
	old, err := x509.ParseCertificate(r.CertDer)
	if err != nil {
		return nil, fault.Invalid("exchange a user's certificate: %v", err)
	}
	a, now := s.idx.authorities(), s.cfg.Now()
	ident, err := a.user(old, now)
	if err == nil {
		err = pki.CheckStatement(old, pki.PurposeExchange, r.CsrDer, r.Signature)
	}
	if err != nil {
		return nil, fault.Denied("exchange a user's certificate: %v", err)
	}
	if old.CheckSignatureFrom(a.signs.Cert) == nil {
		return nil, fault.Invalid("exchange a user's certificate: it is of the root in use already")
	}
	// It may have been revoked a moment ago.
	if err := s.feed.Current(ctx); err != nil {
		return nil, err
	}
	serial, name := pki.Serial(old), strings.TrimPrefix(ident.NodeID, userPrefix)
	var was user
	for _, u := range s.idx.certificates(func(c *skepv1.UserCertificate) bool { return c.Serial == serial }) {
		was = u
	}
	if was.UserCertificate != nil && was.RevokedAt != nil {
		return nil, fault.Denied("exchange the certificate of user %s: it was revoked", name)
	}
	made := s.idx.certificates(func(c *skepv1.UserCertificate) bool {
		return c.Name == name && c.Issuer == pki.Digest(a.signs.Cert) && c.IssuedBy == ident.NodeID
	})
	if len(made) >= maxExchanged {
		return nil, fault.Exhausted("exchange the certificate of user %s: that was done %d times in this rotation; a manager makes another: skep context issue %s", name, len(made), name)
	}
	ctx = rpc.WithActor(ctx, rpc.Actor{Name: ident.NodeID, Address: rpc.AskerAddress(ctx)})
	c, cert, err := s.certifyUser(ctx, a, r.CsrDer, name, ident.UserRole, old.NotAfter.Sub(now))
	if err != nil {
		return nil, fmt.Errorf("exchange the certificate of user %s: %w", name, err)
	}
	if was.UserCertificate != nil {
		gone := proto.CloneOf(was.UserCertificate)
		gone.ExchangedFor = c.Serial
		rev, err := s.write(ctx, gone, was.revision)
		switch {
		case errors.Is(err, kv.ErrConflict): // revoked just now, or exchanged twice at once: the next exchange sees it
			return nil, fault.Unavailable("exchange the certificate of user %s: its record changed meanwhile; try again", name)
		case err != nil:
			return nil, fmt.Errorf("exchange the certificate of user %s: %w", name, err)
		}
		if err := s.feed.Wait(ctx, rev); err != nil {
			return nil, err
		}
	}
	s.tell(ctx, "exchange", c)
	s.log.Info("user's certificate exchanged", zap.String("user", name), zap.String("serial", c.Serial))
	return s.issuedTo(ctx, a, cert), nil
}

// user is whose certificate it is, if it is good now.
func (a *authorities) user(cert *x509.Certificate, now time.Time) (pki.Identity, error) {
	if err := pki.Verify(cert, a.roots, x509.ExtKeyUsageClientAuth, now); err != nil {
		return pki.Identity{}, err
	}
	id, err := pki.FromCertificate(cert)
	if err == nil && (id.Role != pki.User || id.ClusterID != a.current.ClusterID()) {
		err = errors.New("it is not of a user of this cluster")
	}
	return id, err
}
