package dial

import (
	"context"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	// lookEvery is how often a connection that is elsewhere looks whether its home is there again.
	lookEvery = 2 * time.Second
	// looks is how often home must have answered in a row: a broker that has just started has not met the others yet.
	looks = 2
)

// Homing brings a connection back to Home, until it is closed. It is for connections that a reconnect costs nothing.
func (d *Dialer) Homing(nc *nats.Conn) { d.homing(nc, lookEvery) }

func (d *Dialer) homing(nc *nats.Conn, every time.Duration) {
	if d.cfg.Home == "" {
		return
	}
	closed := nc.StatusChanged(nats.CLOSED)
	defer nc.RemoveStatusListener(closed)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for there := 0; !nc.IsClosed(); {
		select {
		case <-closed:
			return
		case <-tick.C:
		}
		if !nc.IsConnected() || d.Addr() == d.cfg.Home || !d.answers(d.cfg.Home) {
			there = 0
			continue
		}
		if there++; there < looks {
			continue
		}
		there = 0
		d.note(d.cfg.Home, true)
		_ = nc.ForceReconnect() // an error means that it is closed
	}
}

// answers reports whether a manager speaks TLS now.
func (d *Dialer) answers(addr string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), d.cfg.Step)
	defer cancel()
	c, _, err := d.open(ctx, addr)
	if err != nil {
		return false
	}
	_ = c.Close() // it has told what it was made for
	return true
}
