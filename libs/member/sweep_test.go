package member

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// What a crash left half-written is gone when a node starts again; what lies in a volume is its user's.
func TestStartSweeps(t *testing.T) {
	p := Paths{Data: t.TempDir(), Run: t.TempDir()}
	old := time.Now().Add(-time.Hour)
	want := map[string]bool{"node.json.new-1": false, "certs/node.pem.new-2": false, "mesh/picture.pb.new-3": false, "mesh/tasks/t.json.new-4": false, "agent/generation.new-5": false,
		"agent/tasks/t1/spec.new-6": false, "agent/volumes/data/meta.json.new-7": false, "agent/volumes/data/_data/mine.new-8": true, "agent/volumes/.tasks/t1.new-9": false, "agent/mounts/rexray/data/t1.new-11": false, "containerd/x.new-10": true}
	for name := range want {
		path := filepath.Join(p.Data, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, old, old); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Settle(p, Certificate(RoleWorker)); err == nil {
		t.Error("there is no node here")
	}
	for name, stays := range want {
		if _, err := os.Stat(filepath.Join(p.Data, name)); (err == nil) != stays {
			t.Errorf("%s: %v", name, err)
		}
	}
}
