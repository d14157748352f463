package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/stream"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/plain"
	"skep.dev/services/skep/cli/render"
	"skep.dev/services/skep/cli/roll"
	"skep.dev/services/skep/program"
)

const (
	// upgradeTimeout is how long one node may take until it is as before.
	upgradeTimeout = 5 * time.Minute
	// lookAtUpgrade is how often it is looked at.
	lookAtUpgrade = 500 * time.Millisecond
)

// rolling is one run of `skep upgrade`.
type rolling struct {
	app    *app
	file   string
	build  *program.Build
	only   []string // nodes, empty: all
	dryRun bool
	quiet  bool
	limit  time.Duration // for each node
	done   []upgraded
}

// upgraded is a node, and what became of it.
type upgraded struct {
	Node   string `json:"node"`
	ID     string `json:"id"`
	Role   string `json:"role"`
	From   string `json:"from"`
	To     string `json:"to"`
	Result string `json:"result"` // planned, upgraded, same, skipped, failed
	Error  string `json:"error,omitempty"`
}

func (a *app) upgradeCommand() *cobra.Command {
	r := &rolling{app: a, limit: upgradeTimeout}
	var asJSON bool
	cmd := &cobra.Command{Use: "upgrade --to FILE [OPTIONS]", Short: "Put another build of skep on the nodes, one at a time", Args: noArgs,
		Long: "Put another build of skep on the nodes, one at a time: first the managers that do not lead, then the leader, then the workers. No node is drained,\n" +
			"and no container is restarted.\n\n" +
			"The next node is touched only while every manager is reached and the last one is as it was before. A node on which the new program does not come up\n" +
			"puts the old one back by itself; then this command stops, and what is upgraded stays. Nodes that are down are left out and named at the end, with exit\n" +
			"status 1: run it again when they are back. Nodes that have the version already are left as they are.",
		Example: "  skep upgrade --to ./skep-0.2.0 --dry-run\n  skep upgrade --to ./skep-0.2.0\n  skep --context prod upgrade --to ./skep-0.2.0 --node w1",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if r.file == "" {
				return &usageError{cmd, "say which program is to be put on the nodes: --to FILE"}
			}
			r.quiet = r.quiet || asJSON
			err := r.run(cmd.Context())
			if asJSON && r.build != nil {
				err = errors.Join(render.JSONValue(a.Out, r.done), err)
			}
			return err
		}}
	f := cmd.Flags()
	f.StringVar(&r.file, "to", "", "Program to put on the nodes: a build of skep for their kind of machine")
	f.StringArrayVar(&r.only, "node", nil, "Node to upgrade; may be given many times (default all)")
	_ = cmd.RegisterFlagCompletionFunc("node", a.completeNodes)
	f.Var((*timeoutFlag)(&r.limit), "timeout", "Stop, with exit status 4, when a node is not as before after this long (0 = wait as long as it takes)")
	f.BoolVar(&r.dryRun, "dry-run", false, "Show what would be done, and in which order")
	f.BoolVarP(&r.quiet, "quiet", "q", false, "Do not show progress")
	f.BoolVar(&asJSON, "json", false, "Print what became of each node as JSON (a stable form)")
	return cmd
}

func (r *rolling) run(ctx context.Context) error {
	a := r.app
	b, err := program.Read(ctx, r.file)
	if err != nil {
		return err
	}
	nodes, err := r.nodes(ctx)
	if err != nil {
		return err
	}
	p := roll.Order(nodes, b.Version)
	if f := p.Foreign(b.OS, b.Arch); len(f) > 0 {
		return fault.Invalid("%s is built for %s/%s, and these nodes are other machines: %s; name the others with --node", r.file, b.OS, b.Arch, names(f))
	}
	r.build = b
	for _, n := range p.Same {
		r.note(n, "same", nil)
	}
	if r.dryRun {
		for _, n := range p.Next {
			r.note(n, "planned", nil)
			r.tell(n, "%s, %s to %s", roll.Role(n), n.GetDescription().GetEngineVersion(), b.Version)
		}
		return r.leftOut(p.Away)
	}
	if len(p.Next) == 0 && len(p.Away) == 0 && !r.quiet {
		a.tellf("Every node has version %s already.\n", b.Version)
	}
	for i, n := range p.Next {
		began := time.Now()
		if err := r.upgrade(ctx, n, i == 0); err != nil {
			r.note(n, "failed", err)
			return r.stopped(n, p.Next[i+1:], err)
		}
		r.note(n, "upgraded", nil)
		r.tell(n, "%s, upgraded from %s to %s in %s", roll.Role(n), n.GetDescription().GetEngineVersion(), b.Version, time.Since(began).Round(time.Second))
	}
	return r.leftOut(p.Away)
}

