package daemon

import (
	"fmt"
	"io"
	"net"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"go.uber.org/zap"

	"skep.dev/libs/id"
	"skep.dev/libs/pki"
	"skep.dev/libs/pki/pkitest"
)

// brokers are managers' brokers of one cluster: the certificates of all, and no store.
func brokers(t *testing.T, ca *pki.CA, size int) []*server.Server {
	t.Helper()
	var out []*server.Server
	for i := range size {
		o := &server.Options{
			ServerName: fmt.Sprint("m", i), Host: "127.0.0.1", Port: -1, NoLog: true, NoSigs: true, TLSHandshakeFirst: true, TLSTimeout: 5,
			TLSConfig: pki.ServerTLS(pkitest.Store(t, ca, pki.Identity{NodeID: id.New(), Role: pki.Manager}, time.Hour)),
			Cluster:   server.ClusterOpts{Name: "skep", Host: "127.0.0.1", Port: -1},
		}
		if size > 1 {
			o.Cluster.Port = 0
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			o.Cluster.Port = l.Addr().(*net.TCPAddr).Port
			_ = l.Close()
			for _, s := range out {
				o.Routes = append(o.Routes, &url.URL{Scheme: "nats-route", Host: s.ClusterAddr().String()})
			}
		}
		s, err := server.NewServer(o)
		if err != nil {
			t.Fatal(err)
		}
		go s.Start()
		t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
		if !s.ReadyForConnections(30 * time.Second) {
			t.Fatal("a broker takes no connections")
		}
		out = append(out, s)
	}
	await(t, "the brokers see each other", 30*time.Second, func() bool {
		return !slices.ContainsFunc(out, func(s *server.Server) bool { return size > 1 && s.NumRoutes() < size-1 })
	})
	return out
}

func await(t *testing.T, what string, within time.Duration, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(within); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not after %v: %s", within, what)
		}
	}
}

// freezer stands in front of a manager. Frozen, it is like a stopped process: the kernel takes connections, and nothing
// moves on any.
type freezer struct {
	net.Listener
	to string

	mu    sync.Mutex
	thawn chan struct{} // closed while it is not frozen
}

func newFreezer(t *testing.T, to string) *freezer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &freezer{Listener: l, to: to, thawn: make(chan struct{})}
	close(f.thawn)
	t.Cleanup(func() { _ = l.Close(); f.thaw() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go f.serve(c)
		}
	}()
	return f
}

func (f *freezer) serve(c net.Conn) {
	defer c.Close()
	f.wait()
	up, err := net.Dial("tcp", f.to)
	if err != nil {
		return
	}
	defer up.Close()
	go f.pump(up, c)
	f.pump(c, up)
}

func (f *freezer) pump(to, from net.Conn) {
	defer to.Close()
	buf := make([]byte, 4096)
	for {
		n, err := from.Read(buf)
		f.wait()
		if _, werr := to.Write(buf[:n]); err != nil || werr != nil {
			_, _ = io.Copy(io.Discard, from)
			return
		}
	}
}

func (f *freezer) wait() {
	f.mu.Lock()
	ch := f.thawn
	f.mu.Unlock()
	<-ch
}

func (f *freezer) freeze() {
	f.mu.Lock()
	f.thawn = make(chan struct{})
	f.mu.Unlock()
}

func (f *freezer) thaw() {
	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case <-f.thawn:
	default:
		close(f.thawn)
	}
}

func connected(t *testing.T, store *pki.Store, to Managers) *nats.Conn {
	t.Helper()
	began := time.Now()
	nc, err := ConnectTo("test", to, store, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	await(t, "connected", 20*time.Second, nc.IsConnected)
	t.Logf("connected to %s in %v", nc.ConnectedServerName(), time.Since(began))
	return nc
}

func worker(t *testing.T, ca *pki.CA) *pki.Store {
	return pkitest.Store(t, ca, pki.Identity{NodeID: id.New(), Role: pki.Worker}, time.Hour)
}

func on(nc *nats.Conn, s *server.Server) func() bool {
	return func() bool { return nc.IsConnected() && nc.ConnectedServerName() == s.Name() }
}

// A manager that hangs from the beginning costs a second, one that begins to hang is left soon after; when it is back it is
// used again by those whose home it is.
func TestAManagerThatHangsIsLeft(t *testing.T) {
	ca := pkitest.NewCA(t)
	b := brokers(t, ca, 2)
	home := newFreezer(t, b[0].Addr().String())
	to := Managers{Home: home.Addr().String(), Addrs: []string{home.Addr().String(), b[1].Addr().String()}, Return: true}

	home.freeze()
	began := time.Now()
	nc := connected(t, worker(t, ca), to)
	if took := time.Since(began); !on(nc, b[1])() || took > 3*time.Second {
		t.Errorf("connected to %s after %v", nc.ConnectedServerName(), took)
	}
	home.thaw()
	await(t, "it is back at its home", 20*time.Second, on(nc, b[0]))

	// Publishing goes on: what is said while it moves is said elsewhere.
	sub, err := connected(t, worker(t, ca), Managers{Addrs: []string{b[1].Addr().String()}}).SubscribeSync("x")
	if err != nil {
		t.Fatal(err)
	}
	home.freeze()
	began = time.Now()
	await(t, "it left", 10*time.Second, on(nc, b[1]))
	took := time.Since(began)
	t.Logf("left a manager that hangs after %v", took)
	if took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	if err := nc.Publish("x", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := sub.NextMsg(10 * time.Second); err != nil {
		t.Error(err)
	}
}

// A connection finds managers it was never told of, and leaves a dead one at once.
func TestManagersAreLearnt(t *testing.T) {
	ca := pkitest.NewCA(t)
	b := brokers(t, ca, 3)
	nc := connected(t, worker(t, ca), Managers{Addrs: []string{b[0].Addr().String()}})
	await(t, "all managers are known", 10*time.Second, func() bool { return len(nc.DiscoveredServers()) >= 3 })
	b[0].Shutdown()
	began := time.Now()
	await(t, "it moved", 10*time.Second, func() bool { return on(nc, b[1])() || on(nc, b[2])() })
	t.Logf("left a dead manager after %v", time.Since(began))

	// Those whom another cluster certified are not managers, whoever tells of them.
	other := brokers(t, pkitest.NewCA(t), 1)
	stranger, err := ConnectTo("test", Managers{Addrs: []string{other[0].Addr().String(), b[1].Addr().String()}}, worker(t, ca), zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	await(t, "it found the manager of its cluster", 20*time.Second, on(stranger, b[1]))
}
