// Command skep-bus runs a manager's broker as a process of its own.
package main

import (
	"cmp"
	"context"
	"flag"
	"strings"

	"skep.dev/services/bus"

	"skep.dev/libs/daemon"
)

func main() {
	var cfg bus.Config
	var routes string
	daemon.Exit(daemon.Main{
		Name: "skep-bus", About: "the broker of a manager: NATS with the cluster's TLS and permissions", Managers: true, Single: true,
		Flags: func(fs *flag.FlagSet) {
			fs.StringVar(&cfg.Listen, "listen-addr", "", "where nodes connect, host:port (default "+bus.DefaultListen+")")
			fs.StringVar(&cfg.Advertise, "advertise-addr", "", "how others reach it, host:port")
			fs.IntVar(&cfg.RoutePort, "route-port", 0, "port for other managers (default: the listen port plus one)")
			fs.StringVar(&routes, "routes", "", "route addresses of the other managers, host:port separated by commas")
			fs.StringVar(&cfg.Name, "server-name", "", "name in the JetStream group, never used before by a removed one (default: the node id)")
			fs.StringVar(&cfg.Witness, "witness", "", "name of the witness to run; needed with one or two managers")
		},
		New: func(_ context.Context, env daemon.Env) (daemon.Service, error) {
			cfg.TLS, cfg.NodeID, cfg.Log, cfg.DataDir = env.Store, env.NodeID, env.Log, env.Paths.Bus()
			cfg.Metrics = env.Metrics
			cfg.Listen = cmp.Or(cfg.Listen, env.Record.Listen)
			cfg.Advertise = cmp.Or(cfg.Advertise, env.Record.Advertise)
			cfg.RoutePort = cmp.Or(cfg.RoutePort, env.Record.RoutePort)
			cfg.Witness = cmp.Or(cfg.Witness, env.Record.Witness)
			cfg.Routes = strings.FieldsFunc(routes, func(r rune) bool { return r == ',' || r == ' ' })
			return bus.NewManager(cfg, env.Paths.Broker())
		},
	})
}
