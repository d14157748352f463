package ctrd

import (
	"os"
	"path/filepath"
	"testing"
)

func TestLogsOfContainerdAreKeptSmall(t *testing.T) {
	d := &Daemon{cfg: DaemonConfig{Dir: t.TempDir(), RunDir: t.TempDir()}}
	if err := d.shortenLogs(); err != nil {
		t.Fatalf("before there is any: %v", err)
	}
	task := filepath.Join(d.cfg.RunDir, "containerd", "io.containerd.runtime.v2.task", "skep", "t1")
	if err := os.MkdirAll(task, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ size, want, old int64 }{
		filepath.Join(d.cfg.Dir, "containerd.log"): {3 * maxDaemonLog, 0, maxDaemonLog},
		filepath.Join(task, "log.json"):            {maxRuntimeLog + 1, 0, maxRuntimeLog},
		filepath.Join(task, "config.json"):         {maxRuntimeLog + 1, maxRuntimeLog + 1, 0},
	} {
		if err := os.WriteFile(name, make([]byte, c.size), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := d.shortenLogs(); err != nil {
			t.Fatal(err)
		}
		if st, err := os.Stat(name); err != nil || st.Size() != c.want {
			t.Errorf("%s: %v, %v", name, st.Size(), err)
		}
		if st, err := os.Stat(name + ".1"); c.old > 0 && (err != nil || st.Size() != c.old) {
			t.Errorf("%s.1: %v", name, err)
		}
	}
}
