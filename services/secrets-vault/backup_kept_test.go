package vault

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap/zaptest"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/api"
	"skep.dev/libs/backup"
	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/seal"
	"skep.dev/libs/subject"
)

// keeping is a cluster whose manager has a data directory.
type keeping struct {
	*cluster
	clock *clock
	since time.Time
	data  string
	shelf *backup.Shelf
}

func startKeeping(t *testing.T) *keeping {
	t.Helper()
	since := time.Now().UTC().Truncate(time.Second)
	k := &keeping{cluster: startWith(t, BootstrapParams{}), clock: &clock{}, since: since, data: t.TempDir()}
	k.shelf = backup.ShelfIn(k.data)
	return k
}

func (k *keeping) runKeeper(t *testing.T) *Service {
	t.Helper()
	v, err := New(Config{
		NC: k.nc, Log: zaptest.NewLogger(t), Dir: k.dir, DataDir: k.data, NodeID: k.boot.NodeID, Hostname: "m1", Now: k.clock.now,
		ManagerAddrs: func() []string { return []string{k.addr} },
	})
	if err != nil {
		t.Fatal(err)
	}
	k.serve(t, v)
	return v
}

// plan writes the cluster's record, as state would.
func (k *keeping) plan(t *testing.T, s *skepv1.ClusterSpec) {
	t.Helper()
	js, err := jetstream.New(k.nc)
	if err != nil {
		t.Fatal(err)
	}
	text, err := proto.Marshal(&skepv1.Cluster{Meta: &skepv1.Meta{Id: k.boot.ClusterID}, Spec: s, CaDigest: k.boot.CADigest})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Open(js, subject.Spec).Put(ctx(t), keys.Cluster.Key(), text); err != nil {
		t.Fatal(err)
	}
}

func (k *keeping) hourly(keep uint32) *skepv1.ClusterSpec {
	return &skepv1.ClusterSpec{Name: "default", Backups: &skepv1.BackupPlan{Cron: "@every 1h0m0s", Keep: keep, Since: timestamppb.New(k.since)}}
}

// pass lets time go by.
func (k *keeping) pass(d time.Duration, vaults ...*Service) {
	k.clock.forward(d)
	for _, v := range vaults {
		v.keeper.poke()
	}
}

func (k *keeping) name(n int) string {
	return backup.FileName(k.boot.ClusterID, k.since.Add(time.Duration(n)*time.Hour))
}

// awaitKept waits until these backups lie there, given by the number of their hour, the newest first, and no others.
func (k *keeping) awaitKept(t *testing.T, hours ...int) []*skepv1.KeptBackup {
	t.Helper()
	var got *skepv1.KeptBackupsReply
	await(t, fmt.Sprintf("backups of hours %v", hours), func() (err error) {
		if got, err = api.Call(ctx(t), k.nc, api.VaultBackups.At(k.boot.NodeID), &skepv1.Empty{}); err != nil {
			return err
		}
		var have, want []string
		for _, b := range got.Backups {
			have = append(have, b.Name)
		}
		for _, n := range hours {
			want = append(want, k.name(n))
		}
		if strings.Join(have, " ") != strings.Join(want, " ") {
			return fmt.Errorf("%v, not %v (%s)", have, want, got.Failed)
		}
		return nil
	})
	return got.Backups
}

func told(all []string, verb string) (n int) {
	for _, e := range all {
		if strings.Contains(strings.Fields(e)[0]+" ", "."+verb+" ") {
			n++
		}
	}
	return n
}

