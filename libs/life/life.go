// Package life is how a service begins and ends: what every service that runs until it is closed has in common.
package life

import (
	"context"
	"sync"
)

// Span is the life of one service, from New over Begin and Begun to Close. A service embeds it for Ready and Close.
type Span struct {
	ready, closed chan struct{}
	begun, ended  sync.Once
}

// New is the life of a service that has not begun.
func New() *Span { return &Span{ready: make(chan struct{}), closed: make(chan struct{})} }

// Begin is the context of what the service does: it ends with ctx, with Close, and when end is called.
func (s *Span) Begin(ctx context.Context) (life context.Context, end context.CancelFunc) {
	life, end = context.WithCancel(ctx)
	go func() {
		select {
		case <-s.closed:
			end()
		case <-life.Done():
		}
	}()
	return life, end
}

// Begun says that the service serves.
func (s *Span) Begun() { s.begun.Do(func() { close(s.ready) }) }

// Ready is closed once the service serves: its picture is complete and its endpoints answer.
func (s *Span) Ready() <-chan struct{} { return s.ready }

// Close ends the service, as the end of its context does. It may be called more than once and always returns nil.
func (s *Span) Close() error {
	s.ended.Do(func() { close(s.closed) })
	return nil
}
