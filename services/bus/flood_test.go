package bus

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/id"
	"skep.dev/libs/pki"
	"skep.dev/libs/pki/pkitest"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
)

// serveJoins stands in for the vault.
func serveJoins(t testing.TB, b *Bus) (asked *atomic.Int64, nc *nats.Conn) {
	t.Helper()
	nc, err := b.InProcess("vault")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	srv, err := rpc.NewServer(nc, rpc.Config{Name: "skep-vault"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { srv.Close() })
	asked = &atomic.Int64{}
	err = api.Handle(srv, api.Join, func(_ context.Context, r *skepv1.JoinRequest) (*skepv1.JoinReply, error) {
		asked.Add(1)
		if r.Token == "wrong" {
			return nil, fault.Denied("the join token is wrong")
		}
		return &skepv1.JoinReply{NodeId: r.Hostname}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.FlushTimeout(patience); err != nil {
		t.Fatal(err)
	}
	return asked, nc
}

// mustJoin joins as a node does, with as many attempts as it makes.
func mustJoin(t testing.TB, b *Bus, ca *pki.CA) {
	t.Helper()
	began := time.Now()
	var last error
	for time.Since(began) < 20*time.Second {
		p, err := tryStranger(t, b, ca, "join-"+id.New())
		if err == nil {
			var r skepv1.JoinReply
			err = rpc.Call(within(t), p.Conn, subject.Join(p.Opts.User), &skepv1.JoinRequest{Hostname: "w1"}, &r)
			p.Close()
			if err == nil && r.NodeId == "w1" {
				t.Logf("joined after %v", time.Since(began))
				return
			}
		}
		last = err
	}
	t.Fatalf("nobody joins: %v", last)
}

// One connection, 25,000 requests with inboxes of all names: nobody joined for two minutes.
func TestAFloodOfJoinRequests(t *testing.T) {
	ca := pkitest.NewCA(t)
	b := run(t, lone(t, ca, id.New()))
	asked, vault := serveJoins(t, b)
	// The answer, the vault's no included, reaches the joiner.
	p := stranger(t, b, ca)
	if err := rpc.Call(within(t), p.Conn, subject.Join(p.Opts.User), &skepv1.JoinRequest{Token: "wrong"}, nil); !fault.Is(err, fault.CodeDenied) {
		t.Fatalf("%v", err)
	}
	asked.Store(0)
	for name, reply := range map[string]string{"its own inboxes": "", "others' inboxes": "other-"} {
		r, me := rawJoiner(t, b, ca)
		for i := 0; i < 25_000; i++ {
			if !r.say("PUB %s _INBOX_%s%s.%d 1\r\nx\r\n", subject.Join(me), reply, me, i) {
				break
			}
		}
		r.ended()
		mustJoin(t, b, ca)
		if n := asked.Swap(0); n > joinerAsks+1 {
			t.Errorf("%s: the vault was asked %d times", name, n)
		}
	}
	// Bodies of a megabyte closed the vault's connection.
	for range 3 {
		r, me := rawJoiner(t, b, ca)
		body := strings.Repeat("x", 1<<20)
		r.say("PUB %s _INBOX_%s.1 %d\r\n%s\r\n", subject.Join(me), me, len(body), body)
		r.ended()
	}
	mustJoin(t, b, ca)
	if n := vault.Stats().Reconnects; n != 0 || asked.Load() != 1 {
		t.Errorf("the vault's connection was lost %d times, it was asked %d times", n, asked.Load())
	}
	// A vault that is not there is said at once.
	vault.Close()
	p = stranger(t, b, ca)
	if err := rpc.Call(within(t), p.Conn, subject.Join(p.Opts.User), &skepv1.JoinRequest{}, nil); !fault.Is(err, fault.CodeUnavailable) {
		t.Errorf("without a vault: %v", err)
	}
}

// A container's packets come from its node's address. What it does there keeps out neither the node nor who joins.
func TestAFloodBehindANodesAddress(t *testing.T) {
	ca := pkitest.NewCA(t)
	b := run(t, lone(t, ca, id.New()))
	serveJoins(t, b)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	defer func() { stop(); <-done }()
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			name := "join-" + id.New()
			nc, err := nats.Connect("tls://"+b.ClientAddr().String(), nats.Secure(pki.JoinTLS(pki.Digest(ca.Cert))), nats.TLSHandshakeFirst(), nats.NoReconnect(), nats.UserInfo(name, ""))
			if err == nil {
				defer nc.Close() // it holds on to all of them
			}
		}
	}()
	eventually(t, "a crowd", func() bool {
		b.guests.mu.Lock()
		defer b.guests.mu.Unlock()
		return len(b.guests.joiners) >= joinersPerSource
	})
	for range 5 {
		mustJoin(t, b, ca)
		w := dial(t, b, pkitest.Store(t, ca, pki.Identity{NodeID: id.New(), Role: pki.Worker}, time.Hour))
		if err := w.FlushTimeout(patience); err != nil {
			t.Fatal(err)
		}
	}
	b.guests.mu.Lock()
	defer b.guests.mu.Unlock()
	if n := len(b.guests.joiners); n > joinersPerSource {
		t.Errorf("%d connections without a certificate from one address", n)
	}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	if err := await(within(t), 10*time.Millisecond, 0, ok); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// observed is a bus whose log is kept, and how many bytes of text it holds.
func observed(t *testing.T, ca *pki.CA, change func(*Config)) (b *Bus, log func() (lines int, bytes int)) {
	t.Helper()
	c, seen := observer.New(zap.InfoLevel)
	cfg := lone(t, ca, id.New())
	cfg.Log = zap.New(c)
	if change != nil {
		change(&cfg)
	}
	b = run(t, cfg)
	return b, func() (int, int) {
		n := 0
		for _, e := range seen.All() {
			n += len(e.Message)
			for _, f := range e.Context {
				n += len(f.String)
				if err, ok := f.Interface.(error); ok && f.Type == zapcore.ErrorType {
					n += len(err.Error())
				}
			}
		}
		return seen.Len(), n
	}
}

// Forbidden subjects of 3.5 KB went into the log at 16 MiB/s.
func TestViolatorsAreCutOffAndSoIsTheirText(t *testing.T) {
	ca := pkitest.NewCA(t)
	b, log := observed(t, ca, nil)
	before, _ := log()
	long := "x." + strings.Repeat("y", 3500)
	for _, what := range []string{"PUB %s 0\r\n\r\n", "SUB %s 1\r\n", "SUB %s queue 1\r\n"} {
		r, _ := rawJoiner(t, b, ca)
		for i := 0; i < 10_000 && r.say(what, long); i++ {
		}
		if said := r.ended(); strings.Count(said, "Violation") > 50 {
			t.Errorf("a joiner was told of %d violations before it was cut off", strings.Count(said, "Violation"))
		}
	}
	w := pki.Identity{NodeID: id.New(), Role: pki.Worker}
	creds, honest := pkitest.Store(t, ca, w, time.Hour), dial(t, b, pkitest.Store(t, ca, pki.Identity{NodeID: id.New(), Role: pki.Worker}, time.Hour))
	r := rawDial(t, b, pki.ClientTLS(creds), map[string]any{"verbose": false, "name": long})
	for i := 0; i < 10_000 && r.say("PUB %s 0\r\n\r\n", long); i++ {
	}
	r.ended()
	if _, err := tryDial(t, b, creds); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("a violator is back at once: %v", err)
	}
	if err := honest.FlushTimeout(patience); err != nil {
		t.Errorf("another worker lost its connection: %v", err)
	}
	lines, bytes := log()
	if lines -= before; lines > 5+5+4 || lines < 2 {
		t.Errorf("%d lines of 40,000 violations", lines)
	}
	t.Logf("%d lines, %d bytes", lines, bytes)
}

// Twenty connections that do not read: 1.45 GiB in six seconds.
func TestDeafConnectionsAreCutOff(t *testing.T) {
	ca := pkitest.NewCA(t)
	b := run(t, lone(t, ca, id.New()))
	w := pki.Identity{NodeID: id.New(), Role: pki.Worker}
	creds := pkitest.Store(t, ca, w, time.Hour)
	honest := dial(t, b, pkitest.Store(t, ca, pki.Identity{NodeID: id.New(), Role: pki.Worker}, time.Hour))
	boss, err := b.InProcess("manager")
	if err != nil {
		t.Fatal(err)
	}
	defer boss.Close()
	for range 20 {
		r := rawDial(t, b, pki.ClientTLS(creds), map[string]any{"verbose": false})
		r.say("SUB _INBOX_%s.> 1\r\n", w.NodeID)
		r.pong()
	}
	main := b.running()
	waiting := func() (conns int, bytes int64) {
		z, err := main.Connz(&server.ConnzOptions{State: server.ConnOpen, Username: true, User: w.NodeID, Limit: 1000})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range z.Conns {
			bytes += int64(c.Pending)
		}
		return len(z.Conns), bytes
	}
	if n, _ := waiting(); n > allowanceOf(RoleWorker).conns {
		t.Errorf("%d connections of one worker", n)
	}
	var mem, top runtime.MemStats
	runtime.ReadMemStats(&mem)
	body, began, peak := make([]byte, 256<<10), time.Now(), int64(0)
	for time.Since(began) < 3*time.Second {
		if err := boss.Publish("_INBOX_"+w.NodeID+".x", body); err != nil {
			t.Fatal(err)
		}
		if _, n := waiting(); n > peak {
			peak = n
		}
	}
	if err := boss.FlushTimeout(patience); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&top)
	_, left := waiting()
	// The last of them may come right after a look; the broker's own deadline would end them after 10 s.
	for soon := time.Now().Add(lookEvery + 2*lookAtLeast); left > allowanceOf(RoleWorker).pending && time.Now().Before(soon); _, left = waiting() {
		time.Sleep(tick)
	}
	t.Logf("at most %d MiB waited, %d MiB at the end; the process took %d MiB more from the system", peak>>20, left>>20, (top.Sys-mem.Sys)>>20)
	if left > allowanceOf(RoleWorker).pending || peak > 256<<20 {
		t.Errorf("%d bytes wait for one worker, %d at most", left, peak)
	}
	if err := honest.FlushTimeout(patience); err != nil {
		t.Errorf("another worker lost its connection: %v", err)
	}
	if boss.Stats().Reconnects != 0 {
		t.Error("a manager's own connection was lost")
	}
}

