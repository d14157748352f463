package vault

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"
	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	"skep.dev/libs/pki"
	"skep.dev/libs/rpc"
	"skep.dev/libs/unlockkey"
)

// The way through: on, restart, locked, unlocked, rotated, off.
func TestAutolock(t *testing.T) {
	c := start(t)
	id := c.alone(t)
	m := c.manager(t, c.dir, "m1", id, nil, nil)
	if k, err := c.shown(t, false); err != nil || k != (unlockkey.Key{}) {
		t.Fatalf("a key before it is on: %v", err)
	}
	if _, err := c.shown(t, true); !fault.Is(err, fault.CodeInvalid) || err.Error() != "cannot rotate because autolock is not turned on: skep swarm update --autolock" {
		t.Errorf("rotate while off: %v", err)
	}
	if err := c.set(t, true); err != nil {
		t.Fatal(err)
	}
	k, err := c.shown(t, false)
	if err != nil {
		t.Fatal(err)
	}
	if got := rests(t, c.dir); got != k.ID() {
		t.Fatalf("the disk: %s", got)
	}
	if err := c.set(t, true); err != nil {
		t.Fatal(err)
	}
	if again, _ := c.shown(t, false); again != k {
		t.Error("turning it on twice made another key")
	}
	m.end()

	m = c.manager(t, c.dir, "m1", id, nil, nil)
	state, err := api.Call(ctx(t), c.nc, api.AutolockGet, &skepv1.Empty{})
	await(t, "the locked manager says so", func() error {
		state, err = api.Call(ctx(t), c.nc, api.AutolockGet, &skepv1.Empty{})
		if err != nil || len(state.Managers) != 1 || !state.Managers[0].Locked || state.Managers[0].Hostname != "m1" || state.Managers[0].Key.GetId() != k.ID() || !state.On {
			return fmt.Errorf("%v, %v", state, err)
		}
		return nil
	})
	if _, err := c.shown(t, false); !fault.Is(err, fault.CodeLocked) || err.Error() != "the cluster's secrets are locked: run skep unlock on m1" {
		t.Errorf("%v", err)
	}
	if r := m.mustUnlock(k); r.Used.Id != k.ID() || r.Current != nil {
		t.Errorf("%v", r)
	}
	if _, err := m.unlock(k.Text()); !errors.Is(err, rpc.ErrNobody) {
		t.Errorf("a second time: %v", err)
	}
	k2, err := c.shown(t, true)
	if err != nil || k2 == k || rests(t, c.dir) != k2.ID() {
		t.Fatalf("rotated: %v, the disk: %s", err, rests(t, c.dir))
	}
	await(t, "the state follows", func() error {
		state, err = api.Call(ctx(t), c.nc, api.AutolockGet, &skepv1.Empty{})
		if err != nil || state.Managers[0].Locked || state.Managers[0].Key.GetId() != k2.ID() || len(state.Key.Former) != 1 || state.Key.Former[0].Id != k.ID() {
			return fmt.Errorf("%v, %v", state, err)
		}
		return nil
	})
	if err := c.set(t, false); err != nil || rests(t, c.dir) != "clear" {
		t.Fatalf("%v, the disk: %s", err, rests(t, c.dir))
	}
	m.end()
	c.manager(t, c.dir, "m1", id, nil, nil)
	if _, err := api.Call(ctx(t), c.nc, api.SecretList, &skepv1.ListSecretsRequest{}); err != nil {
		t.Error(err)
	}
}

// Every verb of a locked vault is answered, with a code of its own, whoever asks and in whatever form.
func TestLockedAnswersEverything(t *testing.T) {
	c := start(t)
	id := c.alone(t)
	m := c.manager(t, c.dir, "m1", id, nil, nil)
	if err := c.set(t, true); err != nil {
		t.Fatal(err)
	}
	k, err := c.shown(t, false)
	if err != nil {
		t.Fatal(err)
	}
	m.end()
	m = c.manager(t, c.dir, "m1", id, nil, nil)
	n := 0
	for _, v := range api.All() {
		switch v {
		case api.AutolockGet.Verb, api.VaultOpen.Verb, api.VaultDoor.Verb, api.VaultUnlock.Verb:
			continue
		}
		if v.Service != "secrets-vault" {
			continue
		}
		n++
		subj := strings.Replace(v.Subject, "*", m.node, 1)
		for _, body := range []string{"", `{"x":1}`, "\xff\xff"} {
			nc := c.as(t, v, m.node)
			msg, err := nc.Request(subj, []byte(body), 10*time.Second)
			if err != nil || msg.Header.Get("Nats-Service-Error-Code") != "locked" || !strings.Contains(msg.Header.Get("Nats-Service-Error"), "run skep unlock on m1") {
				t.Errorf("%s: %v, %v", subj, msg, err)
			}
		}
	}
	if n < 20 {
		t.Errorf("%d verbs", n)
	}
	m.mustUnlock(k)
	if _, err := api.Call(ctx(t), c.nc, api.SecretList, &skepv1.ListSecretsRequest{}); err != nil {
		t.Error(err)
	}
}

