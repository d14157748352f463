package lease_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"skep.dev/libs/kvtest"
	"skep.dev/libs/lease"
	"skep.dev/libs/subject"
)

// Standbys that hear the holder renew ask the store nothing, and do not take one another's words for the holder's: two of them
// on each of five leases once asked for it 190 times a second, for ever.
func TestStandbysAskNothing(t *testing.T) {
	const renewals = 20
	n := kvtest.Server(t)
	nc := n.Conn(t)
	var looks, foreign atomic.Int32
	enough := make(chan struct{})
	// Each standby first looks as often as it likes, until it has heard a renewal. So counting begins at the second.
	var heard int
	for subj, count := range map[string]func(*nats.Msg){
		"$JS.API.STREAM.MSG.GET." + subject.Lease.Stream(): func(*nats.Msg) { looks.Add(1) },
		subject.Lease.Key("test"): func(m *nats.Msg) {
			switch {
			case string(m.Data) == "a":
				switch heard++; heard {
				case 2:
					looks.Store(0)
				case 2 + renewals:
					close(enough)
				}
			case len(m.Data) > 0:
				foreign.Add(1)
			}
		},
	} {
		if _, err := nc.Subscribe(subj, count); err != nil {
			t.Fatal(err)
		}
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	won := make(chan string, 3)
	var all sync.WaitGroup
	campaign := func(holder string) {
		l := lease.New(n.JS(t), lease.Config{Name: "test", Holder: holder, TTL: 2 * time.Second})
		all.Go(func() {
			_ = l.Run(ctx, func(ctx context.Context, _ uint64) error {
				won <- holder
				<-ctx.Done()
				return nil
			})
		})
	}
	campaign("a")
	<-won
	campaign("b")
	campaign("c")
	select {
	case <-enough:
	case h := <-won:
		t.Errorf("%s leads", h)
	case <-ctx.Done():
		t.Errorf("%d renewals", heard)
	}
	// A machine that is busy delays a renewal, and a standby looks.
	if got := looks.Load(); got > renewals/2 {
		t.Errorf("%d looks at the lease within %d renewals", got, renewals)
	}
	if got := foreign.Load(); got > 0 {
		t.Errorf("standbys asked for the lease %d times while it was held", got)
	}
	stop()
	all.Wait()
}
