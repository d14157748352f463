package vault

import (
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	skepv1 "skep.dev/proto/skep/v1"
)

// What the directory should hold follows from the cluster's record, for every manager by itself: one that was away does
// it when it is back and has been unlocked with whatever key its disk was sealed under.

// move is what is to be done with the directory.
type move int

const (
	stay         move = iota
	doSeal            // write master.sealed under the record's key, then remove master.key
	doDropClear       // master.sealed is good: remove master.key
	doUnseal          // write master.key, then remove master.sealed
	doDropSealed      // master.key is good: remove master.sealed
)

// plan compares the directory with the record, nil when there is none. A record that is older than what the disk was
// sealed with decides nothing: somebody put it back, with an old backup of the store or to have the key in clear again. A
// rotation ends that.
func plan(r resting, record *skepv1.UnlockKeyInfo) move {
	inClear, sealed := r.master != nil || r.broken, r.sealed != nil
	var have uint64
	if sealed {
		have = r.sealed.info.Generation
	}
	switch {
	case record == nil || record.Generation < have:
		return stay
	case record.On && (!sealed || record.Generation > have):
		return doSeal
	case record.On && inClear:
		return doDropClear
	case record.On:
		return stay
	case r.master == nil:
		return doUnseal
	case sealed:
		return doDropSealed
	}
	return stay
}

// formerUnlockKeys is how many replaced unlock keys are remembered by name.
const formerUnlockKeys = 20

// next is the record after a turning on, a rotation (both with a new key) or a turning off (id "").
func next(record, disk *skepv1.UnlockKeyInfo, id string, now time.Time) *skepv1.UnlockKeyInfo {
	n := &skepv1.UnlockKeyInfo{Id: id, On: id != "", Generation: max(record.GetGeneration(), disk.GetGeneration()) + 1}
	if n.On {
		n.MadeAt = timestamppb.New(now)
	}
	for _, f := range record.GetFormer() {
		n.Former = append(n.Former, proto.CloneOf(f))
	}
	if record.GetOn() {
		n.Former = append([]*skepv1.FormerUnlockKey{{Id: record.Id, MadeAt: record.MadeAt, ReplacedAt: timestamppb.New(now)}}, n.Former...)
	}
	n.Former = n.Former[:min(len(n.Former), formerUnlockKeys)]
	return n
}

const (
	// freeAttempts wrong keys are answered at once; then each makes the next wait longer, until a right one came.
	freeAttempts = 5
	firstWait    = 10 * time.Second
	longestWait  = 10 * time.Minute
)

// attempts bounds how fast wrong unlock keys may follow one another. Guessing 256 bits is hopeless anyway; the bound keeps
// the log and the events readable, and is gone after a restart.
type attempts struct {
	wrong int
	until time.Time
}

// wait is how long no key is looked at.
func (a *attempts) wait(now time.Time) time.Duration { return max(0, a.until.Sub(now)) }

// failed counts a wrong key.
func (a *attempts) failed(now time.Time) {
	a.wrong++
	if a.wrong < freeAttempts {
		return
	}
	w := firstWait
	for i := freeAttempts; i < a.wrong && w < longestWait; i++ {
		w *= 2
	}
	a.until = now.Add(min(w, longestWait))
}
