// Command skep-mesh-controller runs the mesh's controller as a process of its own.
package main

import (
	"context"

	"skep.dev/services/ingress-mesh/controller"

	"skep.dev/libs/daemon"
)

func main() {
	daemon.Exit(daemon.Main{
		Name: "skep-mesh-controller", About: "tells nodes who is where on which network; several instances take turns", Role: "mesh", Managers: true,
		New: func(_ context.Context, env daemon.Env) (daemon.Service, error) {
			return controller.New(controller.Config{NC: env.NC, Log: env.Log, NodeID: env.Instance, Version: env.Version, Metrics: env.Metrics})
		},
	})
}
