package lease_test

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"skep.dev/libs/kv"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/lease"
	"skep.dev/libs/patience"
	"skep.dev/libs/subject"
)

// The manager that leads the store dies, and with it the holder of a lease, which was heard renewing it: it is taken over once
// the store has a leader and the holder is silent for four fifths of the TTL, whichever is later, and not later than that.
func TestALeaseAfterAnElection(t *testing.T) {
	ps := kvtest.Spawn(t, 3, 0)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	js := ps.JS(t)
	for kv.Ensure(ctx, js, 3) != nil && ctx.Err() == nil {
		time.Sleep(100 * time.Millisecond)
	}
	st, err := js.Stream(ctx, subject.Lease.Stream())
	if err != nil {
		t.Fatal(err)
	}
	leader := ps.Index(st.CachedInfo().Cluster.Leader)
	m := nats.NewMsg(subject.Lease.Key("test"))
	m.Data = []byte("died")
	m.Header.Set("Nats-TTL", "5")
	if _, err := js.PublishMsg(ctx, m); err != nil {
		t.Fatal(err)
	}
	won := make(chan time.Time, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		l := lease.New(js, lease.Config{Name: "test", Holder: "b"})
		_ = l.Run(ctx, func(ctx context.Context, _ uint64) error {
			won <- time.Now()
			<-ctx.Done()
			return nil
		})
	}()
	held := time.Now()
	for range 3 {
		time.Sleep(lease.DefaultTTL / 4) // as the holder does; nothing is waited for
		if _, err := js.PublishMsg(ctx, m); err != nil {
			t.Fatal(err)
		}
		held = time.Now()
	}
	ps.Kill(leader)
	elected := make(chan time.Time, 1)
	go func() {
		b := kv.Open(js, subject.Lease)
		for ctx.Err() == nil {
			try, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
			_, err := b.Put(patience.Until(try, time.Now().Add(time.Minute)), "other", nil)
			cancel()
			if err == nil {
				elected <- time.Now()
				return
			}
		}
	}()
	led, at := <-elected, time.Time{}
	select {
	case at = <-won:
	case <-ctx.Done():
		t.Fatal("nobody leads")
	}
	t.Logf("a leader of the store after %v, of the lease after %v", led.Sub(held), at.Sub(held))
	may := held.Add(lease.DefaultTTL * 4 / 5)
	if led.After(may) {
		may = led
	}
	if late := at.Sub(may); late > 2500*time.Millisecond { // a renewal that no look saw before is looked at for 1.9 s
		t.Errorf("the lease was waited for %v too long", late)
	}
	cancel()
	<-ended
}
