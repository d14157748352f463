package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/member"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
)

// patience is for a machine that does many other things.
const patience = 60 * time.Second

// command runs one of the node's commands as the CLI would.
func command(t *testing.T, p Paths, args ...string) (string, error) {
	t.Helper()
	root := &cobra.Command{Use: "skep", SilenceErrors: true, SilenceUsage: true}
	root.PersistentFlags().String("run-dir", p.Run, "")
	Commands(root)
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetArgs(append(args, "--data-dir", p.Data))
	err := root.ExecuteContext(t.Context())
	return out.String(), err
}

// running is a daemon of the test.
type running struct {
	t     *testing.T
	p     Paths
	stop  context.CancelFunc
	ended chan error
}

// start runs the daemon of p and waits until it is ready, or has failed.
func start(t *testing.T, p Paths) (*running, Info) {
	t.Helper()
	d, err := New(Options{Paths: p, Log: zap.NewNop(), Version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{t, p, cancel, make(chan error, 1)}
	go func() { r.ended <- d.Run(ctx) }()
	t.Cleanup(func() { cancel() })
	within, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	for {
		info, err := ask(within, p, "GET", "/ready")
		if err == nil && info.State != "starting" {
			return r, info
		}
		select {
		case err := <-r.ended:
			t.Fatalf("the daemon ended: %v", err)
		case <-within.Done():
			t.Fatalf("the daemon is not ready: %+v %v", info, err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// end waits for the daemon's end.
func (r *running) end() error {
	r.t.Helper()
	select {
	case err := <-r.ended:
		return err
	case <-time.After(patience):
		r.t.Fatal("the daemon does not end")
		return nil
	}
}

// asRoot calls the API as the CLI of local root does: through the relay.
func asRoot[R any, PR interface {
	*R
	proto.Message
}](t *testing.T, p Paths, subj string, req proto.Message) PR {
	t.Helper()
	nc, err := nats.Connect("nats://skep", nats.SetCustomDialer(socket(p.Broker())))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	reply := PR(new(R))
	if err := rpc.Call(ctx, nc, subj, req, reply); err != nil {
		t.Fatal(err)
	}
	return reply
}

type socket string

func (s socket) Dial(string, string) (net.Conn, error) { return net.Dial("unix", string(s)) }

func mode(t *testing.T, path string) os.FileMode {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.Mode().Perm()
}

// Two at once would mix the keys of two clusters.
func TestInitsAtOnce(t *testing.T) {
	p := home(t)
	const n = 8
	errs := make(chan error, n)
	for range n {
		go func() {
			_, err := command(t, p, "init", "--no-start", "--advertise-addr", "127.0.0.1")
			errs <- err
		}()
	}
	made := 0
	for range n {
		switch err := <-errs; {
		case err == nil:
			made++
		case !strings.Contains(err.Error(), "already part of a swarm") && !strings.Contains(err.Error(), "another skep init or join"):
			t.Error(err)
		}
	}
	if made != 1 {
		t.Errorf("%d of %d made a cluster", made, n)
	}
	d, info := start(t, p)
	_, left := command(t, p, "leave", "--force") // what only ends would leave its containerd
	if err := errors.Join(left, d.end()); err != nil || info.State != "ready" {
		t.Errorf("the cluster that was made: %+v, %v", info, err)
	}
}

// A node's life in one process: init, ready, restart with its data, leave.
func TestOneProcess(t *testing.T) {
	p := home(t)
	if _, err := New(Options{Paths: p, Log: zap.NewNop()}); err == nil {
		t.Error("a machine that is no node has a daemon")
	}
	initArgs := []string{"init", "--no-start", "--advertise-addr", "127.0.0.1", "--task-history-limit", "3", "--node-name", "one"}
	for _, addr := range []string{"9323", "127.0.0.1:x", "192.0.2.7:9323", "127.0.0.1:2377", "127.0.0.1:2378"} {
		if _, err := command(t, p, append(initArgs, "--metrics-addr", addr)...); err == nil || !strings.Contains(err.Error(), `metrics address "`+addr+`"`) {
			t.Errorf("init with metrics address %s: %v", addr, err)
		}
		if _, err := os.Stat(p.Vault()); !os.IsNotExist(err) {
			t.Errorf("refused init with metrics address %s left something: %v", addr, err)
		}
	}
	initArgs = append(initArgs, "--metrics-addr", "127.0.0.1:9323")
	if out, err := command(t, p, initArgs...); err != nil || !strings.Contains(out, "skep join --token SKEP-1-") {
		t.Fatalf("init: %v\n%s", err, out)
	}
	// An attempt that died before the record was written is no membership; it is simply made again.
	half, err := Load(p)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(p.Record()); err != nil {
		t.Fatal(err)
	}
	if _, err := command(t, p, initArgs...); err != nil {
		t.Fatalf("init after one that died half-way: %v", err)
	}
	rec, err := Load(p)
	if err != nil {
		t.Fatal(err)
	}
	if rec.ClusterID == half.ClusterID || rec.Init == nil {
		t.Errorf("the second init's record: %+v", rec)
	}
	if _, err := command(t, p, initArgs...); err == nil || !strings.Contains(err.Error(), "already part of a swarm") {
		t.Errorf("init on a node: %v", err)
	}

	// A port that is taken: the daemon ends with the reason, and whoever waits for it is told.
	l, err := net.Listen("tcp", "0.0.0.0:2377")
	if err != nil {
		t.Fatal(err)
	}
	d, info := start(t, p)
	if err := d.end(); err == nil || info.State != "failed" || info.Error == "" || !strings.Contains(err.Error(), "bus") {
		t.Errorf("with the port taken: %+v, %v", info, err)
	}
	l.Close()

	d, info = start(t, p)
	if info.State != "ready" || info.NodeID != rec.NodeID || info.Role != RoleManager {
		t.Fatalf("ready: %+v", info)
	}
	for path, want := range map[string]os.FileMode{
		p.Control(): 0o600, p.Broker(): 0o600, p.Record(): 0o600, p.PID(): 0o600, p.Run: 0o700, p.Data: 0o700, p.Vault(): 0o700, p.Certs(): 0o700,
	} {
		if got := mode(t, path); got != want {
			t.Errorf("%s has mode %o, want %o", path, got, want)
		}
	}
	cluster := asRoot[skepv1.ClusterReply](t, p, subject.API("cluster", "inspect"), &skepv1.Empty{}).Cluster
	if cluster.Meta.Id != rec.ClusterID || cluster.Spec.TaskHistoryLimit != 3 {
		t.Errorf("the cluster: %v", cluster)
	}
	cluster.Spec.TaskHistoryLimit = 9
	asRoot[skepv1.ClusterReply](t, p, subject.API("cluster", "update"), &skepv1.UpdateClusterRequest{Spec: cluster.Spec})

	// Nobody else runs on these files, in either form.
	second, err := New(Options{Paths: p, Log: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "runs on "+p.Data+" already") {
		t.Errorf("a second daemon: %v", err)
	}
	if _, _, err := member.HoldPart(p, "skep-bus", true); err == nil || !strings.Contains(err.Error(), "in one process") {
		t.Errorf("a service of its own beside the daemon: %v", err)
	}
	if info, err := Running(t.Context(), p); err != nil || info.State != "ready" {
		t.Errorf("the first daemon after that: %+v %v", info, err)
	}

	// Stop and start: the same node, its data, and the first start's wishes, asked for again, change nothing.
	d.stop()
	if err := d.end(); err != nil {
		t.Errorf("stop: %v", err)
	}
	for _, path := range []string{p.Control(), p.Broker(), p.PID()} {
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("a stopped daemon left %s", path)
		}
	}
	if _, err := member.Update(p, func(r *Record) { r.Init = rec.Init }); err != nil {
		t.Fatal(err)
	}
	d, _ = start(t, p)
	cluster = asRoot[skepv1.ClusterReply](t, p, subject.API("cluster", "inspect"), &skepv1.Empty{}).Cluster
	if cluster.Meta.Id != rec.ClusterID || cluster.Spec.TaskHistoryLimit != 9 {
		t.Errorf("the cluster after a restart: %v", cluster)
	}
	nodes := asRoot[skepv1.ListNodesReply](t, p, subject.API("node", "list"), &skepv1.ListNodesRequest{}).Nodes
	checkMetrics(t, "127.0.0.1:9323")
	checkStack(t, p)
	if len(nodes) != 1 || nodes[0].Meta.Id != rec.NodeID {
		t.Errorf("the nodes after a restart: %v", nodes)
	}
	if now, err := Load(p); err != nil || now.Init != nil || now.Subnet == "" {
		t.Errorf("the record after a restart: %+v %v", now, err)
	}

	if now := traces(t, p); len(now) < 2 {
		t.Errorf("a node has a bridge and a containerd; found %q", now)
	}

	// Leave: refused without force, then nothing of the node stays.
	if _, err := command(t, p, "leave"); err == nil || !strings.Contains(err.Error(), "last manager") {
		t.Errorf("the last manager leaves unforced: %v", err)
	}
	if out, err := command(t, p, "leave", "--force"); err != nil || !strings.Contains(out, "Node left the swarm.") {
		t.Fatalf("leave: %v\n%s", err, out)
	}
	if err := d.end(); err != nil {
		t.Errorf("the daemon that left: %v", err)
	}
	if left, err := os.ReadDir(p.Data); err != nil || len(left) != 0 {
		t.Errorf("in the data directory after leaving: %v %v", left, err)
	}
	if now := traces(t, p); len(now) != 0 {
		t.Errorf("left on the machine: %q", now)
	}
	if _, err := command(t, p, "leave"); err == nil || !strings.Contains(err.Error(), "not part of a swarm") {
		t.Errorf("leave twice: %v", err)
	}
}

// traces are the links and processes of the node; both namespaces are the test's own.
func traces(t *testing.T, p Paths) (out []string) {
	t.Helper()
	b, err := exec.Command("ip", "-j", "link").Output()
	if err != nil {
		t.Fatal(err)
	}
	var links []struct{ Ifname string }
	if err := json.Unmarshal(b, &links); err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if strings.HasPrefix(l.Ifname, "sk") {
			out = append(out, "link "+l.Ifname)
		}
	}
	found, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		// A process may end meanwhile; one that did, and was not reaped by us, has no command line.
		if b, err := os.ReadFile(f); err == nil && (strings.Contains(string(b), p.Data) || strings.Contains(string(b), p.Run)) {
			out = append(out, "process "+strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	return out
}
