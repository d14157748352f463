package vault

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"skep.dev/libs/api"
	"skep.dev/libs/id"
	"skep.dev/libs/keys"
	"skep.dev/libs/pki"
	"skep.dev/libs/seal"
	"skep.dev/libs/spec"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

func login(user, password string) []byte {
	return fmt.Appendf(nil, `{"username":%q,"password":%q}`, user, password)
}

// registry gives the vault credentials.
func (c *cluster) registry(t testing.TB, host string, value []byte) (string, error) {
	t.Helper()
	r, err := api.Call(ctx(t), c.nc, api.RegistryCreate, &skepv1.CreateSecretRequest{Spec: &skepv1.SecretSpec{Name: host}, Sealed: c.sealed(t, registryKind, host, 1, value)})
	return r.GetSecret().GetMeta().GetId(), err
}

func (c *cluster) mustRegistry(t testing.TB, host string, value []byte) string {
	t.Helper()
	o, err := c.registry(t, host, value)
	if err != nil || !id.Valid(o) {
		t.Fatal(o, err)
	}
	return o
}

func TestRegistryCredentials(t *testing.T) {
	c := start(t)
	said := c.events(t)
	first := c.mustRegistry(t, "r.example.com:5000", login("me", "hunter2"))
	// The same again is the same; anything else is something else, also of the same registry.
	if again := c.mustRegistry(t, "r.example.com:5000", login("me", "hunter2")); again != first {
		t.Errorf("%s, then %s", first, again)
	}
	seen := map[string]bool{first: true}
	for host, value := range map[string][]byte{
		"r.example.com:5000": login("me", "hunter3"), "r.example.com": login("me", "hunter2"), "docker.io": login("me", "hunter2"), "[::1]:5000": []byte(`{"identitytoken":"t"}`),
	} {
		o := c.mustRegistry(t, host, value)
		if seen[o] {
			t.Errorf("%s: credentials of another registry, or another password", host)
		}
		seen[o] = true
	}
	for _, x := range []struct{ host, value, want string }{
		{"", `{}`, "invalid registry"},
		{"a b", `{}`, "invalid registry"},
		{"https://r.example.com/", string(login("me", "hunter2")), "invalid registry"},
		{strings.Repeat("a", 300), `{}`, "invalid registry"},
		{"r", "hunter2", "not what a client of this version sends"},
		{"r", `{}`, "neither a user with a password nor an identity token"},
		{"r", `{"username":"me"}`, "neither a user with a password nor an identity token"},
		{"r", `{"username":"me","password":"` + strings.Repeat("x", spec.MaxRegistry) + `"}`, "less than"},
	} {
		if o, err := c.registry(t, x.host, []byte(x.value)); err == nil || !strings.Contains(err.Error(), x.want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %s %v", x.host, o, err)
		}
	}
	// Labels would stand in clear.
	sealed := c.sealed(t, registryKind, "r", 1, login("me", "x"))
	if _, err := api.Call(ctx(t), c.nc, api.RegistryCreate, &skepv1.CreateSecretRequest{Spec: &skepv1.SecretSpec{Name: "r", Labels: map[string]string{"a": "b"}}, Sealed: sealed}); err == nil {
		t.Error("labels are taken")
	}
	// What was sealed for one registry is good for no other.
	if _, err := api.Call(ctx(t), c.nc, api.RegistryCreate, &skepv1.CreateSecretRequest{Spec: &skepv1.SecretSpec{Name: "evil.example.com"}, Sealed: sealed}); err == nil {
		t.Error("credentials were passed off as those of another registry")
	}
	// Nobody lists, shows, changes or removes them.
	for _, list := range []api.Endpoint[*skepv1.ListSecretsRequest, *skepv1.ListSecretsReply]{api.SecretList, api.ConfigList} {
		if r, err := api.Call(ctx(t), c.nc, list, &skepv1.ListSecretsRequest{}); err != nil || len(r.Secrets) != 0 {
			t.Errorf("%v %v", r, err)
		}
	}
	if r, err := api.Call(ctx(t), c.nc, api.SecretInspect, &skepv1.InspectSecretRequest{Ref: first}); err == nil {
		t.Errorf("%v", r)
	}
	if _, err := api.Call(ctx(t), c.nc, api.SecretRemove, &skepv1.RemoveSecretRequest{Ref: first, Force: true}); err == nil {
		t.Error("removed like a secret")
	}
	told := strings.Join(said(), "\n")
	if strings.Contains(told, "hunter") || strings.Contains(told, `"me"`) || strings.Count(told, ".registry."+first+".create") != 1 {
		t.Errorf("events:\n%s", told)
	}
}

