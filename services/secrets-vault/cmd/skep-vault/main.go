// Command skep-vault runs the vault as a process of its own, on a manager.
package main

import (
	"context"
	"flag"
	"path/filepath"
	"strings"

	vault "skep.dev/services/secrets-vault"

	"skep.dev/libs/daemon"
)

func main() {
	var managers string
	daemon.Exit(daemon.Main{
		Name: "skep-vault", About: "keeper of the cluster's CA, join tokens and certificates",
		Flags: func(fs *flag.FlagSet) {
			fs.StringVar(&managers, "managers", "", "addresses joiners are told, host:port separated by commas")
		},
		New: func(_ context.Context, env daemon.Env) (daemon.Service, error) {
			return vault.New(vault.Config{
				NC: env.NC, Log: env.Log, NodeID: env.NodeID, Version: env.Version, Dir: filepath.Join(env.DataDir, "vault"),
				ManagerAddrs: func() []string {
					return strings.FieldsFunc(managers, func(r rune) bool { return r == ',' || r == ' ' })
				},
			})
		},
	})
}
