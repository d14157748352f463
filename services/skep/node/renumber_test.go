package node

import (
	"context"
	"errors"
	"testing"
	"time"

	"go.uber.org/zap"

	"skep.dev/libs/fault"
)

// TestRenumber: a worker's addresses change and stay changed; a manager's do not.
func TestRenumber(t *testing.T) {
	p := Paths{Data: t.TempDir(), Run: t.TempDir()}
	rec := &Record{NodeID: "n", Role: RoleWorker, Advertise: "10.0.0.5", Managers: []string{"10.0.0.1:2377"}, Subnet: "100.64.2.0/23"}
	if err := rec.Save(p); err != nil {
		t.Fatal(err)
	}
	for _, s := range []struct{ advertise, dataPath, wantHost, wantUnderlay string }{
		{"", "", "10.0.0.5", "10.0.0.5"},
		{"10.0.0.9", "", "10.0.0.9", "10.0.0.9"},
		{"", "10.1.0.9", "10.0.0.9", "10.1.0.9"},
		{"lo", "lo", "127.0.0.1", "127.0.0.1"},
	} {
		var err error
		if rec, err = renumber(p, rec, s.advertise, s.dataPath, zap.NewNop()); err != nil {
			t.Fatal(err)
		}
		kept, err := Load(p)
		if err != nil || kept.Host() != s.wantHost || kept.Underlay() != s.wantUnderlay || rec.Host() != s.wantHost || kept.Subnet != rec.Subnet {
			t.Fatalf("%v: %+v %v", s, kept, err)
		}
	}
	for _, bad := range []string{"nosuchif", "0.0.0.0", "10.0.0.9:7000"} {
		if _, err := renumber(p, rec, bad, "", zap.NewNop()); fault.Of(err) != fault.CodeUsage {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if kept, err := Load(p); err != nil || kept.Host() != "127.0.0.1" {
		t.Errorf("what was refused changed the record: %+v %v", kept, err)
	}
}

// A manager keeps its port, and its listener follows where it was bound to the old address.
func TestRenumberAManager(t *testing.T) {
	for _, s := range []struct{ advertise, listen, flag, want, wantListen string }{
		{"10.0.0.1:2377", "0.0.0.0:2377", "10.0.0.2", "10.0.0.2:2377", "0.0.0.0:2377"},
		{"10.0.0.1:7000", "10.0.0.1:7000", "10.0.0.2", "10.0.0.2:7000", "10.0.0.2:7000"},
		{"10.0.0.1:2377", "10.0.0.9:2377", "10.0.0.2", "10.0.0.2:2377", "10.0.0.9:2377"}, // forwarded to another address here
		{"10.0.0.1:2377", "0.0.0.0:2377", "10.0.0.2:7000", "10.0.0.2:7000", "0.0.0.0:2377"},
		{"10.0.0.1:2377", "0.0.0.0:2377", "10.0.0.1", "10.0.0.1:2377", "0.0.0.0:2377"}, // now it was given
	} {
		p := Paths{Data: t.TempDir(), Run: t.TempDir()}
		rec := &Record{NodeID: "m", Role: RoleManager, Advertise: s.advertise, Listen: s.listen, AdvertiseFound: true}
		if err := rec.Save(p); err != nil {
			t.Fatal(err)
		}
		got, err := renumber(p, rec, s.flag, "", zap.NewNop())
		if err != nil || got.Advertise != s.want || got.Listen != s.wantListen || got.AdvertiseFound {
			t.Errorf("%v: %+v %v", s, got, err)
		}
	}
}

// A found address is found again once the machine has lost it; one that was given is kept, whatever the machine has.
func TestFindAddress(t *testing.T) {
	for _, s := range []struct {
		name, advertise, role string
		found                 bool
		managers              []string
		want                  string
	}{
		{"given and away", "192.0.2.1:2377", RoleManager, false, []string{"127.0.0.1:1"}, "192.0.2.1:2377"},
		{"found and here", "127.0.0.1:2377", RoleManager, true, nil, "127.0.0.1:2377"},
	} {
		p := Paths{Data: t.TempDir(), Run: t.TempDir()}
		rec := &Record{NodeID: "m", Role: s.role, Advertise: s.advertise, AdvertiseFound: s.found, Managers: s.managers}
		if err := rec.Save(p); err != nil {
			t.Fatal(err)
		}
		got, err := findAddress(t.Context(), p, rec, 0, zap.NewNop())
		if err != nil || got.Advertise != s.want {
			t.Errorf("%s: %+v %v", s.name, got, err)
		}
	}
	// Nothing but its old address comes: it waits until it is told to end, and changes nothing.
	p := Paths{Data: t.TempDir(), Run: t.TempDir()}
	rec := &Record{NodeID: "m", Role: RoleWorker, Advertise: "192.0.2.1", AdvertiseFound: true, Managers: []string{"127.0.0.1:1"}}
	if err := rec.Save(p); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := findAddress(ctx, p, rec, time.Hour, zap.NewNop()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waits: %v", err)
	}
	if kept, err := Load(p); err != nil || kept.Advertise != "192.0.2.1" {
		t.Errorf("%+v %v", kept, err)
	}
}
