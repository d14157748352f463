package agent

import (
	"context"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"
)

const (
	// probeRuntime paces the questions to containerd, answerWithin bounds each.
	probeRuntime = 3 * time.Second
	answerWithin = 5 * time.Second
	// sickAfter is how long containerd may not answer before the node says so. It is longer than a restart takes, and with
	// the pace and the limit above well below the half minute in which managers are to know.
	sickAfter = 15 * time.Second
)

// trouble is what keeps the node from beginning tasks, "" for nothing, and since when.
type trouble struct {
	mu    sync.Mutex
	text  string
	since time.Time
}

func (t *trouble) is() (string, time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.text, t.since
}

// set tells whether that is news.
func (t *trouble) set(text string, since time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	news := (text == "") != (t.text == "")
	if t.text, t.since = text, since; text == "" {
		t.since = time.Time{}
	}
	return news
}

// watchRuntime has the managers know when containerd does not answer: the node gets no new tasks then, and what it
// prepares goes elsewhere. What runs goes on.
func (s *Service) watchRuntime(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-s.Ready():
	}
	s.follow(ctx, probeRuntime, sickAfter, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, answerWithin)
		defer cancel()
		_, err := s.runtime.Version(ctx)
		return err
	})
}

// follow asks again and again, and describes the node anew whenever what it is asked about breaks for long, or is well again.
func (s *Service) follow(ctx context.Context, every, patience time.Duration, ask func(context.Context) error) {
	answered := time.Now()
	for ctx.Err() == nil {
		began := time.Now()
		err := ask(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			answered = began
			if s.trouble.set("", time.Time{}) {
				s.log.Info("containerd answers again")
				s.describeAgain()
			}
		case time.Since(answered) > patience:
			if s.trouble.set(fmt.Sprintf("containerd does not answer: %v", err), answered) {
				s.log.Error("containerd does not answer: this node begins no tasks until it does", zap.Time("since", answered), zap.Error(err))
				s.describeAgain()
			}
		}
		wait(ctx, every-time.Since(began))
	}
}
