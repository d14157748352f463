package cli

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/quorum"
	"skep.dev/libs/rpc"
	"skep.dev/services/skep/cli/conn"
	"skep.dev/services/skep/cli/plain"
)

const (
	// lookEvery is how long a request may go without an answer before a broker is asked who is there, and again.
	lookEvery = time.Second
	// elsewhereWithin bounds the search for a manager that is not cut off from the others.
	elsewhereWithin = 800 * time.Millisecond
)

// lost is the end of a request because the managers have no majority.
type lost struct{ lines []string }

func (l *lost) Error() string { return strings.Join(l.lines, "\n") }

// Unwrap has the lines printed as such, and the fault for those who go by its code.
func (l *lost) Unwrap() []error {
	args := make([]any, len(l.lines))
	for i, line := range l.lines {
		args[i] = line
	}
	format := strings.TrimSuffix(strings.Repeat("%s\n", len(args)), "\n")
	return []error{plain.Errorf(format, args...), fault.Unavailable("%s", l.Error())}
}

// isLost asks a broker whether the majority is lost; nil when it is not, or nobody says so.
func (a *app) isLost(ctx context.Context, nc *nats.Conn) *lost {
	if !nc.IsConnected() {
		return nil
	}
	r, err := quorum.Ask(ctx, nc)
	if err != nil || !quorum.Lost(r) {
		return nil
	}
	return &lost{strings.Split(quorum.Text(r, a.Now()), "\n")}
}

// whileLed ends the returned context when a broker says that the majority is lost, which a request that waits for the store
// would not notice. What a node answers needs no store.
func (a *app) whileLed(ctx context.Context, nc *nats.Conn, v *api.Verb) (context.Context, func()) {
	if v.Placed() {
		return ctx, func() {}
	}
	asking := ctx
	ctx, end := context.WithCancelCause(ctx)
	go func() {
		tick := time.NewTicker(lookEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			l := a.isLost(asking, nc)
			if l == nil {
				continue
			}
			if v.Effect == api.Writes {
				l.lines = append(l.lines, "The change was sent and not answered: it may have been made or not, look before you repeat it")
			}
			end(l)
			return
		}
	}()
	return ctx, func() { end(nil) }
}

// afterLoss decides about a request that failed because the managers have no majority: it ends with that, or goes to a
// manager that is not cut off.
func (a *app) afterLoss(ctx context.Context, nc *nats.Conn, v *api.Verb, err error) (next *nats.Conn, why error) {
	var l *lost
	if cut := errors.As(err, &l); !cut {
		if v.Placed() || !fault.Is(err, fault.CodeUnavailable) {
			return nil, nil
		}
		if l = a.isLost(ctx, nc); l == nil {
			return nil, nil
		}
	}
	heard := v.Effect == api.Writes && !errors.Is(err, rpc.ErrNobody) && !errors.Is(err, errCut) && !quorum.Refused(err)
	if heard && v.Once {
		if next := a.elsewhere(ctx); next != nil {
			return next, nil // it is asked again there, under its id
		}
	}
	if heard {
		// What it ended with may say what became of it.
		if text := err.Error(); text != l.Error() {
			l.lines = append(l.lines, "The change ended with: "+text)
		}
		return nil, l
	}
	if next := a.elsewhere(ctx); next != nil {
		return next, nil
	}
	return nil, l
}

// elsewhere is a connection of local root to a manager that has a leader, nil when there is none: then this machine's
// manager is cut off from the others.
func (a *app) elsewhere(ctx context.Context) *nats.Conn {
	if a.Connect != nil || a.contextName() != "" || a.moved {
		return nil
	}
	a.moved = true
	nc, err := conn.Peers(conn.Options{RunDir: a.runDir}, elsewhereWithin)
	if err != nil {
		return nil
	}
	if r, err := quorum.Ask(ctx, nc); err != nil || !r.Led {
		nc.Close()
		return nil
	}
	nc.SetErrorHandler(a.refused)
	a.elsewhereNow(nc.ConnectedAddr())
	a.nc.Close()
	a.nc = nc
	return nc
}

func (a *app) elsewhereNow(addr string) {
	a.warnf("the manager on this machine is cut off or does not answer; asking the one at %s", addr)
}

// stale warns, once, that an answer is of a time before now.
func (a *app) stale(ctx context.Context, nc *nats.Conn, asOf time.Time) {
	a.mu.Lock()
	told := a.staleTold
	a.staleTold = true
	a.mu.Unlock()
	if told {
		return
	}
	now := a.Now()
	at := quorum.Clock(asOf, now)
	r, err := quorum.Ask(ctx, nc)
	switch {
	case err == nil && r.Led:
		a.warnf("this manager has lost the leader. What follows is as of %s.", at)
	case err == nil && quorum.Lost(r):
		a.warnf("The managers have lost their majority; missing: %s. What follows is as of %s.", quorum.Missing(r, now), at)
	default:
		a.warnf("The managers have no leader now. What follows is as of %s.", at)
	}
}
