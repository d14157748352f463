package conn

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"skep.dev/libs/fault"
	"skep.dev/libs/pki"
)

// TestLocal: the connection goes through the daemon's socket.
func TestLocal(t *testing.T) {
	srv := broker(t, &server.Options{Host: "127.0.0.1", Port: -1, NoLog: true, NoSigs: true})
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "skep.sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b, err := net.Dial("tcp", srv.Addr().String())
			if err != nil {
				_ = c.Close()
				return
			}
			go func() { _, _ = io.Copy(b, c); _ = b.Close() }()
			go func() { _, _ = io.Copy(c, b); _ = c.Close() }()
		}
	}()
	nc, err := Dial(t.Context(), Options{RunDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if err := nc.FlushTimeout(10 * time.Second); err != nil {
		t.Fatal(err)
	}
}

func broker(t *testing.T, o *server.Options) *server.Server {
	t.Helper()
	srv, err := server.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	go srv.Start()
	t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	if !srv.ReadyForConnections(20 * time.Second) {
		t.Fatal("the broker does not start")
	}
	return srv
}

// TestWhatThisMachineIs: without a broker behind the socket the error says whether this is a worker, or nothing.
func TestWhatThisMachineIs(t *testing.T) {
	for _, c := range []struct {
		name string
		info *Info
		want string
	}{
		{"nothing", nil, "This node is not part of a swarm"},
		{"worker", &Info{NodeID: "n", Role: "worker"}, "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state."},
		{"worker with managers", &Info{NodeID: "n", Role: "worker", ManagerAddrs: []string{"10.0.0.1:2377"}}, "Managers: [10.0.0.1:2377]"},
		{"manager that is refused", &Info{NodeID: "n", Role: "manager", State: "starting", Error: "another machine runs as this manager: m1 at 10.0.0.1"}, "does not take connections: another machine runs as this manager: m1 at 10.0.0.1"},
		{"manager", &Info{NodeID: "n", Role: "manager", State: "starting"}, "its state: starting"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			if c.info != nil {
				l, err := net.Listen("unix", filepath.Join(dir, "node.sock"))
				if err != nil {
					t.Fatal(err)
				}
				h := http.NewServeMux()
				h.HandleFunc("GET /info", func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(c.info) })
				s := &http.Server{Handler: h}
				go func() { _ = s.Serve(l) }()
				t.Cleanup(func() { _ = s.Close() })
			}
			_, err := Dial(t.Context(), Options{RunDir: dir, Timeout: time.Second})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// TestDaemonDown: a node whose daemon is down is told so, not that it is no node.
func TestDaemonDown(t *testing.T) {
	run, data := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(data, "node.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	told := 0
	began := time.Now()
	_, err := Dial(t.Context(), Options{RunDir: run, DataDir: data, Timeout: time.Second, Patience: 1500 * time.Millisecond, Notice: func() { told++ }})
	if !fault.Is(err, fault.CodeUnavailable) || !strings.Contains(err.Error(), "daemon of this node is not running") || !strings.Contains(err.Error(), "skep node run --run-dir "+run) {
		t.Errorf("%v", err)
	}
	if d := time.Since(began); d < 1500*time.Millisecond || told != 1 {
		t.Errorf("gave up after %s, told %d times", d, told)
	}
	// A socket nobody listens on is what a killed daemon leaves.
	l, err := net.Listen("unix", filepath.Join(run, "skep.sock"))
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	_ = l.Close()
	if _, err := Dial(t.Context(), Options{RunDir: run, Timeout: time.Second}); !fault.Is(err, fault.CodeUnavailable) || !strings.Contains(err.Error(), "not running") {
		t.Errorf("%v", err)
	}
}

func TestContexts(t *testing.T) {
	s := Store{t.TempDir()}
	if s.Current() != Local {
		t.Errorf("current is %q", s.Current())
	}
	if err := s.Create(Context{Name: "prod", Addr: "h:2377", Key: "secret"}); err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(filepath.Join(s.Dir, "contexts", "prod.json"))
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Fatalf("%v %v", fi.Mode(), err)
	}
	for _, bad := range []string{"prod", "../x", "", Local, "a/b"} {
		if err := s.Create(Context{Name: bad}); err == nil {
			t.Errorf("context %q was created", bad)
		}
	}
	if err := s.Use("nope"); !fault.Is(err, fault.CodeNotFound) {
		t.Errorf("use of a missing context: %v", err)
	}
	if err := s.Use("prod"); err != nil || s.Current() != "prod" {
		t.Errorf("%v, current %q", err, s.Current())
	}
	if names, err := s.List(); err != nil || len(names) != 1 {
		t.Errorf("%v %v", names, err)
	}
	if err := s.Remove("prod"); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove("prod"); !fault.Is(err, fault.CodeNotFound) {
		t.Errorf("second removal: %v", err)
	}
}

// TestRemote: a context's certificate, over TLS 1.3 from the first byte.
func TestRemote(t *testing.T) {
	ca, err := pki.NewCA("cluster")
	if err != nil {
		t.Fatal(err)
	}
	mgr, _ := material(t, ca, pki.Identity{ClusterID: "cluster", Role: pki.Manager})
	user, key := material(t, ca, pki.Identity{ClusterID: "cluster", Role: pki.User, UserRole: pki.Admin})
	store, err := pki.Memory(mgr.cert, mgr.key, ca.CertPEM())
	if err != nil {
		t.Fatal(err)
	}
	srv := broker(t, &server.Options{Host: "127.0.0.1", Port: -1, NoLog: true, NoSigs: true, TLS: true, TLSConfig: pki.ServerTLS(store), TLSHandshakeFirst: true, TLSTimeout: 10})
	s := Store{t.TempDir()}
	if err := s.Create(Context{Name: "prod", Addr: srv.Addr().String(), Cert: string(user.cert), Key: string(key), CA: string(ca.CertPEM())}); err != nil {
		t.Fatal(err)
	}
	nc, err := Dial(t.Context(), Options{Context: "prod", Store: s, Timeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if st, err := nc.TLSConnectionState(); err != nil || st.Version != 0x0304 {
		t.Errorf("TLS %x %v", st.Version, err)
	}
	if _, err := Dial(context.Background(), Options{Context: "nope", Store: s}); !fault.Is(err, fault.CodeNotFound) {
		t.Errorf("a missing context: %v", err)
	}
	old, okey := certified(t, ca, pki.Identity{ClusterID: "cluster", Role: pki.User, UserRole: pki.Admin}, -time.Minute)
	if err := s.Create(Context{Name: "old", Addr: srv.Addr().String(), Cert: string(old.cert), Key: string(okey), CA: string(ca.CertPEM())}); err != nil {
		t.Fatal(err)
	}
	if _, err := Dial(context.Background(), Options{Context: "old", Store: s, Patience: time.Hour}); !fault.Is(err, fault.CodeDenied) || !strings.Contains(err.Error(), "its certificate expired on") {
		t.Errorf("an expired certificate: %v", err)
	}
	other, err := pki.NewCA("other")
	if err != nil {
		t.Fatal(err)
	}
	stranger, skey := material(t, other, pki.Identity{ClusterID: "other", Role: pki.User, UserRole: pki.Admin})
	if err := s.Create(Context{Name: "wrong", Addr: srv.Addr().String(), Cert: string(stranger.cert), Key: string(skey), CA: string(other.CertPEM())}); err != nil {
		t.Fatal(err)
	}
	if _, err := Dial(context.Background(), Options{Context: "wrong", Store: s, Timeout: 10 * time.Second}); !fault.Is(err, fault.CodeDenied) || !strings.Contains(err.Error(), "belongs to another cluster") {
		t.Errorf("another cluster's context: %v", err)
	}
}

type pems struct{ cert, key []byte }

func material(t *testing.T, ca *pki.CA, id pki.Identity) (pems, []byte) {
	t.Helper()
	return certified(t, ca, id, time.Hour)
}

func certified(t *testing.T, ca *pki.CA, id pki.Identity, life time.Duration) (pems, []byte) {
	t.Helper()
	key, csr, err := pki.NewKeyAndCSR()
	if err != nil {
		t.Fatal(err)
	}
	req, err := pki.ParseCSR(csr)
	if err != nil {
		t.Fatal(err)
	}
	id.NodeID = pki.NodeIDFor(req)
	cert, err := ca.Sign(csr, id, life)
	if err != nil {
		t.Fatal(err)
	}
	return pems{cert, key}, key
}
