package seal_test

import (
	"bytes"
	"crypto/x509"
	"errors"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/id"
	"skep.dev/libs/pki"
	"skep.dev/libs/pki/pkitest"
	"skep.dev/libs/seal"
	pb "skep.dev/proto/skep/v1"
)

// The master key is for one manager, one question, one cluster.
func TestMasterKey(t *testing.T) {
	ca, other := pkitest.NewCA(t), pkitest.NewCA(t)
	roots := []*x509.Certificate{ca.Cert}
	k, public := key(t, ca)
	m := pkitest.Store(t, ca, pki.Identity{NodeID: id.New(), Role: pki.Manager}, time.Hour)
	ask, err := seal.AskMaster(m, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	defer ask.Close()
	said, who, err := seal.AskedMaster(roots, ask.Request)
	if err != nil || who.NodeID != m.Identity().NodeID || who.Role != pki.Manager || said.ClusterId != ca.ClusterID() || time.Since(said.AskedAt.AsTime()) > time.Minute {
		t.Fatalf("asked %v as %v: %v", said, who, err)
	}
	answer := func(k *seal.Key, public *pb.VaultKey, change func(*pb.MasterKey)) *pb.MasterReply {
		t.Helper()
		inner := &pb.MasterKey{Ask: seal.Digest(ask.Request), ClusterId: ca.ClusterID(), Master: []byte("the key")}
		change(inner)
		sealed, err := k.To(said.Reader, inner)
		if err != nil {
			t.Fatal(err)
		}
		return &pb.MasterReply{Key: public, Sealed: sealed}
	}
	same := func(*pb.MasterKey) {}
	got, err := ask.Open(roots, answer(k, public, same))
	if err != nil || !bytes.Equal(got.Master, []byte("the key")) {
		t.Fatalf("%v, %v", got, err)
	}

	// Answers that are refused.
	k2, public2 := key(t, other)
	if _, err := ask.Open(roots, answer(k2, public2, same)); !errors.Is(err, seal.ErrCluster) {
		t.Errorf("of another cluster's vault: %v", err)
	}
	forged := proto.CloneOf(public2)
	forged.ClusterId = ca.ClusterID()
	if _, err := ask.Open(roots, answer(k2, forged, same)); err == nil {
		t.Error("a vault that no root vouches for is believed")
	}
	if _, err := ask.Open(roots, answer(k, public, func(m *pb.MasterKey) { m.ClusterId = other.ClusterID() })); !errors.Is(err, seal.ErrCluster) {
		t.Errorf("another cluster's key: %v", err)
	}
	if _, err := ask.Open(roots, answer(k, public, func(m *pb.MasterKey) { m.Ask = []byte("another") })); err == nil {
		t.Error("an answer to another question opens")
	}

	// Questions that are refused.
	if _, _, err := seal.AskedMaster([]*x509.Certificate{other.Cert}, ask.Request); err == nil {
		t.Error("a manager of another cluster is believed")
	}
	changed := proto.CloneOf(ask.Request)
	said.NodeId = id.New()
	if changed.Ask, err = proto.Marshal(said); err != nil {
		t.Fatal(err)
	}
	if _, _, err := seal.AskedMaster(roots, changed); err == nil {
		t.Error("what was changed after it was signed is believed")
	}
	// What a manager signed to get values of secrets is no question for the master key, nor the other way round.
	deliver, err := seal.Ask(m, &pb.DeliverAsk{NodeId: m.Identity().NodeID, Reader: said.Reader})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := seal.AskedMaster(roots, deliver); !errors.Is(err, pki.ErrStatement) {
		t.Errorf("a question for values passes: %v", err)
	}
	if _, _, err := seal.Asked(roots, ask.Request); !errors.Is(err, pki.ErrStatement) {
		t.Errorf("a question for the master key passes for one for values: %v", err)
	}
}