// nodes are those that are meant.
func (r *rolling) nodes(ctx context.Context) ([]*skepv1.Node, error) {
	if len(r.only) == 0 {
		return r.app.nodes(ctx)
	}
	return r.app.targets(ctx, r.only, allNodes)
}

func (r *rolling) note(n *skepv1.Node, result string, err error) {
	u := upgraded{Node: render.Hostname(n), ID: n.GetMeta().GetId(), Role: roll.Role(n), From: n.GetDescription().GetEngineVersion(), To: r.build.Version, Result: result}
	if err != nil {
		u.Error = err.Error()
	}
	r.done = append(r.done, u)
}

func (r *rolling) tell(n *skepv1.Node, format string, v ...any) {
	if !r.quiet {
		r.app.tellf("%s: "+format+"\n", append([]any{render.Hostname(n)}, v...)...)
	}
}

// leftOut is the error of nodes that were skipped.
func (r *rolling) leftOut(away []*skepv1.Node) error {
	for _, n := range away {
		r.note(n, "skipped", nil)
	}
	if len(away) == 0 {
		return nil
	}
	return fault.Conflict("left out, because they are not ready: %s; run this again when they are", names(away))
}

func (r *rolling) stopped(n *skepv1.Node, rest []*skepv1.Node, err error) error {
	text := "No other node was to follow"
	if len(rest) > 0 {
		text = "Not touched: " + names(rest) + "; run this again to go on"
	}
	code := ExitError
	var f *Failure
	if errors.As(err, &f) {
		code = f.Code
	}
	if errors.Is(err, context.Canceled) {
		code = ExitCancelled
	}
	return &Failure{code, plain.Errorf("upgrade of node %s: %w\n%s", render.Hostname(n), err, text)}
}

// upgrade takes one node to the new version and waits until it is as it was before.
func (r *rolling) upgrade(ctx context.Context, n *skepv1.Node, first bool) error {
	wait := ctx
	if r.limit > 0 {
		var cancel context.CancelFunc
		wait, cancel = context.WithTimeoutCause(ctx, r.limit, errUpgradeSlow)
		defer cancel()
	}
	if err := r.gate(wait, n, first); err != nil {
		return err
	}
	id := n.GetMeta().GetId()
	tasks, err := r.app.tasks(wait, filter("node", id), filter("desired-state", "running"))
	if err != nil {
		return err
	}
	before := map[string]bool{}
	for _, t := range tasks {
		if t.GetStatus().GetState() == skepv1.TaskState_TASK_STATE_RUNNING {
			before[t.GetMeta().GetId()] = true
		}
	}
	r.tell(n, "it takes the new program (%s)", render.Bytes(r.build.Size))
	if err := r.send(wait, id); err != nil {
		return err
	}
	return r.back(wait, n, before)
}

var errUpgradeSlow = errors.New("it takes longer than --timeout")

// gate waits until the node may be touched; the first one may at once, or nothing is done at all.
func (r *rolling) gate(ctx context.Context, n *skepv1.Node, first bool) error {
	return r.await(ctx, n, first, func() (string, error) {
		var c roll.Cluster
		var err error
		if c.Nodes, err = r.app.nodes(impatient(ctx)); err != nil {
			return "", err
		}
		c.Group, c.Locked = r.app.group(ctx), lockedNames(r.app.lockState(ctx))
		for _, m := range c.Nodes {
			if m.GetManager().GetLeader() && m.GetStatus().GetState() == skepv1.NodeState_NODE_STATE_READY {
				if c.Store, err = say(ctx, r.app, api.StoreState.At(m.GetMeta().GetId()), &skepv1.StoreStateRequest{}); err != nil {
					return "", err
				}
			}
		}
		return roll.Gate(c, n), nil
	})
}

