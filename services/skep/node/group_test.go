package node

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
)

// story is what happened, in order.
type story struct {
	mu    sync.Mutex
	lines []string
}

func (s *story) tell(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, line)
}

type fake struct {
	name  string
	story *story
	ready chan struct{}
	fail  chan error
}

func (f *fake) Ready() <-chan struct{} { return f.ready }
func (f *fake) Close() error           { f.story.tell("close " + f.name); return nil }
func (f *fake) Run(ctx context.Context) error {
	f.story.tell("run " + f.name)
	close(f.ready)
	select {
	case err := <-f.fail:
		return err
	case <-ctx.Done():
		time.Sleep(10 * time.Millisecond) // whoever stops the next one before this one has ended is seen
		f.story.tell("end " + f.name)
		return nil
	}
}

func TestAFailingServiceEndsTheGroupInReverseOrder(t *testing.T) {
	s := &story{}
	g := newGroup(zap.NewNop())
	all := map[string]*fake{}
	for _, name := range []string{"a", "b", "c"} {
		all[name] = &fake{name, s, make(chan struct{}), make(chan error, 1)}
		if err := g.start(t.Context(), name, all[name]); err != nil {
			t.Fatal(err)
		}
	}
	all["b"].fail <- errors.New("out of luck")
	<-g.failed
	if g.err == nil || g.err.Error() != "b: out of luck" {
		t.Errorf("the group failed with %v", g.err)
	}
	if err := g.start(t.Context(), "d", &fake{"d", s, nil, nil}); err == nil || !strings.Contains(err.Error(), "out of luck") {
		t.Errorf("a service started in a group that failed: %v", err)
	}
	g.stop()
	g.stop()
	want := []string{"run a", "run b", "run c", "end c", "close c", "close b", "end a", "close a"}
	if !slices.Equal(s.lines, want) {
		t.Errorf("it went %q, want %q", s.lines, want)
	}
}

func TestAServiceThatEndsByItselfFailsTheGroup(t *testing.T) {
	g := newGroup(zap.NewNop())
	f := &fake{"a", &story{}, make(chan struct{}), make(chan error, 1)}
	if err := g.start(t.Context(), "a", f); err != nil {
		t.Fatal(err)
	}
	f.fail <- nil
	<-g.failed
	if !strings.Contains(g.err.Error(), "by itself") {
		t.Error(g.err)
	}
	g.stop()
}
