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
	"go.uber.org/zap"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/member"
	"skep.dev/services/bus"
	"skep.dev/services/skep/cli/conn"
	"skep.dev/services/skep/cli/plain"
)

func leaveCommand() *cobra.Command {
	var p placement
	var force bool
	cmd := &cobra.Command{
		Use:   "leave [OPTIONS]",
		Short: "Take this machine out of its cluster",
		Long: "Take this machine out of its cluster: its tasks stop, and the daemon, its network and its containerd go away.\n\n" +
			"A manager needs --force. While others are there it is demoted first: the group of managers lets it go, and then it leaves as a\n" +
			"worker does. The last manager takes the whole cluster with it.",
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
			if rec != nil && rec.Role == RoleWitness && !force {
				return fault.Conflict("This node is a witness: without its vote the loss of one of two managers stops every change. Use `--force` to take it out all the same.")
			}
			if rec != nil && rec.Role == RoleManager && !force {
				return fault.Conflict("%s", managerLeaves(rec, managersNow(cmd.Context(), p.paths)))
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), 3*time.Minute)
			defer cancel()
			warning, err := depart(ctx, p.paths, force, p.logLevel)
			if err != nil {
				return err
			}
			if warning != "" {
				plain.Fprintf(cmd.ErrOrStderr(), "%s\n", warning)
			}
			plain.Fprintf(cmd.OutOrStdout(), "Node left the swarm.\n")
			return nil
		},
	}
	p.add(cmd)
	cmd.Flags().BoolVarP(&force, "force", "f", false, "leave although this is a manager, or although the daemon does not answer")
	return cmd
}

// managersNow asks this manager for the group, nil when it does not answer.
func managersNow(ctx context.Context, p Paths) *skepv1.ListManagersReply {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	nc, err := conn.Dial(ctx, conn.Options{RunDir: p.Run, DataDir: p.Data, Timeout: 2 * time.Second})
	if err != nil {
		return nil
	}
	defer nc.Close()
	list, err := api.Call(ctx, nc, api.ManagerList, &skepv1.Empty{})
	if err != nil {
		return nil
	}
	return list
}

// managerLeaves is why a manager does not leave unforced: Swarm's words, and what force does here.
func managerLeaves(rec *Record, list *skepv1.ListManagersReply) string {
	const (
		start   = "You are attempting to leave the swarm on a node that is participating as a manager. "
		last    = "Removing the last manager erases all current state of the swarm. Use `--force` to ignore this message."
		restore = "The only way to restore a swarm that has lost consensus is to reinitialize it with `--force-new-cluster`. "
		end     = "Use `--force` to suppress this message."
	)
	total := len(list.GetSet().GetManagers())
	switch {
	case total == 1 && list.Set.Managers[0].GetNodeId() == rec.NodeID, total == 0 && len(rec.Managers) == 0:
		return start + last
	case total == 0:
		return start + "Doing so may lose the consensus of your cluster. " + restore + end
	}
	reachable := 0
	for _, v := range list.GetViews() {
		if v.GetReachable() || v.GetNodeId() == rec.NodeID {
			reachable++
		}
	}
	unreachable := total - reachable
	text := start
	if reachable-2 <= unreachable {
		text += fmt.Sprintf("Removing this node leaves %d managers out of %d. Without a Raft quorum your swarm will be inaccessible. ", reachable-1, total)
	}
	if !list.GetLed() {
		return text + "The managers have no majority now, so the others are not told that it leaves. " + restore + end
	}
	stay := total - 1
	text += "With `--force` it is demoted first and then leaves: "
	switch stay {
	case 1:
		text += "the one manager that stays then has all of the swarm's state alone. "
	case 2:
		text += "2 managers stay, and the swarm survives the loss of one of them at most, not of either. "
	default:
		text += fmt.Sprintf("%d managers stay, and %d of them make a quorum. ", stay, stay/2+1)
	}
	return text + restore + end
}

