// Command skep-engine serves the Docker Engine API as a process of its own, on any node.
package main

import (
	"context"
	"flag"

	engine "skep.dev/services/engine-api"

	"skep.dev/libs/daemon"
)

func main() {
	var group string
	daemon.Exit(daemon.Main{
		Name: "skep-engine", About: "the Docker Engine API of this node, at <run-dir>/docker.sock", Single: true,
		Flags: func(fs *flag.FlagSet) {
			fs.StringVar(&group, "group", engine.Group, "the group that the socket belongs to where the machine has it; \"\" = it is root's alone")
		},
		New: func(_ context.Context, env daemon.Env) (daemon.Service, error) {
			return engine.New(engine.Config{Log: env.Log, Paths: env.Paths, Group: group, CA: env.Store.CAPEM, Version: env.Version, Commit: env.Commit, Metrics: env.Metrics})
		},
	})
}
