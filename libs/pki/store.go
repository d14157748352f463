package pki

import (
	"bytes"
	"cmp"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"

	"skep.dev/libs/atomicfile"
)

// Files in a certificate directory (0700), each 0600.
const (
	CertFile = "node.crt"
	KeyFile  = "node.key"
	CAFile   = "ca.crt"
)

// Store is a node's certificate: the files and the copy in use. It is a Source; Save swaps both, and connections made
// afterwards use the new certificate.
type Store struct {
	dir string
	cur atomic.Pointer[material]
}

type material struct {
	cert  tls.Certificate
	roots []*x509.Certificate // the first signed the certificate
	id    Identity
}

// same reports whether nothing differs: certificate, what is shown with it, roots.
func (m *material) same(o *material) bool {
	return slices.EqualFunc(m.cert.Certificate, o.cert.Certificate, bytes.Equal) && slices.EqualFunc(m.roots, o.roots, (*x509.Certificate).Equal)
}

// Open reads the certificate directory. A missing one is fs.ErrNotExist.
func Open(dir string) (*Store, error) {
	var text [3][]byte
	for i, name := range []string{CertFile, KeyFile, CAFile} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return nil, fmt.Errorf("read the node's certificate: %w", err)
		}
		text[i] = b
	}
	s := &Store{dir: dir}
	m, err := parse(text[0], text[1], text[2])
	if err != nil {
		// A power cut between the renames of Save leaves the new pair beside the old: the key then is in the .new file.
		if k, kerr := os.ReadFile(filepath.Join(dir, KeyFile+".new")); kerr == nil {
			if m, err = parse(text[0], k, text[2]); err == nil {
				err = os.Rename(filepath.Join(dir, KeyFile+".new"), filepath.Join(dir, KeyFile))
			}
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read the node's certificate in %s: %w", dir, err)
	}
	s.cur.Store(m)
	return s, nil
}

// Create writes a first certificate into dir and opens it.
func Create(dir string, cert, key, ca []byte) (*Store, error) {
	s := &Store{dir: dir}
	if err := s.Save(cert, key, ca); err != nil {
		return nil, err
	}
	return s, nil
}

// Save checks a certificate, writes it durably and puts it into use.
func (s *Store) Save(cert, key, ca []byte) error {
	m, err := parse(cert, key, ca)
	if err != nil {
		return fmt.Errorf("check the node's new certificate: %w", err)
	}
	if s.dir != "" {
		if err := os.MkdirAll(s.dir, 0o700); err != nil {
			return fmt.Errorf("store the node's certificate: %w", err)
		}
		// All three are on disk before the first is renamed; the certificate is renamed before the key (see Open).
		files := []struct {
			name string
			text []byte
		}{{CAFile, ca}, {CertFile, cert}, {KeyFile, key}}
		for _, f := range files {
			if err := atomicfile.Stage(filepath.Join(s.dir, f.name+".new"), f.text); err != nil {
				return fmt.Errorf("store the node's certificate: %w", err)
			}
		}
		if err := atomicfile.SyncDir(s.dir); err != nil {
			return fmt.Errorf("store the node's certificate: %w", err)
		}
		for _, f := range files {
			p := filepath.Join(s.dir, f.name)
			if err := os.Rename(p+".new", p); err != nil {
				return fmt.Errorf("store the node's certificate: %w", err)
			}
		}
		if err := atomicfile.SyncDir(s.dir); err != nil {
			return fmt.Errorf("store the node's certificate: %w", err)
		}
	}
	s.cur.Store(m)
	return nil
}

// Shows reports whether exactly these certificates are shown beside the certificate and its root.
func (s *Store) Shows(chain []*x509.Certificate) bool {
	want := slices.DeleteFunc(slices.Clone(chain), s.CA().Equal)
	return slices.EqualFunc(want, s.Certificate().Certificate[2:], func(c *x509.Certificate, der []byte) bool { return bytes.Equal(c.Raw, der) })
}

