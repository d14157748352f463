// Command skep-bus runs a manager's broker as a process of its own.
package main

import (
	"context"
	"flag"
	"path/filepath"
	"strings"

	"skep.dev/services/bus"

	"skep.dev/libs/daemon"
	"skep.dev/libs/pki"
)

func main() {
	var cfg bus.Config
	var routes, certs string
	daemon.Exit(daemon.Main{
		Name: "skep-bus", About: "the broker of a manager: NATS with the cluster's TLS and permissions", NoBus: true,
		Flags: func(fs *flag.FlagSet) {
			fs.StringVar(&certs, "bus-certs", "", "directory with the manager's node.crt, node.key and ca.crt (default <data-dir>/certs)")
			fs.StringVar(&cfg.Listen, "listen-addr", bus.DefaultListen, "where nodes connect, host:port")
			fs.StringVar(&cfg.Advertise, "advertise-addr", "", "how others reach it, host:port")
			fs.IntVar(&cfg.RoutePort, "route-port", 0, "port for other managers (default: the listen port plus one)")
			fs.StringVar(&routes, "routes", "", "route addresses of the other managers, host:port separated by commas")
			fs.StringVar(&cfg.Name, "server-name", "", "name in the JetStream group, never used before by a removed one (default: the node id)")
			fs.StringVar(&cfg.Witness, "witness", "", "name of the witness to run; needed with one or two managers")
		},
		New: func(_ context.Context, env daemon.Env) (daemon.Service, error) {
			if certs == "" {
				certs = filepath.Join(env.DataDir, "certs")
			}
			store, err := pki.Open(certs)
			if err != nil {
				return nil, err
			}
			cfg.TLS, cfg.NodeID, cfg.Log = store, store.Identity().NodeID, env.Log
			cfg.DataDir = filepath.Join(env.DataDir, "bus")
			cfg.Routes = strings.FieldsFunc(routes, func(r rune) bool { return r == ',' || r == ' ' })
			return bus.New(cfg)
		},
	})
}
