package pki_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"skep.dev/libs/id"
	"skep.dev/libs/pki"
	"skep.dev/libs/pki/pkitest"
)

// held is a credential with roots and with what is shown beside the certificate.
func held(t *testing.T, ca *pki.CA, ident pki.Identity, roots, chain []*x509.Certificate) *pki.Store {
	t.Helper()
	cert, key := pkitest.Certify(t, ca, ident, time.Hour)
	s, err := pki.Memory(append(cert, pki.EncodeCertificates(chain...)...), key, pki.EncodeCertificates(roots...))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func cross(t *testing.T, old *pki.CA, next *x509.Certificate) *x509.Certificate {
	t.Helper()
	c, err := old.CrossSign(next)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

type list = []*x509.Certificate

// TestRotationWhoTrustsWhom: at every point of a rotation those who moved and those who did not connect; after it nobody
// gets in with the old root.
func TestRotationWhoTrustsWhom(t *testing.T) {
	cluster := id.New()
	root := func() *pki.CA {
		c, err := pki.NewCA(cluster)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	old, next, third := root(), root(), root()
	a, b := cross(t, old, next.Cert), cross(t, next, third.Cert)
	manager, worker := pki.Identity{NodeID: id.New(), Role: pki.Manager}, pki.Identity{NodeID: id.New(), Role: pki.Worker}
	both, shown := list{old.Cert, next.Cert}, list{a, old.Cert}
	before := held(t, old, manager, list{old.Cert}, nil)
	trusting := held(t, old, manager, both, shown)
	moved := held(t, next, manager, both, shown)
	after := held(t, next, manager, list{next.Cert}, shown)
	twice := held(t, third, manager, list{third.Cert}, list{b, next.Cert, a, old.Cert})
	late, trustingW, movedW := held(t, old, worker, list{old.Cert}, nil), held(t, old, worker, both, shown), held(t, next, worker, list{next.Cert}, shown)
	for name, h := range map[string]struct {
		server, client *tls.Config
		ok             bool
	}{
		"nobody moved": {pki.ServerTLS(before), pki.ClientTLS(late), true},
		"late worker to a manager that trusts both":     {pki.ServerTLS(trusting), pki.ClientTLS(late), true},
		"late worker to a manager that moved":           {pki.ServerTLS(moved), pki.ClientTLS(late), true},
		"late worker after the end":                     {pki.ServerTLS(after), pki.ClientTLS(late), false},
		"worker that moved to a manager that did not":   {pki.ServerTLS(trusting), pki.ClientTLS(held(t, next, worker, both, shown)), true},
		"worker that moved to one that knows nothing":   {pki.ServerTLS(before), pki.ClientTLS(movedW), false},
		"worker that trusts both to a manager that did": {pki.ServerTLS(moved), pki.ClientTLS(trustingW), true},
		"worker after the end":                          {pki.ServerTLS(after), pki.ClientTLS(movedW), true},
		"worker after the end to the old root":          {pki.ServerTLS(trusting), pki.ClientTLS(movedW), false},
		"route, one moved":                              {pki.RouteTLS(moved), pki.RouteTLS(trusting), true},
		"route, the other moved":                        {pki.RouteTLS(trusting), pki.RouteTLS(moved), true},
		"route after the end with the old root":         {pki.RouteTLS(after), pki.RouteTLS(before), false},
		"token of before, while it goes on":             {pki.ServerTLS(moved), pki.JoinTLS(pki.Digest(old.Cert)), true},
		"token of before, after the end":                {pki.ServerTLS(after), pki.JoinTLS(pki.Digest(old.Cert)), true},
		"new token":                                     {pki.ServerTLS(after), pki.JoinTLS(pki.Digest(next.Cert)), true},
		"token of two rotations ago":                    {pki.ServerTLS(twice), pki.JoinTLS(pki.Digest(old.Cert)), true},
		"new token to a manager of the old root":        {pki.ServerTLS(before), pki.JoinTLS(pki.Digest(next.Cert)), false},
		"a root that nobody vouches for": {pki.ServerTLS(held(t, third, manager, list{third.Cert}, list{old.Cert})),
			pki.JoinTLS(pki.Digest(old.Cert)), false},
	} {
		t.Run(name, func(t *testing.T) {
			serr, cerr := handshake(t, h.server, h.client)
			if ok := serr == nil && cerr == nil; ok != h.ok {
				t.Errorf("connected: %v, want %v (server: %v, client: %v)", ok, h.ok, serr, cerr)
			}
		})
	}

	// One configuration, as the broker has it, follows the roots from handshake to handshake.
	s := held(t, old, manager, list{old.Cert}, nil)
	server, client := pki.ServerTLS(s), pki.ClientTLS(late)
	if serr, cerr := handshake(t, server, client); serr != nil || cerr != nil {
		t.Fatal(serr, cerr)
	}
	if err := s.Trust(both, shown); err != nil {
		t.Fatal(err)
	}
	if serr, cerr := handshake(t, server, pki.ClientTLS(held(t, next, worker, both, nil))); serr != nil || cerr != nil {
		t.Error("the next root is not trusted yet", serr, cerr)
	}
	cert, key := pkitest.Certify(t, next, manager, time.Hour)
	if err := s.Save(append(cert, pki.EncodeCertificates(shown...)...), key, pki.EncodeCertificates(next.Cert)); err != nil {
		t.Fatal(err)
	}
	if serr, cerr := handshake(t, server, client); serr == nil && cerr == nil {
		t.Error("the old root is trusted still")
	}
}

// TestNoWayBackInWithATicket: TLS sessions are not taken up again, so a root that was dropped is dropped for everybody.
func TestNoWayBackInWithATicket(t *testing.T) {
	c := pkitest.NewCA(t)
	server := pki.ServerTLS(memory(t, c, pki.Identity{NodeID: id.New(), Role: pki.Manager}))
	client := pki.ClientTLS(memory(t, c, pki.Identity{NodeID: id.New(), Role: pki.Worker}))
	cache := &countingCache{}
	client.ClientSessionCache = cache
	if serr, cerr := handshake(t, server, client); serr != nil || cerr != nil {
		t.Fatal(serr, cerr)
	}
	if cache.put > 0 {
		t.Error("the server hands out a session ticket")
	}
}

type countingCache struct{ put int }

func (c *countingCache) Get(string) (*tls.ClientSessionState, bool) { return nil, false }
func (c *countingCache) Put(string, *tls.ClientSessionState)        { c.put++ }

func TestFollows(t *testing.T) {
	cluster := id.New()
	var r []*pki.CA
	for range 4 {
		c, err := pki.NewCA(cluster)
		if err != nil {
			t.Fatal(err)
		}
		r = append(r, c)
	}
	a, b := cross(t, r[0], r[1].Cert), cross(t, r[1], r[2].Cert)
	for _, c := range []struct {
		name               string
		roots, shown, next list
		want               bool
	}{
		{"the same", list{r[0].Cert}, nil, list{r[0].Cert}, true},
		{"a successor", list{r[0].Cert}, list{a}, list{r[1].Cert, r[0].Cert}, true},
		{"one of two rotations", list{r[0].Cert}, list{b, a}, list{r[2].Cert}, true},
		{"a link is missing", list{r[0].Cert}, list{b}, list{r[2].Cert}, false},
		{"another's root beside", list{r[0].Cert}, list{a}, list{r[1].Cert, r[3].Cert}, false},
		{"a leaf does not vouch", list{r[3].Cert}, list{a, b}, list{r[1].Cert}, false},
	} {
		if got := pki.Follows(c.roots, c.shown, c.next); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func TestCertifies(t *testing.T) {
	old := pkitest.NewCA(t)
	next, err := pki.NewCA(old.ClusterID())
	if err != nil {
		t.Fatal(err)
	}
	cert, _ := pkitest.Certify(t, next, pki.Identity{NodeID: id.New(), Role: pki.Worker}, time.Hour)
	chain := append(cert, pki.EncodeCertificates(cross(t, old, next.Cert), old.Cert)...)
	for _, d := range []string{pki.Digest(old.Cert), pki.Digest(next.Cert)} {
		if err := pki.Certifies(d, chain, next.CertPEM()); err != nil {
			t.Error(err)
		}
	}
	if err := pki.Certifies(pki.Digest(pkitest.NewCA(t).Cert), chain, next.CertPEM()); !errors.Is(err, pki.ErrWrongCluster) {
		t.Error(err)
	}
	if err := pki.Certifies(pki.Digest(old.Cert), append(cert, pki.EncodeCertificates(old.Cert)...), next.CertPEM()); !errors.Is(err, pki.ErrWrongCluster) {
		t.Error("a root without a link was taken", err)
	}
}

// TestStoreKeepsRoots: what was trusted is trusted after a restart, and another process of the node learns of it.
func TestStoreKeepsRoots(t *testing.T) {
	old := pkitest.NewCA(t)
	next, err := pki.NewCA(old.ClusterID())
	if err != nil {
		t.Fatal(err)
	}
	link := cross(t, old, next.Cert)
	dir := filepath.Join(t.TempDir(), "certs")
	cert, key := pkitest.Certify(t, old, pki.Identity{NodeID: id.New(), Role: pki.Worker}, time.Hour)
	s, err := pki.Create(dir, cert, key, old.CertPEM())
	if err != nil {
		t.Fatal(err)
	}
	other, err := pki.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Trust(list{next.Cert, old.Cert}, list{link}); err != nil {
		t.Fatal(err)
	}
	if changed, err := other.Reload(); err != nil || changed {
		t.Errorf("a new root is not a new certificate: %v, %v", changed, err)
	}
	again, err := pki.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*pki.Store{s, other, again} {
		if r := s.Roots(); len(r) != 2 || !r[0].Equal(old.Cert) || !s.CA().Equal(old.Cert) || !r[1].Equal(next.Cert) {
			t.Errorf("roots: %d", len(r))
		}
		if n := len(s.Certificate().Certificate); n != 3 {
			t.Errorf("%d certificates are shown", n)
		}
	}
	if err := s.Trust(list{next.Cert}, nil); err == nil {
		t.Error("the root that signed the certificate was dropped")
	}
}

func ownRoot(t *testing.T, key crypto.Signer, change func(*x509.Certificate)) (cert, keyText []byte) {
	t.Helper()
	c := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "Example Corp root"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	if change != nil {
		change(c)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	k, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: k})
}

func TestARootOfOnesOwn(t *testing.T) {
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	cluster := id.New()
	for _, k := range []crypto.Signer{p256, p384} {
		cert, key := ownRoot(t, k, nil)
		ca, err := pki.ParseOwnCA(cert, key, cluster)
		if err != nil {
			t.Fatal(err)
		}
		m, w := memory(t, ca, pki.Identity{NodeID: id.New(), Role: pki.Manager}), memory(t, ca, pki.Identity{NodeID: id.New(), Role: pki.Worker})
		if serr, cerr := handshake(t, pki.ServerTLS(m), pki.ClientTLS(w)); serr != nil || cerr != nil {
			t.Error(serr, cerr)
		}
		// The same root serves another cluster: its managers are not this one's.
		other := memory(t, ca.For(id.New()), pki.Identity{NodeID: id.New(), Role: pki.Manager})
		if _, cerr := handshake(t, pki.ServerTLS(other), pki.ClientTLS(w)); !errors.Is(cerr, pki.ErrWrongCluster) {
			t.Error("a manager of another cluster with the same root:", cerr)
		}
	}
	sec1, err := x509.MarshalECPrivateKey(p256)
	if err != nil {
		t.Fatal(err)
	}
	cert, key := ownRoot(t, p256, nil)
	if _, err := pki.ParseOwnCA(cert, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1}), cluster); err != nil {
		t.Error(err)
	}
	two := append(append([]byte{}, cert...), cert...)
	_, p384Key := ownRoot(t, p384, nil)
	for want, c := range map[string][2][]byte{
		"there is no PEM certificate":    {nil, key},
		"give the root alone":            {two, key},
		"does not belong":                {cert, p384Key},
		"there is no PEM private key":    {cert, nil},
		"encrypted with a passphrase":    {cert, pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte{1}})},
		"not an ECDSA key":               pair(ownRoot(t, ed, nil)),
		"has an ECDSA key (P-256, P-384": pair(ownRoot(t, r, nil)),
		"expired on": pair(ownRoot(t, p256, func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
		})),
		"is not valid before":                  pair(ownRoot(t, p256, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) })),
		"does not say CA:TRUE":                 pair(ownRoot(t, p256, func(c *x509.Certificate) { c.IsCA = false })),
		"lacks keyCertSign":                    pair(ownRoot(t, p256, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign })),
		"a manager certified by it is refused": pair(ownRoot(t, p256, func(c *x509.Certificate) { c.PermittedDNSDomains = []string{"example.org"} })),
		"an intermediate authority is not":     {intermediate(t, p256, p384), key},
	} {
		_, err := pki.ParseOwnCA(c[0], c[1], cluster)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", want, err)
		}
	}
}

func pair(cert, key []byte) [2][]byte { return [2][]byte{cert, key} }

func intermediate(t *testing.T, key, above *ecdsa.PrivateKey) []byte {
	t.Helper()
	text, _ := ownRoot(t, above, nil)
	root, err := pki.ParseCertificate(text)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(8), Subject: pkix.Name{CommonName: "below"}, NotBefore: root.NotBefore, NotAfter: root.NotAfter, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, c, root, key.Public(), above)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
