package node

import (
	"context"
	"errors"
	"testing"
	"time"

	"go.uber.org/zap"

	"skep.dev/services/bus"
)

// scripted is a service that is ready at once and ends with what it is told.
type scripted struct{ end chan error }

func (s scripted) Run(ctx context.Context) error {
	select {
	case err := <-s.end:
		return err
	case <-ctx.Done():
		return nil
	}
}
func (s scripted) Ready() <-chan struct{} { return closed }
func (s scripted) Close() error           { return nil }

// A manager that is let go while its services still start is no failure of theirs: a node whose daemon ended with the first of
// them would be lost.
func TestTheEndOfTheBrokerIsTheReason(t *testing.T) {
	follows := errors.New("connect scheduler to the bus: the bus does not run")
	manage := func(t *testing.T) (*managing, chan error) {
		end := make(chan error, 1)
		m := &managing{group: newGroup(zap.NewNop()), ends: &ending{service: scripted{end}, done: make(chan struct{})}}
		if err := m.group.start(t.Context(), "bus", m.ends); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(m.group.stop)
		return m, end
	}
	m, end := manage(t)
	go func() {
		time.Sleep(50 * time.Millisecond) // the services are heard of first
		end <- bus.ErrRetired
	}()
	if err := m.because(t.Context(), follows); !errors.Is(err, bus.ErrRetired) {
		t.Errorf("let go while it started: %v", err)
	}
	<-m.group.failed
	if err := m.because(t.Context(), m.group.err); !errors.Is(err, bus.ErrRetired) {
		t.Errorf("let go: %v", err)
	}

	m, _ = manage(t) // the broker runs on: the service is to blame
	if err := m.because(t.Context(), follows); !errors.Is(err, follows) {
		t.Error(err)
	}
	stopping, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.because(stopping, follows); !errors.Is(err, follows) {
		t.Error(err)
	}
	if err := m.because(t.Context(), nil); err != nil {
		t.Error(err)
	}
}
