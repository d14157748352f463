package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
)

// A statement is something other than a certificate that a certified key vouches for. Its purpose is signed with it, so
// that one cannot pass for another; and none can pass for a certificate, whose signed part begins with another byte.

func digestOf(purpose string, data []byte) []byte {
	h := sha256.New()
	fmt.Fprintf(h, "skep statement: %s\n", purpose)
	h.Write(data)
	return h.Sum(nil)
}

// SignStatement vouches for data with the CA's key.
func (ca *CA) SignStatement(purpose string, data []byte) ([]byte, error) {
	return signStatement(ca.key, purpose, data)
}

// SignStatement vouches for data with the key of the certificate in use, which it returns (DER).
func SignStatement(src Source, purpose string, data []byte) (signature, certificate []byte, err error) {
	c := src.Certificate()
	key, ok := c.PrivateKey.(crypto.Signer)
	if !ok || c.Leaf == nil {
		return nil, nil, errors.New("sign a statement: there is no certificate with a key")
	}
	signature, err = signStatement(key, purpose, data)
	return signature, c.Leaf.Raw, err
}

func signStatement(key crypto.Signer, purpose string, data []byte) ([]byte, error) {
	sig, err := key.Sign(rand.Reader, digestOf(purpose, data), crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("sign a statement: %w", err)
	}
	return sig, nil
}

// ErrStatement: the signature is not of that certificate's key, or of something else.
var ErrStatement = errors.New("the signature does not fit")

// CheckStatement reports whether the key of a certificate vouched for data. Whether the certificate is to be trusted is
// the caller's to know.
func CheckStatement(c *x509.Certificate, purpose string, data, signature []byte) error {
	key, ok := c.PublicKey.(*ecdsa.PublicKey)
	if !ok || !ecdsa.VerifyASN1(key, digestOf(purpose, data), signature) {
		return ErrStatement
	}
	return nil
}

// PurposeExchange: the key of a user's certificate asks for another in its place.
const PurposeExchange = "a certificate exchanged"
