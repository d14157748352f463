package backup_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap/zaptest"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/backup"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/leaktest"
	"skep.dev/libs/subject"
	"skep.dev/libs/unlockkey"
	pb "skep.dev/proto/skep/v1"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// derived is a key as a passphrase makes one; the passphrase's way to it has a test of its own.
var derived = backup.Derived(bytes.Repeat([]byte{7}, backup.KeySize))

func header() *pb.BackupHeader {
	return &pb.BackupHeader{ClusterId: "c1", MadeAt: timestamppb.New(time.Unix(1e9, 0)), Counts: map[string]uint64{"nodes": 2},
		Passphrase: &pb.BackupPassphrase{Salt: make([]byte, 16), Time: 1, MemoryKib: 64, Threads: 1}}
}

func enc(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// sound is the content of a small cluster: a manager m, a worker w, a service with a task, a network.
func sound(t testing.TB) backup.Content {
	var rev uint64
	e := func(key string, val []byte) kv.Entry {
		rev++
		return kv.Entry{Key: key, Value: val, Revision: rev}
	}
	return backup.Content{
		subject.Spec: {
			e(keys.Cluster.Key(), enc(t, &pb.Cluster{Meta: &pb.Meta{Id: "c1"}, Spec: &pb.ClusterSpec{Name: "default"}})),
			e(keys.Node.Key("m"), enc(t, &pb.NodeObject{Number: 1, Role: pb.NodeRole_NODE_ROLE_MANAGER})),
			e(keys.Number(keys.NodeNumber, uint32(1)), []byte("m")),
			e(keys.Node.Key("w"), enc(t, &pb.NodeObject{Number: 2, Role: pb.NodeRole_NODE_ROLE_WORKER})),
			e(keys.Number(keys.NodeNumber, uint32(2)), []byte("w")),
			e(keys.Network.Key("n"), enc(t, &pb.Network{Spec: &pb.NetworkSpec{Name: "Net"}})),
			e(keys.Name(keys.NetworkName, "net"), []byte("n")),
			e(keys.Service.Key("s"), enc(t, &pb.Service{Revision: 3, Spec: &pb.ServiceSpec{Name: "web"}})),
			e(keys.Name(keys.ServiceName, "web"), []byte("s")),
			e(keys.PortKey("tcp", 80), []byte("host s")),
		},
		subject.Rev:    {e(keys.RevisionKey("s", 2), nil), e(keys.RevisionKey("s", 3), nil)},
		subject.Task:   {e(keys.NodeTasks.Key("w"), enc(t, &pb.NodeTasks{Tasks: []*pb.TaskRecord{{Id: "t", ServiceId: "s", Revision: 2}}}))},
		subject.NodeB:  {e(keys.Description.Key("m"), enc(t, &pb.NodeDescription{Hostname: "host-m"})), e(keys.Live.Key("m"), nil), e(keys.Live.Key("w"), nil)},
		subject.Secret: {e(keys.CA.Key(), []byte("sealed")), e(keys.ManagerLock.Key("m"), nil)},
	}
}

// write makes a backup of content, with values of the sizes.
func write(t testing.TB, h *pb.BackupHeader, k backup.Key, c backup.Content, sizes ...int) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := backup.NewWriter(&out, h, k)
	if err != nil {
		t.Fatal(err)
	}
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	do(w.Master([]byte("the master key")))
	for _, b := range backup.Buckets() {
		do(w.Bucket(b, 100))
		for _, e := range c[b] {
			do(w.Entry(e))
		}
		if b == subject.Value {
			for i, n := range sizes {
				do(w.Entry(kv.Entry{Key: keys.Value.Key("o", fmt.Sprint(i)), Value: bytes.Repeat([]byte{byte(i)}, n), Revision: uint64(1 + i)}))
			}
		}
	}
	do(w.Close())
	return out.Bytes()
}

// read reads a backup through.
func read(file []byte, k backup.Key) (master []byte, c backup.Content, err error) {
	f, err := backup.Open(bytes.NewReader(file))
	if err != nil {
		return nil, nil, err
	}
	r, err := f.Unlock(k)
	if err != nil {
		return nil, nil, err
	}
	c = backup.Content{}
	err = r.Each(backup.Visit{
		Master: func(key []byte) error { master = bytes.Clone(key); return nil },
		Entry:  func(b subject.Bucket, e kv.Entry) error { c[b] = append(c[b], e); return nil },
	})
	return master, c, err
}

