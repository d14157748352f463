package daemon

import (
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"

	"skep.dev/libs/dial"
	"skep.dev/libs/pki"
)

// A manager that hangs is left when it owes the answers to two pings, after 1.0 to 1.5 s. Measured: 1,000 connections that
// ping every 500 ms cost their broker 11 % of a core, every second 7 %, every 5 s 3 %; a node 0.01 %.
const (
	pingEvery = 500 * time.Millisecond
	pingsOut  = 2
	// greetWithin is how long a manager whose certificate was seen may take to say that it takes the connection.
	greetWithin = 3 * time.Second
)

// Managers say where to connect.
type Managers struct {
	Addrs []string // host:port
	// Home is tried before the others: the broker of this machine.
	Home string
	// Return brings the connection back to Home when that is there again.
	Return bool
}

// Connect opens a connection to any of the managers with the node's certificate. It keeps trying for ever, and takes the
// certificate from the store for every attempt, so a renewed one is used without a restart. The addresses of managers that
// join later are learnt from those that are there.
func Connect(name string, addrs []string, store *pki.Store, log *zap.Logger, more ...nats.Option) (*nats.Conn, error) {
	return ConnectTo(name, Managers{Addrs: addrs}, store, log, more...)
}

// ConnectTo is Connect with a choice among the managers.
func ConnectTo(name string, to Managers, store *pki.Store, log *zap.Logger, more ...nats.Option) (*nats.Conn, error) {
	d := dial.New(dial.Config{TLS: pki.ClientTLS(store), Addrs: to.Addrs, Home: to.Home})
	learn := func(nc *nats.Conn) { d.Learn(dial.Told(nc)) }
	opts := append(Options(name, store.Identity().NodeID, log),
		nats.Secure(pki.ClientTLS(store)), nats.TLSHandshakeFirst(), nats.SetCustomDialer(d), nats.SkipHostLookup(), nats.Timeout(greetWithin),
		nats.DiscoveredServersHandler(learn), nats.ConnectHandler(learn),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			learn(nc)
			log.Info("connected to the bus again", zap.String("addr", nc.ConnectedAddr()))
		}))
	p := &pace{log: log, dialed: d.Err, until: func() time.Time { return store.Leaf().NotAfter }}
	nc, err := nats.Connect(dial.URL, append(append(opts, more...), p.option)...)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", strings.Join(to.Addrs, ", "), err)
	}
	p.nc.Store(nc)
	if to.Return {
		go d.Homing(nc)
	}
	return nc, nil
}
