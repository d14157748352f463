package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"strings"
	"time"
)

const (
	// Backdate is how far before its making a certificate begins to be valid, so that a machine whose clock is behind by
	// less than this can use it. It exceeds what the vault tolerates (ClockTolerance) by the time a join may take.
	Backdate = time.Hour + 5*time.Minute
	// ClockTolerance is how far a joiner's clock may be off.
	ClockTolerance = time.Hour + time.Minute
	// DefaultExpiry is the life of a node's certificate unless the cluster says otherwise.
	DefaultExpiry = 90 * 24 * time.Hour

	caLife    = 20 * 365 * 24 * time.Hour
	digestLen = 50
)

// CA is the cluster's certificate authority, with its private key.
type CA struct {
	Cert    *x509.Certificate
	key     *ecdsa.PrivateKey
	cluster string
}

// NewCA makes a certificate authority for the cluster: ECDSA P-256, 20 years.
func NewCA(clusterID string) (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the cluster's CA key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	t := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "skep-ca", Organization: []string{clusterID}},
		NotBefore:             now.Add(-Backdate),
		NotAfter:              now.Add(caLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLen:            1, // the root of a rotation stands below the one before it (CrossSign)
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("sign the cluster's CA certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read back the cluster's CA certificate: %w", err)
	}
	return &CA{Cert: cert, key: key, cluster: clusterID}, nil
}

// ParseCA reads what CertPEM and KeyPEM wrote and checks that they belong together.
func ParseCA(certPEM, keyPEM []byte) (*CA, error) {
	cert, err := ParseCertificate(certPEM)
	if err != nil {
		return nil, fmt.Errorf("read the CA certificate: %w", err)
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("read the CA key: %w", err)
	}
	if !cert.IsCA || !key.PublicKey.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("the CA key does not belong to the CA certificate")
	}
	return &CA{Cert: cert, key: key, cluster: first(cert.Subject.Organization)}, nil
}

// For is the authority in the service of a cluster that its certificate need not name: a root of one's own does not.
func (ca *CA) For(clusterID string) *CA { return &CA{Cert: ca.Cert, key: ca.key, cluster: clusterID} }

// CertPEM is the CA's certificate, which is public.
func (ca *CA) CertPEM() []byte { return certPEM(ca.Cert.Raw) }

// KeyPEM is the CA's private key. It must be sealed before it is stored.
func (ca *CA) KeyPEM() ([]byte, error) { return keyPEM(ca.key) }

// ClusterID is the cluster the authority certifies for.
func (ca *CA) ClusterID() string { return ca.cluster }

// Digest identifies a CA certificate in a join token: its sha256 in base36, 50 characters.
func Digest(ca *x509.Certificate) string {
	sum := sha256.Sum256(ca.Raw)
	s := new(big.Int).SetBytes(sum[:]).Text(36)
	return strings.Repeat("0", digestLen-len(s)) + s
}

// Sign certifies the public key of a certificate request (DER) as the identity, for expiry from now. Nothing but the
// key is taken from the request. The returned PEM is the certificate alone; the CA's goes beside it.
func (ca *CA) Sign(csrDER []byte, id Identity, expiry time.Duration) ([]byte, error) {
	csr, err := ParseCSR(csrDER)
	if err != nil {
		return nil, err
	}
	if err := id.check(); err != nil {
		return nil, err
	}
	if id.ClusterID == "" {
		id.ClusterID = ca.ClusterID()
	}
	if id.ClusterID != ca.ClusterID() {
		return nil, fmt.Errorf("certify %s: it belongs to cluster %s, this CA to %s", id.NodeID, id.ClusterID, ca.ClusterID())
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	t := &x509.Certificate{
		SerialNumber: serial,
		Subject:      id.name(),
		NotBefore:    now.Add(-Backdate),
		NotAfter:     now.Add(expiry),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		DNSNames:     []string{id.NodeID},
	}
	if t.NotAfter.After(ca.Cert.NotAfter) {
		t.NotAfter = ca.Cert.NotAfter
	}
	// Only a manager may serve, and a witness other managers: neither its certificate nor a worker's may pass for a manager's at
	// the other end of a dial.
	if name := peerNames[id.Role]; name != "" {
		t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		t.DNSNames = append(t.DNSNames, name, "localhost")
		t.IPAddresses = append(t.IPAddresses, net.IPv4(127, 0, 0, 1))
		for _, h := range id.Hosts {
			if ip := net.ParseIP(h); ip != nil {
				t.IPAddresses = append(t.IPAddresses, ip)
			} else if h != "" {
				t.DNSNames = append(t.DNSNames, h)
			}
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, ca.Cert, csr.PublicKey, ca.key)
	if err != nil {
		return nil, fmt.Errorf("certify %s: %w", id.NodeID, err)
	}
	return certPEM(der), nil
}

func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("make a serial number: %w", err)
	}
	return n, nil
}

func certPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func first(s []string) string {
	if len(s) == 0 {
		return ""
	}
	return s[0]
}
