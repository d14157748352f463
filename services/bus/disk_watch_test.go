package bus

import (
	"context"
	"errors"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// A write that does not end is said once, and so is its end; a disk that writes, or fails, is not said to hang.
func TestADiskThatHangsIsSaid(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	d := newDiskWatch(t.TempDir(), zap.New(core))
	d.hang = 20 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	stuck, ended := make(chan struct{}), make(chan struct{})
	go func() { defer close(ended); d.run(ctx, func() error { <-stuck; return errors.New("x") }) }()
	if err := await(within(t), time.Millisecond, patience, func() bool { return logs.FilterMessageSnippet("its disk hangs").Len() == 1 }); err != nil {
		t.Errorf("it is not said: %v", logs.All())
	}
	close(stuck)
	if err := await(within(t), time.Millisecond, patience, func() bool { return logs.FilterMessageSnippet("goes on").Len() == 1 }); err != nil {
		t.Errorf("its end is not said: %v", logs.All())
	}
	cancel()
	<-ended
	if logs.Len() != 2 {
		t.Errorf("it says %v", logs.All())
	}
	if err := durably(d.dir); err != nil {
		t.Error(err)
	}
}
