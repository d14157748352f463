// Command skep-engine serves the Docker Engine API as a process of its own, on any node.
package main

import (
	"context"

	engine "skep.dev/services/engine-api"

	"skep.dev/libs/daemon"
)

func main() {
	daemon.Exit(daemon.Main{
		Name: "skep-engine", About: "the Docker Engine API of this node, at <run-dir>/docker.sock", Single: true,
		New: func(_ context.Context, env daemon.Env) (daemon.Service, error) {
			return engine.New(engine.Config{Log: env.Log, Paths: env.Paths, CA: env.Store.CAPEM, Version: env.Version, Commit: env.Commit, Metrics: env.Metrics})
		},
	})
}
