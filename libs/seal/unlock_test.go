package seal_test

import (
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

// The unlock key goes to the manager that was named and to nobody else, whoever carries it.
func TestDoor(t *testing.T) {
	ca, other := pkitest.NewCA(t), pkitest.NewCA(t)
	m := pkitest.Store(t, ca, pki.Identity{NodeID: id.New(), Role: pki.Manager}, time.Hour)
	m2 := pkitest.Store(t, ca, pki.Identity{NodeID: id.New(), Role: pki.Manager}, time.Hour)
	w := pkitest.Store(t, ca, pki.Identity{NodeID: id.New(), Role: pki.Worker}, time.Hour)
	stranger := pkitest.Store(t, other, pki.Identity{NodeID: m.Identity().NodeID, Role: pki.Manager}, time.Hour)
	open := func(s *pki.Store) *seal.Door {
		t.Helper()
		d, err := seal.NewDoor(s)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(d.Close)
		return d
	}
	node, door := m.Identity().NodeID, open(m)
	r, err := seal.ToDoor(ca.Cert, door.Public(), node, "the key")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(r.Sealed), "the key") {
		t.Error("it is in clear")
	}
	if text, err := door.Open(r); err != nil || text != "the key" {
		t.Errorf("%q, %v", text, err)
	}
	if _, err := open(m).Open(r); !errors.Is(err, seal.ErrOpen) {
		t.Errorf("after another start: %v", err)
	}
	for i := range r.Sealed {
		bad := proto.CloneOf(r)
		bad.Sealed[i] ^= 1
		if _, err := door.Open(bad); !errors.Is(err, seal.ErrOpen) {
			t.Fatalf("byte %d altered: %v", i, err)
		}
	}
	forged := func(change func(*pb.VaultDoor)) *pb.VaultDoor {
		d := door.Public()
		change(d)
		return d
	}
	for name, d := range map[string]*pb.VaultDoor{
		"another manager's":          open(m2).Public(),
		"a worker's":                 open(w).Public(),
		"another cluster's":          open(stranger).Public(),
		"another key":                forged(func(d *pb.VaultDoor) { d.Xkey = open(m2).Public().Xkey }),
		"another manager, renamed":   forged(func(d *pb.VaultDoor) { proto.Reset(d); proto.Merge(d, open(m2).Public()); d.NodeId = node }),
		"a worker, renamed":          forged(func(d *pb.VaultDoor) { d.CertDer = open(w).Public().CertDer }),
		"no signature":               forged(func(d *pb.VaultDoor) { d.Signature = nil }),
		"no certificate":             forged(func(d *pb.VaultDoor) { d.CertDer = nil }),
		"nothing":                    {},
		"said to be another cluster": forged(func(d *pb.VaultDoor) { d.ClusterId = "x" }),
	} {
		if _, err := seal.ToDoor(ca.Cert, d, node, "the key"); err == nil {
			t.Errorf("%s was sealed to", name)
		}
	}
}