// depart asks the daemon to leave. A daemon that is down is started for it: only the agent knows how to take its
// containers away. Services that run as processes of their own are to be stopped first.
func depart(ctx context.Context, p Paths, force bool, level string) (warning string, _ error) {
	if h := member.Holders(p); len(h) > 0 {
		return "", fault.Conflict("this node's services run as processes of their own (%s): stop them, then leave again", strings.Join(h, ", "))
	}
	if _, err := Running(ctx, p); err != nil {
		if lerr := launch(ctx, p, level); lerr != nil && !force {
			return "", fmt.Errorf("leave: the daemon does not run and does not start (%w); repair it, or forget the cluster with --force and stop leftover containers by hand", lerr)
		} else if lerr != nil {
			return "", forget(p)
		}
	}
	path := "/leave"
	if force {
		path += "?force=true"
	}
	info, err := ask(ctx, p, "POST", path)
	if err != nil {
		return "", fmt.Errorf("leave: %w", err)
	}
	return info.Warning, awaitGone(ctx, p)
}

// awaitGone returns when the daemon's process has let go of the node's directory.
func awaitGone(ctx context.Context, p Paths) error {
	if err := awaitEnd(ctx, p); err != nil {
		return fmt.Errorf("leave: %w", err)
	}
	return os.RemoveAll(filepath.Join(p.Data, "lock"))
}

// awaitEnd returns when no daemon runs on the node's directory.
func awaitEnd(ctx context.Context, p Paths) error {
	for {
		if _, err := Running(ctx, p); err != nil {
			if release, err := holdPID(p); err == nil {
				release()
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the daemon does not end: %w", ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// leave stops every task, takes the node's network and containerd away and forgets the membership. The sockets
// and the record go last, so a leave that dies half-way can be repeated.
func (d *Daemon) leave(bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	d.local.unkeep()
	if err := d.resign(ctx); err != nil {
		d.log.Warn("this manager leaves without the others", zap.Error(err))
		d.control.Change(func(i *Info) {
			i.Warning = fmt.Sprintf("The other managers did not let this one go (%v): remove it there with \"skep node rm --force %s\".", err, i.NodeID)
		})
	}
	if err := d.local.leave(ctx); err != nil {
		return fmt.Errorf("leave: %w", err)
	}
	d.stop()
	return forget(d.paths)
}

// resignWithin bounds how long a manager that leaves waits until the group has let it go: streams move away meanwhile.
const resignWithin = time.Minute

// resign has the group of managers let this one go, if there are others: it is demoted, and its broker then ends by itself.
func (d *Daemon) resign(ctx context.Context) error {
	m := d.run
	if !d.record().Votes() || m == nil {
		return nil
	}
	nc := m.boss.Load()
	if nc == nil {
		if len(d.record().Managers) == 0 {
			return nil
		}
		return errors.New("its own broker does not serve")
	}
	ask, cancel := context.WithTimeout(ctx, 3*time.Second)
	list, err := api.Call(ask, nc, api.ManagerList, &skepv1.Empty{})
	cancel()
	id := d.record().NodeID
	others := 0
	for _, o := range list.GetSet().GetManagers() {
		if o.GetNodeId() != id {
			others++
		}
	}
	switch {
	case err != nil:
		return err
	case others == 0:
		return nil
	case !list.GetLed():
		return fmt.Errorf("%d of %d voters are there, which is no majority", list.GetPresent(), list.GetVoters())
	}
	ctx, cancel = context.WithTimeout(ctx, resignWithin)
	defer cancel()
	ask, cancelAsk := context.WithTimeout(ctx, 10*time.Second)
	defer cancelAsk()
	role := skepv1.NodeRole_NODE_ROLE_WORKER
	if _, err := api.Call(ask, nc, api.NodeUpdate, &skepv1.UpdateNodeRequest{Ref: id, Role: &role}); err != nil {
		return fmt.Errorf("demote this manager: %w", err)
	}
	d.log.Info("leaving: waiting for the group of managers to let this node go")
	select {
	case <-m.ended:
	case <-ctx.Done():
		return fmt.Errorf("they have not let it go within %s", resignWithin)
	}
	if !errors.Is(m.err, bus.ErrRetired) {
		return m.err
	}
	m.stop()
	d.manages(nil)
	// The agent's last word goes to another manager.
	for !d.local.nc.IsConnected() && ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}
