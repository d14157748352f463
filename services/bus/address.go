package bus

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"time"

	"go.uber.org/zap"
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
	return awaitHost(ctx, host, m.log, hasAddress)
}

func awaitHost(ctx context.Context, host string, log *zap.Logger, has func(string) bool) error {
	if ip, err := netip.ParseAddr(host); err != nil || ip.IsUnspecified() {
		return nil // the listener says what is wrong with a name
	}
	tick := time.NewTicker(lookForAddress)
	defer tick.Stop()
	for said := false; !has(host); said = true {
		if !said {
			log.Warn("this machine does not have the address that the manager listens on: waiting for it", zap.String("listen", host))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}

// hasAddress: the machine can listen on the address, as far as that is the address's affair.
func hasAddress(host string) bool {
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err == nil {
		_ = l.Close()
	}
	return !errors.Is(err, syscall.EADDRNOTAVAIL)
}