// A wrong key says which one opens, is told to whoever watches, and after five of them the next one waits.
func TestWrongUnlockKeys(t *testing.T) {
	c := start(t)
	id := c.alone(t)
	var mu sync.Mutex
	now := time.Unix(1_790_000_000, 0)
	clock := func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	m := c.manager(t, c.dir, "m1", id, clock, nil)
	if err := c.set(t, true); err != nil {
		t.Fatal(err)
	}
	k, err := c.shown(t, false)
	if err != nil {
		t.Fatal(err)
	}
	m.end()
	events, err := c.nc.SubscribeSync("skep.v1.event.cluster.*.*")
	if err != nil {
		t.Fatal(err)
	}
	m = c.manager(t, c.dir, "m1", id, clock, nil)
	if _, err := m.unlock(k.Text()[:57] + "!"); !fault.Is(err, fault.CodeInvalid) || !strings.Contains(err.Error(), "malformed unlock key") {
		t.Errorf("a mistyped key: %v", err)
	}
	stranger := newUnlockKey(t)
	for i := 1; i <= 5; i++ {
		_, err := m.unlock(stranger.Text())
		want := "swarm could not be unlocked: invalid key provided: this manager opens with unlock key " + k.ID() + ", made 2026-09-21 14:13:20 UTC; the key given is " + stranger.ID() + ", which is not known here"
		if !fault.Is(err, fault.CodeDenied) || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("wrong key %d: %v", i, err)
		}
		if strings.Contains(err.Error(), "the next one is looked at in 10s") != (i == 5) {
			t.Errorf("wrong key %d: %v", i, err)
		}
	}
	if _, err := m.unlock(k.Text()); !fault.Is(err, fault.CodeExhausted) || !strings.Contains(err.Error(), "no key is looked at for 10s; the right one is taken then") {
		t.Errorf("the right key too soon: %v", err)
	}
	mu.Lock()
	now = now.Add(10 * time.Second)
	mu.Unlock()
	m.mustUnlock(k)
	verbs := map[string]int{}
	for verbs["unlock"] == 0 {
		msg, err := events.NextMsg(10 * time.Second)
		if err != nil {
			t.Fatal(err)
		}
		verb := msg.Subject[strings.LastIndexByte(msg.Subject, '.')+1:]
		verbs[verb]++
		if text := string(msg.Data); verb == "unlock-refused" && (!strings.Contains(text, stranger.ID()) || !strings.Contains(text, `"actor":`)) || strings.Contains(text, k.Text()[12:40]) {
			t.Errorf("%s", text)
		}
	}
	if verbs["locked"] != 1 || verbs["unlock-refused"] != 5 {
		t.Errorf("%v", verbs)
	}
}

var errKilled = errors.New("killed here")

