package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/rpc"
	"skep.dev/libs/seal"
	"skep.dev/libs/unlockkey"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/plain"
	"skep.dev/services/skep/cli/render"
)

func (a *app) unlockCommand() *cobra.Command {
	return &cobra.Command{Use: "unlock [NODE]", Short: "Unlock a manager that was started again",
		Long: "Unlock a manager that was started again while autolock is on: until then the cluster keeps no secrets, admits no nodes and renews no certificates.\n\n" +
			"The key is asked for, or read from standard input: never as an argument, which others on the machine could see. It travels sealed to that manager alone.\n" +
			"Without NODE it is this machine's manager, or through a context the one that is locked.",
		Example:           "  skep unlock\n  pass show swarm-unlock-key | skep unlock\n  skep --context prod unlock m1",
		Args:              maxArgs(1),
		ValidArgsFunction: a.completeLocked,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			m, err := a.lockedManager(ctx, args)
			if err != nil {
				return err
			}
			if _, err := a.door(ctx, m); err != nil {
				return err
			}
			k, err := a.readUnlockKey(ctx)
			if err != nil {
				return err
			}
			return a.unlock(ctx, m, k)
		}}
}

func (a *app) unlockKeyCommand() *cobra.Command {
	var rotate, quiet bool
	cmd := &cobra.Command{Use: "unlock-key [OPTIONS]", Short: "Show or replace the key that unlocks managers", Args: noArgs,
		Long: "Show the key that unlocks managers while autolock is on, or replace it.\n\n" +
			"A manager that is away while the key is replaced opens with the old one or the new one when it is back, and then follows. Backups from before open with the key of their day.",
		Example: "  skep unlock-key\n  skep unlock-key -q --rotate",
		RunE: func(cmd *cobra.Command, _ []string) error {
			shown, err := a.shownUnlockKey(cmd.Context(), rotate)
			switch {
			case err != nil:
				return err
			case shown.Text == "":
				return errors.New("no unlock key is set")
			case quiet:
				a.printf("%s\n", shown.Text)
				return nil
			case rotate:
				a.printf("Successfully rotated manager unlock key.\n\n")
			}
			a.printf(unlockkey.Notice, shown.Text)
			return nil
		}}
	cmd.Flags().BoolVar(&rotate, "rotate", false, "Replace the key")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "Print only the key")
	return cmd
}

// shownUnlockKey asks for the key, which travels sealed to this process.
func (a *app) shownUnlockKey(ctx context.Context, rotate bool) (*skepv1.ShownUnlockKey, error) {
	if rotate { // what the answer is read with must be there before anything changes
		if _, err := a.ca(ctx); err != nil {
			return nil, err
		}
	}
	reader, err := seal.NewReader()
	if err != nil {
		return nil, err
	}
	defer reader.Close()
	r, err := call(ctx, a, api.AutolockKey, &skepv1.UnlockKeyRequest{Rotate: rotate, Reader: reader.Key()})
	if err == nil {
		shown := &skepv1.ShownUnlockKey{}
		ca, cerr := a.ca(ctx)
		if cerr != nil {
			return nil, cerr
		}
		if err = reader.Open(ca, r.Key, r.Sealed, shown); err == nil {
			return shown, nil
		}
		err = fmt.Errorf("read the unlock key: %w", err)
	}
	if rotate && !fault.Is(err, fault.CodeInvalid) && !fault.Is(err, fault.CodeLocked) && !fault.Is(err, fault.CodeDenied) && !errors.Is(err, rpc.ErrNobody) {
		err = plain.Errorf("%w\nThe key may have been replaced all the same: skep unlock-key shows the one in force.", err)
	}
	return nil, err
}

// lockState is what is known of autolock, nil when nobody says so at once.
func (a *app) lockState(ctx context.Context) *skepv1.AutolockState {
	ctx, cancel := context.WithTimeout(impatient(ctx), 2*time.Second)
	defer cancel()
	s, err := call(ctx, a, api.AutolockGet, &skepv1.Empty{})
	if err != nil {
		return nil
	}
	return s
}

