// Command skep-state runs the state service on its own; `skep node` runs the same in a manager's process.
package main

import (
	"context"

	"skep.dev/libs/daemon"
	"skep.dev/services/state"
)

func main() {
	daemon.Exit(daemon.Main{
		Name: "skep-state", About: "owns services, nodes and the cluster, and serves the object API",
		New: func(_ context.Context, env daemon.Env) (daemon.Service, error) {
			return state.New(state.Config{NC: env.NC, Log: env.Log, NodeID: env.NodeID, Version: env.Version})
		},
	})
}
