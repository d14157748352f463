package bus

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"skep.dev/libs/api"
	"skep.dev/libs/kv"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// alter overwrites bytes in the middle of a stopped server's copy of the specs; undo puts them back.
func alter(t *testing.T, dataDir string) (undo func()) {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dataDir, "main", "jetstream", accountName, "streams", subject.Spec.Stream(), "msgs", "*.blk"))
	if err != nil || len(list) == 0 {
		t.Fatalf("no block: %v", err)
	}
	was, err := os.ReadFile(list[0])
	if err != nil {
		t.Fatal(err)
	}
	write := func(b []byte) {
		t.Helper()
		if err := os.WriteFile(list[0], b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	now := bytes.Clone(was)
	copy(now[len(now)/2:], "overwritten")
	write(now)
	return func() { t.Helper(); write(was) }
}

// One of three managers comes back with a store whose bytes were altered: it is moved aside, filled from the others, and said.
// While they have no majority it waits, and nothing is moved.
func TestADamagedStoreIsFilledFromTheOthers(t *testing.T) {
	f := found(t, "m2", "m3")
	f.await(1, true, "m1-1")
	for _, n := range []string{"m2", "m3"} {
		f.role(n, true)
		f.members[n].run()
	}
	f.await(3, false, "m1-1", "m2-1", "m3-1")
	for i := range 50 {
		if _, err := f.spec.Put(within(t), fmt.Sprintf("test.%d", i), []byte(strings.Repeat("x", 100))); err != nil {
			t.Fatal(err)
		}
	}
	m2, m3 := f.members["m2"], f.members["m3"]
	m2.stop()
	m3.stop()
	mend := alter(t, m2.cfg.DataDir)
	alter(t, m3.cfg.DataDir)
	m2.run()
	m3.run()
	f.said("is damaged and is not served. It waits for a majority")
	for _, m := range []*manned{m2, m3} {
		if dir, _, _ := asideOf(m.cfg.DataDir); dir != "" {
			t.Errorf("without a majority %s moved its store to %s", m.cfg.NodeID, dir)
		}
	}
	m2.stop()
	mend()
	m2.start()
	f.await(3, false, "m1-1", "m2-1", "m3-2")
	f.said("was moved aside, and is filled anew")
	dir, why, at := asideOf(m3.cfg.DataDir)
	if dir != filepath.Join(m3.cfg.DataDir, "damaged") || !strings.Contains(why, ".blk: the record at byte ") || at.IsZero() {
		t.Errorf("it lies in %q for %q since %s", dir, why, at)
	}
	if found, err := damages(filepath.Join(dir, "main")); err != nil || len(found) != 1 {
		t.Errorf("what was moved aside is not what was there: %v %v", found, err)
	}
	// It says so, and has everything.
	if err := await(within(t), 50*time.Millisecond, patience, func() bool {
		r, err := api.Call(within(t), f.nc, api.StoreState.At(m3.cfg.NodeID), &skepv1.StoreStateRequest{})
		return err == nil && r.GetDamagedDir() == dir && r.GetDamagedWhy() == why && r.GetDamagedUnixMs() == at.UnixMilli()
	}); err != nil {
		t.Error("it does not tell of the damaged store")
	}
	f.members["m1"].stop() // m2 and m3 are the majority
	_, js := inProcessJS(t, m3.m.Bus, "manager")
	spec := kv.Open(js, subject.Spec)
	for i := range 50 {
		if err := await(within(t), 50*time.Millisecond, patience, func() bool {
			e, err := spec.Get(within(t), fmt.Sprintf("test.%d", i))
			return err == nil && len(e.Value) == 100
		}); err != nil {
			t.Errorf("test.%d is lost", i)
		}
	}
}

// The store of the only manager is damaged: it does not start, says what to do, and changes nothing. With its bytes back it goes on.
func TestTheOnlyStoreIsDamaged(t *testing.T) {
	cfg := written(t)
	mend := alter(t, cfg.DataDir)
	before := sums(t, cfg.DataDir)
	_, _, ended := manage(t, cfg)
	err := <-ended
	for _, want := range []string{"is damaged", ".blk: the record at byte", "nothing was changed", "skep backup restore", "keep a copy of " + cfg.DataDir, "--force-new-cluster"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("it ends with %v, want %q", err, want)
		}
	}
	if after := sums(t, cfg.DataDir); after != before {
		t.Errorf("files were changed:\n%s\n%s", before, after)
	}
	mend()
	m, _, ended := manage(t, cfg)
	awaitReady(t, m, ended, patience)
}

// sums lists the files of a directory.
func sums(t *testing.T, dir string) string {
	t.Helper()
	var out strings.Builder
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		fmt.Fprintf(&out, "%s %x\n", path, sum("x", b))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}
