package vault

import (
	"bytes"
	"context"
	"crypto/x509"
	"io"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap/zaptest"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/api"
	"skep.dev/libs/backup"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/pki"
	"skep.dev/libs/seal"
	"skep.dev/libs/stream"
	"skep.dev/libs/subject"
)

// take asks for a backup as a client does.
func (c *cluster) take(t testing.TB, r *skepv1.BackupRequest, w io.Writer) error {
	t.Helper()
	e := api.VaultBackup.At(c.boot.NodeID)
	s, err := stream.Dial(ctx(t), c.nc, e.Subject(), e.Node(), r)
	if err != nil {
		return err
	}
	defer s.Close()
	if _, err := io.Copy(w, s.Reader(stream.Out)); err != nil {
		return err
	}
	_, err = s.Wait()
	return err
}

// underPassphrase is a request for one that a passphrase opens, and its key.
func (c *cluster) underPassphrase(t testing.TB, phrase string) (*skepv1.BackupRequest, backup.Derived) {
	t.Helper()
	p, err := backup.NewPassphrase()
	if err != nil {
		t.Fatal(err)
	}
	p.Time, p.MemoryKib = 1, 1024
	key, err := backup.FromPassphrase(p, []byte(phrase))
	if err != nil {
		t.Fatal(err)
	}
	return &skepv1.BackupRequest{Passphrase: p, SealedKey: c.sealed(t, skepv1.SecretKind_SECRET_KIND_UNSPECIFIED, seal.BackupKey, 0, key)}, key
}

// known has the store hold a cluster, as state would.
func (c *cluster) known(t testing.TB) {
	t.Helper()
	js, err := jetstream.New(c.nc)
	if err != nil {
		t.Fatal(err)
	}
	text, err := proto.Marshal(&skepv1.Cluster{Meta: &skepv1.Meta{Id: c.boot.ClusterID}, Spec: &skepv1.ClusterSpec{Name: "default"}, CaDigest: c.boot.CADigest})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Open(js, subject.Spec).Put(ctx(t), keys.Cluster.Key(), text); err != nil {
		t.Fatal(err)
	}
}

type taken struct {
	header *skepv1.BackupHeader
	master []byte
	backup.Content
}

