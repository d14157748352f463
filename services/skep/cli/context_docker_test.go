package cli

import (
	"net"
	"path/filepath"
	"testing"
)

// The line is docker's own command, for this node's socket; a cluster elsewhere has none.
func TestContextDocker(t *testing.T) {
	c := newCluster(t)
	run := t.TempDir()
	path := filepath.Join(run, "docker.sock")
	want(t, c.run("--run-dir", run, "context", "docker"), 0, "docker context create skep --docker host=unix://"+path+"\n", "there is no "+path)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	want(t, c.run("--run-dir", run, "context", "docker", "prod.1"), 0, "docker context create prod.1 --docker host=unix://"+path+"\n", "")
	want(t, c.run("--run-dir", "/run/a b", "context", "docker"), 0, `docker context create skep --docker 'host=unix:///run/a b/docker.sock'`, "")
	for _, bad := range []string{"x", "a;reboot", "default", "-x"} {
		want(t, c.run("context", "docker", "--", bad), 2, "", "invalid name")
	}
	want(t, c.run("--context", "prod", "context", "docker"), 1, "", "context prod is a cluster elsewhere")
	for word, quote := range map[string]string{"a/b:c": "a/b:c", "a'b": `'a'\''b'`, "$x": "'$x'"} {
		if got := quoted(word); got != quote {
			t.Errorf("%s: %s", word, got)
		}
	}
}
