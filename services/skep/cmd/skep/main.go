// Command skep is the command line of skep and, as `skep node`, a node's daemon.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"skep.dev/services/skep/cli"
)

// version and commit are set by the linker.
var (
	version = "dev"
	commit  = ""
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := cli.Main(ctx, cli.Env{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Getenv: os.Getenv, Version: version, Commit: commit}, os.Args[1:])
	stop()
	os.Exit(code)
}
