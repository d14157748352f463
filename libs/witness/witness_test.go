package witness_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"skep.dev/libs/api"
	"skep.dev/libs/id"
	"skep.dev/libs/pki"
	"skep.dev/libs/pki/pkitest"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
	"skep.dev/libs/witness"
	skepv1 "skep.dev/proto/skep/v1"
)

// The managers hear that a witness is there, as often as they ask for, that it offers nothing, and that it leaves.
func TestAWitnessSaysWhatItIs(t *testing.T) {
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	go s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("the broker does not start")
	}
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	node := id.New()
	nc, err := nats.Connect(s.ClientURL(), nats.CustomInboxPrefix(subject.Inbox(node)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	srv, err := rpc.NewServer(nc, rpc.Config{Name: "state"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = srv.Close() })
	described := make(chan *skepv1.DescribeRequest, 8)
	var period atomic.Int64
	period.Store(int64(time.Hour))
	err = api.Handle(srv, api.StateDescribe.At(node), func(_ context.Context, r *skepv1.DescribeRequest) (*skepv1.DescribeReply, error) {
		described <- r
		return &skepv1.DescribeReply{Cluster: &skepv1.ClusterSpec{HeartbeatPeriod: durationpb.New(time.Duration(period.Load()))}}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	beats, err := nc.SubscribeSync(subject.Heartbeat(node))
	if err != nil {
		t.Fatal(err)
	}

	store := pkitest.Store(t, pkitest.NewCA(t), pki.Identity{NodeID: node, Role: pki.Witness}, time.Hour)
	w := witness.New(witness.Config{NC: nc, Store: store, Log: zap.NewNop(), Hostname: "v1", Addr: "10.0.0.9", Version: "1.2.3"})
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	<-w.Ready()
	d := (<-described).Description
	if d.Hostname != "v1" || d.Addr != "10.0.0.9" || d.EngineVersion != "1.2.3" || d.CertUntilUnixMs != store.Leaf().NotAfter.UnixMilli() ||
		!proto.Equal(d.Resources, &skepv1.Resources{}) || len(d.Plugins) != 0 {
		t.Errorf("it describes itself as %v", d)
	}
	next := func() *skepv1.Heartbeat {
		t.Helper()
		m, err := beats.NextMsg(10 * time.Second)
		if err != nil {
			t.Fatal(err)
		}
		hb := &skepv1.Heartbeat{}
		if err := proto.Unmarshal(m.Data, hb); err != nil {
			t.Fatal(err)
		}
		return hb
	}
	// The period was an hour, and is short now: it does not wait the hour out.
	period.Store(int64(50 * time.Millisecond))
	if err := nc.Publish(subject.PushFiles(node), nil); err != nil {
		t.Fatal(err)
	}
	<-described
	for range 3 {
		if hb := next(); hb.NodeId != node || hb.Leaving || hb.Session == "" {
			t.Errorf("a sign of life: %v", hb)
		}
	}
	w.SetLeaving()
	stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	last := next()
	for left, _, _ := beats.Pending(); left > 0; left, _, _ = beats.Pending() {
		last = next()
	}
	if !last.Leaving {
		t.Errorf("its last word: %v", last)
	}
}
