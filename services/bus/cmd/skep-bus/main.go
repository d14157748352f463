// Command skep-bus runs a manager's broker as a process of its own.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"

	"skep.dev/services/bus"

	"skep.dev/libs/daemon"
	"skep.dev/libs/witness"
)

func main() {
	var cfg bus.Config
	daemon.Exit(daemon.Main{
		Name: "skep-bus", About: "the broker of a manager: NATS with the cluster's TLS and permissions", Managers: true, Single: true, Witness: true,
		Flags: func(fs *flag.FlagSet) {
			fs.StringVar(&cfg.Listen, "listen-addr", "", "where nodes connect, host:port (default "+bus.DefaultListen+")")
			fs.StringVar(&cfg.Advertise, "advertise-addr", "", "how others reach it, host:port")
			fs.IntVar(&cfg.RoutePort, "route-port", 0, "port for other managers (default: the listen port plus one)")
		},
		New: func(_ context.Context, env daemon.Env) (daemon.Service, error) {
			cfg.TLS, cfg.NodeID, cfg.Log, cfg.DataDir = env.Store, env.NodeID, env.Log, env.Paths.Bus()
			cfg.Metrics = env.Metrics
			cfg.Listen = cmp.Or(cfg.Listen, env.Record.Listen)
			cfg.Advertise = cmp.Or(cfg.Advertise, env.Record.Advertise)
			cfg.RoutePort = cmp.Or(cfg.RoutePort, env.Record.RoutePort)
			cfg.Hostname, cfg.Version, cfg.Managers = env.Record.Hostname, env.Version, env.Record.Managers
			// An older version's directory goes on with the witness it has; the first start of `skep init` founds the group.
			cfg.Witness, cfg.Found = env.Record.Witness, env.Record.Init != nil
			b, err := newBroker(cfg, env.Paths.Broker())
			if err != nil || env.NC == nil {
				return b, err
			}
			bus.ElectLast()
			b.says = witness.New(witness.Config{
				NC: env.NC, Store: env.Store, Log: env.Log.Named("witness"), Hostname: env.Record.Hostname, Addr: env.Record.Host(), Version: env.Version,
			})
			return b, nil
		},
	})
}

// broker is the manager's broker in a process of its own.
type broker struct {
	cfg    bus.Config
	socket string
	*bus.Manager
	says *witness.Service // nil but on a witness
}

// Healthy says whether the broker takes connections on this machine.
func (b *broker) Healthy(ctx context.Context) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", b.socket)
	if err != nil {
		return fmt.Errorf("the broker takes no connections: %w", err)
	}
	defer c.Close()
	until, _ := ctx.Deadline()
	if err := c.SetReadDeadline(until); err != nil {
		return err
	}
	if _, err := c.Read(make([]byte, 1)); err != nil { // a broker speaks first
		return fmt.Errorf("the broker says nothing: %w", err)
	}
	return nil
}

func newBroker(cfg bus.Config, socket string) (*broker, error) {
	m, err := bus.NewManager(cfg, socket)
	if err != nil {
		return nil, err
	}
	return &broker{cfg: cfg, socket: socket, Manager: m}, nil
}

// Run runs it, again when the cluster is to be founded anew. Its work here is over when the group of managers has let the
// node go: the process then ends well.
func (b *broker) Run(ctx context.Context) error {
	if b.says != nil {
		saying, stop := context.WithCancel(ctx)
		said := make(chan struct{})
		go func() {
			defer close(said)
			_ = b.says.Run(saying) // it returns nil
		}()
		defer func() { stop(); <-said }()
	}
	err := b.Manager.Run(ctx)
	for bus.StartsAgain(err) {
		m, merr := bus.NewManager(b.cfg, b.socket)
		if merr != nil {
			return merr
		}
		err = m.Run(ctx)
	}
	if errors.Is(err, bus.ErrRetired) {
		return fmt.Errorf("%w: %w", err, daemon.ErrDone)
	}
	return err
}
