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
	// restful is how much a process at rest allocates from one look to the next, next to what it holds: a quarter makes no
	// collection due. The floor is for small ones.
	restful      = 4
	restfulFloor = 4 << 20
)

// GiveBack gives what a burst took back to the system once the process is at rest, until ctx ends. Left alone the runtime
// keeps the pages for the next burst, and what is pooled for two more collections, which at rest come every two minutes: a
// manager after ten minutes of churn had given back half of it five minutes later. It costs three collections after each burst
// and nothing otherwise.
func GiveBack(ctx context.Context, log *zap.Logger) {
	tick := time.NewTicker(lookAtMemory)
	defer tick.Stop()
	r := rest{owes: true} // a start is a burst
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

// rest tells when a process is at rest after a burst.
type rest struct {
	allocated uint64 // in all, at the last look
	owes      bool   // there was a burst, and nothing was given back since
}

// look takes what the process has allocated in all and what it holds; true: give back now.
func (r *rest) look(allocated, live uint64) bool {
	since := allocated - r.allocated
	r.allocated = allocated
	if since > max(live/restful, restfulFloor) {
		r.owes = true
		return false
	}
	give := r.owes
	r.owes = false
	return give
}

func heapNow() (allocated, live uint64) {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}, {Name: "/gc/heap/live:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64(), s[1].Value.Uint64()
}
