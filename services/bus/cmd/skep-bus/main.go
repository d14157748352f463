// Command skep-bus runs a manager's broker as a process of its own.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"

	"skep.dev/services/bus"

	"skep.dev/libs/daemon"
)

func main() {
	var cfg bus.Config
	daemon.Exit(daemon.Main{
		Name: "skep-bus", About: "the broker of a manager: NATS with the cluster's TLS and permissions", Managers: true, Single: true,
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
			m, err := bus.NewManager(cfg, env.Paths.Broker())
			if err != nil {
				return nil, err
			}
			return retiring{m}, nil
		},
	})
}

// retiring is the broker, whose work here is over when the group of managers has let the node go: the process then ends well.
type retiring struct{ *bus.Manager }

func (r retiring) Run(ctx context.Context) error {
	err := r.Manager.Run(ctx)
	if errors.Is(err, bus.ErrRetired) {
		return fmt.Errorf("%w: %w", err, daemon.ErrDone)
	}
	return err
}
