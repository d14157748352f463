// Command skep-scheduler runs the scheduler as a process of its own.
package main

import (
	"context"

	"skep.dev/services/scheduler"

	"skep.dev/libs/daemon"
)

func main() {
	daemon.Exit(daemon.Main{
		Name: "skep-scheduler", About: "places, replaces and updates tasks; several instances take turns", Role: "scheduler", Managers: true,
		New: func(_ context.Context, env daemon.Env) (daemon.Service, error) {
			return scheduler.New(scheduler.Config{NC: env.NC, Log: env.Log, NodeID: env.Instance, Version: env.Version, Metrics: env.Metrics})
		},
	})
}
