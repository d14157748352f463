package cli

import (
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/spec"
	"skep.dev/libs/unlockkey"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/plain"
)

func (a *app) swarmCommand() *cobra.Command {
	return group("swarm", "Manage the cluster (Docker's words for init, join, leave, join-token and ca)", a.joinTokenCommand(), a.swarmUpdate(), a.caCommand(), a.unlockCommand(), a.unlockKeyCommand())
}

func (a *app) joinTokenCommand() *cobra.Command {
	var rotate, quiet bool
	cmd := &cobra.Command{Use: "join-token [OPTIONS] (worker|manager)", Short: "Show or rotate the token that lets nodes join", Args: exactArgs(1),
		ValidArgs: []string{"worker", "manager"},
		RunE: func(cmd *cobra.Command, args []string) error {
			var role skepv1.NodeRole
			switch args[0] {
			case "worker":
			case "manager":
				role = skepv1.NodeRole_NODE_ROLE_MANAGER
			default:
				return Usagef("unknown role %s: it must be worker or manager", args[0])
			}
			r, err := call(cmd.Context(), a, api.TokenGet, &skepv1.JoinTokenRequest{Role: role, Rotate: rotate})
			if err != nil {
				return err
			}
			if quiet {
				a.printf("%s\n", r.Token)
				return nil
			}
			if rotate {
				a.printf("Successfully rotated %s join token.\n\n", args[0])
			}
			addr := "MANAGER:2377"
			if len(r.ManagerAddrs) > 0 {
				addr = r.ManagerAddrs[0]
			}
			a.printf("To add a %s to this swarm, run the following command:\n\n    skep join --token %s %s\n\n", args[0], r.Token, addr)
			return nil
		}}
	cmd.Flags().BoolVar(&rotate, "rotate", false, "Replace the token; the old one lets nobody in any more")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "Print only the token")
	return cmd
}

func (a *app) swarmUpdate() *cobra.Command {
	var (
		history           int64
		heartbeat, expiry time.Duration
		autolock          bool
		fence             string
		snapshots, keep   uint64
		externalCA        []string
		plan              planFlags
		again             int
		noEffect          = []string{"snapshot-interval", "max-snapshots"}
	)
	cmd := &cobra.Command{Use: "update [OPTIONS]", Short: "Change the cluster's settings", Args: noArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, f := cmd.Context(), cmd.Flags()
			if f.Changed("external-ca") {
				return Usagef("--external-ca is not supported: skep keeps the certificate authority itself")
			}
			c, err := a.cluster(ctx)
			if err != nil {
				return err
			}
			s := c.GetSpec()
			if s == nil {
				s = &skepv1.ClusterSpec{}
			}
			if f.Changed("task-history-limit") {
				s.TaskHistoryLimit = history
			}
			if f.Changed("dispatcher-heartbeat") {
				if heartbeat < 0 {
					return Usagef("heartbeat time period cannot be a negative duration")
				}
				s.HeartbeatPeriod = durationpb.New(heartbeat)
			}
			if f.Changed("cert-expiry") {
				if expiry < time.Hour {
					return Usagef("minimum certificate expiry time is: 1h0m0s")
				}
				s.NodeCertExpiry = durationpb.New(expiry)
			}
			turnedOn := false
			if f.Changed("autolock") {
				turnedOn = autolock && !s.Autolock
				s.Autolock = autolock
			}
			if f.Changed("fence-cmd") {
				s.FenceCommand = fence
			}
			for _, n := range noEffect {
				if f.Changed(n) {
					a.warnf("--%s has no effect: skep keeps no Raft log of its own", n)
				}
			}
			if err := plan.plan(cmd, s); err != nil {
				return err
			}
			if err := spec.ValidateCluster(s); err != nil {
				return &Failure{ExitUsage, err}
			}
			opens := ""
			if plan.given(cmd) {
				if opens, err = plan.sealUnder(ctx, a, s); err != nil {
					return err
				}
			}
			_, err = call(ctx, a, api.ClusterUpdate, &skepv1.UpdateClusterRequest{Version: c.GetMeta().GetVersion(), Spec: s})
			// Somebody else was faster: do it to what is there now. A passphrase is read once.
			if fault.Is(err, fault.CodeSequence) && again < 5 && !plan.given(cmd) {
				again++
				return cmd.RunE(cmd, args)
			}
			if err != nil {
				return err
			}
			a.printf("Swarm updated.\n")
			if opens != "" {
				a.tellf("Scheduled backups open with %s.\n", opens)
			}
			if turnedOn {
				shown, err := a.shownUnlockKey(ctx, false)
				if err != nil {
					return plain.Errorf("autolock is on, but the unlock key could not be read: get it with `skep unlock-key` before this manager is restarted: %w", err)
				}
				a.printf(unlockkey.Notice, shown.Text)
			}
			return nil
		}}
	f := cmd.Flags()
	f.Int64Var(&history, "task-history-limit", 5, "Tasks kept per slot for history (negative = all)")
	f.DurationVar(&heartbeat, "dispatcher-heartbeat", spec.DefaultHeartbeat, "Time between a node's signs of life")
	f.DurationVar(&expiry, "cert-expiry", 90*24*time.Hour, "Life of node certificates")
	f.BoolVar(&autolock, "autolock", false, "Require an unlock key before a manager that was restarted gives out secrets")
	f.StringVar(&fence, "fence-cmd", "", "Program on every manager, run as root with a node's name, that cuts off a node that is down and holds volumes (\"\" = none)")
	plan.add(cmd)
	f.Uint64Var(&snapshots, "snapshot-interval", 10000, "Accepted for Docker's sake; has no effect")
	f.Uint64Var(&keep, "max-snapshots", 0, "Accepted for Docker's sake; has no effect")
	f.StringArrayVar(&externalCA, "external-ca", nil, "Not supported")
	for _, n := range append(noEffect, "external-ca") {
		_ = f.MarkHidden(n)
	}
	return cmd
}
