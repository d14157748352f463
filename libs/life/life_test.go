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
		if s.Serves() {
			t.Errorf("%s: serves before it is ready", what)
		}
		s.Begun()
		s.Begun()
		<-s.Ready()
		if !s.Serves() {
			t.Errorf("%s: does not serve", what)
		}
		end(s, cancel)
		<-ctx.Done()
		stop()
		cancel()
		if s.Serves() || s.Life().Err() == nil {
			t.Errorf("%s: serves after its end", what)
		}
	}
}

func TestClosedBeforeItBegins(t *testing.T) {
	s := New()
	_ = s.Close()
	ctx, stop := s.Begin(t.Context())
	defer stop()
	<-ctx.Done()
}

func TestRunsOnce(t *testing.T) {
	s := New()
	_, stop := s.Begin(t.Context())
	stop()
	defer func() {
		if recover() == nil {
			t.Error("it begins again")
		}
	}()
	s.Begin(t.Context())
}