// A removed node tries again for as long as it runs: said once, then counted.
func TestRetriesOfARemovedNode(t *testing.T) {
	ca := pkitest.NewCA(t)
	gone := id.New()
	b, log := observed(t, ca, func(c *Config) { c.Revoked = func(n string) bool { return n == gone } })
	before, _ := log()
	creds := pkitest.Store(t, ca, pki.Identity{NodeID: gone, Role: pki.Worker}, time.Hour)
	foreign := pkitest.Store(t, pkitest.NewCA(t), pki.Identity{NodeID: gone, Role: pki.Worker}, time.Hour)
	for range 200 {
		if _, err := tryDial(t, b, creds); !errors.Is(err, nats.ErrAuthorization) {
			t.Fatal(err)
		}
		if _, err := tryDial(t, b, foreign); err == nil {
			t.Fatal("a foreign certificate was let in")
		}
	}
	if lines, _ := log(); lines-before > 8 {
		t.Errorf("%d lines for 400 refusals", lines-before)
	}
	b.guests.mu.Lock()
	defer b.guests.mu.Unlock()
	if n := len(b.guests.conns) + len(b.guests.ids) + len(b.guests.out); n != 0 {
		t.Errorf("%d notes are kept of who was refused", n)
	}
}

// Garbage, and a worker's certificate, at the port of the managers' routes.
func TestKnocksAtTheRoutePort(t *testing.T) {
	ca := pkitest.NewCA(t)
	var addr string
	b, log := observed(t, ca, func(c *Config) { addr = c.RouteAddr() })
	before, _ := log()
	worker := pki.ClientTLS(pkitest.Store(t, ca, pki.Identity{NodeID: id.New(), Role: pki.Worker}, time.Hour))
	for range 200 {
		c := dialTCP(t, addr)
		fmt.Fprint(c, "GET / HTTP/1.0\r\n\r\n") // the answer is what is tested
		r := &raw{Conn: c, t: t, in: bufio.NewReader(c)}
		r.ended()
		c.Close()
		w := &raw{Conn: tls.Client(dialTCP(t, addr), worker), t: t}
		w.in = bufio.NewReader(w)
		w.say("CONNECT {\"verbose\":false,\"name\":\"x\",\"cluster\":\"skep\"}\r\nPING\r\n")
		w.ended()
		w.Close()
	}
	if lines, _ := log(); lines-before > 5+5 {
		t.Errorf("%d lines for 400 knocks", lines-before)
	}
	if n := b.running().NumRoutes(); n == 0 {
		t.Error("the witness lost its route")
	}
}

