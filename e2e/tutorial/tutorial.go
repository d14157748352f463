// Package tutorial is the tutorial for people who begin: chapter by chapter, with each command, what it prints and what is to be seen.
// The same chapters run as a test, as a show for a terminal, and make docs/tutorial.md.
//
// A chapter is a function that leads a Guide through a lab. It begins with a cluster of one manager and two workers that runs nothing, and
// stops at the first thing that is not as it says. What it leaves stays for who wants to look; the next chapter begins by removing it.
package tutorial

import (
	"context"
	"fmt"
	"io"
	"runtime"

	"skep.dev/e2e/lab"
)

// Chapter is one chapter of the tutorial.
type Chapter struct {
	Number int
	Title  string
	// Hosts without a cluster: the chapter makes it.
	Founds bool
	walk   func(*Guide)
}

// Chapters are all of them, in order.
var Chapters = []Chapter{
	{Number: 1, Title: "What a swarm is", walk: concepts, Founds: true},
	{Number: 2, Title: "A cluster of three nodes", walk: found, Founds: true},
	{Number: 3, Title: "Run a service", walk: firstService},
	{Number: 4, Title: "Scale a service", walk: scale},
	{Number: 5, Title: "Failover", walk: failover},
	{Number: 6, Title: "Reach a service", walk: publish},
	{Number: 7, Title: "The routing mesh", walk: routingMesh},
	{Number: 8, Title: "Services that talk to each other", walk: overlay},
	{Number: 9, Title: "Rolling updates", walk: updates},
	{Number: 10, Title: "Volumes", walk: storage},
	{Number: 11, Title: "Replicated and global mode", walk: global},
	{Number: 12, Title: "Labels decide where a service runs", walk: labels},
	{Number: 13, Title: "Health checks", walk: health},
	{Number: 14, Title: "Secrets", walk: secrets},
	{Number: 15, Title: "Stacks", walk: stacks},
}

// Walk goes through one chapter and returns what was said and seen, also when it fails. Progress goes to narrate as it comes; nil is silence.
// The lab is one of NewLab.
func (ch Chapter) Walk(ctx context.Context, l *lab.Lab, narrate io.Writer) ([]Block, error) {
	g := &Guide{Lab: l, ctx: ctx, narrate: narrate}
	ended := make(chan struct{})
	go func() { // so that the guide can stop the chapter anywhere
		defer close(ended)
		defer g.end()
		g.prepare(ch)
		g.title(ch)
		ch.walk(g)
	}()
	<-ended
	if g.failed != nil {
		return g.blocks, fmt.Errorf("chapter %d, %s: %w", ch.Number, ch.Title, g.failed)
	}
	return g.blocks, nil
}

// Options are those of the tutorial's lab: three hosts and no cluster yet.
func Options(name string) lab.Options {
	return lab.Options{Name: name, NoCluster: true, Lifeline: true, VolumePlugin: "rexray"}
}

// stop ends the chapter. The first reason counts.
func (g *Guide) stop(err error) {
	if g.failed == nil {
		g.failed = err
	}
	runtime.Goexit()
}

// end does what the chapter put off, the last first, whatever comes of it.
func (g *Guide) end() {
	for _, f := range g.atEnd {
		defer f()
	}
}
