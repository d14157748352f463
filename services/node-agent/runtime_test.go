package agent

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
)

// A runtime that does not answer for long is the node's trouble, told once; a short silence is none, and an answer ends it.
func TestARuntimeThatDoesNotAnswerIsTold(t *testing.T) {
	s := &Service{log: zap.NewNop(), desc: make(chan struct{}, 1)}
	var hangs atomic.Bool
	var asked atomic.Int64
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.follow(ctx, time.Millisecond, 50*time.Millisecond, func(context.Context) error {
			asked.Add(1)
			if hangs.Load() {
				return errors.New("no answer")
			}
			return nil
		})
	}()
	defer func() { cancel(); <-done }()
	until := func(what string, f func() bool) {
		t.Helper()
		for end := time.Now().Add(time.Minute); !f(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("never: %s", what)
			}
		}
	}
	until("asked", func() bool { return asked.Load() > 3 })
	if text, _ := s.trouble.is(); text != "" || len(s.desc) != 0 {
		t.Fatalf("well, and says %q", text)
	}
	began := time.Now()
	hangs.Store(true)
	until("sick", func() bool { text, _ := s.trouble.is(); return text == "containerd does not answer: no answer" })
	if silent := time.Since(began); silent < 50*time.Millisecond {
		t.Errorf("sick after %s", silent)
	}
	if _, since := s.trouble.is(); since.After(began.Add(50 * time.Millisecond)) {
		t.Errorf("since %s, it began %s", since, began)
	}
	until("told", func() bool { return len(s.desc) == 1 })
	<-s.desc
	hangs.Store(false)
	until("well", func() bool { text, _ := s.trouble.is(); return text == "" })
	until("told", func() bool { return len(s.desc) == 1 })
}
