// Command skep-vault runs the vault as a process of its own, on a manager.
package main

import (
	"context"
	"flag"
	"strings"

	vault "skep.dev/services/secrets-vault"

	"skep.dev/libs/daemon"
	"skep.dev/libs/member"
)

func main() {
	var managers string
	daemon.Exit(daemon.Main{
		Name: "skep-vault", About: "keeper of the cluster's CA, join tokens and certificates; several instances share the work", Role: "vault", Managers: true,
		Flags: func(fs *flag.FlagSet) {
			fs.StringVar(&managers, "managers", "", "addresses joiners are told while the group of managers is not written down yet, host:port separated by commas")
		},
		New: func(_ context.Context, env daemon.Env) (daemon.Service, error) {
			addrs := member.AddrsOf(env.Paths, env.Record)
			if managers != "" {
				fixed := strings.FieldsFunc(managers, func(r rune) bool { return r == ',' || r == ' ' })
				addrs = func() []string { return fixed }
			}
			return vault.New(vault.Config{
				NC: env.NC, Log: env.Log, NodeID: env.NodeID, Version: env.Version, Dir: env.Paths.Vault(), DataDir: env.Paths.Data, Hostname: env.Record.Hostname, Certificate: env.Store,
				ManagerAddrs: addrs, Metrics: env.Metrics,
			})
		},
	})
}