func equal(a, b backup.Content) bool {
	return maps.EqualFunc(a, b, func(x, y []kv.Entry) bool {
		return slices.EqualFunc(x, y, func(p, q kv.Entry) bool {
			return p.Key == q.Key && bytes.Equal(p.Value, q.Value) && p.Revision == q.Revision
		})
	})
}

// What is written comes out as it was, whatever its size; the end falls before, on and behind the borders of chunks.
func TestWhatIsWrittenIsRead(t *testing.T) {
	base := len(write(t, header(), derived, sound(t), 0))
	sizes := [][]int{{}, {1}, {1 << 20}, {1 << 20, 0, 3, 1 << 20}}
	for d := -40; d <= 40; d++ {
		sizes = append(sizes, []int{2<<16 - base%(1<<16) + d})
	}
	for _, s := range sizes {
		want := sound(t)
		file := write(t, header(), derived, want, s...)
		master, got, err := read(file, derived)
		if err != nil || string(master) != "the master key" {
			t.Fatalf("%v: %q, %v", s, master, err)
		}
		values := got[subject.Value]
		delete(got, subject.Value)
		if !equal(got, want) || len(values) != len(s) {
			t.Fatalf("%v: %v", s, got)
		}
		for i, n := range s {
			if len(values[i].Value) != n {
				t.Fatalf("value %d has %d bytes instead of %d", i, len(values[i].Value), n)
			}
		}
	}
}

// A file that ends anywhere before its end is refused.
func TestTruncated(t *testing.T) {
	file := write(t, header(), derived, sound(t), 200_000)
	step := 1
	for n := 0; n < len(file); n += step {
		if n > 4000 {
			step = 997
		}
		_, _, err := read(file[:n], derived)
		if !errors.Is(err, backup.ErrDamaged) && !(n < 20 && errors.Is(err, backup.ErrForeign)) {
			t.Fatalf("cut off at %d of %d: %v", n, len(file), err)
		}
	}
	// Around every border between chunks, byte by byte.
	const chunk = 64<<10 + 16
	for border := headLen(t, file); border < len(file); border += chunk {
		for n := border - 2; n <= border+18; n++ {
			if _, _, err := read(file[:n], derived); !errors.Is(err, backup.ErrDamaged) {
				t.Fatalf("cut off at %d of %d: %v", n, len(file), err)
			}
		}
	}
	if _, _, err := read(append(bytes.Clone(file), 0), derived); !errors.Is(err, backup.ErrDamaged) {
		t.Fatalf("something behind the end: %v", err)
	}
	if _, _, err := read(append(bytes.Clone(file), file[len(file)-chunk:]...), derived); !errors.Is(err, backup.ErrDamaged) {
		t.Fatalf("a chunk behind the end: %v", err)
	}
}

// A byte altered anywhere is noticed, and none of the content is believed.
func TestAltered(t *testing.T) {
	file := write(t, header(), derived, sound(t))
	for n := range file {
		for _, x := range []byte{1, 0x80} {
			bad := bytes.Clone(file)
			bad[n] ^= x
			if _, _, err := read(bad, derived); err == nil {
				t.Fatalf("byte %d of %d altered: nobody noticed", n, len(file))
			}
		}
	}
}

