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

// A leader that stops hands over at once, whatever the TTL: also where the store has three copies.
func TestGracefulHandOver(t *testing.T) {
	for name, n := range map[string]*kvtest.NATS{"one copy": kvtest.Server(t), "three copies": kvtest.Cluster(t, 3)} {
		t.Run(name, func(t *testing.T) {
			ctx, stop := context.WithTimeout(t.Context(), time.Minute)
			defer stop()
			won := make(chan time.Time, 2)
			campaign := func(ctx context.Context, holder string) (ended chan struct{}) {
				l := lease.New(n.JS(t), lease.Config{Name: "test", Holder: holder, TTL: 20 * time.Second})
				ended = make(chan struct{})
				go func() {
					defer close(ended)
					_ = l.Run(ctx, func(ctx context.Context, _ uint64) error {
						won <- time.Now()
						<-ctx.Done()
						return nil
					})
				}()
				return ended
			}
			first, resign := context.WithCancel(ctx)
			a := campaign(first, "a")
			<-won
			b := campaign(ctx, "b")
			select {
			case <-won:
				t.Fatal("won while another one leads")
			case <-time.After(300 * time.Millisecond): // it campaigns
			}
			began := time.Now()
			resign()
			took := (<-won).Sub(began)
			t.Logf("handed over in %v", took)
			if took > 500*time.Millisecond {
				t.Errorf("it took %v", took)
			}
			<-a
			stop()
			<-b
		})
	}
}