// The schedule makes one backup of each time, whatever starts anew, and the newest of those that were missed; the files open
// with the passphrase that was given, and are no more than may be kept.
func TestScheduledBackups(t *testing.T) {
	k := startKeeping(t)
	k.plan(t, k.hourly(2))
	v := k.runKeeper(t)
	events := k.events(t)
	k.mustSecret(t, "db", []byte("one"))
	// Nothing to seal it under: told once, and made as soon as there is.
	k.pass(time.Hour, v)
	await(t, "the failure is told", func() error {
		r, err := api.Call(ctx(t), k.nc, api.VaultBackups.At(k.boot.NodeID), &skepv1.Empty{})
		if err == nil && !strings.Contains(r.Failed, "there is nothing to seal it under: give a passphrase") {
			err = fmt.Errorf("%v", r)
		}
		return err
	})
	k.pass(5*time.Minute, v)
	r, key := k.underPassphrase(t, "correct horse")
	set, err := api.Call(ctx(t), k.nc, api.BackupKey, &skepv1.BackupKeyRequest{Passphrase: r.Passphrase, SealedKey: r.SealedKey})
	if err != nil || !strings.Contains(set.Opens, "the passphrase of scheduled backups that was given on ") {
		t.Fatal(set, err)
	}
	got := k.awaitKept(t, 1)
	if h := got[0].Header; h.MadeBy != k.boot.NodeID || h.AskedBy != "the schedule" || h.ClusterId != k.boot.ClusterID || got[0].Size == 0 {
		t.Error(got[0])
	}
	f, err := os.Open(filepath.Join(k.shelf.Dir, k.name(1)))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := openBackup(t, f, key)
	if b.header.Counts["objects"] != 1 || len(b.master) != masterSize {
		t.Error(b.header)
	}
	// What the passphrase made is in the store sealed, and in the backup as it is in the store.
	for _, e := range b.Content[subject.Secret] {
		if strings.Contains(string(e.Value), string(key)) {
			t.Errorf("%s holds the key in clear", e.Key)
		}
	}
	if n := told(events(), "backup-failed"); n != 1 {
		t.Errorf("the failure was told %d times", n)
	}
	// Nothing is due; then five times were missed, and the newest is made.
	k.pass(10*time.Minute, v)
	k.awaitKept(t, 1)
	k.pass(5*time.Hour, v)
	k.awaitKept(t, 6, 1)
	k.pass(time.Hour, v)
	k.awaitKept(t, 7, 6)
	// Another process of the same node, and one that starts anew.
	_ = v.Close() // always nil
	again, beside := k.runKeeper(t), k.runKeeper(t)
	k.awaitKept(t, 7, 6)
	k.pass(time.Hour, again, beside)
	k.awaitKept(t, 8, 7)
	k.pass(time.Minute, again, beside)
	await(t, "each is told", func() error {
		if n := told(events(), "backup"); n != 4 {
			return fmt.Errorf("%d backups were told, not 4", n)
		}
		return nil
	})
	// Off: what is there stays, and nothing comes.
	k.plan(t, &skepv1.ClusterSpec{Name: "default"})
	await(t, "the schedule ends", func() error {
		r, err := api.Call(ctx(t), k.nc, api.VaultBackups.At(k.boot.NodeID), &skepv1.Empty{})
		if err == nil && r.Next != nil {
			err = fmt.Errorf("the next one is due %s", r.Next.AsTime())
		}
		return err
	})
	k.awaitKept(t, 8, 7)
}

// Without a passphrase the unlock key seals them: the one that is in force when each is made.
func TestScheduledBackupsUnderTheUnlockKey(t *testing.T) {
	k := startKeeping(t)
	v := k.runKeeper(t)
	for _, r := range []*skepv1.BackupKeyRequest{
		{UnlockKey: true}, {UnlockKey: true, Passphrase: &skepv1.BackupPassphrase{}}, {Passphrase: &skepv1.BackupPassphrase{Salt: make([]byte, 16), Time: 1, MemoryKib: 1 << 30, Threads: 1}},
	} {
		if _, err := api.Call(ctx(t), k.nc, api.BackupKey, r); !fault.Is(err, fault.CodeInvalid) {
			t.Errorf("%v: %v", r, err)
		}
	}
	p, _ := k.underPassphrase(t, "correct horse")
	short := k.sealed(t, skepv1.SecretKind_SECRET_KIND_UNSPECIFIED, seal.BackupKey, 0, []byte("short"))
	if _, err := api.Call(ctx(t), k.nc, api.BackupKey, &skepv1.BackupKeyRequest{Passphrase: p.Passphrase, SealedKey: short}); !fault.Is(err, fault.CodeInvalid) {
		t.Error(err)
	}
	if r, err := api.Call(ctx(t), k.nc, api.BackupKey, &skepv1.BackupKeyRequest{}); err != nil || r.Opens != "" {
		t.Error(r, err)
	}
	if _, err := api.Call(ctx(t), k.nc, api.AutolockSet, &skepv1.SetAutolockRequest{On: true, By: "ann"}); err != nil {
		t.Fatal(err)
	}
	cur := v.lock.picture.now()
	if r, err := api.Call(ctx(t), k.nc, api.BackupKey, &skepv1.BackupKeyRequest{}); err != nil || !strings.Contains(r.Opens, cur.info.Id) {
		t.Error(r, err)
	}
	k.plan(t, k.hourly(7))
	k.pass(time.Hour, v)
	got := k.awaitKept(t, 1)
	if got[0].Header.GetUnlockKey().GetId() != cur.info.Id {
		t.Error(got[0].Header)
	}
	f, err := os.Open(filepath.Join(k.shelf.Dir, k.name(1)))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	openBackup(t, f, backup.Unlock{Key: cur.key})
}

// A clock that was a year ahead for a minute costs one file; times that were due before are due as they were.
func TestScheduledBackupsAndAWrongClock(t *testing.T) {
	k := startKeeping(t)
	k.plan(t, k.hourly(5))
	v := k.runKeeper(t)
	r, _ := k.underPassphrase(t, "correct horse")
	if _, err := api.Call(ctx(t), k.nc, api.BackupKey, &skepv1.BackupKeyRequest{Passphrase: r.Passphrase, SealedKey: r.SealedKey}); err != nil {
		t.Fatal(err)
	}
	k.pass(time.Hour, v)
	k.awaitKept(t, 1)
	const year = 365 * 24
	k.pass(year*time.Hour, v)
	k.awaitKept(t, year+1, 1)
	k.pass(-year*time.Hour, v)
	k.pass(time.Hour, v)
	k.awaitKept(t, year+1, 2, 1)
	// Set back before the schedule was set: nothing is due, and nothing is lost.
	k.pass(-24*time.Hour, v)
	k.awaitKept(t, year+1, 2, 1)
}
