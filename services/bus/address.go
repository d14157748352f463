package bus

import (
	"context"
	"net/netip"
	"time"

	"go.uber.org/zap"

	"skep.dev/libs/ownaddr"
)

// lookForAddress is how often an address is looked for that the machine does not have yet.
const lookForAddress = 500 * time.Millisecond

// awaitAddress waits, for as long as it takes, until the machine has the address that a manager which ran before listens
// on: after a reboot it may come later than the daemon, and a process that ended for it would be given up by its
// supervisor. One that never ran is refused such an address instead.
func (m *Manager) awaitAddress(ctx context.Context) error {
	place, err := ReadPlace(m.cfg.DataDir)
	if err != nil || place == nil {
		return err
	}
	host, _, err := splitAddr(m.cfg.Listen)
	if err != nil {
		return err
	}
	return awaitHost(ctx, host, m.log, ownaddr.Bindable)
}

func awaitHost(ctx context.Context, host string, log *zap.Logger, bindable func(string) error) error {
	if ip, err := netip.ParseAddr(host); err != nil || ip.IsUnspecified() {
		return nil // the listener says what is wrong with a name
	}
	said := false
	return ownaddr.Await(ctx, lookForAddress, func() error {
		err := bindable(host)
		if ownaddr.Absent(err) && !said {
			said = true
			log.Warn("this machine does not have the address that the manager listens on: waiting for it", zap.String("listen", host))
		}
		return err
	})
}
