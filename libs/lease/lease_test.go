package lease_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"skep.dev/libs/kvtest"
	"skep.dev/libs/lease"
)

func TestOneLeaderAndHandOver(t *testing.T) {
	n := kvtest.Server(t)
	ctx, stop := context.WithTimeout(context.Background(), 30*time.Second)
	defer stop()
	var leaders atomic.Int32
	won := make(chan string, 10)
	epochs := make(chan uint64, 10)
	campaign := func(ctx context.Context, holder string) {
		l := lease.New(n.JS(t), lease.Config{Name: "test", Holder: holder, TTL: time.Second})
		go l.Run(ctx, func(ctx context.Context, epoch uint64) error {
			if leaders.Add(1) != 1 {
				t.Error("two leaders at once")
			}
			won <- holder
			epochs <- epoch
			<-ctx.Done()
			leaders.Add(-1)
			return nil
		})
	}
	aCtx, stopA := context.WithCancel(ctx)
	campaign(aCtx, "a")
	if h := <-won; h != "a" {
		t.Fatalf("%s won", h)
	}
	first := <-epochs
	bCtx, stopB := context.WithCancel(ctx)
	defer stopB()
	campaign(bCtx, "b")
	select {
	case h := <-won:
		t.Fatalf("%s won while a holds the lease", h)
	case <-time.After(2500 * time.Millisecond): // over two TTLs: a must have renewed
	}
	stopA()
	if h := <-won; h != "b" {
		t.Fatalf("%s won", h)
	}
	if second := <-epochs; second <= first {
		t.Fatalf("epoch %d after %d", second, first)
	}
}
