// Command skep is the command line of skep and, as `skep node run`, a node's daemon.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"skep.dev/libs/daemon"
	"skep.dev/services/skep/cli"
	"skep.dev/services/skep/node"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := cli.Main(ctx, cli.Env{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Getenv: os.Getenv, Version: daemon.Version, Commit: daemon.Commit, NodeCommands: node.Commands}, os.Args[1:])
	stop()
	os.Exit(code)
}
