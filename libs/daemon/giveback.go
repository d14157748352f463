package daemon

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"

	"go.uber.org/zap"
)

const (
	// lookAtMemory is how often a process looks whether it is at rest.
	lookAtMemory = 30 * time.Second
	// restful is how much a small process at rest may allocate from one look to the next: a manager of four nodes allocates 6 MB,
	// one in the middle of churn 130 MB. A larger one may allocate as much as it holds.
	restful = 16 << 20
	// again is how many looks at rest lie between a first giving back, a second and a third. What the broker forgets by
	// time, ids of messages after two minutes, is still there at the first.
	again = 4
)

// GiveBack gives what a burst took back to the system once the process is at rest, until ctx ends. Left alone the runtime
// keeps the pages for the next burst: a manager that held as little as before still had all of them six minutes later. It costs
// nine collections after each burst, within five minutes, and nothing otherwise.
func GiveBack(ctx context.Context, log *zap.Logger) {
	tick := time.NewTicker(lookAtMemory)
	defer tick.Stop()
	var r atRest // a start is a burst
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		allocated, live := heapNow()
		if !r.look(allocated, live) {
			continue
		}
		began := time.Now()
		// What is pooled survives one collection, and what a pool's own goes with it another.
		for range 3 {
			debug.FreeOSMemory()
		}
		r.allocated, live = heapNow()
		log.Debug("gave memory back", zap.Uint64("live", live), zap.Duration("dur", time.Since(began)))
	}
}

// atRest tells when a process is at rest after a burst.
type atRest struct {
	allocated uint64 // in all, at the last look
	looks     int    // at rest, in a row
}

// look takes what the process has allocated in all and what it holds; true: give back now.
func (r *atRest) look(allocated, live uint64) bool {
	since := allocated - r.allocated
	r.allocated = allocated
	if since > max(live, restful) {
		r.looks = 0
		return false
	}
	r.looks++
	return r.looks == 1 || r.looks == 1+again || r.looks == 1+2*again
}

func heapNow() (allocated, live uint64) {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}, {Name: "/gc/heap/live:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64(), s[1].Value.Uint64()
}
