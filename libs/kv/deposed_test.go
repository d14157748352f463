package kv_test

import (
	"context"
	"testing"
	"time"

	"skep.dev/libs/kv"
	"skep.dev/libs/subject"
)

// A leader that hears the others no more, as one that was cut off, does not know whether they have elected another: what it has
// is not called current. Once it hears them it is.
func TestALeaderThatIsAlone(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	ps, _, _, leader := three(ctx, t)
	js := ps.JS(t, leader)
	f := kv.Follow(ctx, js, subject.Spec, func(kv.Delta) {})
	defer f.Close()
	<-f.Ready()
	current := func() error {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		return f.Current(ctx)
	}
	for current() != nil && ctx.Err() == nil {
	}
	ps.Freeze((leader + 1) % 3)
	ps.Freeze((leader + 2) % 3)
	for current() == nil {
		if ctx.Err() != nil {
			t.Fatal("it is called current for ever")
		}
	}
	ps.Thaw((leader + 1) % 3)
	ps.Thaw((leader + 2) % 3)
	for current() != nil {
		if ctx.Err() != nil {
			t.Fatal("it is never current again")
		}
	}
}
