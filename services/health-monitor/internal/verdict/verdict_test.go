package verdict

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	skepv1 "skep.dev/proto/skep/v1"
)

// sim drives a Core in steps of a twentieth of a period.
type sim struct {
	*Core
	now   time.Time
	alive map[string]bool
	n     int
}

const step = 50 * time.Millisecond

func newSim(nodes int) *sim {
	s := &sim{now: time.Unix(1000, 0), alive: map[string]bool{}}
	s.Core = New(Config{}, s.now)
	for i := range nodes {
		id := fmt.Sprintf("n%02d", i)
		s.Admit(id, nil, s.now)
		s.alive[id] = true
	}
	return s
}

// run lets d pass; nodes that are alive beat once a period, each at its own moment.
func (s *sim) run(d time.Duration) {
	for end := s.now.Add(d); s.now.Before(end); {
		s.now = s.now.Add(step)
		s.n++
		for i, id := range s.Members() {
			if s.alive[id] && (s.n+7*i)%20 == 0 {
				s.Beat(id, "s", false, s.now)
			}
		}
		s.Tick(s.now)
	}
}

func (s *sim) want(t *testing.T, id string, state skepv1.NodeState, text string) {
	t.Helper()
	l := s.Live(id)
	if l == nil || l.State != state || !strings.Contains(l.Message, text) {
		t.Fatalf("%s is %v, want %v %q", id, l, state, text)
	}
}

func (s *sim) states() string {
	var b strings.Builder
	for _, id := range s.Members() {
		b.WriteByte("UDRX"[s.Live(id).State])
	}
	return b.String()
}

func TestOneNodeOfAFewIsDownInTime(t *testing.T) {
	for _, size := range []int{1, 2, 3, 5, 50} {
		s := newSim(size)
		s.run(3 * time.Second)
		if st := s.states(); strings.Trim(st, "R") != "" {
			t.Fatal(st)
		}
		s.alive["n00"] = false
		s.run(4 * time.Second)
		s.want(t, "n00", down, "heartbeat failure")
		took := s.nodes["n00"].since.Sub(s.nodes["n00"].last)
		if took < 3*time.Second || took > 3100*time.Millisecond {
			t.Fatalf("%d nodes: down after %s", size, took)
		}
		s.alive["n00"] = true
		s.run(1100 * time.Millisecond)
		s.want(t, "n00", ready, "")
	}
}

func TestLeavingIsDownAtOnce(t *testing.T) {
	s := newSim(2)
	s.run(2 * time.Second)
	s.alive["n00"] = false
	s.Beat("n00", "s", true, s.now)
	s.want(t, "n00", down, messageLeft)
	s.Beat("n00", "s", false, s.now) // it was on its way
	s.want(t, "n00", down, messageLeft)
	s.Beat("n00", "s2", false, s.now)
	s.want(t, "n00", ready, "")
}

func TestOurOwnAbsenceIsNobodysFault(t *testing.T) {
	for name, away := range map[string]func(*sim){
		"stall of 2.9 s":  func(s *sim) { s.now = s.now.Add(2900 * time.Millisecond) },
		"stall of 10 s":   func(s *sim) { s.now = s.now.Add(10 * time.Second) },
		"connection lost": func(s *sim) { s.now = s.now.Add(20 * time.Second); s.Restart(s.now) },
	} {
		s := newSim(4)
		s.run(3 * time.Second)
		away(s)
		s.Tick(s.now)
		if st := s.states(); st != "RRRR" {
			t.Fatalf("%s: %s", name, st)
		}
		s.alive["n00"] = false // died while we were away
		s.run(15 * time.Second)
		if st := s.states(); st != "DRRR" {
			t.Fatalf("%s: %s", name, st)
		}
	}
}

