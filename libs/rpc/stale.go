package rpc

import (
	"context"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
)

// Quorum is what a server has to know of the managers' group.
type Quorum interface {
	// Stale reports whether there is no leader, and since when.
	Stale() (since time.Time, stale bool)
	// MayWrite waits for a leader for as long as ctx has patience, and is the fault to answer when there is none.
	MayWrite(ctx context.Context) error
	Close()
}

// MayWrite is asked before anything is changed.
func (s *Server) MayWrite(ctx context.Context) error {
	if s.quorum == nil {
		return nil
	}
	return s.quorum.MayWrite(ctx)
}

// Stale reports whether answers are marked: the managers have no leader.
func (s *Server) Stale() bool {
	if s.quorum == nil {
		return false
	}
	_, stale := s.quorum.Stale()
	return stale
}

// mark says on a reply that it is of a time before now.
func (s *Server) mark(m *nats.Msg) {
	if s.quorum == nil {
		return
	}
	if since, stale := s.quorum.Stale(); stale {
		m.Header.Set(HeaderStale, strconv.FormatInt(since.UnixMilli(), 10))
	}
}

type staleKey struct{}

// OnStale has f called for every reply under ctx that is marked: as of is when the managers had a leader last.
func OnStale(ctx context.Context, f func(asOf time.Time)) context.Context {
	return context.WithValue(ctx, staleKey{}, f)
}

// tellStale calls whoever wants to know that a reply is marked.
func tellStale(ctx context.Context, h nats.Header) {
	f, _ := ctx.Value(staleKey{}).(func(time.Time))
	if f == nil {
		return
	}
	if ms, err := strconv.ParseInt(h.Get(HeaderStale), 10, 64); err == nil {
		f(time.UnixMilli(ms))
	}
}