// Chunks in another order, doubled or missing do not open.
func TestReordered(t *testing.T) {
	file := write(t, header(), derived, sound(t), 300_000)
	const chunk = 64<<10 + 16
	head := headLen(t, file)
	a, b, rest := file[head:head+chunk], file[head+chunk:head+2*chunk], file[head+2*chunk:]
	for what, bad := range map[string][]byte{
		"swapped": slices.Concat(file[:head], b, a, rest), "doubled": slices.Concat(file[:head], a, a, b, rest),
		"missing": slices.Concat(file[:head], a, rest), "first missing": slices.Concat(file[:head], b, rest),
	} {
		if _, _, err := read(bad, derived); !errors.Is(err, backup.ErrDamaged) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// headLen is where the chunks of a file begin.
func headLen(t testing.TB, file []byte) int {
	t.Helper()
	r := bytes.NewReader(file)
	if _, err := backup.Open(r); err != nil {
		t.Fatal(err)
	}
	return len(file) - r.Len()
}

// A wrong key is told from damage, and the text says which key opens the file.
func TestWrongKey(t *testing.T) {
	file := write(t, header(), derived, sound(t))
	other := bytes.Clone(derived)
	other[0]++
	_, _, err := read(file, backup.Derived(other))
	if !errors.Is(err, backup.ErrKey) || !strings.Contains(err.Error(), "the passphrase that was given on 2001-09-09 01:46:40 UTC") {
		t.Fatal(err)
	}
	k, err := unlockkey.New()
	if err != nil {
		t.Fatal(err)
	}
	k2, err := unlockkey.New()
	if err != nil {
		t.Fatal(err)
	}
	h := header()
	h.Passphrase, h.UnlockKey = nil, &pb.BackupUnlockKey{Id: k.ID(), MadeAt: timestamppb.New(time.Unix(1e9, 0))}
	file = write(t, h, backup.Unlock{Key: k}, sound(t))
	if _, _, err := read(file, backup.Unlock{Key: k}); err != nil {
		t.Fatal(err)
	}
	if _, _, err = read(file, backup.Unlock{Key: k2}); !errors.Is(err, backup.ErrKey) || !strings.Contains(err.Error(), "unlock key "+k.ID()+", made 2001-09-09") {
		t.Fatal(err)
	}
}

func TestPassphrase(t *testing.T) {
	p, err := backup.NewPassphrase()
	if err != nil {
		t.Fatal(err)
	}
	a, err := backup.FromPassphrase(p, []byte("correct horse"))
	if err != nil || len(a) != backup.KeySize {
		t.Fatal(err)
	}
	if b, _ := backup.FromPassphrase(p, []byte("correct horsf")); bytes.Equal(a, b) {
		t.Fatal("two passphrases make one key")
	}
	p.MemoryKib = 64 << 20
	if _, err := backup.FromPassphrase(p, []byte("x")); err == nil {
		t.Fatal("a file may ask for 64 GiB")
	}
}

// The audit finds what is cut in two, and nothing else.
func TestAudit(t *testing.T) {
	if found := backup.Audit(sound(t)); len(found) > 0 {
		t.Fatal(found)
	}
	drop := func(b subject.Bucket, key string) func(backup.Content) {
		return func(c backup.Content) { c[b] = slices.DeleteFunc(c[b], func(e kv.Entry) bool { return e.Key == key }) }
	}
	for _, x := range []struct {
		change func(backup.Content)
		want   string
	}{
		{drop(subject.Rev, keys.RevisionKey("s", 3)), "service.s is of revision 3, which is not there"},
		{drop(subject.Rev, keys.RevisionKey("s", 2)), "task t is of revision 2 of service s, which is not there"},
		{drop(subject.Spec, keys.Name(keys.ServiceName, "web")), `service.s is called web, and that name is ""'s`},
		{drop(subject.Spec, keys.Service.Key("s")), "which is not there"},
		{drop(subject.Spec, keys.Network.Key("n")), "which is not there"},
		{drop(subject.Spec, keys.Number(keys.NodeNumber, uint32(2))), `node.w has number 2, which is ""'s`},
		{drop(subject.Spec, keys.Cluster.Key()), "there is no cluster in it"},
		{func(c backup.Content) {
			c[subject.Task] = append(c[subject.Task], kv.Entry{Key: keys.UnplacedKey("s", 0), Value: c[subject.Task][0].Value, Revision: 99})
		}, "task t is in two records"},
	} {
		c := sound(t)
		x.change(c)
		found := strings.Join(backup.Audit(c), "\n")
		if !strings.Contains(found, x.want) {
			t.Errorf("%q is not in %q", x.want, found)
		}
	}
}

// A restored cluster has other managers, knows that it was restored, and still fits together.
func TestRenew(t *testing.T) {
	c := sound(t)
	gone, err := backup.Renew(c)
	if err != nil || !slices.Equal(gone, []string{"host-m"}) {
		t.Fatal(gone, err)
	}
	if found := backup.Audit(c); len(found) > 0 {
		t.Fatal(found)
	}
	for _, list := range c {
		for _, e := range list {
			if strings.HasSuffix(e.Key, ".m") || e.Key == keys.Number(keys.NodeNumber, uint32(1)) {
				t.Errorf("%s is still there", e.Key)
			}
		}
	}
	var cl pb.Cluster
	if err := proto.Unmarshal(c[subject.Spec][0].Value, &cl); err != nil || !cl.Spec.Restored {
		t.Fatal(&cl, err)
	}
}

// A host name that is taken is found; those of managers are free, since they are gone.
func TestCalled(t *testing.T) {
	c := sound(t)
	c[subject.NodeB] = append(c[subject.NodeB], kv.Entry{Key: keys.Description.Key("w"), Value: enc(t, &pb.NodeDescription{Hostname: "Host-W"}), Revision: 99})
	if _, err := backup.Renew(c); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"host-w": "w", "host-m": "", "other": ""} {
		if got := backup.Called(c, name); got != want {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// Every restore begins above all that an earlier life of the store can have come to.
func TestFirst(t *testing.T) {
	now := time.Now()
	h := &pb.BackupHeader{Sequences: map[string]uint64{"spec": 12345}, Epoch: 4}
	first := backup.First(h, now)
	if first <= 12345 || first >= 1<<53 {
		t.Fatal(first)
	}
	if again := backup.First(h, now.Add(time.Second)); again < first+1<<20 {
		t.Fatal(again)
	}
	h.Sequences["task"] = first + 77 // a clock that was set back
	if again := backup.First(h, now); again <= first+77 {
		t.Fatal(again)
	}
	if e := backup.Epoch(h, now); e <= 4 {
		t.Fatal(e)
	}
}

// What is loaded is what was backed up, at sequences above; what a manager does at its start adopts it, and writers go on.
func TestLoad(t *testing.T) {
	n := kvtest.Server(t)
	js := n.JS(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := backup.NewLoader(ctx, js, 1000); err == nil || !strings.Contains(err.Error(), "a cluster that lives") {
		t.Fatal(err)
	}
	for _, c := range kv.Streams(1) {
		if err := js.DeleteStream(ctx, c.Name); err != nil {
			t.Fatal(err)
		}
	}
	first := backup.First(header(), time.Now())
	l, err := backup.NewLoader(ctx, js, first)
	if err != nil {
		t.Fatal(err)
	}
	want := sound(t)
	big := bytes.Repeat([]byte{1}, 900<<10)
	want[subject.Value] = []kv.Entry{{Key: "o.1", Value: big, Revision: 1}, {Key: "o.2", Value: big, Revision: 2}, {Key: "o.3", Value: big, Revision: 3}}
	for _, b := range backup.Buckets() {
		for _, e := range want[b] {
			if err := l.Put(b, e); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := l.Close(zaptest.NewLogger(t)); err != nil {
		t.Fatal(err)
	}
	if err := kv.Ensure(ctx, js, 1); err != nil {
		t.Fatal(err)
	}
	cut := cutOf(t, js)
	for _, b := range backup.Buckets() {
		if len(cut.Buckets[b]) != len(want[b]) {
			t.Fatalf("bucket %s: %d instead of %d", b, len(cut.Buckets[b]), len(want[b]))
		}
		for i, e := range cut.Buckets[b] {
			if e.Key != want[b][i].Key || !bytes.Equal(e.Value, want[b][i].Value) || e.Revision < first {
				t.Errorf("bucket %s, entry %d: %s at %d", b, i, e.Key, e.Revision)
			}
		}
		feed := kv.Follow(ctx, js, b, func(kv.Delta) {})
		if err := feed.Current(ctx); err != nil { // an empty one too
			t.Error(err)
		}
		feed.Close()
	}
	rev, err := kv.Open(js, subject.Lease).Put(ctx, "scheduler", []byte("x"))
	if err != nil || rev < first {
		t.Fatal(rev, err)
	}
	if err := kv.Open(js, subject.Spec).Delete(ctx, keys.Service.Key("s"), cut.Buckets[subject.Spec][7].Revision); err != nil {
		t.Fatal(err)
	}
}

func cutOf(t *testing.T, js jetstream.JetStream) *kv.Cut {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := kv.NewCutter(ctx, js, backup.Buckets()...)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	cut, err := c.Take(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return cut
}

// Whatever is in a file, reading it ends, with an error unless it is a backup.
func FuzzRead(f *testing.F) {
	want := sound(f)
	file := write(f, header(), derived, want) // sealed anew in each process that feeds: its bytes differ
	f.Add(file)
	f.Add(file[:len(file)/2])
	f.Add([]byte("skep backup 1\n\x00\x00\x00\x02{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, c, err := read(b, derived)
		same := func(x, y []kv.Entry) bool {
			return slices.EqualFunc(x, y, func(x, y kv.Entry) bool {
				return x.Key == y.Key && x.Revision == y.Revision && bytes.Equal(x.Value, y.Value)
			})
		}
		if err == nil && !maps.EqualFunc(c, want, same) {
			t.Fatalf("%q is taken for a backup of %v", b, c)
		}
	})
}
