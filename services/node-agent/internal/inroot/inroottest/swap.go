// Package inroottest is a neighbour who renames while a path is used.
package inroottest

import (
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// Swap exchanges two names as fast as it can, until stop is called or the test ends.
func Swap(t testing.TB, a, b string) (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-quit:
				return
			default:
			}
			if err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	stop = sync.OnceFunc(func() {
		close(quit)
		<-done
	})
	t.Cleanup(stop)
	return stop
}
