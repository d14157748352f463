package reconcile

import (
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	skepv1 "skep.dev/proto/skep/v1"
)

// reject lets time pass until a service's only task was rejected so many times, and returns how long each next one waited.
func reject(t *testing.T, m *sim, times int) []time.Duration {
	t.Helper()
	var held []time.Duration
	last, tried := m.now, map[string]bool{}
	for step := 0; len(tried) < times; step++ {
		if step > 100*times {
			m.dump()
			t.Fatalf("only %d attempts", len(tried))
		}
		for _, x := range m.s.services["s"].tasks {
			if x.rejected() && !tried[x.ID] {
				tried[x.ID] = true
				if len(tried) > 1 {
					held = append(held, m.now.Sub(last).Round(time.Second/2))
				}
				last = m.now
			}
		}
		p := m.plan(99, step%2 == 0)
		m.agents()
		if w := p.NextWake(); p.Empty() && w.After(m.now) {
			m.now = w
		}
	}
	return held
}

// What its node rejects is tried once a delay, which grows soon, and says meanwhile why and how often.
func TestRejectedIsTriedOnceADelay(t *testing.T) {
	for _, mode := range []string{"replicated", "global"} {
		m := cluster(t, 1)
		m.service("s", func(s *skepv1.ServiceSpec) {
			if mode == "global" {
				setGlobal(s)
			}
			s.Task.Container.Image = "nowhere"
			s.Task.Restart.MaxDelay = durationpb.New(time.Minute)
		})
		held := reject(t, m, 8)
		for i, d := range held {
			nominal := 5 * time.Second
			if i >= patientRejections {
				nominal = min(time.Minute, 5*time.Second<<(i-patientRejections+1))
			}
			if d > nominal || d < nominal*9/10-time.Second/2 {
				t.Errorf("%s: after rejection %d the next waited %s, want about %s", mode, i+1, d, nominal)
			}
		}
		m.plan(99, false)
		x := m.one(t, "s", (*Task).wanted)
		if x.Node() != nil || x.State() != Pending || x.more().Err != "no such image: nowhere" || x.more().Failures != 8 || x.NotBefore <= m.now.UnixMilli() {
			m.dump()
			t.Fatalf("%s: what waits says %+v %+v", mode, x, x.more())
		}
		v := m.s.Waiting(m.s.services["s"])
		if len(v) != 1 || v[0].Failures != 8 || v[0].NotBeforeUnixMs != x.NotBefore || v[0].Status.Err != x.more().Err {
			t.Errorf("%s: explained as %v", mode, v)
		}
		m.same()

		// Another image is tried at once, and begins a new row.
		m.service("s", func(s *skepv1.ServiceSpec) { s.Task.Container.Image = "v2" })
		before := m.now
		for range 6 {
			m.plan(99, false)
			m.agents()
		}
		if y := m.one(t, "s", (*Task).wanted); y.Seen != Running || y.more().Failures != 0 || y.more().Err != "" || m.now != before {
			m.dump()
			t.Errorf("%s: after the change %+v", mode, y)
		}
		m.converge()
	}
}

// What one node cannot prepare the next attempt looks for on another.
func TestRejectedGoesElsewhere(t *testing.T) {
	m := cluster(t, 3)
	for _, id := range []string{"n1", "n2"} {
		m.nodes[id].lacks = true
	}
	m.service("s", func(s *skepv1.ServiceSpec) { setReplicas(s, 2) })
	m.converge()
	for _, x := range m.s.services["s"].tasks {
		if x.wanted() && (x.Node().ID != "n3" || x.Seen != Running) {
			m.dump()
			t.Fatalf("%s is %s on %s", x.ID, x.State(), x.Node().ID)
		}
	}
	if took := m.now.Sub(time.UnixMilli(1_700_000_000_000)); took > 15*time.Second {
		t.Errorf("it took %s, two delays are enough", took)
	}
}

// What runs goes on while what an update makes is rejected.
func TestRejectedUpdateLeavesTheOldRunning(t *testing.T) {
	for _, order := range []skepv1.UpdateOrder{skepv1.UpdateOrder_UPDATE_ORDER_STOP_FIRST, skepv1.UpdateOrder_UPDATE_ORDER_START_FIRST} {
		m := cluster(t, 1)
		m.service("s", func(s *skepv1.ServiceSpec) {
			s.Update.Order, s.Update.FailureAction = order, skepv1.FailureAction_FAILURE_ACTION_CONTINUE
		})
		m.converge()
		old := m.one(t, "s", (*Task).wanted)
		m.service("s", func(s *skepv1.ServiceSpec) { s.Task.Container.Image = "nowhere" })
		reject(t, m, 4)
		if !old.wanted() || old.Seen != Running {
			m.dump()
			t.Fatalf("%s: the old task is %+v", order, old)
		}
		m.service("s", func(s *skepv1.ServiceSpec) { s.Task.Container.Image = "v3" })
		m.converge()
		if x := m.one(t, "s", (*Task).wanted); x.Seen != Running || m.image(x) != "v3" {
			t.Errorf("%s: %+v", order, x)
		}
	}
}

// A service that is removed, or scaled to nothing, while its task waits to be tried again leaves nothing that is tried.
func TestRejectedAndRemoved(t *testing.T) {
	for _, end := range []func(*sim){
		func(m *sim) { m.removeService("s") },
		func(m *sim) { m.service("s", func(s *skepv1.ServiceSpec) { setReplicas(s, 0) }) },
	} {
		m := cluster(t, 2)
		m.service("s", func(s *skepv1.ServiceSpec) { s.Task.Container.Image = "nowhere" })
		reject(t, m, 3)
		m.plan(99, false)
		end(m)
		m.converge()
		for _, x := range m.s.tasks {
			t.Errorf("%s is left, %s", x.ID, x.State())
		}
		if n := len(m.s.refused); n != 0 {
			t.Errorf("%d refusals are kept", n)
		}
	}
}
