package probe

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	grpchealth "google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	skepv1 "skep.dev/proto/skep/v1"
)

// here is this process as a task.
func here(t testing.TB, addrs ...netip.Addr) *network {
	t.Helper()
	h, err := openHome()
	if err != nil {
		t.Fatal(err)
	}
	n := h.enter(Target{Pid: uint32(os.Getpid()), Addresses: addrs})
	t.Cleanup(func() { n.close(); _ = h.close() })
	return n
}

func portOf(a net.Addr) uint32 { return uint32(a.(*net.TCPAddr).Port) }

func soon(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestHTTP(t *testing.T) {
	mux := http.NewServeMux()
	var agent, host string
	mux.HandleFunc("/ok", func(w http.ResponseWriter, r *http.Request) {
		agent, host = r.UserAgent(), r.Host
		w.WriteHeader(http.StatusEarlyHints)
		fmt.Fprint(w, "fine ", r.URL.RawQuery)
	})
	mux.HandleFunc("/moved", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://nowhere.invalid/", http.StatusFound)
	})
	mux.HandleFunc("/sick", func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "no database", http.StatusServiceUnavailable)
	})
	mux.HandleFunc("/long", func(w http.ResponseWriter, r *http.Request) {
		for i := 0; i < 10<<20; i += 1024 {
			if _, err := w.Write(make([]byte, 1024)); err != nil {
				return
			}
		}
	})
	mux.HandleFunc("/hang", func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	mux.HandleFunc("/headers", func(w http.ResponseWriter, r *http.Request) {
		for i := range 1000 {
			w.Header().Set(fmt.Sprint("X-", i), strings.Repeat("y", 1000))
		}
	})
	srv := httptest.NewServer(mux)
	defer srv.Close()
	n, port := here(t), portOf(srv.Listener.Addr())
	for path, want := range map[string]string{
		"/ok?a=1": "HTTP 200 OK: fine a=1", "/moved": "HTTP 302 Found", "/long": "HTTP 200 OK",
		"/sick": "!HTTP 503 Service Unavailable: no database", "/none": "!HTTP 404 Not Found", "/headers": "!GET /headers",
	} {
		out, err := n.http(soon(t), port, path)
		if err != nil {
			out = "!" + err.Error()
		}
		if !strings.HasPrefix(out, want) || len(out) > OutputLimit {
			t.Errorf("%s: %q, want %q", path, out[:min(len(out), 200)], want)
		}
	}
	if agent != "skep-probe" || host != fmt.Sprintf("localhost:%d", port) {
		t.Errorf("asked as %q for %q", agent, host)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := n.http(ctx, port, "/hang"); err == nil {
		t.Error("an answer that never comes passes")
	}
	srv.Close()
	if _, err := n.http(soon(t), port, "/ok"); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("nobody listens: %v", err)
	}
}

// A server that takes the connection and talks nonsense, for ever.
func TestHTTPNonsense(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if _, err := bufio.NewReader(c).ReadString('\n'); err != nil {
					return
				}
				_, _ = io.Copy(c, &endless{})
			}()
		}
	}()
	if _, err := here(t).http(soon(t), portOf(l.Addr()), "/"); err == nil {
		t.Error("nonsense passes")
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

func TestTCPAndWhereItIsAsked(t *testing.T) {
	// Not the loopback address: found at the task's own.
	l, err := net.Listen("tcp4", "127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := here(t).tcp(soon(t), portOf(l.Addr())); err == nil {
		t.Error("found at an address that is not the task's")
	}
	if _, err := here(t, netip.MustParseAddr("127.0.0.2")).tcp(soon(t), portOf(l.Addr())); err != nil {
		t.Error(err)
	}
	if l6, err := net.Listen("tcp6", "[::1]:0"); err == nil {
		defer l6.Close()
		if _, err := here(t).tcp(soon(t), portOf(l6.Addr())); err != nil {
			t.Error(err)
		}
	}
}

func TestGRPC(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv, hs := grpc.NewServer(), grpchealth.NewServer()
	healthpb.RegisterHealthServer(srv, hs)
	go func() { _ = srv.Serve(l) }()
	defer srv.Stop()
	n, port := here(t), portOf(l.Addr())
	hs.SetServingStatus("cart", healthpb.HealthCheckResponse_NOT_SERVING)
	for service, want := range map[string]string{"": "", "cart": "gRPC health check: NOT_SERVING", "gone": "gRPC health check: NotFound: unknown service"} {
		_, err := n.grpc(soon(t), port, service)
		if got := fmt.Sprint(err); err == nil && want != "" || err != nil && got != want {
			t.Errorf("%q: %v, want %q", service, err, want)
		}
	}
	srv.Stop()
	if _, err := n.grpc(soon(t), port, ""); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("nobody listens: %v", err)
	}
}

