package seal_test

import (
	"bytes"
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/id"
	"skep.dev/libs/pki"
	"skep.dev/libs/pki/pkitest"
	"skep.dev/libs/seal"
	pb "skep.dev/proto/skep/v1"
)

func key(t *testing.T, ca *pki.CA) (*seal.Key, *pb.VaultKey) {
	t.Helper()
	k, err := seal.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	pub, err := k.Public(ca)
	if err != nil {
		t.Fatal(err)
	}
	return k, pub
}

// A value comes out as it went in, for what it was sealed for and nothing else.
func TestToTheVault(t *testing.T) {
	ca := pkitest.NewCA(t)
	k, pub := key(t, ca)
	value := []byte("\xef\xbb\xbfa\x00b\r\n\xff\n")
	sealed, err := seal.ToVault(ca.Cert, pub, &pb.SealedValue{Kind: pb.SecretKind_SECRET_KIND_SECRET, Name: "db", Version: 2, Value: value})
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(sealed, value) || bytes.Contains(sealed, []byte("db")) {
		t.Error("it is in clear")
	}
	seed, err := k.Seed()
	if err != nil {
		t.Fatal(err)
	}
	if k, err = seal.ParseKey(seed); err != nil {
		t.Fatal(err)
	}
	if got, err := k.FromClient(sealed, pb.SecretKind_SECRET_KIND_SECRET, "db", 2); err != nil || !bytes.Equal(got, value) {
		t.Errorf("%q %v", got, err)
	}
	for what, open := range map[string]func() ([]byte, error){
		"another kind":    func() ([]byte, error) { return k.FromClient(sealed, pb.SecretKind_SECRET_KIND_CONFIG, "db", 2) },
		"another name":    func() ([]byte, error) { return k.FromClient(sealed, pb.SecretKind_SECRET_KIND_SECRET, "web", 2) },
		"another version": func() ([]byte, error) { return k.FromClient(sealed, pb.SecretKind_SECRET_KIND_SECRET, "db", 3) },
		"cut short":       func() ([]byte, error) { return k.FromClient(sealed[:57], pb.SecretKind_SECRET_KIND_SECRET, "db", 2) },
		"nothing":         func() ([]byte, error) { return k.FromClient(nil, pb.SecretKind_SECRET_KIND_SECRET, "db", 2) },
		"altered": func() ([]byte, error) {
			other := bytes.Clone(sealed)
			other[len(other)-1] ^= 1
			return k.FromClient(other, pb.SecretKind_SECRET_KIND_SECRET, "db", 2)
		},
		"another vault": func() ([]byte, error) {
			k, _ := key(t, ca)
			return k.FromClient(sealed, pb.SecretKind_SECRET_KIND_SECRET, "db", 2)
		},
	} {
		if got, err := open(); err == nil || got != nil {
			t.Errorf("%s: opened %q", what, got)
		} else if strings.Contains(err.Error(), string(value)) {
			t.Errorf("%s: the error has the value", what)
		}
	}
}

