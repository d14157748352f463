package bus

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"skep.dev/libs/api"
	"skep.dev/libs/id"
	"skep.dev/libs/kv"
	"skep.dev/libs/pki"
	"skep.dev/libs/pki/pkitest"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// TestStoreState: a manager says how its store is, to operators and not to viewers.
func TestStoreState(t *testing.T) {
	ca := pkitest.NewCA(t)
	cfg := lone(t, ca, id.New())
	cfg.Found = true
	m, err := NewManager(cfg, filepath.Join(t.TempDir(), "run", "skep.sock"))
	if err != nil {
		t.Fatal(err)
	}
	cancel, ended := runManager(t, m)
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("stop: %v", err)
		}
	}()
	user := func(role string) *peer {
		who := pki.Identity{NodeID: "user-" + role, Role: pki.User, UserRole: role}
		return dial(t, m.Bus, pkitest.Store(t, ca, who, time.Hour), nats.Name(role))
	}
	r, err := api.Call(within(t), user(pki.Operator).Conn, api.StoreState.At(cfg.NodeID), &skepv1.StoreStateRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if r.WriteError != "" || r.WriteMicros <= 0 || r.SlowestMicros < r.WriteMicros || r.FreeBytes == 0 || r.TotalBytes < r.FreeBytes || r.StoreLimitBytes == 0 || r.Dir != cfg.DataDir {
		t.Errorf("the disk: %v", r)
	}
	if want := len(kv.Streams(1)); len(r.Streams) != want {
		t.Errorf("%d streams, want %d", len(r.Streams), want)
	}
	for _, s := range r.Streams {
		if s.Err != "" || s.Leader != serverName(cfg.NodeID, 1) || s.Damage != "" || s.Ghosts != 0 || len(s.Replicas) != 0 {
			t.Errorf("stream %v", s)
		}
	}
	if _, err := os.Stat(filepath.Join(cfg.DataDir, tryFile)); !os.IsNotExist(err) {
		t.Errorf("the timed file: %v", err)
	}
	user(pki.Viewer).mustNotPublish(api.StoreState.At(cfg.NodeID).Subject(), nil)

	// A stream that is not there is named; the others are told of.
	js, err := jetstream.New(dial(t, m.Bus, cfg.TLS, nats.Name("everything")).Conn)
	if err != nil {
		t.Fatal(err)
	}
	if err := js.DeleteStream(within(t), subject.Lease.Stream()); err != nil {
		t.Fatal(err)
	}
	if r, err = api.Call(within(t), user(pki.Operator).Conn, api.StoreState.At(cfg.NodeID), &skepv1.StoreStateRequest{}); err != nil {
		t.Fatal(err)
	}
	for _, s := range r.Streams {
		if gone := s.Name == subject.Lease.Stream(); gone != strings.Contains(s.Err, "not found") {
			t.Errorf("stream %v", s)
		}
	}
}

func TestTimeWrites(t *testing.T) {
	dir := t.TempDir()
	if got := timeWrites(dir); got.err != nil || got.took <= 0 || got.slowest < got.took {
		t.Errorf("%v", got)
	}
	if got := timeWrites(filepath.Join(dir, "not", "there")); got.err == nil || !strings.Contains(got.err.Error(), "write to the store's disk") {
		t.Errorf("%v", got)
	}
}
