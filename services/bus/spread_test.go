package bus

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"go.uber.org/zap"

	"skep.dev/libs/daemon"
	"skep.dev/libs/id"
	"skep.dev/libs/pki"
	"skep.dev/libs/pki/pkitest"
	"skep.dev/libs/subject"
)

func TestSurplus(t *testing.T) {
	began := time.Now()
	type round struct {
		at     time.Duration
		mine   int
		others []int
		led    bool
		want   int
	}
	for name, rounds := range map[string][]round{
		"alone":                    {{0, 500, nil, true, 0}, {time.Hour, 500, nil, true, 0}},
		"a few more are no matter": {{0, 23, []int{20, 20}, true, 0}, {time.Hour, 23, []int{20, 20}, true, 0}},
		"a restart": {
			{0, 30, []int{30, 0}, true, 0}, {29 * time.Second, 30, []int{30, 0}, true, 0}, {30 * time.Second, 30, []int{30, 0}, true, 5},
			{31 * time.Second, 25, []int{25, 10}, true, 3}, {32 * time.Second, 21, []int{20, 19}, true, 1}, {33 * time.Second, 20, []int{20, 20}, true, 0},
		},
		"it passes by itself":  {{0, 30, []int{30, 0}, true, 0}, {20 * time.Second, 20, []int{20, 20}, true, 0}, {31 * time.Second, 30, []int{30, 0}, true, 0}},
		"never many at once":   {{0, 2500, []int{2500, 0}, true, 0}, {time.Minute, 2500, []int{2500, 0}, true, spreadAtOnce}},
		"an election":          {{0, 20, []int{20, 20}, true, 0}, {time.Second, 20, []int{20}, false, 0}, {10 * time.Second, 20, []int{20}, false, 0}, {11 * time.Second, 20, []int{20}, true, 0}, {20 * time.Second, 20, []int{20}, false, 0}},
		"cut off":              {{0, 20, []int{20, 20}, true, 0}, {time.Second, 20, nil, false, 0}, {13 * time.Second, 20, nil, false, 10}, {14 * time.Second, 4, nil, false, 4}, {15 * time.Second, 4, nil, true, 0}},
		"alone without leader": {{0, 20, nil, false, 0}, {time.Minute, 20, nil, false, 0}},
	} {
		c := crowd{after: spreadAfter}
		for i, r := range rounds {
			if got := c.surplus(began.Add(r.at), r.mine, r.others, r.led); got != r.want {
				t.Errorf("%s, round %d: %d, want %d", name, i, got, r.want)
			}
		}
	}
}

// The nodes of three managers, one of which came back, spread over all; those with an open byte stream stay.
func TestNodesSpread(t *testing.T) {
	ca := pkitest.NewCA(t)
	ctx, cancel := context.WithCancel(t.Context())
	var ended sync.WaitGroup
	defer ended.Wait()
	defer cancel()
	srvs := spreadServers(t, ca)
	counts := func() (out []int) {
		for _, s := range srvs {
			out = append(out, len(nodeConns(s)))
		}
		return out
	}

	// 60 nodes that know of two managers, as after a restart of the third: one tells them of it only now.
	const nodes = 60
	store := pkitest.Store(t, ca, pki.Identity{NodeID: id.New(), Role: pki.Worker}, time.Hour)
	addrs := []string{srvs[0].Addr().String(), srvs[1].Addr().String()}
	type place struct {
		server     string
		reconnects uint64 // a first try that failed is one
	}
	at := func(nc *nats.Conn) place { return place{nc.ConnectedServerName(), nc.Stats().Reconnects} }
	held := map[string]place{} // by name
	var conns []*nats.Conn
	for i := range nodes {
		nc, err := daemon.Connect(fmt.Sprint("node", i), addrs, store, zap.NewNop())
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		conns = append(conns, nc)
		if i%10 == 0 {
			if _, err := nc.SubscribeSync(subject.IO("n", "s", "in")); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, nc := range conns {
		for end := time.Now().Add(patience); !nc.IsConnected(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("a node does not connect")
			}
		}
		if err := nc.Flush(); err != nil {
			t.Fatal(err)
		}
		held[nc.Opts.Name] = at(nc)
	}
	if n := counts(); n[2] != 0 || n[0]+n[1] != nodes {
		t.Fatalf("they begin with %v", n)
	}
	for _, s := range srvs {
		nc, err := nats.Connect("", nats.InProcessServer(s), nats.Name("spreader"))
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		sp := &spreader{
			name: s.Name(), nc: nc, log: zap.NewNop(), after: 300 * time.Millisecond, led: func() bool { return true },
			nodes: func() []nodeConn { return nodeConns(s) }, idle: func(cid uint64) bool { return idle(s, cid) },
			end: func(cid uint64) { _ = s.DisconnectClientByID(cid) },
		}
		ended.Go(func() { sp.run(ctx, 50*time.Millisecond, time.Second) })
	}
	began := time.Now()
	for end := began.Add(patience); ; time.Sleep(20 * time.Millisecond) {
		n := counts()
		if n[0]+n[1]+n[2] == nodes && slices.Max(n) <= 24 {
			t.Logf("spread after %v: %v", time.Since(began), n)
			break
		}
		if time.Now().After(end) {
			t.Fatalf("they stay as %v", n)
		}
	}
	for i, nc := range conns {
		if i%10 == 0 && at(nc) != held[nc.Opts.Name] {
			t.Errorf("%s was moved although a byte stream is open: it was at %v, and is at %v", nc.Opts.Name, held[nc.Opts.Name], at(nc))
		}
	}
}

// spreadServers are three brokers of one cluster.
func spreadServers(t *testing.T, ca *pki.CA) (out []*server.Server) {
	for i := range 3 {
		o := &server.Options{
			ServerName: fmt.Sprint("m", i), Host: "127.0.0.1", Port: -1, NoLog: true, NoSigs: true, TLSHandshakeFirst: true, TLSTimeout: 10,
			TLSConfig: pki.ServerTLS(pkitest.Store(t, ca, pki.Identity{NodeID: id.New(), Role: pki.Manager}, time.Hour)),
			Cluster:   server.ClusterOpts{Name: "skep", Host: "127.0.0.1", Port: -1},
		}
		for _, s := range out {
			o.Routes = append(o.Routes, &url.URL{Scheme: "nats-route", Host: s.ClusterAddr().String()})
		}
		s, err := server.NewServer(o)
		if err != nil {
			t.Fatal(err)
		}
		go s.Start()
		t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
		if !s.ReadyForConnections(patience) {
			t.Fatal("a broker takes no connections")
		}
		out = append(out, s)
	}
	for end := time.Now().Add(patience); slices.ContainsFunc(out, func(s *server.Server) bool { return s.NumRoutes() < 2 }); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the brokers do not see each other")
		}
	}
	return out
}

func nodeConns(s *server.Server) (out []nodeConn) {
	z, err := s.Connz(&server.ConnzOptions{Limit: 1000})
	if err != nil {
		return nil
	}
	for _, c := range z.Conns {
		if c.Name != "spreader" {
			out = append(out, nodeConn{c.Cid, c.Start})
		}
	}
	return out
}
