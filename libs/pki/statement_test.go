package pki_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"testing"
	"time"

	"skep.dev/libs/pki"
	"skep.dev/libs/pki/pkitest"
)

func TestStatements(t *testing.T) {
	ca, other := pkitest.NewCA(t), pkitest.NewCA(t)
	node := pkitest.Store(t, ca, pki.Identity{NodeID: "nodenodenodenodenodenode1", Role: pki.Worker}, time.Hour)
	data := []byte("what is said")
	sig, err := ca.SignStatement("a key", data)
	if err != nil {
		t.Fatal(err)
	}
	if err := pki.CheckStatement(ca.Cert, "a key", data, sig); err != nil {
		t.Errorf("its own: %v", err)
	}
	for what, err := range map[string]error{
		"another purpose":           pki.CheckStatement(ca.Cert, "a delivery", data, sig),
		"no purpose":                pki.CheckStatement(ca.Cert, "", data, sig),
		"data moved into purpose":   pki.CheckStatement(ca.Cert, "a key\nwhat", []byte(" is said"), sig),
		"another's key":             pki.CheckStatement(other.Cert, "a key", data, sig),
		"a node's key":              pki.CheckStatement(node.Leaf(), "a key", data, sig),
		"other data":                pki.CheckStatement(ca.Cert, "a key", append(bytes.Clone(data), 0), sig),
		"no data":                   pki.CheckStatement(ca.Cert, "a key", nil, sig),
		"no signature":              pki.CheckStatement(ca.Cert, "a key", data, nil),
		"half a signature":          pki.CheckStatement(ca.Cert, "a key", data, sig[:len(sig)/2]),
		"more than a signature":     pki.CheckStatement(ca.Cert, "a key", data, append(bytes.Clone(sig), 0)),
		"a certificate's signature": pki.CheckStatement(ca.Cert, "a key", node.Leaf().RawTBSCertificate, node.Leaf().Signature),
		"a certificate, no purpose": pki.CheckStatement(ca.Cert, "", node.Leaf().RawTBSCertificate, node.Leaf().Signature),
	} {
		if !errors.Is(err, pki.ErrStatement) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for i := range sig {
		bad := bytes.Clone(sig)
		bad[i] ^= 1
		if pki.CheckStatement(ca.Cert, "a key", data, bad) == nil {
			t.Errorf("byte %d of the signature is of no matter", i)
		}
	}
	// By a certificate in use.
	sig, der, err := pki.SignStatement(node, "a delivery", data)
	if err != nil || !bytes.Equal(der, node.Leaf().Raw) {
		t.Fatalf("sign: %v", err)
	}
	if err := pki.CheckStatement(node.Leaf(), "a delivery", data, sig); err != nil {
		t.Errorf("its own: %v", err)
	}
	if err := pki.CheckStatement(ca.Cert, "a delivery", data, sig); !errors.Is(err, pki.ErrStatement) {
		t.Errorf("a node's word for the CA's: %v", err)
	}
	if _, _, err := pki.SignStatement(keyless{node}, "a delivery", data); err == nil {
		t.Error("signed without a key")
	}
}

// keyless is a credential without its private key.
type keyless struct{ *pki.Store }

func (keyless) Certificate() *tls.Certificate { return &tls.Certificate{} }
