package kv_test

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"skep.dev/libs/kvtest"
	"skep.dev/libs/subject"
)

// TestRenewalsCostNothing renews leases as long as a manager at rest does in half an hour. The broker holds the block that a
// stream's newest messages are in, and what renewals write over stays in it: with blocks of the usual size a manager that
// does nothing would take 8 MB more within four hours.
func TestRenewalsCostNothing(t *testing.T) {
	n := kvtest.Server(t)
	js := n.JS(t)
	const renewals, window = 6000, 200
	for i := range renewals {
		m := nats.NewMsg(subject.Lease.Key([]string{"scheduler", "health", "mesh", "stacks"}[i%4]))
		m.Data = []byte(fmt.Sprint("abcdefghijklmnopqrstuvwxy-", i))
		m.Header.Set("Nats-TTL", "60")
		if _, err := js.PublishMsgAsync(m); err != nil {
			t.Fatal(err)
		}
		if i%window == window-1 {
			<-js.PublishAsyncComplete()
		}
	}
	var sum int64
	var blocks []string
	err := filepath.WalkDir(n.Servers[0].StoreDir(), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.Contains(path, subject.Lease.Stream()) || !strings.HasSuffix(path, ".blk") {
			return err
		}
		info, err := d.Info()
		if err == nil {
			sum += info.Size()
			blocks = append(blocks, fmt.Sprintf("%s %d", d.Name(), info.Size()))
		}
		return err
	})
	if err != nil || len(blocks) == 0 {
		t.Fatalf("blocks of the leases: %v %v", blocks, err)
	}
	if sum > 128<<10 {
		t.Errorf("%d renewals take %d KiB: %v", renewals, sum>>10, blocks)
	}
	st, err := js.Stream(ctx(t), subject.Lease.Stream())
	if err != nil || st.CachedInfo().State.Msgs != 4 {
		t.Errorf("%v leases are held, want 4: %v", st.CachedInfo().State.Msgs, err)
	}
}
