package cli

import (
	"time"

	skepv1 "skep.dev/proto/skep/v1"
)

const (
	// eventSlack is how much earlier than the last event that was shown a look at the kept ones begins: managers' clocks differ,
	// and an event may be kept later than one that was made after it.
	eventSlack = 10 * time.Second
	// eventLate is when it is looked once more after a connection came back.
	eventLate = 3 * time.Second
	// eventsKnown is how many of the events shown last are known, as long as they are not older than eventMemory.
	eventsKnown = 16 << 10
	eventMemory = time.Minute
)

// shown shows each event once, whether it was heard or read.
type shown struct {
	show  func(*skepv1.Event) error
	begun time.Time // by the clock of this machine
	known map[string]time.Time
	first time.Time // of the first that was shown
	last  time.Time // of the newest
	err   error     // why one could not be shown
}

func newShown(now time.Time, show func(*skepv1.Event) error) *shown {
	return &shown{show: show, begun: now, known: map[string]time.Time{}}
}

// until is up to when everything was shown.
func (s *shown) until() time.Time {
	if s.last.IsZero() {
		return s.begun
	}
	return s.last
}

// tell shows an event unless it was shown.
func (s *shown) tell(e *skepv1.Event) error {
	key, at := eventKey(e), e.GetTime().AsTime()
	if _, had := s.known[key]; had {
		return nil
	}
	s.known[key] = at
	if s.first.IsZero() {
		s.first = at
	}
	if at.After(s.last) {
		s.last = at
	}
	if len(s.known) > eventsKnown {
		for k, at := range s.known {
			if s.last.Sub(at) > eventMemory {
				delete(s.known, k)
			}
		}
	}
	s.err = s.show(e)
	return s.err
}

// again is tell for what was kept while nobody listened. What is older than the first that was shown is none of that: it was
// before the command listened, or is not asked for.
func (s *shown) again(e *skepv1.Event) error {
	from := s.first
	if from.IsZero() {
		from = s.begun
	}
	if e.GetTime().AsTime().Before(from) {
		return nil
	}
	return s.tell(e)
}

func eventKey(e *skepv1.Event) string {
	return e.Kind + "|" + e.Id + "|" + e.Verb + "|" + e.GetTime().AsTime().String()
}
