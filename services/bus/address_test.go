package bus

import (
	"context"
	"errors"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"skep.dev/libs/ownaddr"
)

// A manager that starts again waits for its address, and says so once.
func TestAManagerWaitsForItsAddress(t *testing.T) {
	seen, logs := observer.New(zap.WarnLevel)
	looks := 0
	err := awaitHost(t.Context(), "192.0.2.1", zap.New(seen), func(string) error {
		if looks++; looks > 3 {
			return nil
		}
		return syscall.EADDRNOTAVAIL
	})
	if err != nil || looks != 4 || logs.Len() != 1 {
		t.Errorf("%v after %d looks, said %d times", err, looks, logs.Len())
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(time.Millisecond, cancel)
	if err := awaitHost(ctx, "192.0.2.1", zap.NewNop(), ownaddr.Bindable); !errors.Is(err, context.Canceled) {
		t.Errorf("told to end: %v", err)
	}
	for _, host := range []string{"127.0.0.1", "0.0.0.0", "::", "a.name"} {
		if err := awaitHost(t.Context(), host, zap.NewNop(), ownaddr.Bindable); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
}