// Reload reads the files again: another process of this node may have renewed the certificate, or learnt of other roots.
// It reports whether there is a new certificate, which may be of another role (Identity); files that do not fit together, as between the renames of a Save, are an error and change nothing.
func (s *Store) Reload() (bool, error) {
	var text [3][]byte
	for i, name := range []string{CertFile, KeyFile, CAFile} {
		b, err := os.ReadFile(filepath.Join(s.dir, name))
		if err != nil {
			return false, fmt.Errorf("read the node's certificate again: %w", err)
		}
		text[i] = b
	}
	m, err := parse(text[0], text[1], text[2])
	if err != nil {
		return false, fmt.Errorf("read the node's certificate in %s again: %w", s.dir, err)
	}
	cur := s.cur.Load()
	if m.same(cur) {
		return false, nil
	}
	if m.id.NodeID != cur.id.NodeID || m.id.ClusterID != cur.id.ClusterID {
		return false, fmt.Errorf("the certificate in %s is now another node's (%s): start again with it", s.dir, m.id.NodeID)
	}
	return s.cur.CompareAndSwap(cur, m) && !m.cert.Leaf.Equal(cur.cert.Leaf), nil
}

// Trust puts other roots into use, and what is shown beside the certificate. The certificate stays: its root is among
// them.
func (s *Store) Trust(roots, chain []*x509.Certificate) error {
	cur := s.cur.Load()
	key, ok := cur.cert.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return errors.New("store the cluster's roots: the certificate in use has no key")
	}
	text, err := keyPEM(key)
	if err != nil {
		return err
	}
	return s.Save(EncodeCertificates(append([]*x509.Certificate{cur.cert.Leaf}, chain...)...), text, EncodeCertificates(roots...))
}

// Memory is a store without files, for tests and for credentials that live in another file.
func Memory(cert, key, ca []byte) (*Store, error) { return Create("", cert, key, ca) }

// Certificate is the one in use, with its root and what leads to the roots of a rotation behind it in the chain.
func (s *Store) Certificate() *tls.Certificate { return &s.cur.Load().cert }

// CA is the root that signed the certificate in use.
func (s *Store) CA() *x509.Certificate { return s.cur.Load().roots[0] }

// Roots are all that are trusted: more than one while the root is rotated.
func (s *Store) Roots() []*x509.Certificate { return s.cur.Load().roots }

// CAPEM is the root that signed the certificate in use, as text.
func (s *Store) CAPEM() []byte { return certPEM(s.CA().Raw) }

// Leaf is the certificate itself.
func (s *Store) Leaf() *x509.Certificate { return s.cur.Load().cert.Leaf }

// Identity is who this node is.
func (s *Store) Identity() Identity { return s.cur.Load().id }

func parse(certText, keyText, caText []byte) (*material, error) {
	roots, err := ParseCertificates(caText)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", CAFile, err)
	}
	chain, err := ParseCertificates(certText)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", CertFile, err)
	}
	leaf, chain := chain[0], chain[1:]
	key, err := parseKey(keyText)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", KeyFile, err)
	}
	if !key.PublicKey.Equal(leaf.PublicKey) {
		return nil, errors.New("the key does not belong to the certificate")
	}
	var signed error
	issuer := slices.IndexFunc(roots, func(r *x509.Certificate) bool {
		err := leaf.CheckSignatureFrom(r)
		signed = cmp.Or(signed, err)
		return err == nil
	})
	if issuer < 0 {
		return nil, fmt.Errorf("the certificate is not signed by the CA: %w", signed)
	}
	ca := roots[issuer]
	roots = append([]*x509.Certificate{ca}, slices.Delete(roots, issuer, issuer+1)...)
	id, err := FromCertificate(leaf)
	if err != nil {
		return nil, err
	}
	m := &material{cert: tls.Certificate{Certificate: [][]byte{leaf.Raw, ca.Raw}, PrivateKey: key, Leaf: leaf}, roots: roots, id: id}
	for _, c := range chain {
		if !c.Equal(ca) {
			m.cert.Certificate = append(m.cert.Certificate, c.Raw)
		}
	}
	return m, nil
}
