package conn

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go"

	"skep.dev/libs/dial"
	"skep.dev/libs/fault"
	"skep.dev/libs/member"
	"skep.dev/libs/pki"
	"skep.dev/libs/subject"
)

// hangsAfter is how long the broker of this machine may take before others are asked beside it.
const hangsAfter = time.Second

type dialed struct {
	nc  *nats.Conn
	err error
}

// dialLocal goes through the daemon's socket. A broker that hangs takes the connection and says nothing: then the other
// managers are asked, with this machine's certificate, and the first one that answers is taken.
func dialLocal(ctx context.Context, o Options, opts []nats.Option) (*nats.Conn, error) {
	own := make(chan dialed, 1)
	go func() {
		// The address is never looked up: the dialer goes to the socket.
		nc, err := nats.Connect("nats://127.0.0.1:2377", append(opts[:len(opts):len(opts)], nats.IgnoreDiscoveredServers(),
			nats.SetCustomDialer(unixDialer{o.Socket(), o.Timeout}), nats.UserInfo(LocalUser, ""))...)
		own <- dialed{nc, err}
	}()
	late := time.NewTimer(hangsAfter)
	defer late.Stop()
	var others chan dialed
	for {
		select {
		case r := <-own:
			if others != nil {
				go discard(others)
			}
			if r.err != nil {
				return nil, localError(ctx, o, r.err)
			}
			return r.nc, nil
		case <-late.C:
			others = make(chan dialed, 1)
			go func(to chan<- dialed) {
				nc, err := Peers(o, peersWithin)
				to <- dialed{nc, err}
			}(others)
		case r := <-others:
			if r.err != nil {
				others = nil // the socket says what is wrong
				continue
			}
			go discard(own)
			if o.Elsewhere != nil {
				o.Elsewhere(r.nc.ConnectedAddr())
			}
			return r.nc, nil
		}
	}
}

func discard(c <-chan dialed) {
	if r := <-c; r.nc != nil {
		r.nc.Close()
	}
}

// Peers connects to another manager than the one on this machine, as root of this one: with its certificate, which only root
// can read.
func Peers(o Options, within time.Duration) (*nats.Conn, error) {
	if o.Context != "" || o.dataDir() == "" {
		return nil, errors.New("there are no other managers")
	}
	paths := member.Paths{Data: o.dataDir(), Run: o.RunDir}
	rec, err := member.Load(paths)
	if err != nil {
		return nil, err
	}
	if rec.Role != member.RoleManager || len(rec.Managers) == 0 {
		return nil, fault.Unavailable("this node knows of no other manager")
	}
	id, err := pki.Open(paths.Certs())
	if err != nil {
		return nil, err
	}
	d := dial.New(dial.Config{TLS: pki.ClientTLS(id), Addrs: rec.Managers, Ordered: true, Step: sideBySide, Within: within})
	nc, err := nats.Connect(dial.URL, append(lasting(within), nats.IgnoreDiscoveredServers(),
		nats.Secure(pki.ClientTLS(id)), nats.TLSHandshakeFirst(), nats.SetCustomDialer(d), nats.SkipHostLookup(),
		nats.CustomInboxPrefix(subject.Inbox(subject.LocalRoot)))...)
	if err != nil {
		return nil, errors.Join(err, d.Err())
	}
	return nc, nil
}

const (
	// sideBySide is how long one manager is waited for before the next one is tried too.
	sideBySide = 100 * time.Millisecond
	// peersWithin bounds the search for another manager.
	peersWithin = 2 * time.Second
)
