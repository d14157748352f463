// Package quorum knows whether the managers have a majority, from what their brokers say every second (ManagerBeat), and puts
// into words what is lost without one. It owns the rule and the text; what a service does about it is in libs/rpc (replies
// are marked, writes are refused).
//
// Failure story: without beats (none was ever heard) nothing is known, and a majority is assumed: what then fails says so by
// itself. A beat tells that its broker knows no leader; whether that is an election, which passes in seconds, or a lost
// majority, which does not, is asked of the broker (ManagerList) when it matters.
package quorum

import (
	"context"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/patience"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

const (
	// staleAfter is how long no broker may have known a leader before answers are marked.
	staleAfter = 2 * time.Second
	// quiet is how long nothing may be heard of any broker.
	quiet = 10 * time.Second
	// askWithin bounds the question who is there, askEvery how often it is asked for all who want to write.
	askWithin = 700 * time.Millisecond
	askEvery  = 300 * time.Millisecond
	pollEvery = 50 * time.Millisecond
)

// Group is what a service knows of the managers' group.
type Group struct {
	nc  *nats.Conn
	sub *nats.Subscription
	now func() time.Time

	mu    sync.Mutex
	first time.Time // when anything was heard first
	heard time.Time // and last
	led   time.Time // when a broker that knew a leader was heard last
	unled time.Time // and one that knew none

	asking sync.Mutex
	asked  time.Time
	reply  *skepv1.ListManagersReply
}

// Follow listens until Close. It fails in no way that matters: without the subscription a majority is assumed.
func Follow(nc *nats.Conn, log *zap.Logger) *Group {
	g := &Group{nc: nc, now: time.Now}
	sub, err := nc.Subscribe(subject.AllManagerBeats, func(m *nats.Msg) {
		var b skepv1.ManagerBeat
		if proto.Unmarshal(m.Data, &b) == nil {
			g.beat(&b)
		}
	})
	if err != nil {
		log.Warn("the managers' beats are not heard: answers without a majority will not be marked", zap.Error(err))
	}
	g.sub = sub
	return g
}

// Close stops listening.
func (g *Group) Close() {
	if g.sub != nil {
		_ = g.sub.Unsubscribe() // the connection may be gone
	}
}

func (g *Group) beat(b *skepv1.ManagerBeat) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.now()
	if g.first.IsZero() {
		g.first = now
	}
	g.heard = now
	if b.Led {
		g.led = now
	} else {
		g.unled = now
	}
}

// leaderless reports whether the newest beat knew no leader, and when one was known last.
func (g *Group) leaderless() (since time.Time, is bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.first.IsZero() {
		return time.Time{}, false
	}
	since = g.led
	if since.IsZero() {
		since = g.first
	}
	return since, g.unled.After(g.led) || g.now().Sub(g.heard) > quiet
}

// Stale reports whether what this service knows may be out of date because there is no leader, and of when it is.
func (g *Group) Stale() (since time.Time, stale bool) {
	since, is := g.leaderless()
	return since, is && g.now().Sub(since) > staleAfter
}

// MayWrite returns when there is a leader, as far as is known; while one is elected it waits for as long as ctx has patience.
// Without a majority it refuses, with the text for people.
func (g *Group) MayWrite(ctx context.Context) error {
	for {
		if _, is := g.leaderless(); !is {
			return nil
		}
		r := g.ask(ctx)
		switch {
		case r.GetLed():
			return nil
		case Lost(r):
			return fault.Unavailable("%s", Text(r, g.now()))
		case patience.Left(ctx) == 0:
			return fault.Unavailable("the managers are electing a leader, nothing was changed: try again in a few seconds")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pollEvery):
		}
	}
}

// ask asks a broker who is there; nil when none answers.
func (g *Group) ask(ctx context.Context) *skepv1.ListManagersReply {
	g.asking.Lock()
	defer g.asking.Unlock()
	if g.now().Sub(g.asked) < askEvery {
		return g.reply
	}
	r, err := Ask(ctx, g.nc)
	if err != nil {
		r = nil
	}
	g.asked, g.reply = g.now(), r
	return r
}

// Ask asks a broker who is there.
func Ask(ctx context.Context, nc *nats.Conn) (*skepv1.ListManagersReply, error) {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	return api.Call(ctx, nc, api.ManagerList, &skepv1.Empty{})
}
