package node

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"skep.dev/libs/api"
	"skep.dev/libs/daemon"
	"skep.dev/libs/fault"
	"skep.dev/libs/member"
	"skep.dev/libs/rpc"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/node/upgrade"
)

// tellAgain is the pause between two tries to tell the managers that an upgrade was undone.
const tellAgain = 5 * time.Second

// upgrader is what the agent asks to replace the daemon's program.
type upgrader struct {
	site    upgrade.Site
	paths   Paths
	version string
	log     *zap.Logger

	mu sync.Mutex // one at a time
}

func newUpgrader(d *Daemon) (*upgrader, error) {
	site, err := upgrade.Here(d.paths.Data)
	if err != nil {
		return nil, err
	}
	return &upgrader{site: site, paths: d.paths, version: d.version, log: d.log.Named("upgrade")}, nil
}

// Check implements agent.Upgrader.
func (u *upgrader) Check(r *skepv1.UpgradeNodeRequest) error {
	if r.GetVersion() == u.version {
		return fault.Conflict("this node runs version %s already", u.version)
	}
	release, err := member.HoldUpgrade(u.paths)
	if err != nil {
		return fault.Conflict("%v", err)
	}
	defer release()
	return u.site.Check(u.offer(context.Background(), r))
}

func (u *upgrader) offer(ctx context.Context, r *skepv1.UpgradeNodeRequest) upgrade.Offer {
	by := rpc.ActorOf(ctx)
	return upgrade.Offer{From: u.version, To: r.GetVersion(), SHA256: r.GetSha256(), Size: int64(min(r.GetSize(), 1<<62)), By: by.Name, Address: by.Address}
}

// Take implements agent.Upgrader.
func (u *upgrader) Take(ctx context.Context, r *skepv1.UpgradeNodeRequest, program io.Reader) (restart func(), err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	release, err := member.HoldUpgrade(u.paths)
	if err != nil {
		return nil, fault.Conflict("%v", err)
	}
	if err := u.site.Stage(ctx, u.offer(ctx, r), program); err != nil {
		release()
		return nil, err
	}
	begin, err := startWatcher(u.site, u.paths, os.Args[1:])
	if err != nil {
		_, rerr := u.site.Resume() // takes the new program away
		release()
		return nil, fmt.Errorf("upgrade: start what watches over it: %w (%v)", err, rerr)
	}
	return func() { release(); begin() }, nil
}

// State implements agent.Upgrader.
func (u *upgrader) State() (*skepv1.UpgradeState, error) {
	out := &skepv1.UpgradeState{Running: u.version}
	rec, err := u.site.Load()
	if err != nil || rec == nil {
		return out, err
	}
	out.From, out.To, out.Error, out.Sha256 = rec.From, rec.To, rec.Error, rec.Sum()
	out.Step = map[upgrade.Step]skepv1.UpgradeStep{
		upgrade.Staged: skepv1.UpgradeStep_UPGRADE_STEP_STAGED, upgrade.Placed: skepv1.UpgradeStep_UPGRADE_STEP_PLACED,
		upgrade.Done: skepv1.UpgradeStep_UPGRADE_STEP_DONE, upgrade.Undone: skepv1.UpgradeStep_UPGRADE_STEP_UNDONE,
	}[rec.Step]
	return out, nil
}

// resume goes on with an upgrade whose watcher has died, and tells of one that was undone.
func (u *upgrader) resume(ctx context.Context, d *Daemon) {
	release, err := member.HoldUpgrade(u.paths)
	if err == nil {
		watch, rerr := u.site.Resume()
		release()
		if rerr != nil {
			u.log.Error("go on with an upgrade that was interrupted", zap.Error(rerr))
		}
		if watch {
			begin, err := startWatcher(u.site, u.paths, os.Args[1:])
			if err != nil {
				u.log.Error("nobody watches over the upgrade", zap.Error(err))
			} else {
				begin()
			}
		}
	}
	rec, err := u.site.Load()
	if err != nil {
		u.log.Error("look at the last upgrade", zap.Error(err))
		return
	}
	if rec == nil || rec.Step != upgrade.Undone || rec.Told {
		return
	}
	text := fmt.Sprintf("the upgrade from %s to %s was undone: %s", rec.From, rec.To, rec.Error)
	u.log.Error(text, zap.String("by", rec.By))
	d.control.Change(func(i *Info) { i.Upgrade = text })
	for _, err := u.tell(ctx, d, rec); err != nil; _, err = u.tell(ctx, d, rec) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(tellAgain):
		}
	}
	if err := u.site.HasTold(rec); err != nil {
		u.log.Warn("note that the managers know", zap.Error(err))
	}
}

func (u *upgrader) tell(ctx context.Context, d *Daemon, rec *upgrade.Record) (*skepv1.Empty, error) {
	ctx, cancel := context.WithTimeout(ctx, tellAgain)
	defer cancel()
	out, err := api.Call(ctx, d.local.nc, api.StateTold.At(d.record().NodeID),
		&skepv1.ToldRequest{Verb: "upgrade-undone", Actor: rec.By, Address: rec.Address, Subject: rec.To + ": " + rec.Error})
	if fault.Is(err, fault.CodeInvalid) {
		u.log.Warn("the managers do not note it", zap.Error(err))
		err = nil // nor will they
	}
	return out, err
}

// startWatcher starts a process of the old program that outlives this one and restarts the daemon once begin was called, or
// this process has ended.
func startWatcher(site upgrade.Site, p Paths, daemonArgs []string) (begin func(), err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	cmd := exec.Command(site.Old(), append([]string{"--run-dir", p.Run, "node", "upgrade-watch", "--data-dir", p.Data, "--program", site.Program, "--"}, daemonArgs...)...)
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = "/", r, os.Stderr, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		w.Close()
		return nil, err
	}
	go func() { _ = cmd.Wait() }() // so that it is no zombie; the record says what it did
	return func() { w.Close() }, nil
}

// watchCommand is what startWatcher starts.
func watchCommand() *cobra.Command {
	var p placement
	var prog string
	cmd := &cobra.Command{
		Use:    "upgrade-watch",
		Short:  "Restart this node's daemon with a new program, and put the old one back when it does not start",
		Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			p.resolve(cmd)
			log, err := daemon.NewLogger(p.logLevel, os.Stderr)
			if err != nil {
				return err
			}
			if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
				return fmt.Errorf("wait for the daemon: %w", err)
			}
			release, err := member.HoldUpgrade(p.paths)
			if err != nil {
				return err
			}
			defer release()
			p.program, p.daemonArgs = prog, args
			site := upgrade.Site{Program: prog, Running: "/proc/self/exe", Data: p.paths.Data}
			// Nothing that ends a command ends this: it would leave the node between two programs.
			return site.Watch(context.WithoutCancel(cmd.Context()), (*restarted)(&p), log.Named("upgrade"))
		},
	}
	p.add(cmd)
	cmd.Flags().StringVar(&prog, "program", "", "path of the daemon's program")
	return cmd
}

// restarted is the daemon, for who watches over its upgrade.
type restarted placement

// StartAgain implements upgrade.Daemon.
func (r *restarted) StartAgain(ctx context.Context) error { return (*placement)(r).startAgain(ctx) }

// Version implements upgrade.Daemon.
func (r *restarted) Version(ctx context.Context) (string, error) {
	i, err := Running(ctx, r.paths)
	return i.Version, err
}
