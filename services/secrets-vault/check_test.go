package vault

import (
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	"skep.dev/libs/pki"
)

func TestAudit(t *testing.T) {
	c := start(t)
	var at clock
	v := c.runVault(t, at.now) // of two, which answer alike but for what their sweeps found
	audit := func() *skepv1.VaultCheckReply {
		t.Helper()
		r, err := v.check(ctx(t), &skepv1.Empty{})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	ca, err := pki.ParseCertificate(c.boot.CA)
	if err != nil {
		t.Fatal(err)
	}
	r, err := api.Call(ctx(t), c.nc, api.VaultCheck, &skepv1.Empty{})
	if err != nil {
		t.Fatal(err)
	}
	if r.CaUntilUnixMs != ca.NotAfter.UnixMilli() || r.CaFromUnixMs != ca.NotBefore.UnixMilli() {
		t.Errorf("the CA: %v", r)
	}
	if len(r.Unused)+len(r.Altered) > 0 || r.LeftOver > 0 || r.UsesError != "" {
		t.Errorf("of an empty vault: %v", r)
	}

	used, old, spare := c.mustSecret(t, "used", []byte("v")), c.mustSecret(t, "old", []byte("v")), c.mustSecret(t, "spare", []byte("v"))
	c.files.mu.Lock()
	c.files.uses[used.Meta.Id] = []*skepv1.SecretUse{{ServiceName: "web", Version: 1}}
	c.files.uses[old.Meta.Id] = []*skepv1.SecretUse{{ServiceName: "web", Revisions: []uint64{1}}} // it could be gone back to
	c.files.mu.Unlock()
	r = audit()
	if len(r.Unused) != 1 || r.Unused[0].Id != spare.Meta.Id || r.Unused[0].Name != "spare" || r.Unused[0].Kind != aSecret {
		t.Errorf("unused: %v", r.Unused)
	}

	// A value of nobody is told once a sweep has met it, until it is gone.
	place := newPlace("0123456789abcdefghijklmno")
	if err := v.putValue(ctx(t), place, []byte("of nobody")); err != nil {
		t.Fatal(err)
	}
	if r := audit(); r.LeftOver != 0 {
		t.Errorf("%d values before the sweep", r.LeftOver)
	}
	met, err := v.sweep(ctx(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	v.left.note(met)
	if r := audit(); r.LeftOver != 1 {
		t.Errorf("%d values left over, want 1", r.LeftOver)
	}
	if _, err := v.sweep(ctx(t), met); err != nil {
		t.Fatal(err)
	}
	if r := audit(); r.LeftOver != 0 {
		t.Errorf("%d values left over after they went", r.LeftOver)
	}

	// Records that are not what the vault wrote last.
	for _, s := range []*skepv1.Secret{used, spare} {
		key := keys.Object.Key(s.Meta.Id)
		e, err := v.bucket.Get(ctx(t), key)
		if err != nil {
			t.Fatal(err)
		}
		val := e.Value
		if s == spare {
			val = []byte("garbage")
		} else if _, err := c.update(t, "used", 2, []byte("w")); err != nil {
			t.Fatal(err)
		}
		if _, err := v.bucket.Put(ctx(t), key, val); err != nil {
			t.Fatal(err)
		}
	}
	if r, want := audit(), []string{"object " + spare.Meta.Id, "secret used"}; !slices.Equal(r.Altered, want) {
		t.Errorf("altered: %v, want %v", r.Altered, want)
	}
}

// TestUnusedRegistries: credentials wait a while for the service they were made for.
func TestUnusedRegistries(t *testing.T) {
	c := start(t)
	var at clock
	v := c.runVault(t, at.now)
	o := &object{SecretRecord: &skepv1.SecretRecord{Secret: &skepv1.Secret{Kind: skepv1.SecretKind_SECRET_KIND_REGISTRY, Meta: &skepv1.Meta{}}}}
	o.Secret.Meta.UpdatedAt = timestamppb.New(at.now())
	if !v.awaited(o) {
		t.Error("told at once")
	}
	at.forward(registryAwaited + time.Second)
	if v.awaited(o) {
		t.Error("never told")
	}
}

// TestAuditWithoutState: what does not need state is told all the same.
func TestAuditWithoutState(t *testing.T) {
	c := start(t)
	c.mustSecret(t, "spare", []byte("v"))
	c.files.mu.Lock()
	c.files.usesErr = fault.Unavailable("not now")
	c.files.mu.Unlock()
	r, err := api.Call(ctx(t), c.nc, api.VaultCheck, &skepv1.Empty{})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(r.UsesError, "0 of 1") || !strings.Contains(r.UsesError, "not now") || len(r.Unused) > 0 || r.CaUntilUnixMs == 0 {
		t.Errorf("%v", r)
	}
}
