package bus

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"skep.dev/libs/id"
	"skep.dev/libs/pki"
	"skep.dev/libs/pki/pkitest"
)

// patience is no measure of anything: five servers with a witness each are one process here, beside other tests, and a step of
// their group that takes seconds alone took more than a minute at a load of 29.
const patience = 4 * time.Minute

// freePorts finds n ports that nobody listens on.
func freePorts(t testing.TB, n int) []int {
	t.Helper()
	var out []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		out = append(out, l.Addr().(*net.TCPAddr).Port)
	}
	return out
}

// lone is the configuration of a single manager on loopback.
func lone(t testing.TB, ca *pki.CA, nodeID string) Config {
	t.Helper()
	p := freePorts(t, 2)
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(p[0]))
	return Config{
		NodeID: nodeID, DataDir: filepath.Join(t.TempDir(), "bus"), Listen: addr, Advertise: addr, RoutePort: p[1],
		TLS: pkitest.Store(t, ca, pki.Identity{NodeID: nodeID, Role: pki.Manager}, time.Hour), Witness: nodeID + "-w1",
	}
}

// run starts a bus and waits until it is ready; it is closed with the test.
func run(t testing.TB, cfg Config) *Bus {
	t.Helper()
	if cfg.Log == nil {
		cfg.Log = zaptest.NewLogger(t, zaptest.Level(zap.WarnLevel))
	}
	b, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- b.Run(context.Background()) }()
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	select {
	case <-b.Ready():
	case err := <-ended:
		t.Fatalf("the bus ended: %v", err)
	case <-time.After(patience):
		t.Fatal("the bus is not ready")
	}
	return b
}

func inProcessJS(t testing.TB, b *Bus, name string) (*nats.Conn, jetstream.JetStream) {
	t.Helper()
	nc, err := b.InProcess(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return nc, js
}

func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func bucket(name string) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: "KV_" + name, Subjects: []string{"$KV." + name + ".>"}, MaxMsgsPerSubject: 1, Discard: jetstream.DiscardNew,
		AllowRollup: true, DenyDelete: true, AllowDirect: true, AllowAtomicPublish: true, Replicas: 1,
	}
}

// created makes a bucket's stream. It asks again while nobody answers: what is asked before the store has a leader is lost, and
// "ready" says only that connections are taken.
func created(t testing.TB, js jetstream.JetStream, name string) (err error) {
	t.Helper()
	late := await(within(t), 20*time.Millisecond, 0, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, err = js.CreateStream(ctx, bucket(name))
		return err == nil
	})
	return errors.Join(late, err)
}

func TestSingleManagerStartsStopsAndRestarts(t *testing.T) {
	ca := pkitest.NewCA(t)
	cfg := lone(t, ca, id.New())
	began := time.Now()
	b := run(t, cfg)
	t.Logf("cold start to ready: %v", time.Since(began))
	_, js := inProcessJS(t, b, "manager")
	if err := created(t, js, "spec"); err != nil {
		t.Fatal(err)
	}
	_, state := inProcessJS(t, b, "state")
	for i := range 100 {
		if _, err := state.Publish(within(t), fmt.Sprintf("$KV.spec.k%d", i), []byte("v")); err != nil {
			t.Fatal(err)
		}
	}
	began = time.Now()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	t.Logf("graceful stop: %v", time.Since(began))

	began = time.Now()
	b = run(t, cfg)
	t.Logf("restart to ready: %v", time.Since(began))
	_, js = inProcessJS(t, b, "manager")
	s, err := js.Stream(within(t), "KV_spec")
	if err != nil {
		t.Fatal(err)
	}
	if n := s.CachedInfo().State.Msgs; n != 100 {
		t.Fatalf("%d of 100 keys after the restart", n)
	}
}

func TestPortInUseIsSaid(t *testing.T) {
	ca := pkitest.NewCA(t)
	cfg := lone(t, ca, id.New())
	l, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	b, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	err = b.Run(within(t))
	want := "listen on " + cfg.Listen + ": the port is in use: another skep, or a Docker Swarm manager, runs on this machine; stop it or give another --listen-addr"
	if err == nil || err.Error() != want {
		t.Fatalf("got %v\nwant %s", err, want)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	cfg := lone(t, pkitest.NewCA(t), id.New())
	b, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	<-b.Serving()
	cancel()
	select {
	case err := <-ended:
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	case <-time.After(patience):
		t.Fatal("Run goes on after its context ended")
	}
	if _, err := b.InProcess("state"); err == nil {
		t.Fatal("a stopped bus gives connections")
	}
}

// Who is reached over IPv6 listens there, unless told where to.
func TestListensWhereItIsReached(t *testing.T) {
	ca := pkitest.NewCA(t)
	for _, c := range []struct{ listen, advertise, want string }{
		{"", "192.0.2.1:2377", "0.0.0.0:2377"}, {"", "[fd00::1]:2377", "[::]:2377"}, {"0.0.0.0:99", "[fd00::1]:99", "[::]:99"}, {"127.0.0.1:99", "[fd00::1]:99", "127.0.0.1:99"}, {"0.0.0.0:99", "m1.lan:99", "0.0.0.0:99"},
	} {
		cfg := lone(t, ca, id.New())
		cfg.Listen, cfg.Advertise = c.listen, c.advertise
		if err := cfg.complete(); err != nil || cfg.Listen != c.want {
			t.Errorf("listen %q, advertise %s: %s, %v; want %s", c.listen, c.advertise, cfg.Listen, err, c.want)
		}
	}
}
