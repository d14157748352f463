package ingress

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/vishvananda/netns"
)

// home is the network namespace a Plane works in, whichever thread calls it.
type home struct{ ns netns.NsHandle }

func openHome() (home, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ns, err := netns.Get()
	if err != nil {
		return home{}, fmt.Errorf("open the host's network namespace: %w", err)
	}
	return home{ns}, nil
}

// run calls f on a thread that is in the namespace: /proc/sys/net, new sockets and programs that are started all
// depend on the thread. A thread that cannot be brought back dies with its goroutine.
func (h home) run(f func() error) error {
	done := make(chan error, 1)
	go func() {
		done <- func() error {
			runtime.LockOSThread()
			old, err := netns.Get()
			if err != nil {
				return fmt.Errorf("open the current network namespace: %w", err)
			}
			defer func() { _ = old.Close() }()
			if err := netns.Set(h.ns); err != nil {
				return fmt.Errorf("enter the host's network namespace: %w", err)
			}
			err = f()
			if back := netns.Set(old); back != nil {
				return errors.Join(err, fmt.Errorf("leave the host's network namespace: %w", back))
			}
			runtime.UnlockOSThread()
			return err
		}()
	}()
	return <-done
}
