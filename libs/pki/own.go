package pki

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"time"
)

// ReadOwnCA reads the files of a root of one's own, and refuses what ParseOwnCA does. A key that others could read is
// refused: it makes whoever has it a manager.
func ReadOwnCA(certFile, keyFile string) (cert, key []byte, err error) {
	if certFile == "" || keyFile == "" {
		return nil, nil, errors.New("a root of your own is a certificate and its key: give both --ca-cert and --ca-key")
	}
	if cert, err = os.ReadFile(certFile); err != nil {
		return nil, nil, fmt.Errorf("read --ca-cert: %w", err)
	}
	fi, err := os.Stat(keyFile)
	if err != nil {
		return nil, nil, fmt.Errorf("read --ca-key: %w", err)
	}
	if mode := fi.Mode(); mode.IsRegular() && mode.Perm()&0o077 != 0 {
		return nil, nil, fmt.Errorf("--ca-key: others can read %s (mode %04o): chmod 600 it", keyFile, mode.Perm())
	}
	if key, err = os.ReadFile(keyFile); err != nil {
		return nil, nil, fmt.Errorf("read --ca-key: %w", err)
	}
	if _, err = ParseOwnCA(cert, key, "trial"); err != nil {
		return nil, nil, err
	}
	return cert, key, nil
}

// ParseOwnCA reads a root of one's own and its key, and refuses what the cluster could not work with: it tries.
func ParseOwnCA(certText, keyText []byte, clusterID string) (*CA, error) {
	list, err := ParseCertificates(certText)
	if err != nil {
		return nil, fmt.Errorf("read the CA certificate: %w", err)
	}
	if len(list) > 1 {
		return nil, fmt.Errorf("read the CA certificate: there are %d certificates in the file; give the root alone", len(list))
	}
	cert := list[0]
	switch now := time.Now(); {
	case !cert.BasicConstraintsValid || !cert.IsCA:
		return nil, errors.New("the CA certificate is not one of an authority: it does not say CA:TRUE")
	case cert.KeyUsage != 0 && cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return nil, errors.New("the CA certificate may not sign certificates: its key usage lacks keyCertSign")
	case cert.CheckSignatureFrom(cert) != nil:
		return nil, errors.New("the CA certificate is not a root: another authority signed it; an intermediate authority is not supported")
	case now.After(cert.NotAfter):
		return nil, fmt.Errorf("the CA certificate expired on %s", cert.NotAfter.Format(time.RFC3339))
	case now.Before(cert.NotBefore):
		return nil, fmt.Errorf("the CA certificate is not valid before %s", cert.NotBefore.Format(time.RFC3339))
	}
	if b, _ := pem.Decode(keyText); b != nil && (b.Type == "ENCRYPTED PRIVATE KEY" || b.Headers["DEK-Info"] != "") {
		return nil, errors.New("the CA key is encrypted with a passphrase; give it decrypted (openssl pkey -in FILE -out FILE)")
	}
	key, err := parseKey(keyText)
	if err != nil {
		return nil, fmt.Errorf("read the CA key: %w; a root of your own has an ECDSA key (P-256, P-384 or P-521)", err)
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, errors.New("the CA key does not belong to the CA certificate")
	}
	ca := &CA{Cert: cert, key: key, cluster: clusterID}
	return ca, ca.try()
}

// try certifies a manager and checks it as others would: an authority may have constraints that only show then.
func (ca *CA) try() error {
	_, csr, err := NewKeyAndCSR()
	if err != nil {
		return err
	}
	text, err := ca.Sign(csr, Identity{NodeID: "trial", Role: Manager}, time.Hour)
	if err != nil {
		return err
	}
	leaf, err := ParseCertificate(text)
	if err != nil {
		return err
	}
	if err := verifyManager([]*x509.Certificate{leaf}, []*x509.Certificate{ca.Cert}, ca.cluster); err != nil {
		return fmt.Errorf("the CA certificate does not suit: a manager certified by it is refused: %w", err)
	}
	return nil
}
