package health

import (
	"cmp"
	"context"
	"slices"
	"time"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/fault"
)

const (
	// clockWindow is how long the best of a node's heartbeats stands for its clock; the window before it counts, too.
	clockWindow = 10 * time.Second
	// clockLife is how long after its last heartbeat nothing is said of a node's clock any more.
	clockLife = 10 * time.Minute
	// clockSure is how many heartbeats make a window's word its own: before, one that was held up may be all there is.
	clockSure = 3
	// clocksFor bounds how long a question waits for the loop, which alone knows.
	clocksFor = 2 * time.Second
)

// clocks are how far nodes' clocks are ahead of this manager's, by node. A heartbeat says when it was sent; what it took on
// its way makes the node's clock look late, so of several heartbeats the one that came fastest is the closest.
type clocks map[string]*clock

// clock holds the best reading of this window, and of the one before.
type clock struct {
	began    time.Time // of this window
	last     time.Time // when it was heard last
	beats    int       // in this window
	now, was time.Duration
	before   bool // there is a reading of the window before
}

// hear takes in when a node says it sent a heartbeat, 0 = it does not say.
func (c clocks) hear(id string, sentUnixMs int64, at time.Time) {
	if sentUnixMs == 0 {
		return
	}
	ahead := time.UnixMilli(sentUnixMs).Sub(at)
	k := c[id]
	switch {
	case k == nil || at.Sub(k.last) > clockLife:
		c[id] = &clock{began: at, last: at, beats: 1, now: ahead}
		return
	case at.Sub(k.began) >= clockWindow:
		k.began, k.beats, k.was, k.before, k.now = at, 1, k.now, true, ahead
	default:
		k.beats++
		k.now = max(k.now, ahead)
	}
	k.last = at
}

// ahead is how far a node's clock is ahead of ours.
func (k *clock) ahead() time.Duration {
	if k.before && k.beats < clockSure {
		return max(k.now, k.was)
	}
	return k.now
}

// list are the clocks of nodes heard lately that differ by at least beyond, by node, and how many are known.
func (c clocks) list(beyond time.Duration, at time.Time) (out []*skepv1.NodeClock, heard int) {
	for id, k := range c {
		if at.Sub(k.last) > clockLife {
			continue
		}
		heard++
		if a := k.ahead(); a.Abs() >= beyond {
			out = append(out, &skepv1.NodeClock{NodeId: id, AheadMs: a.Milliseconds()})
		}
	}
	slices.SortFunc(out, func(a, b *skepv1.NodeClock) int { return cmp.Compare(a.NodeId, b.NodeId) })
	return out, heard
}

// tellClocks answers health.clocks by way of the loop.
func (s *Service) tellClocks(life, asked context.Context, do chan func(), r *skepv1.ClocksRequest) (*skepv1.ClocksReply, error) {
	if r.BeyondMs < 0 || r.BeyondMs > time.Hour.Milliseconds()*24*365 {
		return nil, fault.Invalid("clocks that differ by %d ms: ask for 0 to a year", r.BeyondMs)
	}
	asked, cancel := context.WithTimeout(asked, clocksFor)
	defer cancel()
	out := make(chan *skepv1.ClocksReply, 1)
	look := func() {
		now := time.Now()
		list, heard := s.clocks.list(time.Duration(r.BeyondMs)*time.Millisecond, now)
		out <- &skepv1.ClocksReply{NodeId: s.cfg.NodeID, Clocks: list, Heard: uint32(heard), NowUnixMs: now.UnixMilli()}
	}
	late := fault.Unavailable("the health monitor did not answer within %s", clocksFor)
	select {
	case do <- look:
	case <-life.Done():
		return nil, fault.Unavailable("the health monitor ends")
	case <-asked.Done():
		return nil, late
	}
	select {
	case reply := <-out:
		return reply, nil
	case <-life.Done():
		return nil, fault.Unavailable("the health monitor ends")
	case <-asked.Done():
		return nil, late
	}
}
