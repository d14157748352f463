// Package kvtest runs embedded JetStream servers for tests: one (Server) or a cluster (Cluster), with skep's
// streams in place and SyncAlways on, as in production. Everything stops with the test.
package kvtest

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"skep.dev/libs/kv"
	"skep.dev/libs/subject"
)

// NATS is one or several running servers.
type NATS struct {
	t       testing.TB
	Servers []*server.Server
}

// Server starts a single server with all streams at one replica.
func Server(t testing.TB) *NATS {
	t.Helper()
	o := options(t, "solo")
	n := &NATS{t: t, Servers: []*server.Server{start(t, o)}}
	n.ensure(1)
	return n
}

// Cluster starts n servers in one process with all streams at n replicas.
func Cluster(t testing.TB, size int) *NATS {
	t.Helper()
	ports := freePorts(t, size)
	var routes []*url.URL
	for _, p := range ports {
		routes = append(routes, &url.URL{Scheme: "nats-route", Host: fmt.Sprintf("127.0.0.1:%d", p)})
	}
	n := &NATS{t: t}
	for i := range size {
		o := options(t, fmt.Sprintf("n%d", i+1))
		o.Cluster = server.ClusterOpts{Name: "test", Host: "127.0.0.1", Port: ports[i]}
		o.Routes = routes
		n.Servers = append(n.Servers, start(t, o))
	}
	n.ensure(size)
	return n
}

// Conn is a new client connection that ends with the test.
func (n *NATS) Conn(t testing.TB, opts ...nats.Option) *nats.Conn {
	t.Helper()
	var urls string
	for i, s := range n.Servers {
		if i > 0 {
			urls += ","
		}
		urls += s.ClientURL()
	}
	opts = append([]nats.Option{nats.MaxReconnects(-1), nats.ReconnectWait(50 * time.Millisecond), nats.RetryOnFailedConnect(true)}, opts...)
	nc, err := nats.Connect(urls, opts...)
	if err != nil {
		t.Fatalf("connect to the test server: %v", err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// As connects with the inboxes of an identity, as the broker gives them: a node's, a service's, a person's.
func (n *NATS) As(t testing.TB, identity string) *nats.Conn {
	t.Helper()
	return n.Conn(t, nats.CustomInboxPrefix(subject.Inbox(identity)))
}

// JS is a JetStream context over a new connection.
func (n *NATS) JS(t testing.TB) jetstream.JetStream {
	t.Helper()
	js, err := jetstream.New(n.Conn(t))
	if err != nil {
		t.Fatal(err)
	}
	return js
}

func (n *NATS) ensure(replicas int) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := kv.Ensure(ctx, n.JS(n.t), replicas); err != nil {
		n.t.Fatal(err)
	}
}

func options(t testing.TB, name string) *server.Options {
	o := &server.Options{
		ServerName: name, Host: "127.0.0.1", Port: -1, NoLog: true, NoSigs: true,
		JetStream: true, StoreDir: t.TempDir(), SyncAlways: true, MaxPayload: 1 << 20,
		JetStreamMaxMemory: 256 << 20, JetStreamMaxStore: 8 << 30,
	}
	o.JetStreamLimits.DefaultMaxConsumers = -1
	return o
}

func start(t testing.TB, o *server.Options) *server.Server {
	t.Helper()
	s, err := server.NewServer(o)
	if err != nil {
		t.Fatalf("start the test server: %v", err)
	}
	go s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(20 * time.Second) {
		t.Fatal("the test server takes no connections")
	}
	return s
}

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
