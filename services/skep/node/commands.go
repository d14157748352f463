package node

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"skep.dev/libs/daemon"
	"skep.dev/services/bus"
)

// Commands adds init, join, leave and `node run` to the command tree.
func Commands(root *cobra.Command) {
	root.AddCommand(initCommand(), joinCommand(daemon.Version), leaveCommand())
	if n, _, err := root.Find([]string{"node"}); err == nil && n != root {
		n.AddCommand(runCommand(), managersCommand(), watchCommand())
	}
	if b, _, err := root.Find([]string{"backup"}); err == nil && b != root {
		b.AddCommand(restoreCommand())
	}
}

// runCommand is the daemon. init and join start it; systemd does after a boot.
func runCommand() *cobra.Command {
	var p placement
	var addr, advertise, dataPath string
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run this node's daemon in the foreground",
		Long: "Run this node's daemon in the foreground: every service of the node in one process.\n\n" +
			"`skep init` and `skep join` start it; this is what systemd runs.\n\n" +
			"A node whose machine has got another address takes it up by itself, if its address was not given to init or join. One that was given\n" +
			"is changed by --advertise-addr (and --data-path-addr): the node keeps the new one, and the others follow.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p.resolve(cmd)
			log, err := daemon.NewLogger(p.logLevel, os.Stderr)
			if err != nil {
				return err
			}
			d, err := New(Options{Paths: p.paths, Log: log, Version: daemon.Version, Commit: daemon.Commit, MetricsAddr: addr,
				AdvertiseAddr: advertise, DataPathAddr: dataPath})
			if err != nil {
				return err
			}
			if d.record().Role == RoleWitness {
				bus.ElectLast()
			}
			// A node is mostly idle and its heap small: a tighter collector costs nothing one could measure and keeps
			// what bursts leave behind from staying.
			if os.Getenv("GOGC") == "" {
				debug.SetGCPercent(50)
			}
			daemon.LimitMemory(log)
			daemon.NoCores(log, false)
			// The CLI's context ends at the first Ctrl-C and would make the second one deadly; the daemon wants
			// its whole shutdown.
			ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			go daemon.GiveBack(ctx, log)
			if err := d.Run(ctx); err != nil {
				return fmt.Errorf("node: %w", err)
			}
			return nil
		},
	}
	p.add(cmd)
	cmd.Flags().StringVar(&advertise, "advertise-addr", "", "new address others reach this node at (<ip|interface>, default: what init or join was told)")
	cmd.Flags().StringVar(&dataPath, "data-path-addr", "", "new address or interface for the traffic of containers (default: what join was told)")
	addMetrics(cmd, &addr)
	cmd.Flag("metrics-addr").Usage = "serve metrics for Prometheus at this address (HOST:PORT, default: what init or join was told)"
	return cmd
}
