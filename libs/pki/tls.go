package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// Source supplies the certificate in use now and the roots trusted now; both may change between handshakes (renewal,
// rotation of the root).
type Source interface {
	Certificate() *tls.Certificate // leaf first, then what leads from it to the roots
	CA() *x509.Certificate         // the root that signed it
	Roots() []*x509.Certificate    // all that are trusted, CA first
}

func pool(roots ...*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, r := range roots {
		p.AddCert(r)
	}
	return p
}

// ServerTLS is for a manager's client listener: clients without a certificate are let in (they can only ask to join),
// a certificate that is shown must be the cluster's.
func ServerTLS(src Source) *tls.Config { return serve(src, tls.VerifyClientCertIfGiven) }

// serve asks the source at every handshake: nothing has to be started again when a root comes or goes. There are no
// session tickets, with which a client would come back without showing its certificate to the roots of the day.
func serve(src Source, auth tls.ClientAuthType) *tls.Config {
	now := func() *tls.Config {
		return &tls.Config{
			MinVersion:             tls.VersionTLS13,
			ClientAuth:             auth,
			ClientCAs:              pool(src.Roots()...),
			GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return src.Certificate(), nil },
			SessionTicketsDisabled: true,
		}
	}
	c := now()
	c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return now(), nil }
	return c
}

// RouteTLS is for the connections between managers, both ends: a certificate is required of either.
func RouteTLS(src Source) *tls.Config {
	c, client := serve(src, tls.RequireAndVerifyClientCert), PeerTLS(src)
	c.ServerName, c.InsecureSkipVerify, c.VerifyConnection = client.ServerName, client.InsecureSkipVerify, client.VerifyConnection
	c.GetClientCertificate = client.GetClientCertificate
	return c
}

// ClientTLS is for a node or user that has a certificate. The server must be a manager of the same cluster, wherever it
// was reached.
func ClientTLS(src Source) *tls.Config { return dial(src, verifyManager) }

// PeerTLS is for a manager that dials another, which may be a witness.
func PeerTLS(src Source) *tls.Config { return dial(src, verifyPeer) }

func dial(src Source, verify func(shown, roots []*x509.Certificate, cluster string) error) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		ServerName:         ServerName,
		InsecureSkipVerify: true, // replaced by VerifyConnection, which asks for the roots of the moment
		VerifyConnection: func(st tls.ConnectionState) error {
			if len(st.PeerCertificates) == 0 {
				return errors.New("the server shows no certificate")
			}
			return verify(st.PeerCertificates, src.Roots(), cluster(src))
		},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return src.Certificate(), nil },
	}
}

// cluster is whose certificate the source holds.
func cluster(src Source) string {
	if leaf := src.Certificate().Leaf; leaf != nil {
		return first(leaf.Subject.Organization)
	}
	return ""
}

var (
	// ErrWrongCluster: the server is a manager, but its certificates do not include the CA the token names.
	ErrWrongCluster = errors.New("the manager belongs to another cluster than the join token")
	// ErrNotManager: the server speaks TLS but is nothing of skep's.
	ErrNotManager = errors.New("the server is not a skep manager")
)

// JoinTLS is for a joiner, which knows the CA's digest alone. The chain the server sends must hold a certificate with
// that digest, and the server must be certified as a manager by it or, when the root was rotated since the token was
// written down, by a successor it signed. The clock of this machine plays no part: it may be
// wrong, and the vault says so better than a TLS alert could.
func JoinTLS(digest string) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		ServerName:         ServerName,
		InsecureSkipVerify: true, // replaced by VerifyConnection
		VerifyConnection: func(st tls.ConnectionState) error {
			if len(st.PeerCertificates) == 0 {
				return errors.New("the server shows no certificate")
			}
			leaf := st.PeerCertificates[0]
			for _, ca := range st.PeerCertificates[1:] {
				if !ca.IsCA || Digest(ca) != digest {
					continue
				}
				_, err := leaf.Verify(x509.VerifyOptions{
					Roots: pool(Vouched([]*x509.Certificate{ca}, st.PeerCertificates[1:])...), DNSName: ServerName, CurrentTime: midlife(leaf),
					KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
				})
				if err != nil {
					return fmt.Errorf("the server is not a manager of the token's cluster: %w", err)
				}
				return nil
			}
			// Its claim to be a manager of some cluster is unverified; it only picks the words of the refusal.
			if leaf.VerifyHostname(ServerName) != nil {
				return ErrNotManager
			}
			return ErrWrongCluster
		},
	}
}

func midlife(c *x509.Certificate) time.Time { return c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 2) }
