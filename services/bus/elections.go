package bus

import (
	"time"
	_ "unsafe" // for go:linkname
)

// How soon a group of the store finds a new leader. nats-server waits 4 to 9 s without a word from the leader before it
// elects another, and offers no option for it: three managers in one data centre would be without writes for as long as
// that, and each of a dozen groups draws its own time, so that the longest counts. Its variables are set here before any
// server starts.
//
// The leader of an idle group speaks at most two beats apart. The shortest patience is five beats: a busy disk or processor
// that stops a manager for two seconds deposes nobody. Too short a patience costs a pause of writes and no data.
const (
	raftBeat       = 500 * time.Millisecond
	electAfter     = 2500 * time.Millisecond
	electBefore    = 4500 * time.Millisecond
	quorumWithin   = 5 * time.Second // a leader that has heard no majority for so long steps down
	quorumCheckAll = 2 * time.Second
)

// An update of nats-server that renames one of them leaves ours at zero: TestElectionsAreSet fails then.
var (
	//go:linkname minElectionTimeout github.com/nats-io/nats-server/v2/server.minElectionTimeout
	minElectionTimeout time.Duration
	//go:linkname maxElectionTimeout github.com/nats-io/nats-server/v2/server.maxElectionTimeout
	maxElectionTimeout time.Duration
	//go:linkname hbInterval github.com/nats-io/nats-server/v2/server.hbInterval
	hbInterval time.Duration
	//go:linkname lostQuorumInterval github.com/nats-io/nats-server/v2/server.lostQuorumInterval
	lostQuorumInterval time.Duration
	//go:linkname lostQuorumCheck github.com/nats-io/nats-server/v2/server.lostQuorumCheck
	lostQuorumCheck time.Duration
)

// theirs are the values before init, in the order above: zero where nats-server has no such variable any more.
var theirs []time.Duration

func init() {
	for _, v := range []struct {
		at  *time.Duration
		own time.Duration
	}{{&minElectionTimeout, electAfter}, {&maxElectionTimeout, electBefore}, {&hbInterval, raftBeat}, {&lostQuorumInterval, quorumWithin}, {&lostQuorumCheck, quorumCheckAll}} {
		theirs = append(theirs, *v.at)
		*v.at = v.own
	}
}
