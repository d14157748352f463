package task

import (
	"context"
	"net"
	"strconv"
	"testing"
	"time"

	"go.uber.org/zap"

	skepv1 "skep.dev/proto/skep/v1"
)

// A task is not ready until its published port answers, and ready from then on.
func TestNotReadyUntilThePortAnswers(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_, port, _ := net.SplitHostPort(addr)
	n, _ := strconv.Atoi(port)
	_ = l.Close()

	set := &Set{cfg: Config{Log: zap.NewNop(), Changed: func() {}}, store: &store{root: t.TempDir()}}
	w := newWorker(set, &skepv1.TaskRecord{Id: "t", Desired: runningSt})
	w.revision = &skepv1.Revision{Spec: &skepv1.ServiceSpec{Endpoint: &skepv1.EndpointSpec{Ports: []*skepv1.PortConfig{
		{Protocol: "udp", TargetPort: 1}, {Protocol: "tcp", TargetPort: uint32(n), PublishedPort: 8080},
	}}}}
	w.status.Addresses = []string{"127.0.0.1/8"}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	w.running(ctx, 42)
	if st := w.snapshot(); st.State != runningSt || !st.NotReady || st.ServedUnixMs != 0 || st.StartedUnixMs == 0 {
		t.Fatalf("it runs and does not listen, and is %v", st)
	}
	if l, err = net.Listen("tcp4", addr); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for end := time.Now().Add(5 * time.Second); w.snapshot().NotReady; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it listens and is still not ready")
		}
	}
	// An agent that takes it over does not take it out of service.
	w.running(ctx, 42)
	if st := w.snapshot(); st.NotReady || st.ServedUnixMs == 0 {
		t.Fatalf("taken over it is %v", st)
	}
}
