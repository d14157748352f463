package pki_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	"skep.dev/libs/id"
	"skep.dev/libs/pki"
	"skep.dev/libs/pki/pkitest"
)

// A token is what its text says, once and for all; an error never repeats its secret.
func FuzzParseToken(f *testing.F) {
	d, s := strings.Repeat("a", 50), strings.Repeat("b", 25)
	for _, seed := range []string{"", "SKEP-1-" + d + "-" + s, " SKEP-1-" + d + "-" + s + "\n", "SKEP-1-" + d, "SKEP-2-x", "SWMTKN-1-" + d + "-" + s, "SKEP-1-" + d + "-é" + s[2:], "SKEP-1---"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		tok, err := pki.ParseToken(text)
		if err != nil {
			if parts := strings.Split(text, "-"); len(parts) > 3 && len(parts[3]) >= 8 && strings.Contains(err.Error(), parts[3]) {
				t.Errorf("the error repeats the secret: %v", err)
			}
			return
		}
		if tok.String() != strings.TrimSpace(text) {
			t.Errorf("%q is read as %q", text, tok)
		}
		if again, err := pki.ParseToken(tok.String()); err != nil || again != tok || !id.Valid(tok.Secret) {
			t.Errorf("%q, read again: %v, %v", tok, again, err)
		}
	})
}

// csrOf is a request with any key and any words about itself.
func csrOf(f *testing.F, key any, subject pkix.Name, names ...string) []byte {
	f.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: subject, DNSNames: names}, key)
	if err != nil {
		f.Fatal(err)
	}
	return der
}

// Whatever a request says, the certificate says what the cluster wants; and its id is one.
func FuzzCSR(f *testing.F) {
	ca := pkitest.NewCA(f)
	good, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	curve, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(nil))
	f.Add(csrOf(f, good, pkix.Name{CommonName: "skep"}))
	f.Add(csrOf(f, good, pkix.Name{CommonName: "*", OrganizationalUnit: []string{string(pki.Manager)}, Organization: []string{"x"}}, pki.ServerName, "*"))
	f.Add(csrOf(f, curve, pkix.Name{}))
	f.Add(csrOf(f, other, pkix.Name{}))
	f.Fuzz(func(t *testing.T, der []byte) {
		csr, err := pki.ParseCSR(der)
		if err != nil {
			if _, err := ca.Sign(der, pki.Identity{NodeID: id.New(), Role: pki.Worker}, time.Hour); err == nil {
				t.Fatal("a bad request was certified")
			}
			return
		}
		node := pki.NodeIDFor(csr)
		if !id.Valid(node) {
			t.Fatalf("the node's id is %q", node)
		}
		text, err := ca.Sign(der, pki.Identity{NodeID: node, Role: pki.Worker}, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := pki.ParseCertificate(text)
		if err != nil {
			t.Fatal(err)
		}
		got, err := pki.FromCertificate(cert)
		if err != nil || got.NodeID != node || got.Role != pki.Worker || got.ClusterID != ca.ClusterID() || got.UserRole != "" {
			t.Errorf("certified %+v, %v", got, err)
		}
		if len(cert.DNSNames) != 1 || cert.DNSNames[0] != node || len(cert.IPAddresses) != 0 || cert.IsCA || len(cert.ExtKeyUsage) != 1 {
			t.Errorf("a worker is certified as %v %v %v", cert.DNSNames, cert.IPAddresses, cert.ExtKeyUsage)
		}
	})
}

// Any certificate gives an identity that is safe in a subject, or none.
func FuzzCertificate(f *testing.F) {
	ca := pkitest.NewCA(f)
	_, csr, err := pki.NewKeyAndCSR()
	if err != nil {
		f.Fatal(err)
	}
	for _, ident := range []pki.Identity{{NodeID: id.New(), Role: pki.Manager, Hosts: []string{"10.0.0.1", "m1"}}, {NodeID: id.New(), Role: pki.Worker}, {NodeID: "user-ada", Role: pki.User, UserRole: pki.Admin}} {
		text, err := ca.Sign(csr, ident, time.Hour)
		if err != nil {
			f.Fatal(err)
		}
		b, _ := pem.Decode(text)
		f.Add(b.Bytes)
	}
	f.Add(ca.Cert.Raw)
	f.Fuzz(func(t *testing.T, der []byte) {
		cert, err := pki.ParseCertificate(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
		if err != nil {
			return
		}
		got, err := pki.FromCertificate(cert)
		if err != nil {
			return
		}
		if got.NodeID == "" || strings.ContainsAny(got.NodeID, ".*> \t\r\n") || got.Role == pki.User != (got.UserRole == pki.Admin || got.UserRole == pki.Viewer) {
			t.Errorf("%+v", got)
		}
	})
}
