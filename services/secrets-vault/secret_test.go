package vault

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/pki"
	"skep.dev/libs/seal"
	"skep.dev/libs/spec"
	"skep.dev/libs/subject"
)

const (
	aSecret = skepv1.SecretKind_SECRET_KIND_SECRET
	aConfig = skepv1.SecretKind_SECRET_KIND_CONFIG
)

// files is the part of state that knows what services and tasks refer to.
type files struct {
	mu      sync.Mutex
	uses    map[string][]*skepv1.SecretUse
	usesErr error
	tasks   map[string][]*skepv1.TaskFiles // by node
	roll    func(*skepv1.RollSecretRequest) ([]string, error)
}

func (c *cluster) sealed(t testing.TB, kind skepv1.SecretKind, name string, version uint64, value []byte) []byte {
	t.Helper()
	k, err := api.Call(ctx(t), c.nc, api.VaultKey, &skepv1.Empty{})
	if err != nil {
		t.Fatal(err)
	}
	ca, err := pki.ParseCertificate(c.boot.CA)
	if err != nil {
		t.Fatal(err)
	}
	out, err := seal.ToVault(ca, k, &skepv1.SealedValue{Kind: kind, Name: name, Version: version, Value: value})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (c *cluster) secret(t testing.TB, name string, value []byte) (*skepv1.Secret, error) {
	t.Helper()
	r, err := api.Call(ctx(t), c.nc, api.SecretCreate, &skepv1.CreateSecretRequest{Spec: &skepv1.SecretSpec{Name: name}, Sealed: c.sealed(t, aSecret, name, 1, value)})
	return r.GetSecret(), err
}

func (c *cluster) mustSecret(t testing.TB, name string, value []byte) *skepv1.Secret {
	t.Helper()
	s, err := c.secret(t, name, value)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (c *cluster) update(t testing.TB, name string, version uint64, value []byte) (*skepv1.SecretReply, error) {
	t.Helper()
	return api.Call(ctx(t), c.nc, api.SecretUpdate, &skepv1.UpdateSecretRequest{Ref: name, Sealed: c.sealed(t, aSecret, name, version, value)})
}

// node is one with a certificate of the cluster.
func (c *cluster) node(t testing.TB, role pki.Role) *pki.Store {
	t.Helper()
	key, csr, err := pki.NewKeyAndCSR()
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := pki.ParseCSR(csr)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := c.vault.idx.authority().Sign(csr, pki.Identity{NodeID: pki.NodeIDFor(parsed), Role: role}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	s, err := pki.Memory(cert, key, c.boot.CA)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// deliver asks as a node does until there is no more.
func (c *cluster) deliver(t testing.TB, n *pki.Store, tasks ...*skepv1.DeliverTask) (*skepv1.Delivery, error) {
	t.Helper()
	// Answers go to the node's own inbox.
	nc, err := nats.Connect("", nats.InProcessServer(c.server), nats.CustomInboxPrefix(subject.Inbox(n.Identity().NodeID)))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	all := &skepv1.Delivery{}
	for {
		r, err := seal.NewReader()
		if err != nil {
			t.Fatal(err)
		}
		req, err := seal.Ask(n, &skepv1.DeliverAsk{NodeId: n.Identity().NodeID, Generation: 7, Reader: r.Key(), Tasks: tasks})
		if err != nil {
			t.Fatal(err)
		}
		reply, err := api.Call(ctx(t), nc, api.VaultDeliver.At(n.Identity().NodeID), req)
		if err != nil {
			return nil, err
		}
		if size := proto.Size(reply); size > 1<<20 {
			t.Errorf("a delivery of %d bytes", size)
		}
		d := &skepv1.Delivery{}
		if err := r.Open(n.CA(), reply.Key, reply.Sealed, d); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(d.Ask, seal.Digest(req)) {
			t.Error("the delivery is of another request")
		}
		all.Tasks, all.Values = append(all.Tasks, d.Tasks...), append(all.Values, d.Values...)
		if !d.More {
			return all, nil
		}
		for _, t := range tasks {
			t.Held = nil
			for _, v := range all.Values {
				t.Held = append(t.Held, &skepv1.HeldFile{Id: v.Id, Version: v.Version})
			}
		}
	}
}

func (c *cluster) assign(n *pki.Store, task string, secrets ...*skepv1.FileReference) {
	c.files.mu.Lock()
	defer c.files.mu.Unlock()
	id := n.Identity().NodeID
	c.files.tasks[id] = append(c.files.tasks[id], &skepv1.TaskFiles{TaskId: task, ServiceName: "web", Secrets: secrets})
}

func ref(s *skepv1.Secret, version uint64) *skepv1.FileReference {
	return &skepv1.FileReference{Id: s.Meta.Id, Name: s.Spec.Name, Version: version}
}

// events collects what is published until the test ends.
func (c *cluster) events(t testing.TB) func() []string {
	t.Helper()
	var mu sync.Mutex
	var got []string
	sub, err := c.nc.Subscribe(subject.AllEvents, func(m *nats.Msg) {
		mu.Lock()
		got = append(got, m.Subject+" "+string(m.Data))
		mu.Unlock()
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sub.Unsubscribe() })
	return func() []string {
		if err := c.nc.Flush(); err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(got)
	}
}

func TestSecrets(t *testing.T) {
	c := start(t)
	said := c.events(t)
	value := []byte("hunter2\x00\r\n")
	s := c.mustSecret(t, "db.password", value)
	if s.Spec.Name != "db.password" || len(s.Versions) != 1 || s.Versions[0].Size != 10 || s.Meta.Version == 0 {
		t.Errorf("%v", s)
	}
	for name, want := range map[string]string{
		"db.password": "secret db.password already exists", "DB.Password": "secret db.password already exists",
		"": "invalid name", "-a": "invalid name", "a b": "invalid name", "a/b": "invalid name", strings.Repeat("a", 65): "invalid name",
	} {
		if _, err := c.secret(t, name, value); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if _, err := c.secret(t, "full", bytes.Repeat([]byte{0}, spec.MaxSecret-1)); err != nil {
		t.Error(err)
	}
	for _, bad := range [][]byte{{}, bytes.Repeat([]byte{1}, spec.MaxSecret), bytes.Repeat([]byte{1}, spec.MaxSecret+1)} {
		if _, err := c.secret(t, "bad", bad); err == nil || !strings.Contains(err.Error(), "secret data must be larger than 0 and less than 512000 bytes") {
			t.Errorf("%d bytes: %v", len(bad), err)
		}
	}
	// Sealed for another name, or another kind: of no use.
	for what, sealed := range map[string][]byte{
		"another name": c.sealed(t, aSecret, "other", 1, value), "a config": c.sealed(t, aConfig, "new", 1, value), "version 2": c.sealed(t, aSecret, "new", 2, value),
		"in clear": value, "nothing": nil,
	} {
		if _, err := api.Call(ctx(t), c.nc, api.SecretCreate, &skepv1.CreateSecretRequest{Spec: &skepv1.SecretSpec{Name: "new"}, Sealed: sealed}); !fault.Is(err, fault.CodeInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}

	// Versions.
	r, err := c.update(t, "db.password", 2, []byte("two"))
	if err != nil || len(r.Secret.Versions) != 2 || r.Secret.Versions[1].Number != 2 {
		t.Fatalf("%v %v", r, err)
	}
	if _, err := c.update(t, "db.password", 2, []byte("again")); err == nil || !strings.Contains(err.Error(), "sealed for version 2 of db.password, not for version 3") {
		t.Errorf("version 2 again: %v", err)
	}
	r, err = api.Call(ctx(t), c.nc, api.SecretUpdate, &skepv1.UpdateSecretRequest{Ref: s.Meta.Id[:10], RollbackTo: 1, LabelAdd: map[string]string{"a": "b"}})
	if err != nil || len(r.Secret.Versions) != 3 || r.Secret.Versions[2].RollbackTo != 1 || r.Secret.Spec.Labels["a"] != "b" {
		t.Fatalf("%v %v", r, err)
	}
	for _, bad := range []*skepv1.UpdateSecretRequest{{Ref: "db.password", RollbackTo: 3}, {Ref: "db.password", RollbackTo: 9}, {Ref: "none", RollbackTo: 1}, {Ref: "db.password", LabelRm: []string{"x"}}, {Ref: "db.password", Version: 1, RollbackTo: 1}} {
		if _, err := api.Call(ctx(t), c.nc, api.SecretUpdate, bad); err == nil {
			t.Errorf("%v: done", bad)
		}
	}

	// To a node that has a task with it, and nobody else.
	n, other := c.node(t, pki.Worker), c.node(t, pki.Worker)
	c.assign(n, "t1", ref(s, 1), ref(s, 2))
	c.assign(n, "t2", ref(s, 3))
	d, err := c.deliver(t, n, &skepv1.DeliverTask{TaskId: "t1"}, &skepv1.DeliverTask{TaskId: "t2"})
	if err != nil || len(d.Values) != 3 || !bytes.Equal(d.Values[0].Value, value) || string(d.Values[1].Value) != "two" || !bytes.Equal(d.Values[2].Value, value) {
		t.Fatalf("%v %v", d, err)
	}
	d, err = c.deliver(t, n, &skepv1.DeliverTask{TaskId: "t1", Held: []*skepv1.HeldFile{{Id: s.Meta.Id, Version: 2}}})
	if err != nil || len(d.Values) != 1 || d.Values[0].Version != 1 {
		t.Errorf("%v %v", d, err)
	}
	d, err = c.deliver(t, other, &skepv1.DeliverTask{TaskId: "t1"})
	if err != nil || len(d.Values) != 0 || !strings.Contains(d.Tasks[0].Refused, "no such task on this node") {
		t.Errorf("to another node: %v %v", d, err)
	}

	// Read by nobody.
	if _, err := api.Call(ctx(t), c.nc, api.SecretInspect, &skepv1.InspectSecretRequest{Ref: "db.password", Reader: "X"}); !fault.Is(err, fault.CodeDenied) {
		t.Errorf("read: %v", err)
	}
	list, err := api.Call(ctx(t), c.nc, api.SecretList, &skepv1.ListSecretsRequest{Filters: []*skepv1.Filter{{Key: "name", Values: []string{"db"}}}})
	if err != nil || len(list.Secrets) != 1 {
		t.Errorf("%v %v", list, err)
	}
	all := strings.Join(said(), "\n")
	for _, want := range []string{".create", ".update", ".deliver", "rollback.to"} {
		if !strings.Contains(all, want) {
			t.Errorf("no event has %s:\n%s", want, all)
		}
	}
	if strings.Contains(all, "hunter2") {
		t.Error("an event has the value")
	}
	if n := strings.Count(all, ".deliver "); n != 4 {
		t.Errorf("%d deliveries are told of, want 4", n)
	}
}

func TestSecretInUse(t *testing.T) {
	c := start(t)
	s := c.mustSecret(t, "key", []byte("k"))
	rm := func(force bool) (*skepv1.RemoveSecretReply, error) {
		return api.Call(ctx(t), c.nc, api.SecretRemove, &skepv1.RemoveSecretRequest{Ref: "key", Force: force})
	}
	use := func(u ...*skepv1.SecretUse) {
		c.files.mu.Lock()
		c.files.uses[s.Meta.Id] = u
		c.files.mu.Unlock()
	}
	use(&skepv1.SecretUse{ServiceName: "web", Version: 1}, &skepv1.SecretUse{ServiceName: "db", Version: 1})
	for _, force := range []bool{false, true} {
		if _, err := rm(force); err == nil || err.Error() != "secret 'key' is in use by the following services: db, web" {
			t.Errorf("force %v: %v", force, err)
		}
	}
	use(&skepv1.SecretUse{ServiceName: "web", Revisions: []uint64{2, 3}})
	if _, err := rm(false); err == nil || !strings.Contains(err.Error(), "needed to roll back web (revisions 2, 3)") {
		t.Errorf("%v", err)
	}
	if r, err := rm(true); err != nil || len(r.Lost) != 1 {
		t.Errorf("%v %v", r, err)
	}
	if _, err := rm(true); !fault.Is(err, fault.CodeNotFound) {
		t.Errorf("removed twice: %v", err)
	}
	// The name is free at once; a service that was being made meanwhile has its secret, and keeps it.
	again := c.mustSecret(t, "key", []byte("new"))
	n := c.node(t, pki.Worker)
	c.assign(n, "t", ref(s, 1), ref(again, 1))
	if d, err := c.deliver(t, n, &skepv1.DeliverTask{TaskId: "t"}); err != nil || len(d.Values) != 2 {
		t.Fatalf("%v %v", d, err)
	}
	use(&skepv1.SecretUse{ServiceName: "late", Version: 1})
	// Each vault that runs tends to what was removed, the test's first one by the right time.
	c.runVault(t, func() time.Time { return time.Now().Add(2 * keptRemoved) })
	var list *skepv1.ListSecretsReply
	await(t, "the removal is taken back", func() (err error) {
		if list, err = api.Call(ctx(t), c.nc, api.SecretList, &skepv1.ListSecretsRequest{}); err == nil && len(list.Secrets) != 2 {
			err = fmt.Errorf("%v", list)
		}
		return err
	})
	if list.Secrets[1].Meta.Id != s.Meta.Id || list.Secrets[1].Spec.Name != "key-"+s.Meta.Id[:8] {
		t.Fatalf("%v", list)
	}
	// Nobody came: it goes, with its value.
	use()
	c.vault.idx.mu.Lock()
	place := c.vault.idx.objects.byID[s.Meta.Id].Values[1]
	c.vault.idx.mu.Unlock()
	if _, err := api.Call(ctx(t), c.nc, api.SecretRemove, &skepv1.RemoveSecretRequest{Ref: s.Meta.Id}); err != nil {
		t.Fatal(err)
	}
	c.runVault(t, func() time.Time { return time.Now().Add(9 * keptRemoved) })
	await(t, "its value is gone", func() error {
		if _, err := c.vault.values.Read(ctx(t), place); !errors.Is(err, kv.ErrNotFound) {
			return fmt.Errorf("reading it: %v", err)
		}
		return nil
	})
	await(t, "it is delivered no more", func() error {
		d, err := c.deliver(t, n, &skepv1.DeliverTask{TaskId: "t"})
		if err == nil && !strings.Contains(d.Tasks[0].Refused, "secret not found: key") {
			err = fmt.Errorf("%v", d)
		}
		return err
	})
}

// Whoever can write the store cannot pass anything off.
func TestAlteredStore(t *testing.T) {
	c := start(t)
	a, b := c.mustSecret(t, "a", []byte("va")), c.mustSecret(t, "b", []byte("vb"))
	n := c.node(t, pki.Worker)
	c.assign(n, "t", ref(a, 1))
	old, err := c.vault.bucket.Get(ctx(t), keys.Object.Key(a.Meta.Id))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.update(t, "a", 2, []byte("va2")); err != nil {
		t.Fatal(err)
	}
	put := func(b *kv.Bucket, key string, val []byte) func() {
		was, err := b.Get(ctx(t), key)
		if err != nil {
			t.Fatal(err)
		}
		write := func(val []byte) {
			rev, err := b.Put(ctx(t), key, val)
			if err != nil {
				t.Fatal(err)
			}
			if b == c.vault.bucket {
				if err := c.vault.feed.Wait(ctx(t), rev); err != nil {
					t.Fatal(err)
				}
			}
		}
		write(val)
		return func() { write(was.Value) }
	}
	gets := func() string {
		d, err := c.deliver(t, n, &skepv1.DeliverTask{TaskId: "t"})
		if err != nil {
			return err.Error()
		}
		if len(d.Values) > 0 {
			return "value " + string(d.Values[0].Value)
		}
		return d.Tasks[0].Refused
	}
	if got := gets(); got != "value va" {
		t.Fatal(got)
	}
	flip := func(b []byte) []byte { b = bytes.Clone(b); b[len(b)-1] ^= 1; return b }
	get := func(b *kv.Bucket, key string) []byte {
		e, err := b.Get(ctx(t), key)
		if err != nil {
			t.Fatal(err)
		}
		return e.Value
	}
	objA, objB := keys.Object.Key(a.Meta.Id), keys.Object.Key(b.Meta.Id)
	valA, valB := c.vault.idx.objects.byID[a.Meta.Id].Values[1], c.vault.idx.objects.byID[b.Meta.Id].Values[1]
	for what, x := range map[string]struct {
		b    *kv.Bucket
		key  string
		val  []byte
		want string
	}{
		"the record as it was before": {c.vault.bucket, objA, old.Value, "the store was altered or put back"},
		"the record altered":          {c.vault.bucket, objA, flip(get(c.vault.bucket, objA)), "secret not found"},
		"another's record":            {c.vault.bucket, objA, get(c.vault.bucket, objB), "secret not found"},
		"the value altered":           {c.vault.values, valA, flip(get(c.vault.values, valA)), "it was altered"},
		"another's value":             {c.vault.values, valA, get(c.vault.values, valB), "it was altered"},
		"a ledger of nothing":         {c.vault.bucket, keys.Ledger.Key(), nil, "the store was altered or put back"},
	} {
		undo := put(x.b, x.key, x.val)
		if got := gets(); !strings.Contains(got, x.want) || strings.Contains(got, "value") && strings.Contains(got, "va") && strings.HasPrefix(got, "value ") {
			t.Errorf("%s: %s, want %s", what, got, x.want)
		}
		if strings.HasPrefix(x.want, "the store") {
			if _, err := c.update(t, "a", 3, []byte("x")); !fault.Is(err, fault.CodeDenied) {
				t.Errorf("%s: an update: %v", what, err)
			}
		}
		undo()
		if got := gets(); got != "value va" {
			t.Fatalf("after %s: %s", what, got)
		}
	}
}

// Fifty clients, one name.
func TestOneNameForFifty(t *testing.T) {
	c := start(t)
	c.runVault(t, nil)
	sealed := c.sealed(t, aSecret, "one", 1, []byte("x"))
	var wg sync.WaitGroup
	var mu sync.Mutex
	made, conflicts := 0, 0
	for range 50 {
		wg.Go(func() {
			var err error
			for again := true; again; again = fault.Is(err, fault.CodeUnavailable) { // as the error says: look, then try again
				_, err = api.Call(ctx(t), c.nc, api.SecretCreate, &skepv1.CreateSecretRequest{Spec: &skepv1.SecretSpec{Name: "one"}, Sealed: sealed})
			}
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				made++
			case fault.Is(err, fault.CodeConflict):
				conflicts++
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if made > 1 || made+conflicts != 50 {
		t.Errorf("%d made, %d conflicts", made, conflicts)
	}
	list, err := api.Call(ctx(t), c.nc, api.SecretList, &skepv1.ListSecretsRequest{})
	if err != nil || len(list.Secrets) != 1 {
		t.Errorf("%d secrets, %v", len(list.GetSecrets()), err)
	}
}

// A dozen values of the largest kind in one task, and hundreds of small ones, come in pieces that fit.
func TestDeliveredInPieces(t *testing.T) {
	c := start(t)
	n := c.node(t, pki.Worker)
	var refs []*skepv1.FileReference
	for i := range 12 {
		name := fmt.Sprint("big", i)
		r, err := api.Call(ctx(t), c.nc, api.ConfigCreate, &skepv1.CreateSecretRequest{
			Spec: &skepv1.SecretSpec{Name: name}, Sealed: c.sealed(t, aConfig, name, 1, bytes.Repeat([]byte{byte(i)}, spec.MaxConfig-1))})
		if err != nil {
			t.Fatal(err)
		}
		refs = append(refs, ref(r.Secret, 1))
	}
	c.files.mu.Lock()
	c.files.tasks[n.Identity().NodeID] = []*skepv1.TaskFiles{{TaskId: "t", Configs: refs}}
	c.files.mu.Unlock()
	d, err := c.deliver(t, n, &skepv1.DeliverTask{TaskId: "t"})
	if err != nil || len(d.Values) != 12 {
		t.Fatalf("%d values, %v", len(d.GetValues()), err)
	}
	for i, v := range d.Values {
		if len(v.Value) != spec.MaxConfig-1 || v.Value[0] != byte(i) {
			t.Errorf("value %d", i)
		}
	}
}

// An update whose vault dies before the services have the new version is gone on with.
func TestRollIsGoneOnWith(t *testing.T) {
	c := start(t)
	c.mustSecret(t, "k", []byte("1"))
	var mu sync.Mutex
	var asked []uint64
	fail := true
	c.files.mu.Lock()
	c.files.roll = func(r *skepv1.RollSecretRequest) ([]string, error) {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, r.Version)
		if fail {
			return nil, fault.Unavailable("no quorum")
		}
		return []string{"web"}, nil
	}
	c.files.mu.Unlock()
	r, err := c.update(t, "k", 2, []byte("2"))
	if err != nil || len(r.Warnings) != 1 || len(r.Rolled) != 0 {
		t.Fatalf("%v %v", r, err)
	}
	mu.Lock()
	fail = false
	mu.Unlock()
	v := c.runVault(t, func() time.Time { return time.Now().Add(time.Minute) })
	v.rollLeft(ctx(t))
	mu.Lock()
	n := len(asked)
	mu.Unlock()
	v.rollLeft(ctx(t))
	mu.Lock()
	defer mu.Unlock()
	if n < 2 || len(asked) != n || asked[1] != 2 {
		t.Errorf("asked %v", asked)
	}
}

// A broker that cannot be read now is no reason to end a task; a value that is gone is.
func TestDeliveryOfWhatCannotBeReadNow(t *testing.T) {
	c := start(t)
	n := c.node(t, pki.Worker)
	kept, gone := c.mustSecret(t, "kept", []byte("v")), c.mustSecret(t, "gone", []byte("v"))
	c.assign(n, "t1", ref(kept, 1))
	c.assign(n, "t2", ref(gone, 1))
	c.vault.idx.mu.Lock()
	place := c.vault.idx.objects.byID[gone.Meta.Id].Values[1]
	c.vault.idx.mu.Unlock()
	if err := c.vault.values.Delete(ctx(t), place, 0); err != nil {
		t.Fatal(err)
	}
	d, err := c.deliver(t, n, &skepv1.DeliverTask{TaskId: "t1"}, &skepv1.DeliverTask{TaskId: "t2"})
	if err != nil || len(d.Values) != 1 || len(d.Tasks) != 2 || d.Tasks[1].Again || d.Tasks[1].Refused != "version 1 of secret gone is not in the store any more" {
		t.Errorf("a value that is gone: %v %v", d, err)
	}
	js, err := jetstream.New(c.nc)
	if err != nil {
		t.Fatal(err)
	}
	if err := js.DeleteStream(ctx(t), subject.Value.Stream()); err != nil {
		t.Fatal(err)
	}
	d, err = c.deliver(t, n, &skepv1.DeliverTask{TaskId: "t1"})
	if err != nil || len(d.Tasks) != 1 || !d.Tasks[0].Again || !strings.HasPrefix(d.Tasks[0].Refused, "read version 1 of secret kept: ") {
		t.Errorf("no broker to read from: %v %v", d, err)
	}
}

// Who comes second is told so in the way of every other update, and clients read and try again.
func TestUpdateOutOfSequence(t *testing.T) {
	c := start(t)
	s := c.mustSecret(t, "s", []byte("one"))
	two := c.sealed(t, aSecret, "s", 2, []byte("two"))
	if _, err := c.update(t, "s", 2, []byte("other")); err != nil {
		t.Fatal(err)
	}
	_, err := api.Call(ctx(t), c.nc, api.SecretUpdate, &skepv1.UpdateSecretRequest{Ref: "s", Version: s.Meta.Version, Sealed: two})
	if !fault.Is(err, fault.CodeSequence) || err.Error() != "update out of sequence: secret s has version 2 by now; look, then try again" {
		t.Errorf("%v", err)
	}
}