func dialTCP(t testing.TB, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c
}

// What a connection may say of itself, ask for and let wait is bounded before anybody looks at it.
func TestBoundsOfAConnection(t *testing.T) {
	ca := pkitest.NewCA(t)
	b := run(t, lone(t, ca, id.New()))
	admin := pkitest.Store(t, ca, pki.Identity{NodeID: "user-ada", Role: pki.User, UserRole: pki.Admin}, time.Hour)
	join := pki.JoinTLS(pki.Digest(ca.Cert))
	big := strings.Repeat("x", 1<<20)

	for what, try := range map[string]func(*raw){
		"a CONNECT of a megabyte":         func(r *raw) { r.say("CONNECT {\"user\":\"join-%s\",\"name\":%q}\r\n", id.New(), big) },
		"a subject of a megabyte":         func(r *raw) { r.say("CONNECT {\"user\":\"join-%s\"}\r\nPUB %s 0\r\n\r\n", id.New(), big) },
		"a subscription of a megabyte":    func(r *raw) { r.say("CONNECT {\"user\":\"join-%s\"}\r\nSUB %s 1\r\n", id.New(), big) },
		"no CONNECT at all":               func(r *raw) { r.say("PUB x 0\r\n\r\n") },
		"headers longer than the message": func(r *raw) { r.say("CONNECT {\"user\":\"join-%s\",\"headers\":true}\r\nHPUB x 100 10\r\n", id.New()) },
		"a message of more than its share": func(r *raw) {
			n := id.New()
			r.say("CONNECT {\"user\":\"join-%s\"}\r\nPUB skep.v1.join.join-%s %d\r\n", n, n, joinPayload+1)
		},
		"a second introduction": func(r *raw) {
			r.say("CONNECT {\"user\":\"join-%s\"}\r\nCONNECT {\"user\":\"join-%s\"}\r\n", id.New(), id.New())
		},
		"an account of its choice": func(r *raw) { r.say("CONNECT {\"user\":\"join-%s\",\"account\":\"SKEP\"}\r\n", id.New()) },
	} {
		t.Run(what, func(t *testing.T) {
			r := rawDial(t, b, join, nil)
			try(r)
			r.ended()
		})
	}
	t.Run("subscriptions", func(t *testing.T) {
		for most, r := range map[int]*raw{
			maxSubs:  rawDial(t, b, pki.ClientTLS(admin), map[string]any{"verbose": false}),
			joinSubs: rawDial(t, b, join, map[string]any{"verbose": false, "user": "join-" + strings.Repeat("7", 25)}),
		} {
			inbox := "_INBOX_user-ada"
			if most == joinSubs {
				inbox = "_INBOX_join-" + strings.Repeat("7", 25)
			}
			for i := range most * 2 {
				r.say("SUB %s.x%d %d\r\n", inbox, i, i)
			}
			r.pong()
			z, err := b.running().Connz(&server.ConnzOptions{State: server.ConnOpen, Limit: 100})
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range z.Conns {
				if strings.HasSuffix(r.LocalAddr().String(), fmt.Sprint(":", c.Port)) && c.NumSubs != uint32(most) {
					t.Errorf("%d subscriptions, want %d", c.NumSubs, most)
				}
			}
		}
	})
	// Both kinds of silence end, each in the five seconds it has.
	t.Run("silence", func(t *testing.T) {
		mute := dialTCP(t, b.ClientAddr().String())
		for range 1000 {
			dialTCP(t, b.ClientAddr().String())
		}
		w := dial(t, b, pkitest.Store(t, ca, pki.Identity{NodeID: id.New(), Role: pki.Worker}, time.Hour))
		if err := w.FlushTimeout(patience); err != nil {
			t.Errorf("beside a thousand who say nothing: %v", err)
		}
		shy := rawDial(t, b, join, nil)
		(&raw{Conn: mute, t: t, in: bufio.NewReader(mute)}).ended()
		shy.ended()
	})
	// Nothing but the two ports, and no other protocol.
	p := b.running().PortsInfo(patience)
	if p == nil || len(p.Nats) != 1 || len(p.Cluster) != 1 || len(p.Monitoring)+len(p.Profile)+len(p.WebSocket) != 0 {
		t.Errorf("the broker listens at %+v", p)
	}
	o, err := b.options("x", "x")
	if err != nil {
		t.Fatal(err)
	}
	if o.Websocket.Port != 0 || o.MQTT.Port != 0 || o.LeafNode.Port != 0 || len(o.LeafNode.Remotes) != 0 || o.Gateway.Port != 0 || o.HTTPPort != 0 || o.HTTPSPort != 0 || o.ProfPort != 0 || o.NoAuthUser != "" {
		t.Error("a door is open that nobody uses")
	}
}
