package verdict

import (
	"testing"
	"time"
)

func TestARestartThatWasSaidIsNoFailure(t *testing.T) {
	s := newSim(5)
	s.run(3 * time.Second)
	s.alive["n00"] = false
	s.Restarts("n00", "s", s.now)
	s.Beat("n00", "s", false, s.now) // it was on its way
	s.run(29 * time.Second)
	s.want(t, "n00", ready, "")
	s.run(1200 * time.Millisecond)
	s.want(t, "n00", down, "heartbeat failure")

	// Back in time, it is a node as any other.
	s.Beat("n00", "s2", false, s.now)
	s.Restarts("n00", "s2", s.now)
	s.run(10 * time.Second)
	s.Beat("n00", "s3", false, s.now)
	s.want(t, "n00", ready, "")
	s.run(3200 * time.Millisecond)
	s.want(t, "n00", down, "heartbeat failure")
}

// The one who listens restarts too, or stands still: who restarts has his time all the same, and no more than that.
func TestARestartAndOurOwn(t *testing.T) {
	for name, away := range map[string]func(*sim){
		"lost connection": func(s *sim) { s.Restart(s.now) },
		"stall":           func(s *sim) { s.now = s.now.Add(2 * time.Second) },
	} {
		s := newSim(3)
		s.run(3 * time.Second)
		s.alive["n00"] = false
		s.Restarts("n00", "s", s.now)
		s.run(5 * time.Second)
		away(s)
		s.run(20 * time.Second)
		if got := s.states(); got != "RRR" {
			t.Errorf("%s: %s", name, got)
		}
		s.run(20 * time.Second)
		s.want(t, "n00", down, "")
	}
}

// Many that restart at once are no sign that the fault is ours.
func TestManyRestarts(t *testing.T) {
	s := newSim(5)
	s.run(3 * time.Second)
	for _, id := range []string{"n00", "n01", "n02"} {
		s.alive[id] = false
		s.Restarts(id, "s", s.now)
	}
	s.alive["n03"] = false
	s.run(4 * time.Second)
	s.want(t, "n03", down, "heartbeat failure")
	s.want(t, "n00", ready, "")
}