// Nobody's key passes for the vault's.
func TestAKeyNobodyVouchesFor(t *testing.T) {
	ca := pkitest.NewCA(t)
	_, good := key(t, ca)
	_, foreign := key(t, pkitest.NewCA(t))
	node := pkitest.Store(t, ca, pki.Identity{NodeID: id.New(), Role: pki.Worker}, time.Hour)
	swapped := proto.CloneOf(good)
	swapped.Xkey = foreign.Xkey
	byNode := proto.CloneOf(swapped)
	var err error
	if byNode.Signature, _, err = pki.SignStatement(node, "the vault's key", []byte(byNode.ClusterId+"\n"+byNode.Xkey)); err != nil {
		t.Fatal(err)
	}
	for what, k := range map[string]*pb.VaultKey{"another cluster's": foreign, "put in its place": swapped, "signed by a node": byNode, "none": nil, "unsigned": {Xkey: good.Xkey, ClusterId: good.ClusterId}} {
		if _, err := seal.ToVault(ca.Cert, k, &pb.SealedValue{}); !errors.Is(err, pki.ErrStatement) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// A delivery opens for whom it was asked by, from the vault alone, once.
func TestDelivery(t *testing.T) {
	ca := pkitest.NewCA(t)
	k, pub := key(t, ca)
	me, other := id.New(), id.New()
	node := pkitest.Store(t, ca, pki.Identity{NodeID: me, Role: pki.Worker}, time.Hour)
	r, err := seal.NewReader()
	if err != nil {
		t.Fatal(err)
	}
	ask := &pb.DeliverAsk{NodeId: me, Generation: 7, Reader: r.Key(), Tasks: []*pb.DeliverTask{{TaskId: "t"}}}
	req, err := seal.Ask(node, ask)
	if err != nil {
		t.Fatal(err)
	}
	got, who, err := seal.Asked([]*x509.Certificate{ca.Cert}, req)
	if err != nil || who.NodeID != me || !proto.Equal(got, ask) {
		t.Fatalf("%v %+v %v", got, who, err)
	}
	answer, err := k.To(got.Reader, &pb.Delivery{Ask: seal.Digest(req), Values: []*pb.DeliveredValue{{Value: []byte("s3cret")}}})
	if err != nil {
		t.Fatal(err)
	}
	var d pb.Delivery
	if err := r.Open(ca.Cert, pub, answer, &d); err != nil || string(d.Values[0].Value) != "s3cret" || !bytes.Equal(d.Ask, seal.Digest(req)) {
		t.Errorf("%v %v", &d, err)
	}

	// Who else asks, or asks for another.
	alter := func(f func(r *pb.DeliverRequest)) *pb.DeliverRequest {
		c := proto.CloneOf(req)
		f(c)
		return c
	}
	sign := func(src pki.Source, a *pb.DeliverAsk) *pb.DeliverRequest {
		out, err := seal.Ask(src, a)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	mine, err := seal.NewReader()
	if err != nil {
		t.Fatal(err)
	}
	stolen := proto.CloneOf(ask)
	stolen.Reader = mine.Key()
	text, err := proto.Marshal(stolen)
	if err != nil {
		t.Fatal(err)
	}
	cert := func(r *pb.DeliverRequest) []byte { return r.CertDer }
	liar := pkitest.Store(t, ca, pki.Identity{NodeID: other, Role: pki.Worker}, time.Hour)
	for what, bad := range map[string]*pb.DeliverRequest{
		"another reader":           alter(func(r *pb.DeliverRequest) { r.Ask = text }),
		"another's certificate":    alter(func(r *pb.DeliverRequest) { r.CertDer = cert(sign(liar, ask)) }),
		"another node asks for me": sign(liar, stolen),
		"another cluster's node":   sign(pkitest.Store(t, pkitest.NewCA(t), pki.Identity{NodeID: me, Role: pki.Worker}, time.Hour), stolen),
		"expired":                  sign(pkitest.Store(t, ca, pki.Identity{NodeID: me, Role: pki.Worker}, -time.Minute), stolen),
		"unsigned":                 alter(func(r *pb.DeliverRequest) { r.Signature = nil }),
		"no certificate":           alter(func(r *pb.DeliverRequest) { r.CertDer = nil }),
		"nothing":                  nil,
	} {
		if got, _, err := seal.Asked([]*x509.Certificate{ca.Cert}, bad); err == nil || got != nil {
			t.Errorf("%s: %v", what, got)
		}
	}

	// An answer for another request, or of somebody who is not the vault.
	if err := mine.Open(ca.Cert, pub, answer, &pb.Delivery{}); !errors.Is(err, seal.ErrOpen) {
		t.Errorf("an old delivery: %v", err)
	}
	fake, fakePub := key(t, pkitest.NewCA(t))
	forged, err := fake.To(r.Key(), &pb.Delivery{})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Open(ca.Cert, pub, forged, &pb.Delivery{}); !errors.Is(err, seal.ErrOpen) {
		t.Errorf("forged: %v", err)
	}
	if err := r.Open(ca.Cert, fakePub, forged, &pb.Delivery{}); !errors.Is(err, pki.ErrStatement) {
		t.Errorf("forged, with its key: %v", err)
	}
	r.Close()
	if err := r.Open(ca.Cert, pub, answer, &pb.Delivery{}); err == nil {
		t.Error("a closed reader reads")
	}
}
