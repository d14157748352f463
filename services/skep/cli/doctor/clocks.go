package doctor

import (
	"slices"
	"time"

	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/render"
)

const (
	// ClockNear is what clocks may differ by without being told of; heartbeats that are held up for a moment look like it.
	ClockNear = time.Second
	// clockOff is where a clock's difference begins to confuse people: logs, events and ages do not fit together.
	clockOff = 3 * time.Second
	// clockFar is where it is about to end: certificates tolerate pki.ClockTolerance, 61 minutes.
	clockFar = 50 * time.Minute
	// clockAlike is how near to one another clocks are that are right.
	clockAlike = 5 * time.Second
)

// clocks looks at how the nodes' clocks stand to the manager's that hears their heartbeats.
func (d *exam) clocks() {
	const check = "clocks"
	if d.denied(d.ClocksErr, "clocks") {
		return
	}
	if d.ClocksErr != nil {
		d.add(Error, check, "the health monitor does not answer, so nobody notices nodes that fail: %v", d.ClocksErr)
		return
	}
	if d.Clocks == nil {
		return
	}
	since := len(d.out)
	manager := d.name(d.Clocks.NodeId)
	type off struct {
		node  *skepv1.Node
		ahead time.Duration
	}
	var differ []off
	others := 0
	for _, n := range byName(d.After.Nodes) {
		id := n.GetMeta().GetId()
		if n.GetStatus().GetState() != skepv1.NodeState_NODE_STATE_READY || id == d.Clocks.NodeId {
			continue
		}
		others++
		if i := slices.IndexFunc(d.Clocks.Clocks, func(c *skepv1.NodeClock) bool { return c.NodeId == id }); i >= 0 {
			if by := ms(d.Clocks.Clocks[i].AheadMs); by.Abs() >= clockOff {
				differ = append(differ, off{n, by})
			}
		}
	}
	// Where most others agree with one another, it is the manager's that is wrong.
	if len(differ) >= 2 && 2*len(differ) > others {
		sorted := slices.Clone(differ)
		slices.SortFunc(sorted, func(a, b off) int { return int(min(max(a.ahead-b.ahead, -1), 1)) })
		middle := sorted[len(sorted)/2].ahead
		alike := func(o off) bool { return (o.ahead - middle).Abs() <= clockAlike }
		var agree []off
		for _, o := range differ {
			if alike(o) {
				agree = append(agree, o)
			}
		}
		if 2*len(agree) > others {
			d.add(badClock(middle), "clock of "+manager, "it is %s %s those of %d of the %s: set it right there (NTP: `timedatectl`, `chronyc tracking`). Certificates bear 61 minutes",
				span(middle), aheadOf(-middle), len(agree), count(others, "other node"))
			differ = slices.DeleteFunc(differ, alike)
		}
	}
	for _, o := range differ {
		d.add(badClock(o.ahead), "clock of "+render.Hostname(o.node), "it is %s %s manager %s's: set it right there (NTP: `timedatectl`, `chronyc tracking`). Certificates bear 61 minutes",
			span(o.ahead), aheadOf(o.ahead), manager)
	}
	d.found(since, check, "those of %s are known and near manager %s's", count(int(d.Clocks.Heard), "node"), manager)
}

// ms is a number of milliseconds, which a node may have made up.
func ms(n int64) time.Duration {
	const most = int64(100 * 365 * 24 * time.Hour / time.Millisecond)
	return time.Duration(max(-most, min(most, n))) * time.Millisecond
}

func badClock(by time.Duration) Status {
	if by.Abs() >= clockFar {
		return Error
	}
	return Warn
}

func aheadOf(by time.Duration) string {
	if by > 0 {
		return "ahead of"
	}
	return "behind"
}