func TestStartWithRecords(t *testing.T) {
	now := time.Unix(5000, 0)
	s := &sim{now: now, alive: map[string]bool{"back": true, "up": true}, Core: New(Config{}, now)}
	for id, st := range map[string]skepv1.NodeState{"lost": ready, "up": ready, "back": down, "dead": down} {
		s.Admit(id, &skepv1.NodeLive{State: st, Message: "recorded", SinceUnixMs: 77}, now)
	}
	s.Admit("new", nil, now)
	s.run(4900 * time.Millisecond)
	s.want(t, "lost", ready, "recorded")
	s.want(t, "new", unknown, "not heard yet")
	s.want(t, "back", ready, "")
	s.run(200 * time.Millisecond)
	s.want(t, "lost", unknown, "not heard since")
	s.want(t, "new", down, "heartbeat failure")
	s.run(3 * time.Second)
	s.want(t, "lost", down, "heartbeat failure")
	s.want(t, "dead", down, "recorded")
	s.want(t, "up", ready, "recorded")
	if s.Live("up").SinceUnixMs != 77 {
		t.Fatal("a verdict that stands got a new time")
	}
}

func TestMostAtOnceIsSuspicious(t *testing.T) {
	for _, c := range []struct {
		nodes, die    int
		after4, after string
	}{
		{3, 2, "DDR", "DDR"},
		{4, 2, "DDRR", "DDRR"},
		{4, 3, "UUUR", "DDDR"},
		{6, 3, "DDDRRR", "DDDRRR"}, // half is not most
		{7, 7, "UUUUUUU", "DDDDDDD"},
	} {
		s := newSim(c.nodes)
		s.run(3 * time.Second)
		for i := range c.die {
			s.alive[fmt.Sprintf("n%02d", i)] = false
		}
		s.run(4 * time.Second)
		if st := s.states(); st != c.after4 {
			t.Errorf("%d of %d died: %s, want %s", c.die, c.nodes, st, c.after4)
		}
		s.run(27 * time.Second)
		if st := s.states(); st != c.after4 {
			t.Errorf("%d of %d died: after half a minute %s, want %s", c.die, c.nodes, st, c.after4)
		}
		s.run(3 * time.Second)
		if st := s.states(); st != c.after {
			t.Errorf("%d of %d died: in the end %s, want %s", c.die, c.nodes, st, c.after)
		}
		for id := range s.alive {
			s.alive[id] = true
		}
		s.run(1200 * time.Millisecond)
		if st := s.states(); strings.Trim(st, "R") != "" {
			t.Errorf("%d of %d came back: %s", c.die, c.nodes, st)
		}
	}
}

// A manager loses its power, and with it the nodes that hung on it fall silent until they find another one: it is not waited for
// as long as for all of them.
func TestTheOthersAreBack(t *testing.T) {
	s := newSim(5)
	s.run(3 * time.Second)
	for _, id := range []string{"n00", "n01", "n02"} {
		s.alive[id] = false
	}
	s.run(4 * time.Second)
	if st := s.states(); st != "UUURR" {
		t.Fatal(st)
	}
	s.alive["n01"] = true
	s.run(1200 * time.Millisecond)
	s.want(t, "n00", unknown, "others fell silent with it and are back") // two of five may well be
	s.want(t, "n02", unknown, "are back")
	s.alive["n02"] = true
	s.run(1200 * time.Millisecond)
	if st := s.states(); st != "URRRR" {
		t.Errorf("the others are back: %s", st)
	}
	s.run(2 * time.Second)
	if st := s.states(); st != "DRRRR" {
		t.Errorf("3 s after they were: %s", st)
	}
	s.alive["n00"] = true
	s.run(1200 * time.Millisecond)
	if st := s.states(); st != "RRRRR" {
		t.Errorf("in the end: %s", st)
	}
	// The same again: whoever went alone the last time is one of many now.
	for _, id := range []string{"n00", "n01", "n02"} {
		s.alive[id] = false
	}
	s.run(10 * time.Second)
	if st := s.states(); st != "UUURR" {
		t.Errorf("again: %s", st)
	}
}

