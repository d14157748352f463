package pki_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"skep.dev/libs/id"
	"skep.dev/libs/pki"
	"skep.dev/libs/pki/pkitest"
)

func memory(t *testing.T, c *pki.CA, ident pki.Identity) *pki.Store {
	t.Helper()
	return pkitest.Store(t, c, ident, time.Hour)
}

func TestTokenRoundTripAndErrors(t *testing.T) {
	want := pki.Token{Digest: pki.Digest(pkitest.NewCA(t).Cert), Secret: pki.NewSecret()}
	if s := want.String(); len(s) != 83 {
		t.Fatalf("a token has %d characters", len(s))
	}
	got, err := pki.ParseToken(" " + want.String() + "\n")
	if err != nil || got != want {
		t.Fatalf("%+v, %v", got, err)
	}
	d, s := strings.Repeat("a", 50), strings.Repeat("b", 25)
	for in, part := range map[string]string{
		"":                                "it is empty",
		"hello":                           "does not begin with SKEP-1-",
		"SWMTKN-1-" + d + "-" + s:         "Docker Swarm token",
		"SKEP-2-" + d + "-" + s:           "its version is not 1",
		"SKEP-1-" + d:                     "it has 3 parts instead of 4",
		"SKEP-1-" + d + "-" + s + "-x":    "it has 5 parts instead of 4",
		"SKEP-1-" + d[1:] + "-" + s:       "its digest has 49 characters instead of 50",
		"SKEP-1-" + d + "-" + s[1:]:       "its secret has 24 characters instead of 25",
		"SKEP-1-" + d + "-" + s[1:] + "B": "its secret contains characters other than 0-9 and a-z",
		"SKEP-1-" + d[1:] + "é" + "-" + s: "its digest has 51 characters instead of 50",
	} {
		_, err := pki.ParseToken(in)
		if err == nil || !strings.HasPrefix(err.Error(), "malformed join token: ") || !strings.Contains(err.Error(), part) {
			t.Errorf("%q: %v, want %q", in, err, part)
		}
		if err != nil && strings.Contains(err.Error(), s) {
			t.Errorf("%q: the error repeats the secret", in)
		}
	}
}

func TestIdentityComesFromTheCANotTheRequest(t *testing.T) {
	c := pkitest.NewCA(t)
	for _, want := range []pki.Identity{
		{NodeID: id.New(), Role: pki.Manager}, {NodeID: id.New(), Role: pki.Worker}, {NodeID: "user-ada", Role: pki.User, UserRole: pki.Viewer},
	} {
		want.ClusterID = c.ClusterID()
		if got := memory(t, c, want).Identity(); got.NodeID != want.NodeID || got.Role != want.Role || got.ClusterID != want.ClusterID || got.UserRole != want.UserRole {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
	_, csr, err := pki.NewKeyAndCSR()
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []pki.Identity{
		{}, {NodeID: "a.b", Role: pki.Worker}, {NodeID: "*", Role: pki.Worker}, {NodeID: "x", Role: "root"}, {NodeID: "x", Role: pki.User},
		{NodeID: "x", Role: pki.Worker, UserRole: pki.Admin}, {NodeID: "x", Role: pki.Worker, ClusterID: "another"},
	} {
		if _, err := c.Sign(csr, bad, time.Hour); err == nil {
			t.Errorf("%+v was certified", bad)
		}
	}
	csr[len(csr)-1] ^= 1
	if _, err := c.Sign(csr, pki.Identity{NodeID: "x", Role: pki.Worker}, time.Hour); err == nil {
		t.Error("a request whose sender does not hold the key was certified")
	}
}

// An hour of difference between two clocks, either way and right after init, is no obstacle.
func TestCertificatesAreDatedBack(t *testing.T) {
	c := pkitest.NewCA(t)
	s := memory(t, c, pki.Identity{NodeID: id.New(), Role: pki.Manager})
	pool := x509.NewCertPool()
	pool.AddCert(c.Cert)
	for _, off := range []time.Duration{-pki.ClockTolerance, 0} {
		_, err := s.Leaf().Verify(x509.VerifyOptions{Roots: pool, DNSName: pki.ServerName, CurrentTime: time.Now().Add(off)})
		if err != nil {
			t.Errorf("clock off by %v: %v", off, err)
		}
	}
	if pki.Backdate <= pki.ClockTolerance || pki.ClockTolerance < time.Hour {
		t.Error("the tolerance is not covered")
	}
}

func handshake(t *testing.T, server, client *tls.Config) (serverErr, clientErr error) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	done := make(chan error, 1)
	go func() {
		s := tls.Server(a, server)
		err := s.Handshake()
		if err != nil {
			a.Close()
		} else {
			_, err = s.Write([]byte("x"))
		}
		done <- err
	}()
	c := tls.Client(b, client)
	clientErr = c.Handshake()
	if clientErr != nil {
		b.Close()
	} else {
		// In TLS 1.3 a server refuses a client's certificate after the client is through.
		_, clientErr = c.Read(make([]byte, 1))
	}
	return <-done, clientErr
}

func TestWhoTrustsWhom(t *testing.T) {
	c, other := pkitest.NewCA(t), pkitest.NewCA(t)
	m, w := memory(t, c, pki.Identity{NodeID: id.New(), Role: pki.Manager}), memory(t, c, pki.Identity{NodeID: id.New(), Role: pki.Worker})
	x := memory(t, other, pki.Identity{NodeID: id.New(), Role: pki.Manager})
	v := memory(t, c, pki.Identity{NodeID: id.New(), Role: pki.Witness})
	none := &tls.Config{InsecureSkipVerify: true}
	digest := pki.Digest(c.Cert)
	for name, h := range map[string]struct {
		server, client *tls.Config
		ok             bool
	}{
		"worker to manager":                     {pki.ServerTLS(m), pki.ClientTLS(w), true},
		"without a certificate to manager":      {pki.ServerTLS(m), none, true},
		"joiner to manager":                     {pki.ServerTLS(m), pki.JoinTLS(digest), true},
		"joiner to another cluster":             {pki.ServerTLS(x), pki.JoinTLS(digest), false},
		"joiner to a worker":                    {pki.ServerTLS(w), pki.JoinTLS(digest), false},
		"worker to another cluster":             {pki.ServerTLS(x), pki.ClientTLS(w), false},
		"other cluster's node to manager":       {pki.ServerTLS(m), pki.ClientTLS(x), false},
		"worker to a worker":                    {pki.ServerTLS(w), pki.ClientTLS(w), false},
		"manager's route to manager":            {pki.RouteTLS(m), pki.RouteTLS(m), true},
		"route without a certificate":           {pki.RouteTLS(m), none, false},
		"manager's route to a worker":           {pki.RouteTLS(w), pki.RouteTLS(m), false},
		"witness to manager":                    {pki.ServerTLS(m), pki.ClientTLS(v), true},
		"witness's route to manager":            {pki.RouteTLS(m), pki.RouteTLS(v), true},
		"manager's route to a witness":          {pki.RouteTLS(v), pki.RouteTLS(m), true},
		"manager that looks at a witness":       {pki.ServerTLS(v), pki.PeerTLS(m), true},
		"worker to a witness":                   {pki.ServerTLS(v), pki.ClientTLS(w), false},
		"joiner to a witness":                   {pki.ServerTLS(v), pki.JoinTLS(digest), false},
		"route of another cluster to a witness": {pki.RouteTLS(v), pki.RouteTLS(x), false},
		"route of another cluster":              {pki.RouteTLS(m), pki.RouteTLS(x), false},
		"worker to manager, TLS 1.2":            {pki.ServerTLS(m), &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}, false},
		"worker's certificate on the wrong key": {pki.ServerTLS(m), &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{{Certificate: w.Certificate().Certificate, PrivateKey: x.Certificate().PrivateKey}}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			serr, cerr := handshake(t, h.server, h.client)
			if ok := serr == nil && cerr == nil; ok != h.ok {
				t.Errorf("connected: %v, want %v (server: %v, client: %v)", ok, h.ok, serr, cerr)
			}
		})
	}
	if _, err := handshake(t, pki.ServerTLS(x), pki.JoinTLS(digest)); !errors.Is(err, pki.ErrWrongCluster) {
		t.Errorf("another cluster: %v", err)
	}
	if _, err := handshake(t, pki.ServerTLS(memory(t, other, pki.Identity{NodeID: id.New(), Role: pki.Worker})), pki.JoinTLS(digest)); !errors.Is(err, pki.ErrNotManager) {
		t.Errorf("no manager: %v", err)
	}
}

