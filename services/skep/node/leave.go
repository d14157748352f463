package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"skep.dev/libs/fault"
	"skep.dev/libs/member"
	"skep.dev/services/skep/cli/plain"
)

func leaveCommand() *cobra.Command {
	var p placement
	var force bool
	cmd := &cobra.Command{
		Use:   "leave [OPTIONS]",
		Short: "Take this machine out of its cluster",
		Long: "Take this machine out of its cluster: its tasks stop, and the daemon, its network and its containerd go away.\n\n" +
			"The last manager takes the whole cluster with it, so it needs --force.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p.resolve(cmd)
			rec, err := Load(p.paths)
			if err != nil && !(force && !errors.Is(err, ErrNoNode)) {
				if errors.Is(err, ErrNoNode) {
					return fault.Conflict("This node is not part of a swarm")
				}
				return err
			}
			if rec != nil && rec.Role == RoleManager && !force {
				return fault.Conflict("You are attempting to leave the swarm on a node that is participating as a manager. " +
					"Removing the last manager erases all current state of the swarm. Use `--force` to ignore this message.")
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), 3*time.Minute)
			defer cancel()
			if err := depart(ctx, p.paths, force, p.logLevel); err != nil {
				return err
			}
			plain.Fprintf(cmd.OutOrStdout(), "Node left the swarm.\n")
			return nil
		},
	}
	p.add(cmd)
	cmd.Flags().BoolVarP(&force, "force", "f", false, "leave although this is a manager, or although the daemon does not answer")
	return cmd
}

// depart asks the daemon to leave. A daemon that is down is started for it: only the agent knows how to take its
// containers away. Services that run as processes of their own are to be stopped first.
func depart(ctx context.Context, p Paths, force bool, level string) error {
	if h := member.Holders(p); len(h) > 0 {
		return fault.Conflict("this node's services run as processes of their own (%s): stop them, then leave again", strings.Join(h, ", "))
	}
	if _, err := Running(ctx, p); err != nil {
		if lerr := launch(ctx, p, level); lerr != nil && !force {
			return fmt.Errorf("leave: the daemon does not run and does not start (%w); repair it, or forget the cluster with --force and stop leftover containers by hand", lerr)
		} else if lerr != nil {
			return forget(p)
		}
	}
	path := "/leave"
	if force {
		path += "?force=true"
	}
	if _, err := ask(ctx, p, "POST", path); err != nil {
		return fmt.Errorf("leave: %w", err)
	}
	return awaitGone(ctx, p)
}

// awaitGone returns when the daemon's process has let go of the node's directory.
func awaitGone(ctx context.Context, p Paths) error {
	for {
		if _, err := Running(ctx, p); err != nil {
			release, err := holdPID(p)
			if err == nil {
				release()
				return os.RemoveAll(filepath.Join(p.Data, "lock"))
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("leave: the daemon does not end: %w", ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}
