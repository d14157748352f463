package vault

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/id"
	"skep.dev/libs/rpc"
)

// What is asked again under the id of its request, since the answer was lost, was made once.
func TestAskedAgain(t *testing.T) {
	c := start(t)
	ask := func(request string, again bool) context.Context {
		return rpc.WithRequest(ctx(t), rpc.Request{ID: request, Again: again})
	}
	for kind, e := range map[skepv1.SecretKind]struct {
		create api.Endpoint[*skepv1.CreateSecretRequest, *skepv1.SecretReply]
		update api.Endpoint[*skepv1.UpdateSecretRequest, *skepv1.SecretReply]
		remove api.Endpoint[*skepv1.RemoveSecretRequest, *skepv1.RemoveSecretReply]
	}{
		aSecret: {api.SecretCreate, api.SecretUpdate, api.SecretRemove},
		aConfig: {api.ConfigCreate, api.ConfigUpdate, api.ConfigRemove},
	} {
		one, two, three := id.New(), id.New(), id.New()
		create := &skepv1.CreateSecretRequest{Spec: &skepv1.SecretSpec{Name: "db"}, Sealed: c.sealed(t, kind, "db", 1, []byte("a"))}
		made, err := api.Call(ask(one, false), c.nc, e.create, create)
		if err != nil {
			t.Fatal(err)
		}
		twice, err := api.Call(ask(one, true), c.nc, e.create, create)
		if err != nil || !proto.Equal(made.Secret, twice.Secret) {
			t.Errorf("created again: %v, %v; it was %v", twice, err, made)
		}
		if _, err := api.Call(ask(id.New(), true), c.nc, e.create, create); !fault.Is(err, fault.CodeConflict) {
			t.Errorf("another request for the name: %v", err)
		}

		update := &skepv1.UpdateSecretRequest{Ref: made.Secret.Meta.Id, Sealed: c.sealed(t, kind, "db", 2, []byte("b"))}
		if _, err := api.Call(ask(two, false), c.nc, e.update, update); err != nil {
			t.Fatal(err)
		}
		again, err := api.Call(ask(two, true), c.nc, e.update, update)
		if err != nil || len(again.Secret.Versions) != 2 {
			t.Errorf("updated again: %v, %v", again, err)
		}
		// A rollback names no version: made twice, it would be refused.
		back := &skepv1.UpdateSecretRequest{Ref: made.Secret.Meta.Id, RollbackTo: 1}
		for i, request := range []string{three, three} {
			r, err := api.Call(ask(request, i > 0), c.nc, e.update, back)
			if err != nil || len(r.Secret.Versions) != 3 {
				t.Errorf("rolled back: %v, %v", r, err)
			}
		}

		gone := id.New()
		remove := &skepv1.RemoveSecretRequest{Ref: made.Secret.Meta.Id}
		if _, err := api.Call(ask(gone, false), c.nc, e.remove, remove); err != nil {
			t.Fatal(err)
		}
		other, err := api.Call(ask(id.New(), false), c.nc, e.create, create)
		if err != nil {
			t.Fatal(err)
		}
		if r, err := api.Call(ask(gone, true), c.nc, e.remove, remove); err != nil || r.Secret.Meta.Id != made.Secret.Meta.Id {
			t.Errorf("removed again: %v, %v", r, err)
		}
		if _, err := api.Call(ask(one, true), c.nc, e.create, create); !fault.Is(err, fault.CodeNotFound) || !strings.Contains(err.Error(), "removed since") {
			t.Errorf("what was removed came back: %v", err)
		}
		if _, err := api.Call(ask(id.New(), true), c.nc, e.remove, &skepv1.RemoveSecretRequest{Ref: "nobody"}); !fault.Is(err, fault.CodeNotFound) {
			t.Errorf("a name that nobody has: %v", err)
		}
		c.vault.idx.mu.Lock()
		stays := c.vault.idx.objects.byID[other.Secret.Meta.Id]
		c.vault.idx.mu.Unlock()
		if stays == nil || stays.RemovedAt != nil {
			t.Error("the one that has the name now was removed")
		}
	}
}