func TestFlappingIsHeldBack(t *testing.T) {
	s := newSim(3)
	s.run(2 * time.Second)
	bounce := func() {
		s.alive["n00"] = false
		s.run(4500 * time.Millisecond)
		s.want(t, "n00", down, "heartbeat failure")
		s.alive["n00"] = true
		s.run(1100 * time.Millisecond)
	}
	for range 3 {
		bounce()
		s.want(t, "n00", ready, "")
	}
	for _, hold := range []time.Duration{10 * time.Second, 20 * time.Second, 40 * time.Second} {
		bounce()
		s.want(t, "n00", down, "it must stay up for "+hold.String())
		s.run(hold - 2*time.Second)
		s.want(t, "n00", down, "it must stay up for")
		s.run(2500 * time.Millisecond)
		s.want(t, "n00", ready, "")
	}
	bounce()
	s.alive["n00"] = false // a gap begins the hold anew
	s.run(5 * time.Second)
	s.want(t, "n00", down, "nothing heard")
	s.alive["n00"] = true
	s.run(75 * time.Second)
	s.want(t, "n00", down, "must stay up for 1m20s")
	s.run(11 * time.Minute) // forgiven
	s.want(t, "n00", ready, "")
	bounce()
	s.want(t, "n00", ready, "")
}

func TestPeriodAndMembership(t *testing.T) {
	s := newSim(2)
	s.run(2 * time.Second)
	s.SetPeriod(3*time.Second, s.now)
	s.alive["n00"] = false
	s.run(8 * time.Second)
	s.want(t, "n00", ready, "")
	s.run(10 * time.Second)
	s.want(t, "n00", down, "")
	s.Remove("n00")
	if s.Live("n00") != nil || len(s.Members()) != 1 {
		t.Fatal("still a member")
	}
	s.Beat("n00", "s", false, s.now) // a stranger now
	if s.Live("n00") != nil {
		t.Fatal("a heartbeat made a member")
	}
}

func TestChangedTellsEachChangeOnce(t *testing.T) {
	s := newSim(2)
	s.run(2 * time.Second)
	if c := s.Changed(); len(c) != 2 {
		t.Fatal(c)
	}
	s.run(20 * time.Second)
	if c := s.Changed(); c != nil {
		t.Fatalf("%v changed while nothing happened", c)
	}
}

// Whatever other nodes and our own clock do: who beats stays Ready, who is silent ends Down, who leaves is Down.
func TestProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.IntRange(1, 9).Draw(t, "nodes")
		s := newSim(size)
		s.run(2 * time.Second)
		steady := map[string]bool{}
		for _, id := range s.Members() {
			steady[id] = rapid.Bool().Draw(t, "steady "+id)
		}
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			switch rapid.IntRange(0, 3).Draw(t, "what") {
			case 0: // we stood still
				s.now = s.now.Add(time.Duration(rapid.IntRange(0, 20_000).Draw(t, "ms")) * time.Millisecond)
			case 1: // we lost the connection
				s.now = s.now.Add(time.Duration(rapid.IntRange(0, 60).Draw(t, "s")) * time.Second)
				s.Restart(s.now)
			default: // others come and go
				for _, id := range s.Members() {
					if !steady[id] {
						s.alive[id] = rapid.Bool().Draw(t, "alive "+id)
					}
				}
			}
			for range 20 {
				s.run(time.Duration(rapid.IntRange(1, 10).Draw(t, "run")) * step)
				for id, ok := range steady {
					if ok && s.Live(id).State != ready {
						t.Fatalf("%s beats, but is %v", id, s.Live(id))
					}
				}
			}
		}
		for id, ok := range steady {
			if !ok {
				s.alive[id] = false
			}
		}
		s.run(45 * time.Second)
		for id, ok := range steady {
			if !ok && s.Live(id).State != down {
				t.Fatalf("%s has been silent for 45 s, but is %v", id, s.Live(id))
			}
			if ok && s.Live(id).State != ready {
				t.Fatalf("%s beats, but is %v", id, s.Live(id))
			}
			s.Beat(id, "s", true, s.now)
			if s.Live(id).State != down {
				t.Fatalf("%s left, but is %v", id, s.Live(id))
			}
		}
	})
}

// One second of a cluster of 5,000: 5,000 heartbeats and 20 ticks.
func BenchmarkSecondOf5000Nodes(b *testing.B) {
	s := newSim(5000)
	ids := s.Members()
	for b.Loop() {
		for i := range 20 {
			s.now = s.now.Add(step)
			for _, id := range ids[i*250 : (i+1)*250] {
				s.Beat(id, "s", false, s.now)
			}
			s.Tick(s.now)
		}
	}
}
