package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"strings"
)

// NewKeyAndCSR makes a node's private key (PEM) and the request (DER) that asks to certify it.
func NewKeyAndCSR() (key, csr []byte, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a private key: %w", err)
	}
	csr, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "skep"}}, k)
	if err != nil {
		return nil, nil, fmt.Errorf("make a certificate request: %w", err)
	}
	key, err = keyPEM(k)
	return key, csr, err
}

// ParseCSR reads a certificate request and checks that its sender holds the key.
func ParseCSR(der []byte) (*x509.CertificateRequest, error) {
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("read the certificate request: %w", err)
	}
	// First, so that nobody has us compute with a key of his choice.
	if k, ok := csr.PublicKey.(*ecdsa.PublicKey); !ok || k.Curve != elliptic.P256() {
		return nil, errors.New("check the certificate request: its key is not ECDSA P-256")
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("check the certificate request: %w", err)
	}
	return csr, nil
}

// NodeIDFor derives the id of a joining node from its public key: a request sent twice, because the first answer was
// lost, names the same node instead of leaving a ghost; and nobody can choose the id of another node.
func NodeIDFor(csr *x509.CertificateRequest) string {
	sum := sha256.Sum256(csr.RawSubjectPublicKeyInfo)
	s := new(big.Int).SetBytes(sum[:]).Text(36)
	if len(s) < secretLen {
		s = strings.Repeat("0", secretLen-len(s)) + s
	}
	return s[len(s)-secretLen:]
}

// ParseCertificate reads the first certificate of a PEM text.
func ParseCertificate(text []byte) (*x509.Certificate, error) {
	b, _ := pem.Decode(text)
	if b == nil || b.Type != "CERTIFICATE" {
		return nil, errors.New("there is no PEM certificate in it")
	}
	return x509.ParseCertificate(b.Bytes)
}

func parseKey(text []byte) (*ecdsa.PrivateKey, error) {
	b, rest := pem.Decode(text)
	if b == nil {
		return nil, errors.New("there is no PEM private key in it")
	}
	if b.Type == "EC PARAMETERS" { // openssl ecparam -genkey writes them before the key
		return parseKey(rest)
	}
	if b.Type == "EC PRIVATE KEY" {
		return x509.ParseECPrivateKey(b.Bytes)
	}
	k, err := x509.ParsePKCS8PrivateKey(b.Bytes)
	if err != nil {
		return nil, err
	}
	ec, ok := k.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("it holds a %T, not an ECDSA key", k)
	}
	return ec, nil
}

func keyPEM(k *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, fmt.Errorf("encode a private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}