// back waits until the node is as it was before, with the new version.
func (r *rolling) back(ctx context.Context, n *skepv1.Node, before map[string]bool) error {
	id := n.GetMeta().GetId()
	return r.await(ctx, n, false, func() (string, error) {
		if s, err := say(ctx, r.app, api.UpgradeState.At(id), &skepv1.Empty{}); err == nil &&
			s.Step == skepv1.UpgradeStep_UPGRADE_STEP_UNDONE && s.To == r.build.Version && string(s.Sha256) == string(r.build.SHA256[:]) {
			return "", &Failure{ExitError, plain.Errorf("it does not come up with version %s and has %s back: %s", s.To, s.From, s.Error)}
		} else if err == nil && s.Running == r.build.Version && s.Step != skepv1.UpgradeStep_UPGRADE_STEP_DONE {
			return "it starts", nil
		}
		nodes, err := r.app.nodes(impatient(ctx))
		if err != nil {
			return "", err
		}
		tasks, err := r.app.tasks(impatient(ctx), filter("node", id), filter("desired-state", "running"))
		if err != nil {
			return "", err
		}
		return roll.Back(nodes, id, r.build.Version, before, tasks), nil
	})
}

// await looks until nothing is missing. Managers that do not answer are what an upgrade of them brings: they are asked again.
func (r *rolling) await(ctx context.Context, n *skepv1.Node, once bool, missing func() (string, error)) error {
	said := ""
	for {
		text, err := missing()
		if fault.Is(err, fault.CodeUnavailable) && !once {
			text, err = "no manager answers", nil
		}
		switch {
		case err != nil && ctx.Err() == nil:
			return err
		case err == nil && text == "":
			return nil
		case once && ctx.Err() == nil:
			return fault.Conflict("%s; nothing was changed", text)
		case text != "" && text != said:
			r.tell(n, "%s", text)
			said = text
		}
		select {
		case <-ctx.Done():
			if cause := context.Cause(ctx); errors.Is(cause, errUpgradeSlow) {
				return &Failure{ExitTimeout, plain.Errorf("%w: %s", cause, said)}
			}
			return ctx.Err()
		case <-time.After(lookAtUpgrade):
		}
	}
}

// send has the node take the program. It restarts then, and its last word may be lost with the connection: back finds out.
func (r *rolling) send(ctx context.Context, id string) error {
	f, err := os.Open(r.file)
	if err != nil {
		return fmt.Errorf("read the program: %w", err)
	}
	defer f.Close()
	nc, err := r.app.conn(ctx)
	if err != nil {
		return err
	}
	s, err := dial(ctx, r.app, nc, api.UpgradeOpen.At(id), &skepv1.UpgradeNodeRequest{Version: r.build.Version, Sha256: r.build.SHA256[:], Size: uint64(r.build.Size)})
	if err != nil {
		return err
	}
	defer s.Close()
	go drain(s)
	for _, c := range []string{stream.Out, stream.Err} {
		go func() { _, _ = io.Copy(io.Discard, s.Reader(c)) }() // it says nothing there
	}
	in := s.Writer(stream.In)
	_, werr := io.Copy(in, f)
	if cerr := in.Close(); werr == nil {
		werr = cerr
	}
	exit, err := s.Wait()
	switch {
	case err == nil && exit.GetErr() != "":
		return errors.New(exit.Err)
	case err == nil && exit.GetCode() == 0:
		return nil
	case werr != nil && !errors.Is(werr, stream.ErrClosed):
		return fmt.Errorf("send the program: %w", werr)
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return nil // all of it was sent
}

func names(nodes []*skepv1.Node) string {
	var out []string
	for _, n := range nodes {
		out = append(out, render.Hostname(n))
	}
	return strings.Join(out, ", ")
}
