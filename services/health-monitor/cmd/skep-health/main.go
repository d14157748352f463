// Command skep-health runs node liveness as a process of its own, on a manager.
package main

import (
	"context"

	health "skep.dev/services/health-monitor"

	"skep.dev/libs/daemon"
)

func main() {
	daemon.Exit(daemon.Main{
		Name: "skep-health", About: "which nodes are alive; several instances take turns", Role: "health", Managers: true,
		New: func(_ context.Context, env daemon.Env) (daemon.Service, error) {
			return health.New(health.Config{NC: env.NC, Log: env.Log, NodeID: env.Instance, Version: env.Version, Metrics: env.Metrics})
		},
	})
}
