// Package pkitest makes certificate authorities and credentials for tests.
package pkitest

import (
	"testing"
	"time"

	"skep.dev/libs/id"
	"skep.dev/libs/pki"
)

// NewCA makes the CA of a new cluster.
func NewCA(t testing.TB) *pki.CA {
	t.Helper()
	ca, err := pki.NewCA(id.New())
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// Certify makes a key and certifies it; both are PEM.
func Certify(t testing.TB, ca *pki.CA, ident pki.Identity, expiry time.Duration) (cert, key []byte) {
	t.Helper()
	key, csr, err := pki.NewKeyAndCSR()
	if err != nil {
		t.Fatal(err)
	}
	if cert, err = ca.Sign(csr, ident, expiry); err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// Store makes a credential that is kept in memory.
func Store(t testing.TB, ca *pki.CA, ident pki.Identity, expiry time.Duration) *pki.Store {
	t.Helper()
	cert, key := Certify(t, ca, ident, expiry)
	s, err := pki.Memory(cert, key, ca.CertPEM())
	if err != nil {
		t.Fatal(err)
	}
	return s
}
