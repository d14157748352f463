package vault

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/api"
	"skep.dev/libs/keys"
)

// A record is read before the ledger that was written with it. Nobody takes it for an altered one meanwhile.
func TestAGoodRecordIsNotTakenForAnAlteredOne(t *testing.T) {
	c := start(t)
	s := c.mustSecret(t, "k", []byte("1"))
	x := c.vault.idx
	x.mu.Lock()
	next := proto.CloneOf(x.objects.byID[s.Meta.Id].SecretRecord)
	next.Secret.Spec.Labels = map[string]string{"new": "one"}
	record, err := x.seal.sealMessage(keys.Object.Key(s.Meta.Id), next)
	if err != nil {
		t.Fatal(err)
	}
	ledger, err := x.seal.sealMessage(keys.Ledger.Key(), &skepv1.SecretLedger{Records: map[string][]byte{s.Meta.Id: sumOf(record)}})
	x.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	rev, err := c.vault.bucket.Put(ctx(t), keys.Object.Key(s.Meta.Id), record)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.vault.feed.Wait(ctx(t), rev); err != nil {
		t.Fatal(err)
	}
	answer := make(chan error, 1)
	go func() {
		r, err := api.Call(ctx(t), c.nc, api.SecretInspect, &skepv1.InspectSecretRequest{Ref: "k"})
		if err == nil && r.Secret.Spec.Labels["new"] != "one" {
			err = fmt.Errorf("it answers %v", r.Secret)
		}
		answer <- err
	}()
	select {
	case err := <-answer:
		t.Fatalf("answered between a record and its ledger: %v", err)
	case <-time.After(ledgerWithin / 10):
	}
	if _, err := c.vault.bucket.Put(ctx(t), keys.Ledger.Key(), ledger); err != nil {
		t.Fatal(err)
	}
	if err := <-answer; err != nil {
		t.Error(err)
	}
}

// A record that no vault wrote has no ledger: it is waited for once, and then refused.
func TestARecordWithoutALedgerIsRefused(t *testing.T) {
	c := start(t)
	s := c.mustSecret(t, "k", []byte("1"))
	key := "object." + s.Meta.Id
	old, err := c.vault.bucket.Get(ctx(t), key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.update(t, "k", 2, []byte("2")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.vault.bucket.Put(ctx(t), key, old.Value); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		began := time.Now()
		_, err := api.Call(ctx(t), c.nc, api.SecretInspect, &skepv1.InspectSecretRequest{Ref: "k"})
		if err == nil || !strings.Contains(err.Error(), "not the newest the vault wrote") {
			t.Fatalf("%v", err)
		}
		if took := time.Since(began); took > 2*ledgerWithin {
			t.Errorf("it took %s", took)
		}
	}
}
