package bus

import (
	"context"
	"fmt"
	"testing"
	"time"

	"skep.dev/libs/pki"
	"skep.dev/libs/pki/pkitest"
)

// reformAlone is what a child does for Manager.refound: the steps on the servers alone.
func reformAlone(ctx context.Context, b *Bus, witness string) error {
	company, err := b.startCompany(ctx)
	if err != nil {
		return err
	}
	defer company.stop(false)
	if err := b.reform(ctx, witness); err != nil {
		return err
	}
	if err := b.Scale(ctx, 1); err != nil {
		return err
	}
	if err := b.StartWitness(ctx, witness); err != nil {
		return err
	}
	return b.WaitMembers(ctx, b.cfg.Name, witness)
}

// three makes a group of three with writers, every stream on all of them and no witness.
func three(t *testing.T, ca *pki.CA) (m1, m2, m3 *child, l *ledger) {
	t.Helper()
	m1, m2, m3 = newChild(t, ca, "m1"), newChild(t, ca, "m2"), newChild(t, ca, "m3")
	m1.cfg.Witness = "m1-w1"
	m1.start()
	creds := pkitest.Store(t, ca, pki.Identity{NodeID: "writer", Role: pki.Manager}, time.Hour)
	l = startWriters(t, creds, 4, m1.cfg.Advertise, m2.cfg.Advertise, m3.cfg.Advertise)
	for _, n := range []string{"a", "b", "c"} {
		if err := created(t, l.js, n); err != nil {
			t.Fatal(err)
		}
	}
	m2.cfg.Routes = []string{m1.cfg.RouteAddr()}
	m2.start()
	m3.cfg.Routes = []string{m1.cfg.RouteAddr(), m2.cfg.RouteAddr()}
	m3.start()
	m1.do(order{Op: "members", Names: []string{"m1", "m1-w1", "m2", "m3"}})
	m1.do(order{Op: "scale", Replicas: 3})
	m1.do(order{Op: "evacuate", Name: "m1-w1"})
	m1.do(order{Op: "stop-witness"})
	m1.do(order{Op: "remove", Name: "m1-w1"})
	m1.do(order{Op: "members", Names: []string{"m1", "m2", "m3"}})
	// A replica that was killed before it knew that it was counted in does not vote again by itself; any write tells it.
	for _, n := range []string{"b", "c"} {
		for i := range 3 {
			if _, err := l.js.Publish(within(t), fmt.Sprintf("$KV.%s.k%d", n, i), []byte("x")); err != nil {
				t.Fatal(err)
			}
		}
	}
	l.mark("three managers", time.Now())
	return m1, m2, m3, l
}

// Two of three managers are lost for good: the third becomes the only one with every acknowledged write, each at its
// revision, also when it is killed at any point on the way.
func TestRefoundOfThree(t *testing.T) {
	m1, m2, m3, l := three(t, pkitest.NewCA(t))
	m2.kill()
	m1.kill()
	m3.kill()
	m3.cfg.Routes, m3.cfg.Alone = nil, true
	began := time.Now()
	for _, after := range []time.Duration{500 * time.Millisecond, 1500 * time.Millisecond, 8 * time.Second} {
		m3.spawn()
		m3.do(order{Op: "serving"})
		m3.send(order{Op: "reform", Name: "m3-w1"})
		time.Sleep(after) // wherever it is then
		m3.kill()
	}
	t.Logf("killed four times within %v", time.Since(began))
	began = time.Now()
	m3.spawn()
	m3.do(order{Op: "serving"})
	m3.do(order{Op: "reform", Name: "m3-w1"})
	l.mark("founded anew", began)
	m3.kill()
	m3.cfg.Alone, m3.cfg.Witness = false, "m3-w1"
	began = time.Now()
	m3.start()
	l.mark("restarted", began)
	l.halt()
	l.verify("at the end")
	if testing.Short() {
		return
	}
	time.Sleep(time.Until(began.Add(32 * time.Second)))
	l.verify(fmt.Sprintf("after %v", time.Since(began).Round(time.Second)))
}
