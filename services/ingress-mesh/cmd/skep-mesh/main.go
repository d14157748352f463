// Command skep-mesh runs a node's network as a process of its own and offers it to the agent on <run-dir>/mesh.sock.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"

	mesh "skep.dev/services/ingress-mesh"

	"skep.dev/libs/attach"
	"skep.dev/libs/daemon"
	"skep.dev/libs/member"
)

// served is the mesh with its socket.
type served struct {
	*mesh.Service
	socket string
}

func (s served) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	srv, err := attach.Serve(s.socket, s.Service)
	if err != nil {
		return err
	}
	err = s.Service.Run(ctx)
	return errors.Join(err, srv.Close())
}

// Healthy says whether the mesh answers its agent.
func (s served) Healthy(ctx context.Context) error {
	c := attach.Dial(s.socket)
	defer c.Close() //nolint:errcheck // it returns nil
	_, err := c.List(ctx)
	return err
}

func main() {
	var cfg mesh.Config
	daemon.Exit(daemon.Main{
		Name: "skep-mesh", About: "the network of one node: a namespace, an address and a way out for every task", Role: "agent", Single: true,
		Flags: func(fs *flag.FlagSet) {
			fs.StringVar(&cfg.Subnet, "subnet", "", "the node's own subnet, CIDR (default: what the managers say, remembered)")
			fs.StringVar(&cfg.Underlay, "data-path-addr", "", "address other nodes reach this one by")
		},
		New: func(ctx context.Context, env daemon.Env) (daemon.Service, error) {
			rec, err := member.LearnSubnet(ctx, env.NC, env.Paths, env.Log)
			if err != nil {
				return nil, err
			}
			cfg.Subnet = cmp.Or(cfg.Subnet, rec.Subnet)
			cfg.Number, cfg.DataPathPort, cfg.NC, cfg.Version = rec.Number, rec.DataPathPort, env.NC, daemon.Version
			cfg.Underlay = cmp.Or(cfg.Underlay, env.Record.Underlay())
			cfg.Log, cfg.NodeID, cfg.DataDir, cfg.RunDir = env.Log, env.NodeID, env.DataDir, env.RunDir
			cfg.Metrics = env.Metrics
			m, err := mesh.New(cfg)
			if err != nil {
				return nil, err
			}
			return served{m, env.Paths.Mesh()}, nil
		},
	})
}
