package doctor

import (
	"fmt"
	"strings"
	"time"

	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/render"
)

// NodeStore is what a manager's broker says of its store, or why nothing is known.
type NodeStore struct {
	Node  *skepv1.Node
	State *skepv1.StoreStateReply
	Err   error
}

const (
	// writeSlow is what a durable write may take: everything that is stored waits for it. writeStuck is where managers begin
	// to take one another for dead.
	writeSlow  = 100 * time.Millisecond
	writeStuck = time.Second
	// freeLittle and freeNone are how much space is free when that is told, and when writes are about to be refused.
	freeLittle = 1 << 30
	freeNone   = 100 << 20
	// limitNear is the share of what the streams may take from which on it is told.
	limitNear = 0.9
)

// stores looks at the disk under each manager's store, and at the streams.
func (d *exam) stores() {
	told := false // of the streams, which are the same for all managers
	for _, s := range d.Stores {
		name := render.Hostname(s.Node)
		check := "store of " + name
		if d.denied(s.Err, "the managers' stores") {
			continue
		}
		if s.Err != nil {
			d.add(Error, check, "its broker does not say how the store is: %v", s.Err)
			continue
		}
		since := len(d.out)
		d.disk(check, s.State)
		text := fmt.Sprintf("a durable write takes %s (the slowest of a few %s), %s free", micros(s.State.WriteMicros), micros(s.State.SlowestMicros), render.Bytes(int64(s.State.FreeBytes)))
		if ghosts := ghostsOf(s.State); ghosts > 0 {
			text += fmt.Sprintf("; since its start %s that had been deleted came back with the store's recovery and went again", count(ghosts, "key"))
		}
		for _, st := range s.State.Streams {
			if st.Damage != "" {
				d.add(Error, check, "%s. Nothing more is deleted from it: look at the disk, and put back what is lost from a backup", st.Damage)
			}
		}
		if dir := s.State.DamagedDir; dir != "" {
			d.add(Warn, check, "it was found damaged on %s (%s), and filled anew from the other managers: look at that machine's disk (dmesg, smartctl -a). What was damaged lies in %s there: remove it when nobody needs it",
				time.UnixMilli(s.State.DamagedUnixMs).UTC().Format("2006-01-02 15:04 UTC"), s.State.DamagedWhy, dir)
		}
		d.found(since, check, "%s", text)
		if !told {
			told = true
			d.streams(s.State.Streams)
		}
	}
}

func micros(n int64) time.Duration {
	t := time.Duration(n) * time.Microsecond
	if t >= 10*time.Millisecond {
		return t.Round(time.Millisecond)
	}
	return t.Round(100 * time.Microsecond)
}

func ghostsOf(s *skepv1.StoreStateReply) (n int) {
	for _, st := range s.Streams {
		n += int(st.Ghosts)
	}
	return n
}

func (d *exam) disk(check string, s *skepv1.StoreStateReply) {
	switch t, slowest := micros(s.WriteMicros), micros(s.SlowestMicros); {
	case s.WriteError != "":
		d.add(Error, check, "%s: look at that machine's disk (dmesg, iostat -x 1)", s.WriteError)
	case t < writeSlow && slowest >= writeStuck:
		d.add(Warn, check, "one of a few durable writes took %s, and meanwhile no change is stored: take other work off the disk that has %s (iostat -x 1), or give it another", slowest, s.Dir)
	case t >= writeSlow:
		status := Warn
		if t >= writeStuck {
			status = Error
		}
		d.add(status, check, "a durable write takes %s, and every change waits for one: take other work off the disk that has %s (iostat -x 1), or give it a faster one", t, s.Dir)
	}
	if s.TotalBytes > 0 {
		switch free := s.FreeBytes; {
		case free < freeNone:
			d.add(Error, check, "%s are free on the file system of %s, and writes fail when nothing is: make room", render.Bytes(int64(free)), s.Dir)
		case free < max(freeLittle, min(s.StoreBytes, s.StoreLimitBytes)):
			d.add(Warn, check, "%s are free on the file system of %s, and the store takes %s: make room before writes fail", render.Bytes(int64(free)), s.Dir, render.Bytes(int64(s.StoreBytes)))
		}
	}
	if s.StoreLimitBytes > 0 && float64(s.StoreBytes) >= limitNear*float64(s.StoreLimitBytes) {
		d.add(Warn, check, "its streams take %s of the %s they may: remove services, secrets or configs that nobody needs", render.Bytes(int64(s.StoreBytes)), render.Bytes(int64(s.StoreLimitBytes)))
	}
}

// streams looks whether each has a leader, and replicas that are up to date.
func (d *exam) streams(all []*skepv1.StreamState) {
	const check = "streams"
	if len(all) == 0 {
		return
	}
	since := len(d.out)
	var silent []string
	why := ""
	for _, s := range all {
		switch {
		case s.Err != "":
			silent, why = append(silent, s.Name), s.Err
		case s.Leader == "":
			silent, why = append(silent, s.Name), "no leader"
		}
		var behind []string
		for _, r := range s.Replicas {
			switch {
			case r.Offline:
				behind = append(behind, d.server(r.Name)+" (offline)")
			case !r.Current:
				behind = append(behind, fmt.Sprintf("%s (%d messages behind)", d.server(r.Name), r.Lag))
			}
		}
		if len(behind) > 0 {
			d.add(Warn, "stream "+s.Name, "not every manager has all of it: %s. It should catch up within minutes; if not, look at skep's log there", list(behind))
		}
	}
	if want := d.Group.GetSet().GetReplicas(); want > 1 {
		var few []string
		for _, s := range all {
			if have := len(s.Replicas) + 1; s.Err == "" && s.Leader != "" && have < int(want) {
				few = append(few, fmt.Sprintf("%s (%d)", s.Name, have))
			}
		}
		if len(few) > 0 && d.Group.GetSet().GetStep().GetAction() != "scale" {
			d.add(Warn, check, "%d have fewer copies than the %d that the managers are to keep: %s. Look for \"scale\" in skep's log on the leading manager", len(few), want, list(few))
		}
	}
	if len(silent) > 0 {
		d.add(Error, check, "%d of %d do not work (%s), so nothing is written to them: %s. Is a majority of managers up? Look for \"stream\" in their logs", len(silent), len(all), why, strings.Join(silent, ", "))
	}
	d.found(since, check, "%d have a leader, and every replica is up to date (%s)", len(all), copies(all))
}

// copies says how many managers have each stream.
func copies(all []*skepv1.StreamState) string {
	least, most := len(all[0].Replicas)+1, 0
	for _, s := range all {
		least, most = min(least, len(s.Replicas)+1), max(most, len(s.Replicas)+1)
	}
	switch {
	case least != most:
		return fmt.Sprintf("%d to %d copies", least, most)
	case most == 1:
		return "1 copy each"
	}
	return fmt.Sprintf("%d copies each", most)
}
