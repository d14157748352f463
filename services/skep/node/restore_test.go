package node

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/subject"
	"skep.dev/services/skep/cli"
)

// A cluster is restored on a machine that never was a node: its id, its settings and objects are those of the backup, its
// manager is another one, and it starts, again and again, like any.
func TestRestore(t *testing.T) {
	p, dir := home(t), t.TempDir()
	if _, err := command(t, p, "init", "--no-start", "--advertise-addr", "127.0.0.1", "--task-history-limit", "3", "--node-name", "one"); err != nil {
		t.Fatal(err)
	}
	d, _ := start(t, p)
	was := asRoot[skepv1.ClusterReply](t, p, subject.API("cluster", "inspect"), &skepv1.Empty{}).Cluster
	asRoot[skepv1.NetworkReply](t, p, subject.API("network", "create"), &skepv1.CreateNetworkRequest{Spec: &skepv1.NetworkSpec{Name: "net", Driver: "overlay"}})
	pass, file := filepath.Join(dir, "pass"), filepath.Join(dir, "b.skep")
	if err := os.WriteFile(pass, []byte("correct horse\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	env := cli.Env{In: strings.NewReader(""), Out: &out, Err: &errs, Getenv: func(string) string { return "" }, NodeCommands: Commands}
	if code := cli.Main(t.Context(), env, []string{"--run-dir", p.Run, "backup", "create", "--passphrase-file", pass, file}); code != 0 {
		t.Fatalf("%d %s%s", code, out.String(), errs.String())
	}
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the file: %v, %v", st.Mode(), err)
	}
	args := []string{"backup", "restore", "--no-start", "--advertise-addr", "127.0.0.1", "--node-name", "two", "--passphrase-file", pass, file}
	code := cli.Main(t.Context(), env, append([]string{"--run-dir", p.Run}, append(args, "--data-dir", p.Data)...))
	if code == 0 || !strings.Contains(errs.String(), "already part of a swarm") {
		t.Fatalf("restored onto a node: %d %s", code, errs.String())
	}
	_, left := command(t, p, "leave", "--force")
	if err := errors.Join(left, d.end()); err != nil {
		t.Fatal(err)
	}

	other := home(t)
	run := func() int {
		out.Reset()
		errs.Reset()
		return cli.Main(t.Context(), env, append([]string{"--run-dir", other.Run}, append(args, "--data-dir", other.Data)...))
	}
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for what, bad := range map[string][]byte{"cut off": whole[:len(whole)-1], "altered": append(bytes.Clone(whole[:len(whole)-1]), whole[len(whole)-1]^1), "nothing": nil} {
		if err := os.WriteFile(file, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if code := run(); code == 0 {
			t.Errorf("%s: restored", what)
		}
		if left, _ := os.ReadDir(other.Data); len(left) > 1 || len(left) == 1 && left[0].Name() != "lock" {
			t.Errorf("%s: something was made: %v", what, left)
		}
	}
	if err := os.WriteFile(file, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if code := run(); code != 0 || !strings.Contains(out.String(), "Its managers of then are no nodes any more: one") {
		t.Fatalf("%d %s%s", code, out.String(), errs.String())
	}
	rec, err := Load(other)
	if err != nil || rec.ClusterID != was.Meta.Id || rec.Init == nil {
		t.Fatal(rec, err)
	}
	for n := range 2 {
		d, info := start(t, other)
		if info.State != "ready" || info.NodeID != rec.NodeID || info.ClusterID != was.Meta.Id {
			t.Fatalf("start %d: %+v", n, info)
		}
		is := asRoot[skepv1.ClusterReply](t, other, subject.API("cluster", "inspect"), &skepv1.Empty{}).Cluster
		if is.Spec.TaskHistoryLimit != 3 || is.CaDigest != was.CaDigest || !is.Spec.Restored || is.Meta.Version < 1<<50 {
			t.Fatal(is)
		}
		nodes := asRoot[skepv1.ListNodesReply](t, other, subject.API("node", "list"), &skepv1.ListNodesRequest{}).Nodes
		if len(nodes) != 1 || nodes[0].Meta.Id != rec.NodeID {
			t.Fatal(nodes)
		}
		if n := asRoot[skepv1.NetworkReply](t, other, subject.API("network", "inspect"), &skepv1.Ref{Ref: "net"}).Network; n.Spec.Name != "net" {
			t.Fatal(n)
		}
		if n == 1 {
			_, left := command(t, other, "leave", "--force")
			if err := errors.Join(left, d.end()); err != nil {
				t.Fatal(err)
			}
			break
		}
		d.stop()
		if err := d.end(); err != nil {
			t.Fatal(err)
		}
	}
}
