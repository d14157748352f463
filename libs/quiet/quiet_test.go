package quiet

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

func observed(o Options) (*zap.Logger, func(), *observer.ObservedLogs) {
	c, seen := observer.New(zap.InfoLevel)
	log, stop := Logger(zap.New(c), o)
	return log, stop, seen
}

func more(e observer.LoggedEntry) int64 {
	n, _ := e.ContextMap()["more"].(int64)
	return n
}

func TestWhatRepeatsIsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, stop, seen := observed(Options{Burst: 2, Window: time.Minute, Keys: []string{"node"}})
		defer stop()
		w1, w2 := log.With(zap.String("node", "w1")), log.With(zap.String("node", "w2"))
		for i := range 1000 {
			w1.Warn("refused", zap.Int("i", i))
		}
		w2.Warn("refused")
		log.Info("another kind")
		if n := seen.Len(); n != 4 {
			t.Fatalf("%d lines of 2 + 1 + 1", n)
		}
		time.Sleep(61 * time.Second)
		last := seen.All()[seen.Len()-1]
		if seen.Len() != 5 || last.Message != "refused" || more(last) != 998 || last.ContextMap()["node"] != "w1" {
			t.Fatalf("after a window: %d lines, the last %v", seen.Len(), last)
		}
		// It goes on: a count a window and nothing else.
		for range 3 {
			w1.Warn("refused")
			time.Sleep(time.Minute)
		}
		if seen.Len() != 8 || more(seen.All()[7]) != 1 {
			t.Fatalf("%d lines, the last %v", seen.Len(), seen.All()[seen.Len()-1])
		}
		// Silent for a window, it is news again.
		time.Sleep(2 * time.Minute)
		w1.Warn("refused")
		if seen.Len() != 9 || more(seen.All()[8]) != 0 {
			t.Fatalf("%d lines after a silence", seen.Len())
		}
	})
}

// Whoever chooses the keys' values cannot make the memory grow, nor the log.
func TestKindsAreBounded(t *testing.T) {
	log, stop, seen := observed(Options{Burst: 1, Window: time.Hour, Keys: []string{"node"}})
	for i := range 100_000 {
		log.Warn("refused", zap.String("node", fmt.Sprint(i)))
	}
	if n := seen.Len(); n > maxKinds+1 {
		t.Fatalf("%d lines", n)
	}
	stop()
	if last := seen.All()[seen.Len()-1]; more(last) < 90_000 {
		t.Fatalf("the count is lost at the end: %v", last)
	}
	log.Warn("after the end") // is written, not counted by a timer nobody stops
	if seen.All()[seen.Len()-1].Message != "after the end" {
		t.Fatal("a line after the end is lost")
	}
	// Nor by messages that somebody made of a stranger's text.
	log, stop, seen = observed(Options{Burst: 1, Window: time.Hour})
	defer stop()
	for i := range 100_000 {
		log.Warn(fmt.Sprint("refused ", i))
	}
	if n := seen.Len(); n > 2*maxKinds+1 {
		t.Fatalf("%d lines", n)
	}
}
