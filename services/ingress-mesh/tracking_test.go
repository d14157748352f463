package mesh

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestTracking: a table is called full when the kernel drops for want of room, for a while after that, and not when it
// drops for another reason.
func TestTracking(t *testing.T) {
	dir := t.TempDir()
	write := func(path, text string) {
		t.Helper()
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	tr := &tracking{proc: dir}
	now := time.Unix(1_700_000_000, 0)
	if v, err := tr.look(now); err != nil || v.fill != roomy {
		t.Fatalf("without connection tracking: %+v %v", v, err)
	}
	for i, step := range []struct {
		after        time.Duration
		count, drops uint64
		want         fillState
		turned       bool
		words        string
	}{
		{0, 100, 7, roomy, false, ""},
		{3 * time.Second, 100, 9, roomy, false, ""}, // dropped, but there is room
		{3 * time.Second, 950, 9, tight, true, "nearly full: 950 of 1000"},
		{3 * time.Second, 999, 29, full, true, "conntrack table full: 999 of 1000 connections tracked, 20 packets dropped"},
		{3 * time.Second, 1000, 39, full, false, "30 packets dropped"},
		{20 * time.Second, 10, 39, full, false, "net.netfilter.nf_conntrack_max=2000"},
		{20 * time.Second, 10, 39, roomy, true, ""},
	} {
		now = now.Add(step.after)
		write("sys/net/netfilter/nf_conntrack_count", fmt.Sprintln(step.count))
		write("sys/net/netfilter/nf_conntrack_max", "1000\n")
		write("thread-self/net/stat/nf_conntrack", fmt.Sprintf("entries  found drop early_drop\n00000001  00000002 %08x 00000005\n00000001  00000002 00000001 00000000\n", step.drops-1))
		v, err := tr.look(now)
		if err != nil || v.fill != step.want || tr.turned() != step.turned || v.drops != step.drops {
			t.Fatalf("step %d: %+v %v, want %v", i, v, err, step.want)
		}
		if !strings.Contains(v.text(), step.words) || (step.words == "") != (v.text() == "") {
			t.Errorf("step %d: %q, want %q", i, v.text(), step.words)
		}
	}
}