func TestRegistryCredentialsAreDelivered(t *testing.T) {
	c := start(t)
	worker, manager := c.node(t, pki.Worker), c.node(t, pki.Manager)
	auth, other := c.mustRegistry(t, "r.example.com", login("me", "hunter2")), c.mustRegistry(t, "s.example.com", login("me", "hunter3"))
	secret := c.mustSecret(t, "s", []byte("v"))
	c.assign(worker, "t1", ref(secret, 1))
	c.files.mu.Lock()
	c.files.tasks[worker.Identity().NodeID][0].RegistryAuth = auth
	c.files.tasks[worker.Identity().NodeID] = append(c.files.tasks[worker.Identity().NodeID], &skepv1.TaskFiles{TaskId: "t2", RegistryAuth: id.New()}, &skepv1.TaskFiles{TaskId: "t3"})
	c.files.mu.Unlock()

	// Before the pull the credentials and nothing else, afterwards the files and nothing else.
	d, err := c.deliver(t, worker, &skepv1.DeliverTask{TaskId: "t1", Pull: true})
	if err != nil || len(d.Values) != 1 || d.Values[0].Name != "r.example.com" || !bytes.Equal(d.Values[0].Value, login("me", "hunter2")) || d.Tasks[0].RegistryAuth != auth || len(d.Tasks[0].Files) != 0 {
		t.Errorf("%v %v", d, err)
	}
	if d, err = c.deliver(t, worker, &skepv1.DeliverTask{TaskId: "t1"}); err != nil || len(d.Values) != 1 || d.Values[0].Name != "s" || d.Tasks[0].RegistryAuth != "" {
		t.Errorf("%v %v", d, err)
	}
	if d, err = c.deliver(t, worker, &skepv1.DeliverTask{TaskId: "t2", Pull: true}, &skepv1.DeliverTask{TaskId: "t3", Pull: true}); err != nil || len(d.Values) != 0 ||
		!strings.Contains(d.Tasks[0].Refused, "give them again with skep service update --with-registry-auth") || d.Tasks[1].Refused != "" {
		t.Errorf("%v %v", d, err)
	}
	// A manager may have any, to resolve images before there is a task; a worker those of its tasks alone.
	ask := func(n *pki.Store, ids ...string) (*skepv1.Delivery, error) {
		nc, err := nats.Connect("", nats.InProcessServer(c.server), nats.CustomInboxPrefix(subject.Inbox(n.Identity().NodeID)))
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		r, err := seal.NewReader()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		req, err := seal.Ask(n, &skepv1.DeliverAsk{NodeId: n.Identity().NodeID, Reader: r.Key(), RegistryAuth: ids})
		if err != nil {
			t.Fatal(err)
		}
		reply, err := api.Call(ctx(t), nc, api.VaultDeliver.At(n.Identity().NodeID), req)
		if err != nil {
			return nil, err
		}
		d := &skepv1.Delivery{}
		return d, r.Open(n.CA(), reply.Key, reply.Sealed, d)
	}
	if d, err := ask(worker, auth); err == nil || !strings.Contains(err.Error(), "it is no manager") {
		t.Errorf("%v %v", d, err)
	}
	// Not even by naming a secret's id is that a way to secrets.
	if d, err := ask(manager, other, secret.Meta.Id); err != nil || len(d.Values) != 1 || d.Values[0].Id != other || len(d.Tasks) != 2 || d.Tasks[1].Refused == "" {
		t.Errorf("%v %v", d, err)
	}

	for o, want := range map[string]bool{"": true, auth: true, id.New(): false, secret.Meta.Id: false} {
		if _, err := api.Call(ctx(t), c.nc, api.FilesResolve, &skepv1.ResolveFilesRequest{RegistryAuth: o}); (err == nil) != want {
			t.Errorf("%q: %v", o, err)
		}
	}
}