// A manager that is killed at any step of turning autolock on, of a rotation, of turning it off and of beginning again
// opens with the old key or the new one, or needs none, and ends where the cluster's record is.
func TestKilledAtEveryStep(t *testing.T) {
	c := start(t)
	id := c.alone(t)
	known := map[string]unlockkey.Key{}
	for _, change := range []struct {
		name      string
		from, end bool
		do        func() error
	}{
		{"on", false, true, func() error { return c.set(t, true) }},
		{"rotate", true, true, func() error { _, err := c.shown(t, true); return err }},
		{"off", true, false, func() error { return c.set(t, false) }},
	} {
		for step := 1; ; step++ {
			// From a clean beginning.
			m := c.bring(t, id, known, nil)
			if err := c.set(t, change.from); err != nil {
				t.Fatal(err)
			}
			if change.from {
				k, err := c.shown(t, false)
				if err != nil {
					t.Fatal(err)
				}
				known[k.ID()] = k
			}
			m.end()

			n, where := 0, ""
			var mu sync.Mutex
			m = c.bring(t, id, known, func(s string) error {
				mu.Lock()
				defer mu.Unlock()
				if n++; n >= step { // dead: nothing more is written
					if where == "" {
						where = s
					}
					return errKilled
				}
				return nil
			})
			err := change.do()
			mu.Lock()
			at := where
			mu.Unlock()
			// The key may never have been told: the record has it.
			if r := m.lock.picture.now(); r.info.On {
				known[r.info.Id] = r.key
			}
			if at == "" {
				if err != nil {
					t.Fatalf("%s: %v", change.name, err)
				}
				m.end()
				break
			}
			// It may be the loop beside the request that died, after the disk was as it should be.
			if err != nil && !strings.Contains(err.Error(), "killed here") {
				t.Fatalf("%s, killed at %q: %v", change.name, at, err)
			}
			m.end()
			t.Logf("%s, killed at %q: %s", change.name, at, rests(t, c.dir))
			m = c.bring(t, id, known, nil)
			await(t, change.name+" is finished", func() error {
				want := "clear"
				if change.end {
					want = m.lock.picture.now().info.Id
				}
				if got := rests(t, c.dir); got != want {
					return fmt.Errorf("killed at %q: the disk %s, want %s", at, got, want)
				}
				return nil
			})
			m.end()
		}
	}
}

