package bus

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"skep.dev/libs/id"
	"skep.dev/libs/kv"
	"skep.dev/libs/pki/pkitest"
	"skep.dev/libs/subject"
)

// written is the store of a lone manager that has written, deleted, compacted and started again; stopped.
func written(t *testing.T) Config {
	t.Helper()
	cfg := lone(t, pkitest.NewCA(t), id.New())
	cfg.Found, cfg.Witness = true, ""
	for range 2 {
		m, stop, ended := manage(t, cfg)
		awaitReady(t, m, ended, patience)
		_, js := inProcessJS(t, m.Bus, "manager")
		spec := kv.Open(js, subject.Spec)
		for i := range 400 {
			if _, err := spec.Put(within(t), fmt.Sprintf("test.%d", i%150), []byte(strings.Repeat("x", 10*i))); err != nil {
				t.Fatal(err)
			}
		}
		for i := range 50 {
			rev, err := spec.Put(within(t), fmt.Sprintf("gone.%d", i), []byte("x"))
			if err == nil {
				err = spec.Delete(within(t), fmt.Sprintf("gone.%d", i), rev)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if _, err := kv.NewCompactor(js, m.log, time.Nanosecond).Pass(within(t), subject.Spec); err != nil {
			t.Fatal(err)
		}
		stop()
	}
	return cfg
}

// Every file that nats-server writes sums up as this package believes: a version that writes them otherwise fails here.
func TestAWholeStoreIsWhole(t *testing.T) {
	dir := filepath.Join(written(t).DataDir, "main")
	if found, err := damages(dir); err != nil || len(found) > 0 {
		t.Fatalf("a whole store: %v %v", found, err)
	}
	for _, pattern := range []string{"*/streams/*/msgs/*.blk", "*/_js_/*/msgs/*.blk", "*/streams/*/meta.sum", "*/_js_/*/meta.sum", "*/_js_/*/snapshots/snap.*"} {
		if list, err := filepath.Glob(filepath.Join(dir, "jetstream", pattern)); err != nil || len(list) == 0 {
			t.Errorf("no %s was looked at: %v", pattern, err)
		}
	}
}

// What is altered is found, wherever it is; what a crash leaves at the end of a log is not taken for it.
func TestDamageIsFound(t *testing.T) {
	whole := filepath.Join(written(t).DataDir, "main")
	first := func(dir, pattern string) string {
		t.Helper()
		list, err := filepath.Glob(filepath.Join(dir, "jetstream", pattern))
		if err != nil || len(list) == 0 {
			t.Fatalf("no %s: %v", pattern, err)
		}
		return list[0]
	}
	spec := accountName + "/streams/" + subject.Spec.Stream() + "/msgs/*.blk"
	over := func(at func(size int) int, with []byte) func([]byte) []byte {
		return func(b []byte) []byte { copy(b[at(len(b)):], with); return b }
	}
	start := func(int) int { return 0 }
	half := func(n int) int { return n / 2 }
	last := func(n int) int { return n - 4 }
	for _, c := range []struct {
		name, file string
		alter      func([]byte) []byte
		found      bool
	}{
		{"a byte in the middle of a block", spec, over(half, []byte{0xa5}), true},
		{"a kilobyte of a block", spec, over(half, bytes.Repeat([]byte{0xa5}, 1<<10)), true},
		{"the beginning of a block, zeros", spec, over(start, make([]byte, 512)), true},
		{"all of a block", spec, func(b []byte) []byte { return bytes.Repeat([]byte{0xa5}, len(b)) }, true},
		{"a length in a block", spec, over(start, binary.LittleEndian.AppendUint32(nil, 20<<20)), true},
		{"the last sum of a block", spec, over(last, []byte{1, 2, 3, 4}), true},
		{"a log of the group", "*/_js_/*/msgs/*.blk", over(half, []byte{0xa5}), true},
		{"a snapshot", "*/_js_/*/snapshots/snap.*", over(half, []byte{0xa5}), true},
		{"a description", accountName + "/streams/*/meta.inf", over(start, []byte("xx")), true},
		{"a description's sum, as a crash leaves it", accountName + "/streams/*/meta.sum", over(start, []byte("xx")), false},
		{"the last write cut off", spec, func(b []byte) []byte { return b[:len(b)-3] }, false},
		{"room that was never written to", spec, func(b []byte) []byte { return append(b, make([]byte, 4096)...) }, false},
		{"the first bytes of a write", spec, func(b []byte) []byte { return append(b, 200, 0, 0, 0, 1) }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "main")
			if err := os.CopyFS(dir, os.DirFS(whole)); err != nil {
				t.Fatal(err)
			}
			path := first(dir, c.file)
			b, err := os.ReadFile(path)
			if err == nil {
				err = os.WriteFile(path, c.alter(b), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			found, err := damages(dir)
			if err != nil || c.found != (len(found) == 1) || c.found && found[0].File != path {
				t.Errorf("found %v, %v", found, err)
			}
			if !c.found {
				if again, err := damages(dir); err != nil || len(again) > 0 {
					t.Errorf("and then %v, %v", again, err)
				}
			}
		})
	}
}

func FuzzBlocks(f *testing.F) {
	f.Add([]byte("x"), true)
	f.Add(make([]byte, 64), false)
	f.Add(binary.LittleEndian.AppendUint32(nil, 1<<31|40), true)
	f.Fuzz(func(_ *testing.T, b []byte, last bool) { blockWrong(b, "SPEC-1", last) })
}