func openBackup(t testing.TB, r io.Reader, key backup.Key) taken {
	t.Helper()
	f, err := backup.Open(r)
	if err != nil {
		t.Fatal(err)
	}
	in, err := f.Unlock(key)
	if err != nil {
		t.Fatal(err)
	}
	out := taken{header: f.Header, Content: backup.Content{}}
	err = in.Each(backup.Visit{
		Master: func(k []byte) error { out.master = bytes.Clone(k); return nil },
		Entry:  func(b subject.Bucket, e kv.Entry) error { out.Content[b] = append(out.Content[b], e); return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// A backup holds all that the vault has, and a vault that is restored from it opens it: on another machine, under the same
// root, with a certificate that the cluster's nodes accept.
func TestBackupAndRestore(t *testing.T) {
	c := start(t)
	c.known(t)
	c.mustSecret(t, "db", []byte("one"))
	if _, err := c.update(t, "db", 2, []byte("two")); err != nil {
		t.Fatal(err)
	}
	c.mustSecret(t, "large", bytes.Repeat([]byte("x"), 400<<10))
	told := c.events(t)
	r, key := c.underPassphrase(t, "correct horse")
	var file bytes.Buffer
	if err := c.take(t, r, &file); err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(told(), func(e string) bool { return strings.Contains(e, "backup") }) {
		t.Error("no event tells of it")
	}
	b := openBackup(t, &file, key)
	h := b.header
	if h.ClusterId != c.boot.ClusterID || h.CaDigest != c.boot.CADigest || h.Counts["objects"] != 2 || h.Counts["values"] != 3 || h.Findings != 0 {
		t.Fatal(h)
	}
	values := map[string]bool{}
	for _, e := range b.Content[subject.Value] {
		values[e.Key] = true
	}
	if found, err := AuditBackup(b.master, b.Content, values); err != nil || len(found) > 0 {
		t.Fatal(found, err)
	}
	other := slices.Clone(b.master)
	other[0]++
	if found, err := AuditBackup(other, b.Content, values); err != nil || len(found) == 0 {
		t.Fatal("another master key opens it")
	}

	// Elsewhere.
	restored := &cluster{dir: filepath.Join(t.TempDir(), "vault"), nodes: c.nodes, files: files{uses: map[string][]*skepv1.SecretUse{}, tasks: map[string][]*skepv1.TaskFiles{}}}
	var err error
	if restored.boot, err = Restore(RestoreParams{Dir: restored.dir, Hosts: []string{"127.0.0.1"}, Master: b.master, Content: b.Content}); err != nil {
		t.Fatal(err)
	}
	if restored.boot.ClusterID != c.boot.ClusterID || restored.boot.NodeID == c.boot.NodeID || restored.boot.CADigest != c.boot.CADigest {
		t.Fatalf("%+v", restored.boot)
	}
	if _, err := Restore(RestoreParams{Dir: restored.dir, Master: b.master, Content: b.Content}); err == nil {
		t.Fatal("restored over a cluster's keys")
	}
	store, err := pki.Memory(restored.boot.Cert, restored.boot.Key, restored.boot.CA)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := pki.ParseCertificate(c.boot.CA)
	if err != nil {
		t.Fatal(err)
	}
	if err := pki.Verify(store.Certificate().Leaf, []*x509.Certificate{ca}, x509.ExtKeyUsageServerAuth, time.Now()); err != nil {
		t.Fatal(err)
	}
	restored.broker(t)
	js, err := jetstream.New(restored.nc)
	if err != nil {
		t.Fatal(err)
	}
	l, err := backup.NewLoader(ctx(t), js, backup.First(h, time.Now()))
	if err != nil {
		t.Fatal(err)
	}
	for _, bucket := range backup.Buckets() {
		for _, e := range b.Content[bucket] {
			if err := l.Put(bucket, e); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := l.Close(zaptest.NewLogger(t)); err != nil {
		t.Fatal(err)
	}
	restored.serveState(t)
	v := restored.runVault(t, nil)
	if out := v.altered(ctx(t)); len(out) > 0 {
		t.Fatal(out)
	}
	for name, want := range map[string]string{"db": "two", "large": strings.Repeat("x", 400<<10)} {
		v.whole(ctx(t))
		o, err := v.idx.objects.find(aSecret, name)
		v.idx.mu.Unlock()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := v.value(ctx(t), o, o.current()); err != nil || string(got) != want {
			t.Fatalf("%s: %.20q, %v", name, got, err)
		}
	}
	if _, err := restored.secret(t, "another", []byte("new")); err != nil {
		t.Fatal(err)
	}
	// A backup of the restored one is equal to the first but for what is new.
	r, key = restored.underPassphrase(t, "correct horse")
	file.Reset()
	if err := restored.take(t, r, &file); err != nil {
		t.Fatal(err)
	}
	again := openBackup(t, &file, key)
	kept := 0
	for _, e := range again.Content[subject.Value] {
		if values[e.Key] {
			kept++
		}
	}
	if again.header.Findings != 0 || kept != len(values) || again.header.Counts["values"] != 4 {
		t.Fatal(again.header)
	}
}

// broker is a server without streams.
func (c *cluster) broker(t testing.TB) {
	t.Helper()
	s, err := server.NewServer(&server.Options{ServerName: "m1", Host: "127.0.0.1", Port: -1, NoLog: true, NoSigs: true, JetStream: true, StoreDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	go s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(30 * time.Second) {
		t.Fatal("the broker takes no connections")
	}
	if c.nc, err = nats.Connect("", nats.InProcessServer(s), nats.CustomInboxPrefix(subject.Inbox("door-m1"))); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.nc.Close)
}

// Under the unlock key, which the vault alone adds: refused while there is none.
func TestBackupUnderTheUnlockKey(t *testing.T) {
	c := start(t)
	c.known(t)
	if err := c.take(t, &skepv1.BackupRequest{UnlockKey: true}, io.Discard); err == nil || !strings.Contains(err.Error(), "autolock is not turned on") {
		t.Fatal(err)
	}
	if err := c.take(t, &skepv1.BackupRequest{}, io.Discard); err == nil {
		t.Fatal("a backup without a key")
	}
	if err := c.set(t, true); err != nil {
		t.Fatal(err)
	}
	k, err := c.shown(t, false)
	if err != nil {
		t.Fatal(err)
	}
	var file bytes.Buffer
	if err := c.take(t, &skepv1.BackupRequest{UnlockKey: true}, &file); err != nil {
		t.Fatal(err)
	}
	b := openBackup(t, &file, backup.Unlock{Key: k})
	if b.header.UnlockKey.Id != k.ID() {
		t.Fatal(b.header)
	}
	// It is restored locked, and the same key opens it.
	dir := filepath.Join(t.TempDir(), "vault")
	boot, err := Restore(RestoreParams{Dir: dir, Master: b.master, Content: b.Content})
	if err != nil || boot.UnlockKey != k.Text() {
		t.Fatal(err)
	}
	rests, err := disk{dir: dir, log: zaptest.NewLogger(t)}.read()
	if err != nil || rests.master != nil || rests.sealed == nil {
		t.Fatalf("%+v, %v", rests, err)
	}
}

// Backups are taken while secrets come and go: each fits together.
func TestBackupsAmongWriters(t *testing.T) {
	c := start(t)
	c.known(t)
	running, stop := context.WithCancel(ctx(t))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := 2; running.Err() == nil; i++ {
			name := "s" + string(rune('a'+i%5))
			if _, err := c.secret(t, name, []byte(name)); err == nil {
				continue
			}
			if _, err := api.Call(running, c.nc, api.SecretRemove, &skepv1.RemoveSecretRequest{Ref: name}); err != nil && running.Err() == nil {
				t.Error(err)
				return
			}
		}
	}()
	for range 5 {
		r, key := c.underPassphrase(t, "correct horse")
		var file bytes.Buffer
		if err := c.take(t, r, &file); err != nil {
			t.Fatal(err)
		}
		b := openBackup(t, &file, key)
		values := map[string]bool{}
		for _, e := range b.Content[subject.Value] {
			values[e.Key] = true
		}
		found, err := AuditBackup(b.master, b.Content, values)
		if err != nil || len(found) > 0 || len(backup.Audit(b.Content)) > 0 {
			t.Fatal(found, backup.Audit(b.Content), err)
		}
	}
	stop()
	<-done
}

// Fifty megabytes of values go through the vault in little memory. (The broker is in this process too, and keeps what it read last.)
func TestLargeBackup(t *testing.T) {
	c := start(t)
	c.known(t)
	const n, size = 110, 500_000
	for i := range n {
		c.mustSecret(t, "v"+string(rune('a'+i/26))+string(rune('a'+i%26)), bytes.Repeat([]byte{byte(i)}, size))
	}
	h := &skepv1.BackupHeader{MadeAt: timestamppb.Now(), Passphrase: &skepv1.BackupPassphrase{}}
	runtime.GC()
	var before, most runtime.MemStats
	runtime.ReadMemStats(&before)
	count := &counting{each: func() {
		var now runtime.MemStats
		runtime.GC() // what lives is counted, not what was let go
		if runtime.ReadMemStats(&now); now.HeapAlloc > most.HeapAlloc {
			most = now
		}
	}}
	began := time.Now()
	if err := c.vault.WriteBackup(ctx(t), count, h, backup.Derived(make([]byte, backup.KeySize))); err != nil {
		t.Fatal(err)
	}
	grew := int64(most.HeapAlloc) - int64(before.HeapAlloc)
	t.Logf("%d bytes in %v, heap grew by %d KiB at most", count.n, time.Since(began), grew>>10)
	if count.n < n*size || grew > 40<<20 {
		t.Fatalf("%d bytes, %d KiB of heap", count.n, grew>>10)
	}
}

type counting struct {
	n    int
	each func()
}

func (c *counting) Write(b []byte) (int, error) {
	if c.n>>20 != (c.n+len(b))>>20 {
		c.each()
	}
	c.n += len(b)
	return len(b), nil
}