func TestStoreSwapsAndSurvivesATornSave(t *testing.T) {
	c := pkitest.NewCA(t)
	dir := filepath.Join(t.TempDir(), "certs")
	if _, err := pki.Open(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	ident := pki.Identity{NodeID: id.New(), Role: pki.Worker}
	cert, key := pkitest.Certify(t, c, ident, time.Hour)
	s, err := pki.Create(dir, cert, key, c.CertPEM())
	if err != nil {
		t.Fatal(err)
	}
	for path, mode := range map[string]fs.FileMode{"": fs.ModeDir | 0o700, pki.KeyFile: 0o600, pki.CertFile: 0o600, pki.CAFile: 0o600} {
		if st, err := os.Stat(filepath.Join(dir, path)); err != nil || st.Mode() != mode {
			t.Errorf("%q: %v, %v", path, st.Mode(), err)
		}
	}
	next, nextKey := pkitest.Certify(t, c, ident, 2*time.Hour)
	if err := s.Save(next, key, c.CertPEM()); err == nil {
		t.Fatal("a certificate was saved with another's key")
	}
	old := s.Leaf()
	if err := s.Save(next, nextKey, c.CertPEM()); err != nil || s.Leaf().Equal(old) {
		t.Fatalf("not swapped: %v", err)
	}
	// The power fails between the renames: the certificate is the third's, the key still the second's.
	third, thirdKey := pkitest.Certify(t, c, ident, 3*time.Hour)
	for name, text := range map[string][]byte{pki.CertFile: third, pki.KeyFile + ".new": thirdKey} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		s, err = pki.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		want, err := pki.ParseCertificate(third)
		if err != nil || !s.Leaf().Equal(want) {
			t.Fatalf("not the third certificate: %v", err)
		}
	}
}

func TestParseCAKeepsPairsTogether(t *testing.T) {
	a, b := pkitest.NewCA(t), pkitest.NewCA(t)
	key, err := a.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	got, err := pki.ParseCA(a.CertPEM(), key)
	if err != nil || !bytes.Equal(got.Cert.Raw, a.Cert.Raw) || got.ClusterID() != a.ClusterID() {
		t.Fatal(err)
	}
	if _, err := pki.ParseCA(b.CertPEM(), key); err == nil {
		t.Fatal("another CA's key was accepted")
	}
}