// Two managers: each brings its own disk in line. One that was away opens with the key of before, or with the current
// one, and says when the given one was replaced; a locked one never answers for one that is open.
func TestTwoManagers(t *testing.T) {
	c := start(t)
	id := c.alone(t)
	a := c.manager(t, c.dir, "m1", id, nil, nil)
	_, key, err := a.certified(t)
	if err != nil {
		t.Fatal(err)
	}
	second := filepath.Join(t.TempDir(), "vault")
	if err := os.Mkdir(second, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := (disk{dir: second}).writeClear(a.lock.master); err != nil {
		t.Fatal(err)
	}
	b := c.manager(t, second, "m2", key, nil, nil)
	same := func(k unlockkey.Key, dirs ...string) {
		t.Helper()
		await(t, "the disks follow", func() error {
			for _, d := range dirs {
				if got := rests(t, d); got != k.ID() {
					return fmt.Errorf("%s, want %s", got, k.ID())
				}
			}
			return nil
		})
	}
	if err := c.set(t, true); err != nil {
		t.Fatal(err)
	}
	k1, err := c.shown(t, false)
	if err != nil {
		t.Fatal(err)
	}
	same(k1, c.dir, second)
	k2, err := c.shown(t, true)
	if err != nil {
		t.Fatal(err)
	}
	same(k2, c.dir, second)

	// Away while it is rotated: the key of before opens it, and it follows.
	b.end()
	k3, err := c.shown(t, true)
	if err != nil {
		t.Fatal(err)
	}
	b = c.manager(t, second, "m2", key, nil, nil)
	for range 40 { // the open one answers all of them
		if _, err := api.Call(ctx(t), c.nc, api.SecretList, &skepv1.ListSecretsRequest{}); err != nil {
			t.Fatalf("beside a locked one: %v", err)
		}
	}
	await(t, "it knows of the new key", func() error {
		if b.lock.picture.now().Info().GetId() != k3.ID() {
			return errors.New("not yet")
		}
		return nil
	})
	if _, err := b.unlock(k1.Text()); !fault.Is(err, fault.CodeDenied) || !strings.Contains(err.Error(), "opens with unlock key "+k2.ID()) ||
		!strings.Contains(err.Error(), "or with the cluster's current one, "+k3.ID()) || !strings.Contains(err.Error(), "the key given is "+k1.ID()+", which was made ") {
		t.Errorf("the key before the last: %v", err)
	}
	if r := b.mustUnlock(k2); r.Used.Id != k2.ID() || r.Current.GetId() != k3.ID() {
		t.Errorf("%v", r)
	}
	same(k3, c.dir, second)

	// And with the current key, which its own disk does not know.
	b.end()
	k4, err := c.shown(t, true)
	if err != nil {
		t.Fatal(err)
	}
	b = c.manager(t, second, "m2", key, nil, nil)
	await(t, "it knows of the new key", func() error {
		if b.lock.picture.now().Info().GetId() != k4.ID() {
			return errors.New("not yet")
		}
		return nil
	})
	if r := b.mustUnlock(k4); r.Used.Id != k4.ID() || r.Current != nil {
		t.Errorf("%v", r)
	}
	same(k4, c.dir, second)

	// Both locked: each refuses, each opens by itself.
	a.end()
	b.end()
	a = c.manager(t, c.dir, "m1", id, nil, nil)
	b = c.manager(t, second, "m2", key, nil, nil)
	if _, err := api.Call(ctx(t), c.nc, api.SecretList, &skepv1.ListSecretsRequest{}); !fault.Is(err, fault.CodeLocked) {
		t.Errorf("both locked: %v", err)
	}
	b.mustUnlock(k4)
	await(t, "the locked one leaves the answers to the open one", func() error {
		for range 20 {
			if _, err := api.Call(ctx(t), c.nc, api.SecretList, &skepv1.ListSecretsRequest{}); err != nil {
				return err
			}
		}
		return nil
	})
	a.mustUnlock(k4)
}

// Somebody who can write the store's files puts an older record back: the key does not come to stand in clear, and the
// unlock key that is shown is never one that opens nothing.
func TestAnOldRecordDecidesNothing(t *testing.T) {
	c := start(t)
	id := c.alone(t)
	m := c.manager(t, c.dir, "m1", id, nil, nil)
	if err := errors.Join(c.set(t, true), c.set(t, false)); err != nil {
		t.Fatal(err)
	}
	off, err := m.bucket.Get(ctx(t), keys.Unlock.Key())
	if err != nil {
		t.Fatal(err)
	}
	if err := c.set(t, true); err != nil {
		t.Fatal(err)
	}
	k, err := c.shown(t, false)
	if err != nil {
		t.Fatal(err)
	}
	rev, err := m.bucket.Put(ctx(t), keys.Unlock.Key(), off.Value)
	if err == nil {
		err = m.feed.Wait(ctx(t), rev)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := m.settle(ctx(t)); err != nil {
		t.Fatal(err)
	}
	if got := rests(t, c.dir); got != k.ID() {
		t.Fatalf("the disk follows an old record: %s", got)
	}
	if _, err := c.shown(t, false); !fault.Is(err, fault.CodeConflict) || !strings.Contains(err.Error(), "skep unlock-key --rotate") {
		t.Errorf("show: %v", err)
	}
	m.end()
	m = c.manager(t, c.dir, "m1", id, nil, nil)
	m.mustUnlock(k)
	if got := rests(t, c.dir); got != k.ID() {
		t.Fatalf("the disk follows an old record: %s", got)
	}
	k2, err := c.shown(t, true)
	if err != nil || rests(t, c.dir) != k2.ID() {
		t.Fatalf("a rotation does not end it: %v, %s", err, rests(t, c.dir))
	}
	// A record that was altered is not taken at all.
	e, err := m.bucket.Get(ctx(t), keys.Unlock.Key())
	if err != nil {
		t.Fatal(err)
	}
	var r skepv1.AutolockRecord
	var info skepv1.UnlockKeyInfo
	if err := errors.Join(proto.Unmarshal(e.Value, &r), proto.Unmarshal(r.Info, &info)); err != nil {
		t.Fatal(err)
	}
	info.On, info.Generation = false, info.Generation+10
	if r.Info, err = proto.Marshal(&info); err != nil {
		t.Fatal(err)
	}
	forged, err := proto.Marshal(&r)
	if err != nil {
		t.Fatal(err)
	}
	if rev, err = m.bucket.Put(ctx(t), keys.Unlock.Key(), forged); err == nil {
		err = m.feed.Wait(ctx(t), rev)
	}
	if err = errors.Join(err, m.settle(ctx(t))); err != nil || rests(t, c.dir) != k2.ID() {
		t.Fatalf("a forged record: %v, %s", err, rests(t, c.dir))
	}
}

// A key file that somebody put beside the sealed one is not taken for the cluster's.
func TestAPlantedMasterKey(t *testing.T) {
	c := start(t)
	id := c.alone(t)
	m := c.manager(t, c.dir, "m1", id, nil, nil)
	if err := c.set(t, true); err != nil {
		t.Fatal(err)
	}
	k, err := c.shown(t, false)
	if err != nil {
		t.Fatal(err)
	}
	planted := filepath.Join(c.dir, masterFile)
	if err := os.WriteFile(planted, []byte(hex.EncodeToString(bytes.Repeat([]byte{1}, masterSize))), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := m.settle(ctx(t)); err == nil || !strings.Contains(err.Error(), "was replaced") {
		t.Errorf("while it runs: %v", err)
	}
	m.end()
	v, err := New(Config{NC: c.nc, Dir: c.dir, NodeID: m.node, Certificate: id})
	if err == nil {
		err = v.Run(ctx(t))
	}
	if err == nil || !strings.Contains(err.Error(), "was the master key in the data directory replaced?") {
		t.Errorf("at the start: %v", err)
	}
	if err := os.Remove(planted); err != nil {
		t.Fatal(err)
	}
	m = c.manager(t, c.dir, "m1", id, nil, nil)
	m.mustUnlock(k)
}

// What was restored from different backups is told before anything relies on it.
func TestForeignBackups(t *testing.T) {
	c := start(t)
	id := c.alone(t)
	k := newUnlockKey(t)
	d := disk{dir: t.TempDir(), log: zaptest.NewLogger(t)}
	if err := d.writeSealed(k, infoOf(k, 1), bytes.Repeat([]byte{9}, masterSize)); err != nil {
		t.Fatal(err)
	}
	m := c.manager(t, d.dir, "m1", id, nil, nil)
	if _, err := m.unlock(k.Text()); !fault.Is(err, fault.CodeInvalid) || !strings.Contains(err.Error(), "vault/ and bus/ of this data directory do not belong together") {
		t.Errorf("%v", err)
	}
	if !m.lock.locked() {
		t.Error("it is open")
	}
	// Damaged, with the right key.
	text, err := os.ReadFile(d.path(sealedFile))
	if err != nil {
		t.Fatal(err)
	}
	m.end()
	at := bytes.IndexByte(text, '\n') + 30
	text[at] = map[bool]byte{true: 'B', false: 'A'}[text[at] == 'A']
	if err := os.WriteFile(d.path(sealedFile), text, 0o600); err != nil {
		t.Fatal(err)
	}
	m = c.manager(t, d.dir, "m1", id, nil, nil)
	if _, err := m.unlock(k.Text()); err == nil || !strings.Contains(err.Error(), "the key is the right one ("+k.ID()) || !strings.Contains(err.Error(), "altered or damaged") {
		t.Errorf("%v", err)
	}
}

// From its first moment a cluster that was made with autolock has its master key nowhere in clear, and the unlock key
// crosses the broker sealed.
func TestBootstrapLocked(t *testing.T) {
	c := startWith(t, BootstrapParams{Autolock: true})
	all, err := c.nc.SubscribeSync(">")
	if err != nil {
		t.Fatal(err)
	}
	if err := all.SetPendingLimits(-1, -1); err != nil {
		t.Fatal(err)
	}
	store, err := pki.Memory(c.boot.Cert, c.boot.Key, c.boot.CA)
	if err != nil {
		t.Fatal(err)
	}
	k, err := unlockkey.Parse(c.boot.UnlockKey)
	if err != nil {
		t.Fatal(err)
	}
	m := c.manager(t, c.dir, "m1", store, nil, nil)
	if got := rests(t, c.dir); got != k.ID() {
		t.Fatal(got)
	}
	m.mustUnlock(k)
	if again, err := c.shown(t, false); err != nil || again != k {
		t.Errorf("shown: %v", err)
	}
	if _, err := c.shown(t, true); err != nil {
		t.Error(err)
	}
	n := 0
	for {
		msg, err := all.NextMsg(200 * time.Millisecond)
		if err != nil {
			break
		}
		n++
		if bytes.Contains(msg.Data, []byte(k.Text()[11:40])) {
			t.Errorf("the key crosses the broker in clear: %s", msg.Subject)
		}
	}
	if n < 10 {
		t.Errorf("%d messages seen", n)
	}
	if _, err := Bootstrap(BootstrapParams{Dir: c.dir}); err == nil || !strings.Contains(err.Error(), "master.sealed exists: this machine holds a cluster's keys already") {
		t.Errorf("a second init: %v", err)
	}
}
