package member

import (
	"context"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// broker is one on a port, for a user alone.
func broker(t *testing.T, port int, user string) *server.Server {
	t.Helper()
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: port, NoSigs: true, NoLog: true, Username: user, Password: "p"})
	if err != nil {
		t.Fatal(err)
	}
	go s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(30 * time.Second) {
		t.Fatal("the broker does not start")
	}
	return s
}

// A node says how it stands with its managers: whether they answer, know it, let it in, or are not to be reached.
func TestLink(t *testing.T) {
	b := broker(t, -1, "node")
	port := b.Addr().(*net.TCPAddr).Port
	nc, err := nats.Connect(b.ClientURL(), nats.UserInfo("node", "p"), nats.CustomInboxPrefix(subject.Inbox("n1")), nats.MaxReconnects(-1),
		nats.ReconnectWait(20*time.Millisecond), nats.IgnoreAuthErrorAbort())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	l := NewLinked(ctx, nc, "n1")
	started := time.Now()
	await := func(state, why string) Link {
		t.Helper()
		var got Link
		for until := time.Now().Add(time.Minute); time.Now().Before(until); time.Sleep(20 * time.Millisecond) {
			if got = l.Look(t.Context()); got.State == state && strings.Contains(got.Why, why) {
				return got
			}
		}
		t.Fatalf("%+v, want %s because %q", got, state, why)
		return got
	}
	if got := await(LinkSilent, "does not answer"); got.SinceMs == 0 || got.SinceMs > time.Now().UnixMilli() {
		t.Errorf("since %d", got.SinceMs)
	}
	srv, err := rpc.NewServer(nc, rpc.Config{Name: "state"})
	if err != nil {
		t.Fatal(err)
	}
	var removed atomic.Bool
	err = api.Handle(srv, api.StateManagers.At("n1"), func(context.Context, *skepv1.Empty) (*skepv1.NodeManagersReply, error) {
		if removed.Load() {
			return nil, fault.NotFound("no such node: n1")
		}
		return &skepv1.NodeManagersReply{}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	await(LinkUp, "")
	removed.Store(true)
	await(LinkRefused, "it was removed from the cluster")
	_ = srv.Close()
	b.Shutdown()
	b.WaitForShutdown()
	cut := await(LinkCut, "no manager can be reached")
	if cut.SinceMs < started.UnixMilli() {
		t.Errorf("since %d, started %d", cut.SinceMs, started.UnixMilli())
	}
	broker(t, port, "others")
	if got := await(LinkRefused, "do not let this node in"); got.SinceMs != cut.SinceMs {
		t.Errorf("since %d, and while it was cut off since %d", got.SinceMs, cut.SinceMs)
	}
}
