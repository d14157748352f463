package life

import (
	"context"
	"testing"
)

func TestEndsWithEither(t *testing.T) {
	for what, end := range map[string]func(*Span, context.CancelFunc){
		"Close":       func(s *Span, _ context.CancelFunc) { _ = s.Close(); _ = s.Close() },
		"its context": func(_ *Span, cancel context.CancelFunc) { cancel() },
	} {
		s := New()
		outer, cancel := context.WithCancel(t.Context())
		ctx, stop := s.Begin(outer)
		if ctx.Err() != nil {
			t.Errorf("%s: ended as it begins", what)
		}
		select {
		case <-s.Ready():
			t.Errorf("%s: ready before it says so", what)
		default:
		}
		s.Begun()
		s.Begun()
		<-s.Ready()
		end(s, cancel)
		<-ctx.Done()
		stop()
		cancel()
	}
}

func TestClosedBeforeItBegins(t *testing.T) {
	s := New()
	_ = s.Close()
	ctx, stop := s.Begin(t.Context())
	defer stop()
	<-ctx.Done()
}
