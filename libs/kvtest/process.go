package kvtest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"skep.dev/libs/leaktest"
)

// envServer holds the settings of a server that this test binary is to be, instead of running tests.
const envServer = "SKEP_KVTEST_SERVER"

// settings are what a server process is started with.
type settings struct {
	Name, Dir    string
	Port, Route  int
	Routes       []string // empty: a server alone
	SyncInterval time.Duration
}

// Main is for TestMain of packages that use Processes: in a server process it is the server and does not return.
func Main(m *testing.M) {
	if raw := os.Getenv(envServer); raw != "" {
		if err := serve(raw); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	leaktest.Main(m)
}

func serve(raw string) error {
	var s settings
	if err := json.Unmarshal([]byte(raw), &s); err != nil {
		return fmt.Errorf("read the server's settings: %w", err)
	}
	o := &server.Options{
		ServerName: s.Name, Host: "127.0.0.1", Port: s.Port, NoLog: true, NoSigs: true,
		JetStream: true, StoreDir: s.Dir, SyncAlways: true, SyncInterval: s.SyncInterval, MaxPayload: 1 << 20,
		JetStreamMaxMemory: 256 << 20, JetStreamMaxStore: 8 << 30,
	}
	o.JetStreamLimits.DefaultMaxConsumers = -1
	if len(s.Routes) > 0 {
		o.Cluster = server.ClusterOpts{Name: "test", Host: "127.0.0.1", Port: s.Route}
		for _, r := range s.Routes {
			u, err := url.Parse(r)
			if err != nil {
				return fmt.Errorf("read route %s: %w", r, err)
			}
			o.Routes = append(o.Routes, u)
		}
	}
	srv, err := server.NewServer(o)
	if err != nil {
		return fmt.Errorf("make server %s: %w", s.Name, err)
	}
	go srv.Start()
	// The test holds the other end: when it is gone, however it ended, so is the server.
	_, _ = io.Copy(io.Discard, os.Stdin)
	srv.Shutdown()
	srv.WaitForShutdown()
	return nil
}

// Processes are servers in processes of their own, which can be killed.
type Processes struct {
	t       testing.TB
	servers []*process
}

type process struct {
	settings settings
	cmd      *exec.Cmd
	stdin    io.WriteCloser
}

// Spawn starts size servers as processes. Streams are the test's to make. SyncInterval is how often the servers compact
// their files (0: their default).
func Spawn(t testing.TB, size int, syncInterval time.Duration) *Processes {
	t.Helper()
	ports := freePorts(t, 2*size)
	var routes []string
	if size > 1 {
		for _, p := range ports[size:] {
			routes = append(routes, fmt.Sprintf("nats-route://127.0.0.1:%d", p))
		}
	}
	ps := &Processes{t: t}
	dir := t.TempDir()
	t.Cleanup(func() {
		for i := range ps.servers {
			ps.Kill(i)
		}
	})
	for i := range size {
		name := fmt.Sprintf("p%d", i+1)
		ps.servers = append(ps.servers, &process{settings: settings{
			Name: name, Dir: filepath.Join(dir, name), Port: ports[i], Route: ports[size+i], Routes: routes, SyncInterval: syncInterval,
		}})
	}
	for i := range size {
		ps.Start(i)
	}
	return ps
}

// Start starts a server that does not run.
func (ps *Processes) Start(i int) {
	ps.t.Helper()
	p := ps.servers[i]
	raw, err := json.Marshal(p.settings)
	if err != nil {
		ps.t.Fatal(err)
	}
	p.cmd = exec.Command(os.Args[0])
	p.cmd.Env = append(os.Environ(), envServer+"="+string(raw))
	p.cmd.Stderr = os.Stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		ps.t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		ps.t.Fatalf("start server %s: %v", p.settings.Name, err)
	}
}

// Kill ends a server with SIGKILL and waits until it is gone.
func (ps *Processes) Kill(i int) {
	p := ps.servers[i]
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
	p.cmd = nil
}

// Freeze stops a server's process: its kernel goes on taking what is sent to it. Kill ends a frozen one too.
func (ps *Processes) Freeze(i int) { ps.signal(i, syscall.SIGSTOP) }

// Thaw lets a frozen server go on.
func (ps *Processes) Thaw(i int) { ps.signal(i, syscall.SIGCONT) }

func (ps *Processes) signal(i int, sig syscall.Signal) {
	ps.t.Helper()
	if err := ps.servers[i].cmd.Process.Signal(sig); err != nil {
		ps.t.Fatalf("signal server %s: %v", ps.servers[i].settings.Name, err)
	}
}

// Stop ends a server as a shutdown does.
func (ps *Processes) Stop(i int) {
	p := ps.servers[i]
	_ = p.stdin.Close()
	_ = p.cmd.Wait()
	p.cmd = nil
}

// Index is the number of the server of that name, -1 when there is none.
func (ps *Processes) Index(name string) int {
	for i, p := range ps.servers {
		if p.settings.Name == name {
			return i
		}
	}
	return -1
}

// Dir is where a server keeps its streams.
func (ps *Processes) Dir(i int) string { return ps.servers[i].settings.Dir }

// JS is a JetStream context over a new connection to the given servers (none: to all). It is usable at once: requests
// wait for nothing, so ask until they are answered.
func (ps *Processes) JS(t testing.TB, only ...int) jetstream.JetStream {
	t.Helper()
	if len(only) == 0 {
		for i := range ps.servers {
			only = append(only, i)
		}
	}
	urls := ""
	for _, i := range only {
		if urls != "" {
			urls += ","
		}
		urls += fmt.Sprintf("nats://127.0.0.1:%d", ps.servers[i].settings.Port)
	}
	nc, err := nats.Connect(urls, nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond), nats.RetryOnFailedConnect(true), nats.IgnoreDiscoveredServers())
	if err != nil {
		t.Fatalf("connect to the server processes: %v", err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// Ask repeats what fails until it succeeds, or fails the test after a minute: for servers that are just starting.
func Ask[T any](t testing.TB, what string, f func(context.Context) (T, error)) T {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for {
		try, cancel := context.WithTimeout(ctx, 2*time.Second)
		v, err := f(try)
		cancel()
		if err == nil {
			return v
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
