package node

import (
	"testing"

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
		if _, err := renumber(p, rec, bad, "", zap.NewNop()); fault.Of(err) != fault.CodeInvalid {
			t.Errorf("%s: %v", bad, err)
		}
	}
	boss := &Record{NodeID: "m", Role: RoleManager, Advertise: "10.0.0.1:2377"}
	if _, err := renumber(p, boss, "10.0.0.2", "", zap.NewNop()); fault.Of(err) != fault.CodeConflict {
		t.Errorf("a manager: %v", err)
	}
	if _, err := renumber(p, boss, "10.0.0.1", "", zap.NewNop()); err != nil {
		t.Errorf("a manager that stays: %v", err)
	}
	if kept, err := Load(p); err != nil || kept.Host() != "127.0.0.1" {
		t.Errorf("what was refused changed the record: %+v %v", kept, err)
	}
}
