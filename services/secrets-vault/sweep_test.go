package vault

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/kv"
)

// clock is one that a test moves.
type clock struct {
	mu sync.Mutex
	by time.Duration
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.by)
}

func (c *clock) forward(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.by += d
}

// Old versions go, with their values; those that a service may go back to stay, whatever their age.
func TestOldVersionsAreDropped(t *testing.T) {
	c := start(t)
	var at clock
	v := c.runVault(t, at.now)
	s := c.mustSecret(t, "k", []byte("version 1"))
	for n := uint64(2); n <= keptVersions+5; n++ {
		if _, err := c.update(t, "k", n, fmt.Append(nil, "version ", n)); err != nil {
			t.Fatal(err)
		}
	}
	// The newest has the value of one that is to go.
	back, err := api.Call(ctx(t), c.nc, api.SecretUpdate, &skepv1.UpdateSecretRequest{Ref: "k", RollbackTo: 2})
	if err != nil {
		t.Fatal(err)
	}
	uses := func(versions ...uint64) {
		c.files.mu.Lock()
		defer c.files.mu.Unlock()
		c.files.uses[s.Meta.Id] = []*skepv1.SecretUse{{ServiceName: "web", Versions: versions}}
	}
	uses(3)
	listed := func() (out []uint64) {
		t.Helper()
		r, err := api.Call(ctx(t), c.nc, api.SecretInspect, &skepv1.InspectSecretRequest{Ref: "k"})
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range r.Secret.Versions {
			out = append(out, v.Number)
		}
		return out
	}
	done := map[string]uint64{}
	v.trim(ctx(t), done)
	last := back.Secret.Versions[len(back.Secret.Versions)-1].Number
	want := []uint64{3}
	for n := last - keptVersions + 1; n <= last; n++ {
		want = append(want, n)
	}
	if got := listed(); !slices.Equal(got, want) {
		t.Fatalf("versions %v, want %v", got, want)
	}
	if _, err := api.Call(ctx(t), c.nc, api.SecretUpdate, &skepv1.UpdateSecretRequest{Ref: "k", RollbackTo: 4}); !fault.Is(err, fault.CodeNotFound) {
		t.Errorf("back to a dropped version: %v", err)
	}
	if _, err := api.Call(ctx(t), c.nc, api.FilesResolve, &skepv1.ResolveFilesRequest{Secrets: []*skepv1.FileReference{{Name: "k", Version: 4, Pinned: true}}}); err == nil || !strings.Contains(err.Error(), "has no version 4") {
		t.Errorf("a dropped version is given to a service: %v", err)
	}
	// A service that was being made turns out to refer to version 4.
	uses(3, 4)
	o := v.idx.objects.byID[s.Meta.Id]
	places := o.Values
	at.forward(2 * keptRemoved)
	v.trim(ctx(t), done)
	want = slices.Insert(want, 1, 4)
	if got := listed(); !slices.Equal(got, want) {
		t.Errorf("versions %v, want %v", got, want)
	}
	for n, place := range places {
		_, err := v.values.Read(ctx(t), place)
		// The value of version 2 is that of the newest.
		if gone := errors.Is(err, kv.ErrNotFound); gone != (n != 2 && !slices.Contains(want, n)) {
			t.Errorf("the value of version %d: %v", n, err)
		}
	}
}

// A value whose record was never written goes at the second look, those that are named stay.
func TestLeftOverValuesAreRemoved(t *testing.T) {
	c := start(t)
	s := c.mustSecret(t, "k", []byte("kept"))
	left := newPlace("0123456789abcdefghijklmno")
	if err := c.vault.putValue(ctx(t), left, []byte("of nobody")); err != nil {
		t.Fatal(err)
	}
	// What the vault itself noted at its start does not count here.
	first, err := c.vault.sweep(ctx(t), nil)
	if err != nil || len(first) != 1 || first[left] == 0 {
		t.Fatalf("%v %v", first, err)
	}
	if _, err := c.vault.values.Read(ctx(t), left); err != nil {
		t.Fatalf("gone at the first look: %v", err)
	}
	if _, err := c.vault.sweep(ctx(t), first); err != nil {
		t.Fatal(err)
	}
	if _, err := c.vault.values.Read(ctx(t), left); !errors.Is(err, kv.ErrNotFound) {
		t.Errorf("still there: %v", err)
	}
	o := c.vault.idx.objects.byID[s.Meta.Id]
	if value, err := c.vault.value(ctx(t), o, 1); err != nil || string(value) != "kept" {
		t.Errorf("%q %v", value, err)
	}
}

// While a record cannot be read, nobody knows which values it names: nothing is removed.
func TestNothingIsSweptWhileARecordIsUnreadable(t *testing.T) {
	c := start(t)
	s := c.mustSecret(t, "k", []byte("kept"))
	o := c.vault.idx.objects.byID[s.Meta.Id]
	place := o.Values[1]
	if _, err := c.vault.bucket.Put(ctx(t), "object."+s.Meta.Id, []byte("garbage")); err != nil {
		t.Fatal(err)
	}
	v := c.runVault(t, nil)
	var before map[string]uint64
	for range 3 {
		var err error
		if before, err = v.sweep(ctx(t), before); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := v.values.Read(ctx(t), place); err != nil {
		t.Errorf("the value of a record that cannot be read: %v", err)
	}
}
