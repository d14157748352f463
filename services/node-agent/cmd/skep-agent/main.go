// Command skep-agent runs the node-agent alone; `skep node` runs it together with the node's other services.
package main

import (
	"context"
	"flag"
	"path/filepath"

	"skep.dev/libs/attach"
	"skep.dev/libs/daemon"
	agent "skep.dev/services/node-agent"
)

func main() {
	var (
		containerd, binDir, advertise, dataPath, mesh string
		manager                                       bool
		parallel                                      int
	)
	daemon.Exit(daemon.Main{
		Name: "skep-agent", About: "runs this node's tasks on containerd",
		Flags: func(fs *flag.FlagSet) {
			fs.StringVar(&containerd, "containerd", "", "socket of a containerd to use (default: run one)")
			fs.StringVar(&binDir, "bin-dir", "", "folder with containerd, its shim, runc and skep-init, before PATH")
			fs.StringVar(&advertise, "advertise-addr", "", "address of this node as others see it")
			fs.StringVar(&dataPath, "data-path-addr", "", "address for container traffic")
			fs.StringVar(&mesh, "mesh", "", "socket of the node's mesh (default <run-dir>/mesh.sock)")
			fs.BoolVar(&manager, "manager", false, "resolve image names for the managers")
			fs.IntVar(&parallel, "start-parallelism", 0, "containers started at once (default: twice the CPUs)")
		},
		New: func(_ context.Context, env daemon.Env) (daemon.Service, error) {
			if mesh == "" {
				mesh = filepath.Join(env.RunDir, "mesh.sock")
			}
			return agent.New(agent.Config{
				NodeID: env.NodeID, NC: env.NC, Log: env.Log, DataDir: env.DataDir, RunDir: env.RunDir, Version: env.Version,
				Attacher: attach.Dial(mesh), ContainerdAddress: containerd, BinDir: binDir, StartParallelism: parallel,
				AdvertiseAddr: advertise, DataPathAddr: dataPath, Manager: manager,
			})
		},
	})
}