// What listens on the node's own loopback does not pass for a task, and no thread stays in the task's network.
func TestTheTasksOwnNetwork(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatalf("a network namespace (root needed): %v", err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	h, err := openHome()
	if err != nil {
		t.Fatal(err)
	}
	defer h.close()
	n := h.enter(Target{Pid: uint32(cmd.Process.Pid)})
	defer n.close()
	for range 200 {
		if _, err := n.tcp(soon(t), portOf(l.Addr())); err == nil {
			t.Fatal("the node's own loopback was asked")
		}
	}
	var own unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &own); err != nil {
		t.Fatal(err)
	}
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range threads {
		var st unix.Stat_t
		if unix.Stat("/proc/self/task/"+e.Name()+"/ns/net", &st) == nil && st.Ino != own.Ino {
			t.Errorf("thread %s is in another network", e.Name())
		}
	}
	// One that has ended is no verdict.
	gone := h.enter(Target{Pid: 1 << 30})
	defer gone.close()
	p := &Prober{home: h}
	for _, c := range []*skepv1.HealthConfig{{TcpPort: 1}, {Http: &skepv1.HTTPCheck{Port: 1, Path: "/"}}, {Grpc: &skepv1.GRPCCheck{Port: 1}}} {
		if r := p.once(t.Context(), Watch{Check: HealthCheck(c, nil)}, gone); r.verdict != Unknown {
			t.Errorf("%v: %v", c, r)
		}
	}
}

const firstThreadAway = "SKEP_TEST_FIRST_THREAD_AWAY"

func init() {
	if os.Getenv(firstThreadAway) == "" {
		return
	}
	runtime.LockOSThread() // of the first thread, which init runs on; the tests run on others
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		panic(err)
	}
}

// The first thread of a process may be in another network: Go parks it where it would end any other thread.
func TestHomeIsNotTheFirstThreads(t *testing.T) {
	if os.Getenv(firstThreadAway) == "" {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestHomeIsNotTheFirstThreads$")
		cmd.Env = append(os.Environ(), firstThreadAway+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	var first, own, home unix.Stat_t
	h, err := openHome()
	if err != nil {
		t.Fatal(err)
	}
	defer h.close()
	if err := errors.Join(unix.Stat("/proc/self/ns/net", &first), unix.Stat("/proc/thread-self/ns/net", &own), unix.Fstat(h.fd, &home)); err != nil {
		t.Fatal(err)
	}
	if first.Ino == own.Ino {
		t.Fatal("the first thread is at home; nothing is shown")
	}
	if home.Ino != own.Ino {
		t.Error("home is where the first thread is")
	}
}

// A probe leaves neither a file open nor a goroutine.
func TestNothingIsLeft(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {}))
	defer srv.Close()
	n, port := here(t), portOf(srv.Listener.Addr())
	files := func() int { e, _ := os.ReadDir("/proc/self/fd"); return len(e) }
	ask := func() {
		for range 50 {
			_, _ = n.http(soon(t), port, "/")
			_, _ = n.tcp(soon(t), port)
			_, _ = n.tcp(soon(t), 1)
			_, _ = n.grpc(soon(t), 1, "")
		}
	}
	ask()
	before := files()
	ask()
	for end := time.Now().Add(5 * time.Second); files() > before+5; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d files open, %d before", files(), before)
		}
	}
}