func TestRegistryCredentialsNobodyUsesGo(t *testing.T) {
	c := start(t)
	_ = c.vault.Close() // always nil
	var ahead atomic.Int64
	now := func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	c.vault = c.runVault(t, now)
	forward := func(d time.Duration) { ahead.Add(int64(d)) }
	used, idle, back := c.mustRegistry(t, "used", login("a", "b")), c.mustRegistry(t, "idle", login("a", "b")), c.mustRegistry(t, "back", login("a", "b"))
	c.files.mu.Lock()
	c.files.uses[used] = []*skepv1.SecretUse{{ServiceName: "old", Revisions: []uint64{1}}} // a revision it could go back to
	c.files.mu.Unlock()
	have := func(o string) (kept, marked bool) {
		c.vault.idx.mu.Lock()
		defer c.vault.idx.mu.Unlock()
		r := c.vault.idx.objects.byID[o]
		return r != nil, r != nil && r.RemovedAt != nil
	}
	await := func(what string, f func() bool) {
		t.Helper()
		for end := time.Now().Add(time.Minute); !f(); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("never: %s", what)
			}
		}
	}
	// Somebody gives them again just before: the time begins anew.
	forward(registryGrace - 30*time.Second)
	if again := c.mustRegistry(t, "back", login("a", "b")); again != back {
		t.Fatal(again)
	}
	forward(time.Minute)
	await("what nobody uses is marked", func() bool { _, m := have(idle); return m })
	for _, o := range []string{used, back} {
		if kept, marked := have(o); !kept || marked {
			t.Errorf("%s: kept %v, marked %v", o, kept, marked)
		}
	}
	// A service that was being made meanwhile has them all the same, and they come back.
	c.files.mu.Lock()
	c.files.uses[idle] = []*skepv1.SecretUse{{ServiceName: "late", Version: 1}}
	c.files.mu.Unlock()
	if _, err := api.Call(ctx(t), c.nc, api.FilesResolve, &skepv1.ResolveFilesRequest{RegistryAuth: idle}); err != nil {
		t.Error(err)
	}
	forward(keptRemoved + time.Second)
	await("they are back", func() bool { kept, m := have(idle); return kept && !m })
	c.files.mu.Lock()
	delete(c.files.uses, idle)
	c.files.mu.Unlock()
	forward(registryGrace + dropEvery)
	await("they are marked again", func() bool { _, m := have(idle); return m })
	// Giving them again brings them back at once, under the same id.
	if again := c.mustRegistry(t, "idle", login("a", "b")); again != idle {
		t.Errorf("%s, then %s", idle, again)
	}
	if kept, marked := have(idle); !kept || marked {
		t.Errorf("kept %v, marked %v", kept, marked)
	}
	c.vault.idx.mu.Lock()
	place := c.vault.idx.objects.byID[idle].Values[1]
	c.vault.idx.mu.Unlock()
	if _, err := c.vault.values.Read(ctx(t), place); err != nil {
		t.Fatal(err)
	}
	forward(registryGrace + dropEvery)
	await("they are marked", func() bool { _, m := have(idle); return m })
	forward(keptRemoved + time.Second)
	await("they are gone", func() bool { kept, _ := have(idle); return !kept })
	await("their value is gone too", func() bool { _, err := c.vault.values.Read(ctx(t), place); return err != nil })
	if kept, _ := have(used); !kept {
		t.Error("credentials of a kept revision are gone")
	}
}

// Many who give the same credentials at once get one object.
func TestSameCredentialsAtOnce(t *testing.T) {
	c := start(t)
	got := make(chan string, 20)
	for range cap(got) {
		req := &skepv1.CreateSecretRequest{Spec: &skepv1.SecretSpec{Name: "r"}, Sealed: c.sealed(t, registryKind, "r", 1, login("me", "x"))}
		go func() {
			r, err := api.Call(context.Background(), c.nc, api.RegistryCreate, req)
			if err != nil {
				got <- err.Error()
				return
			}
			got <- r.Secret.Meta.Id
		}()
	}
	first := <-got
	for range cap(got) - 1 {
		if o := <-got; o != first {
			t.Errorf("%s and %s", first, o)
		}
	}
	n := 0
	c.vault.idx.mu.Lock()
	for _, o := range c.vault.idx.objects.byID {
		if o.Secret.Kind == registryKind {
			n++
		}
	}
	c.vault.idx.mu.Unlock()
	if n != 1 {
		t.Errorf("%d objects", n)
	}
}

// Credentials whose record was altered in the store are not served, and stand in nobody's way.
func TestAlteredRegistryCredentials(t *testing.T) {
	c := start(t)
	o := c.mustRegistry(t, "r", login("me", "x"))
	key := keys.Object.Key(o)
	older, err := c.vault.bucket.Get(ctx(t), key)
	if err != nil {
		t.Fatal(err)
	}
	put := func(val []byte) {
		t.Helper()
		rev, err := c.vault.bucket.Put(ctx(t), key, val)
		if err == nil {
			err = c.vault.feed.Wait(ctx(t), rev)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	sealed, err := c.vault.idx.seal.sealMessage(key, c.vault.idx.objects.byID[o].SecretRecord) // the same, sealed another time: not the one the ledger knows
	if err != nil {
		t.Fatal(err)
	}
	for what, val := range map[string][]byte{"altered": append(bytes.Clone(older.Value), 1), "put back": sealed} {
		put(val)
		if got := c.mustRegistry(t, "r", login("me", "x")); got == o {
			t.Errorf("%s: the same credentials are served from what was altered", what)
		}
		if _, err := api.Call(ctx(t), c.nc, api.FilesResolve, &skepv1.ResolveFilesRequest{RegistryAuth: o}); err == nil {
			t.Errorf("%s: a service may refer to it", what)
		}
	}
	put(older.Value)
	if got := c.mustRegistry(t, "r", login("me", "x")); got != o {
		t.Errorf("%s, then %s", o, got)
	}
}
