package rpc

import (
	"context"
	"fmt"
	"testing"
	"time"
)

// A node that floods gets its rate and no more, whatever the size of its requests; the one next to it notices nothing.
func TestNodeLimits(t *testing.T) {
	var l nodeLimits
	now := time.Unix(1000, 0)
	took := func(node string, n, size int) (taken, told int) {
		for range n {
			b, tell := l.begin(node, size, now)
			if b != nil {
				taken++
				l.end(b)
			}
			if tell {
				told++
			}
		}
		return taken, told
	}
	if taken, told := took("liar", 100_000, 100); taken != nodeBurst || told != 10 {
		t.Fatalf("of a flood %d are taken and %d refusals told, want %d and 10", taken, told, nodeBurst)
	}
	if taken, _ := took("good", 10, 256<<10); taken != 10 {
		t.Fatalf("the other node has %d of 10 reports taken", taken)
	}
	now = now.Add(10 * time.Second)
	if taken, _ := took("liar", 100_000, 1<<20); taken != nodeBurst/33 {
		t.Fatalf("%d requests of 1 MiB are taken, want %d", taken, nodeBurst/33)
	}
	present := 0
	var slow *nodeLimit
	for range 1000 {
		now = now.Add(10 * time.Millisecond)
		if b, _ := l.begin("slow", 10, now); b != nil {
			slow = b
			present++
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range nodeInFlight {
		if !slow.turn(t.Context()) {
			t.Fatal("no turn")
		}
	}
	if present != nodeInFlight+nodeWaiting || len(slow.turns) != nodeInFlight {
		t.Fatalf("%d requests of one node are taken and %d in work at once, want %d and %d", present, len(slow.turns), nodeInFlight+nodeWaiting, nodeInFlight)
	}
	if slow.turn(ctx) {
		t.Fatal("one request more is in work")
	}
	l.end(slow)
	if !slow.turn(t.Context()) {
		t.Fatal("who waits does not get the place that is free")
	}
}

// What is remembered of nodes that ask no more is bounded.
func TestNodeLimitsForget(t *testing.T) {
	var l nodeLimits
	now := time.Unix(1000, 0)
	for i := range 3 * nodesKept {
		now = now.Add(50 * time.Millisecond)
		node := fmt.Sprint(i)
		if b, _ := l.begin(node, 1, now); b != nil {
			l.end(b)
		}
	}
	if n := len(l.nodes); n > nodesKept {
		t.Fatalf("%d nodes are remembered", n)
	}
}
