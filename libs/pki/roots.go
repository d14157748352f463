package pki

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"
)

// A rotation replaces the root. The next root is signed by the one before it as well (CrossSign), and a manager shows
// that certificate in its chain: whoever knows the old root alone, from a token of yesterday or because it was away, still
// tells the cluster's managers from others.

// maxShown bounds the certificates of a chain that are looked at: one rotation adds two.
const maxShown = 16

// CrossSign certifies another root with this one's key: the same name and key, another signature.
func (ca *CA) CrossSign(next *x509.Certificate) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	end := next.NotAfter
	if ca.Cert.NotAfter.Before(end) {
		end = ca.Cert.NotAfter
	}
	t := &x509.Certificate{
		SerialNumber: serial, RawSubject: next.RawSubject, SubjectKeyId: next.SubjectKeyId, AuthorityKeyId: ca.Cert.SubjectKeyId,
		NotBefore: time.Now().Add(-Backdate), NotAfter: end,
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, ca.Cert, next.PublicKey, ca.key)
	if err != nil {
		return nil, fmt.Errorf("sign the next root with the old one: %w", err)
	}
	return x509.ParseCertificate(der)
}

// Vouched are the roots and, of the certificates shown, those a root vouches for as its successor, and their successors.
// The length of paths that a root allows is not looked at: a successor is as good as the root itself.
func Vouched(roots, shown []*x509.Certificate) []*x509.Certificate {
	out := slices.Clone(roots)
	shown = shown[:min(len(shown), maxShown)]
	for i := 0; i < len(out); i++ {
		for _, c := range shown {
			if c.IsCA && !slices.ContainsFunc(out, c.Equal) && c.CheckSignatureFrom(out[i]) == nil {
				out = append(out, c)
			}
		}
	}
	return out
}

// Follows reports whether every certificate of next is one of the roots, or has the name and key of a successor that is
// shown and that they vouch for.
func Follows(roots, shown, next []*x509.Certificate) bool {
	known := Vouched(roots, shown)
	return !slices.ContainsFunc(next, func(n *x509.Certificate) bool {
		return !slices.ContainsFunc(known, func(k *x509.Certificate) bool { return SameKey(k, n) })
	})
}

// SameKey reports whether two certificates are of one authority: a root and what another root signed of it.
func SameKey(a, b *x509.Certificate) bool {
	key, ok := a.PublicKey.(*ecdsa.PublicKey)
	return ok && key.Equal(b.PublicKey)
}

// Certifies checks the certificate that a joiner was given: the root its token names, or a successor, signed it.
func Certifies(digest string, chain, roots []byte) error {
	list, err := ParseCertificates(chain)
	if err != nil {
		return err
	}
	more, err := ParseCertificates(roots)
	if err != nil {
		return err
	}
	shown := append(slices.Clone(list[1:]), more...)
	for _, c := range shown {
		if !c.IsCA || Digest(c) != digest {
			continue
		}
		for _, v := range Vouched([]*x509.Certificate{c}, shown) {
			if list[0].CheckSignatureFrom(v) == nil {
				return nil
			}
		}
	}
	return ErrWrongCluster
}

// Verify checks that one of the roots signed a certificate, for a use, and that it is valid at a time (zero = now).
func Verify(cert *x509.Certificate, roots []*x509.Certificate, use x509.ExtKeyUsage, at time.Time) error {
	_, err := cert.Verify(x509.VerifyOptions{Roots: pool(roots...), KeyUsages: []x509.ExtKeyUsage{use}, CurrentTime: at})
	return err
}

// verifyManager checks what a server shows: a certificate of a manager of the cluster, signed by a root or a successor.
func verifyManager(shown, roots []*x509.Certificate, clusterID string) error {
	return verifyServer(shown, roots, clusterID, Manager)
}

// verifyPeer is verifyManager where a witness does as well.
func verifyPeer(shown, roots []*x509.Certificate, clusterID string) error {
	if id, err := FromCertificate(shown[0]); err == nil && id.Role == Witness {
		return verifyServer(shown, roots, clusterID, Witness)
	}
	return verifyManager(shown, roots, clusterID)
}

func verifyServer(shown, roots []*x509.Certificate, clusterID string, role Role) error {
	leaf := shown[0]
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: pool(Vouched(roots, shown[1:])...), DNSName: peerNames[role], KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return fmt.Errorf("check the manager's certificate: %w", err)
	}
	id, err := FromCertificate(leaf)
	if err != nil {
		return err
	}
	if id.Role != role || clusterID != "" && id.ClusterID != clusterID {
		return ErrWrongCluster
	}
	return nil
}

// ParseCertificates reads one certificate or more (PEM), and nothing else.
func ParseCertificates(text []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for b, rest := pem.Decode(text); b != nil; b, rest = pem.Decode(rest) {
		if b.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("there is a PEM %s among the certificates", b.Type)
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New("there is no PEM certificate in it")
	}
	return out, nil
}

// EncodeCertificates is the text that ParseCertificates reads.
func EncodeCertificates(list ...*x509.Certificate) (text []byte) {
	for _, c := range list {
		text = append(text, certPEM(c.Raw)...)
	}
	return text
}
