package vault

import (
	"strings"
	"testing"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
)

// What a stack's deploy asks: a version only where the value is another one, without a roll; what would be; and, at its end,
// to have what it made back.
func TestSecretOfAStack(t *testing.T) {
	c := start(t)
	c.files.mu.Lock()
	c.files.roll = func(r *skepv1.RollSecretRequest) ([]string, error) {
		t.Errorf("held, and rolled: %v", r)
		return nil, nil
	}
	c.files.mu.Unlock()
	o := c.mustSecret(t, "blog_pw", []byte("one"))
	ask := func(value string, version uint64, set ...func(*skepv1.UpdateSecretRequest)) (*skepv1.SecretReply, error) {
		t.Helper()
		r := &skepv1.UpdateSecretRequest{Ref: "blog_pw", IfChanged: true, Hold: true, Sealed: c.sealed(t, aSecret, "blog_pw", version, []byte(value))}
		for _, f := range set {
			f(r)
		}
		return api.Call(ctx(t), c.nc, api.SecretUpdate, r)
	}
	dry := func(r *skepv1.UpdateSecretRequest) { r.DryRun = true }
	label := func(v string) func(*skepv1.UpdateSecretRequest) {
		return func(r *skepv1.UpdateSecretRequest) { r.LabelAdd = map[string]string{"a": v} }
	}
	values := func() int {
		t.Helper()
		keys, err := c.vault.values.Keys(ctx(t))
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for k := range keys {
			if strings.HasPrefix(k, o.Meta.Id) {
				n++
			}
		}
		return n
	}
	for _, x := range []struct {
		what      string
		value     string
		version   uint64
		set       []func(*skepv1.UpdateSecretRequest)
		unchanged bool
		newest    uint64
		stored    int
	}{
		{"the same", "one", 2, nil, true, 1, 1},
		{"the same, dry", "one", 2, []func(*skepv1.UpdateSecretRequest){dry}, true, 1, 1},
		{"another, dry", "two", 2, []func(*skepv1.UpdateSecretRequest){dry}, false, 2, 1},
		{"another", "two", 2, nil, false, 2, 2},
		{"that again", "two", 3, nil, true, 2, 2},
		{"a label", "two", 3, []func(*skepv1.UpdateSecretRequest){label("b")}, false, 2, 2},
		{"the label again", "two", 3, []func(*skepv1.UpdateSecretRequest){label("b")}, true, 2, 2},
		{"what it was before the last", "one", 3, nil, false, 3, 3},
		{"one letter less", "on", 4, []func(*skepv1.UpdateSecretRequest){dry}, false, 4, 3},
	} {
		r, err := ask(x.value, x.version, x.set...)
		if err != nil {
			t.Fatalf("%s: %v", x.what, err)
		}
		if v := r.Secret.Versions; r.Unchanged != x.unchanged || v[len(v)-1].Number != x.newest || values() != x.stored || len(r.Rolled) > 0 {
			t.Errorf("%s: %v, %d values", x.what, r, values())
		}
	}
	drop := func(r *skepv1.DropFileRequest) error {
		_, err := api.Call(ctx(t), c.nc, api.FilesDrop, r)
		return err
	}
	for _, bad := range []*skepv1.DropFileRequest{{}, {Kind: aSecret}, {Kind: skepv1.SecretKind_SECRET_KIND_REGISTRY, Id: o.Meta.Id}} {
		if err := drop(bad); !fault.Is(err, fault.CodeInvalid) {
			t.Errorf("%v: %v", bad, err)
		}
	}
	c.files.mu.Lock()
	c.files.uses = map[string][]*skepv1.SecretUse{o.Meta.Id: {{ServiceName: "other", Version: 1}}}
	c.files.mu.Unlock()
	mine := &skepv1.DropFileRequest{Kind: aSecret, Id: o.Meta.Id, Author: "user-ann", AuthorAddress: "10.0.0.7"}
	if err := drop(mine); err == nil || err.Error() != "secret 'blog_pw' is in use by the following service: other" {
		t.Fatal(err)
	}
	c.files.mu.Lock()
	c.files.uses = nil
	c.files.mu.Unlock()
	if err := drop(mine); err != nil {
		t.Fatal(err)
	}
	if by := c.vault.idx.objects.byID[o.Meta.Id].RemovedBy; by != "user-ann" {
		t.Errorf("removed by %s", by)
	}
	if err := drop(mine); !fault.Is(err, fault.CodeNotFound) {
		t.Fatal(err)
	}
}