// lockedManager finds the manager that is meant. It need not be known as locked: that is for the manager to say.
func (a *app) lockedManager(ctx context.Context, args []string) (*skepv1.ManagerLock, error) {
	if i := a.info(ctx); len(args) == 0 && i.NodeID != "" {
		return &skepv1.ManagerLock{NodeId: i.NodeID, Hostname: i.Hostname}, nil
	}
	s, err := call(ctx, a, api.AutolockGet, &skepv1.Empty{})
	if err != nil {
		return nil, err
	}
	var found []*skepv1.ManagerLock
	var names []string
	for _, m := range s.Managers {
		if len(args) == 0 && m.Locked || len(args) == 1 && (m.NodeId == args[0] || m.Hostname == args[0]) {
			found = append(found, m)
			names = append(names, m.Hostname)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1 && len(args) == 1:
		return nil, Usagef("%d managers are called %s: name one by its id", len(found), args[0])
	case len(found) > 1:
		return nil, Usagef("several managers are locked: name one of %s", strings.Join(names, ", "))
	case len(args) == 1:
		return nil, fault.NotFound("no such manager: %s", args[0])
	}
	return nil, errNotLocked
}

var errNotLocked = fault.Conflict("swarm is not locked")

// door asks a locked manager for the key to seal to.
func (a *app) door(ctx context.Context, m *skepv1.ManagerLock) (*skepv1.VaultDoor, error) {
	// A manager that is starting has not come to its vault yet.
	for began := time.Now(); ; {
		d, err := call(ctx, a, api.VaultDoor.At(m.NodeId), &skepv1.VaultDoorRequest{})
		if err == nil || !errors.Is(err, rpc.ErrNobody) {
			return d, err
		}
		known := m.Locked
		if s := a.lockState(ctx); s != nil {
			known = false
			for _, x := range s.Managers {
				known = known || x.NodeId == m.NodeId && x.Locked
			}
			if i := a.info(ctx); !known && (i.NodeID != m.NodeId || i.State != "starting") {
				return nil, errNotLocked
			}
		}
		if time.Since(began) >= a.Patience {
			if known {
				return nil, fault.Unavailable("manager %s is locked and does not answer: is it up, and does this machine reach it?", m.Hostname)
			}
			return nil, fault.Unavailable("nobody answers for the vault of this manager: is it starting, or has it lost the other managers? its log tells more")
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(retryEvery):
		}
	}
}

// readUnlockKey reads it from the terminal, without showing it, or the first line of what is piped in.
func (a *app) readUnlockKey(ctx context.Context) (unlockkey.Key, error) {
	var text []byte
	var err error
	if fd, is := terminalOf(a.In); is {
		text, err = a.askHidden(ctx, fd, "Enter unlock key: ")
	} else {
		const longest = 4 << 10
		text, err = bufio.NewReader(io.LimitReader(a.In, longest)).ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			err = nil
		}
	}
	defer clear(text)
	if err != nil {
		return unlockkey.Key{}, fmt.Errorf("read the unlock key: %w", err)
	}
	return unlockkey.Parse(string(text))
}

// unlock opens a manager: all its vaults, should it run several.
func (a *app) unlock(ctx context.Context, m *skepv1.ManagerLock, k unlockkey.Key) error {
	ca, err := a.ca(ctx)
	if err != nil {
		return err
	}
	var first *skepv1.UnlockReply
	const most = 50 // vaults, and answers that came too late
	for range most {
		d, err := call(ctx, a, api.VaultDoor.At(m.NodeId), &skepv1.VaultDoorRequest{})
		if errors.Is(err, rpc.ErrNobody) && first != nil {
			break
		}
		if err != nil {
			return err
		}
		req, err := seal.ToDoor(ca, d, m.NodeId, k.Text())
		if err != nil {
			return err
		}
		r, err := call(ctx, a, api.VaultUnlock.At(m.NodeId), req)
		switch {
		case err == nil:
			if first == nil {
				first = r
			}
		case fault.Is(err, fault.CodeConflict), errors.Is(err, rpc.ErrNobody): // it opened between the two questions, or it is another vault's door
			if first == nil {
				first = &skepv1.UnlockReply{}
			}
		default:
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(retryEvery / 4):
		}
	}
	if err := a.awaitOpen(ctx, m.NodeId); err != nil {
		return err
	}
	name := m.Hostname
	if name == "" {
		name = m.NodeId
	}
	a.printf("Manager %s unlocked.\n", name)
	if c := first.GetCurrent(); c != nil {
		a.warnf("the unlock key was replaced on %s, while this manager was away: it follows now, and the key you gave opens it no more. Keep the new one: skep unlock-key",
			c.GetMadeAt().AsTime().UTC().Format("2006-01-02 15:04:05 MST"))
	}
	return nil
}

// awaitOpen returns when the manager's vault serves, so that the next command finds it.
func (a *app) awaitOpen(ctx context.Context, node string) error {
	for began := time.Now(); ; {
		s, err := call(ctx, a, api.AutolockGet, &skepv1.Empty{})
		if err != nil && !fault.Is(err, fault.CodeUnavailable) {
			return err
		}
		for _, m := range s.GetManagers() {
			if m.NodeId == node && !m.Locked {
				return nil
			}
		}
		if time.Since(began) >= callTimeout {
			return fault.Unavailable("the key was right, but the manager's vault does not serve: its log tells more (%v)", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(retryEvery / 4):
		}
	}
}

func (a *app) completeLocked(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.completion(func(ctx context.Context) ([]string, error) {
		s, err := call(ctx, a, api.AutolockGet, &skepv1.Empty{})
		return lockedNames(s), err
	}, args)
}

// markLocked adds to the managers of a table of nodes which of them are locked.
func (a *app) markLocked(ctx context.Context, t *render.Table) {
	for _, m := range a.lockState(ctx).GetManagers() {
		for _, row := range t.Rows {
			if m.Locked && row["ID"] == m.NodeId && row["ManagerStatus"] != "" {
				row["ManagerStatus"] += " (locked)"
			}
		}
	}
}

// lockedNames are the managers that wait for the unlock key.
func lockedNames(s *skepv1.AutolockState) (names []string) {
	for _, m := range s.GetManagers() {
		if m.Locked {
			names = append(names, m.Hostname)
		}
	}
	return names
}
