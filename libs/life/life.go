// Package life is how a service begins and ends: what every service that runs until it is closed has in common.
package life

import (
	"context"
	"sync"
	"sync/atomic"
)

// Span is the life of one service, from New over Begin and Begun to its end. A service embeds it for Ready and Close.
type Span struct {
	life  context.Context
	end   context.CancelFunc
	began atomic.Bool
	ready chan struct{}
	begun sync.Once
}

// New is the life of a service that has not begun.
func New() *Span {
	life, end := context.WithCancel(context.Background())
	return &Span{life: life, end: end, ready: make(chan struct{})}
}

// Begin is for the first lines of Run: ctx is that of what the service does, and ends with the one given and with Close.
// Run defers end. A service runs once; a second Begin is a mistake of the program's, and panics.
func (s *Span) Begin(ctx context.Context) (_ context.Context, end context.CancelFunc) {
	if s.began.Swap(true) {
		panic("life: a service is run a second time")
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.life, cancel)
	return ctx, func() {
		stop()
		cancel()
		s.end()
	}
}

// Begun says that the service serves.
func (s *Span) Begun() { s.begun.Do(func() { close(s.ready) }) }

// Ready is closed once the service serves: its picture is complete and its endpoints answer.
func (s *Span) Ready() <-chan struct{} { return s.ready }

// Serves reports whether the service serves: Ready is closed, and it has not ended.
func (s *Span) Serves() bool {
	select {
	case <-s.ready:
		return s.life.Err() == nil
	default:
		return false
	}
}

// Life is the context of what others ask of the service beside Run. It ends with Run and with Close.
func (s *Span) Life() context.Context { return s.life }

// Close ends the service as the end of its context does. It does not wait: that Run returns says that all has ended. It may
// be called more than once and always returns nil.
func (s *Span) Close() error {
	s.end()
	return nil
}
