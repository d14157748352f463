package node

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/member"
	"skep.dev/libs/pki"
	"skep.dev/libs/subject"
	"skep.dev/libs/unlockkey"
	"skep.dev/services/bus"
	"skep.dev/services/skep/cli/conn"
	"skep.dev/services/skep/cli/plain"
)

const (
	// refoundLimit bounds how long the command waits: under a minute is usual.
	refoundLimit = 5 * time.Minute
	// majorityFor bounds looking for the other managers.
	majorityFor = 3 * time.Second
)

// refoundCommand founds the cluster of this manager anew: `skep init --force-new-cluster`. The node's broker does the work
// (services/bus/refound.go), in whichever form the node runs; this asks for it and tells how far it is. Interrupted, it is
// asked for again.
func refoundCommand(cmd *cobra.Command, m *membership) error {
	m.resolve(cmd)
	if os.Geteuid() != 0 {
		return fault.Denied("a node runs containers: run this as root")
	}
	p, out := m.paths, cmd.OutOrStdout()
	release, err := member.HoldSetup(p)
	if err != nil {
		return fault.Conflict("%v", err)
	}
	defer release()
	ctx, cancel := context.WithTimeout(cmd.Context(), refoundLimit)
	defer cancel()

	rec, err := survivor(p)
	if err != nil {
		return err
	}
	asked, err := bus.ReadRefounding(p.Bus())
	if err != nil {
		return err
	}
	if asked == nil {
		if err := mayRefound(ctx, p, rec); err != nil {
			return err
		}
	}
	key, locked := "", sealed(p)
	if locked {
		if key, err = askUnlockKey(cmd); err != nil {
			return err
		}
	}
	if m.advertise != "" {
		if err := readdress(p, m); err != nil {
			return err
		}
	}
	if asked, err = bus.AskRefound(p.Bus()); err != nil {
		return fault.Conflict("found the cluster anew: %v", err)
	}
	tellLost(out, rec, asked)
	began := time.Now()
	done, err := carryOut(ctx, out, m, asked)
	if err != nil {
		return plain.Errorf("found the cluster anew: %w\nIt goes on whenever this node's broker starts; the same command shows how far it is.", err)
	}
	plain.Fprintf(out, "\nThe cluster was founded anew in %s: current node (%s) is now its only manager.\n", time.Since(began).Round(time.Second), rec.NodeID)
	tellAfter(out, done)
	if !locked {
		return nil
	}
	if key == "" {
		plain.Fprintf(out, "This manager is locked: unlock it with 'skep unlock'.\n")
		return nil
	}
	if err := unlockWith(ctx, p, rec.NodeID, key); err != nil {
		return plain.Errorf("the cluster is founded anew, and this manager is locked: %w\nUnlock it with \"skep unlock\".", err)
	}
	plain.Fprintf(out, "This manager was unlocked.\n")
	return nil
}

// survivor is the record of a manager.
func survivor(p Paths) (*Record, error) {
	rec, err := Load(p)
	switch {
	case errors.Is(err, ErrNoNode):
		return nil, fault.Conflict("This node is not part of a swarm, so there is nothing to found anew: --force-new-cluster is for a manager that survived the others.")
	case err != nil:
		return nil, err
	case rec.Role == RoleWitness:
		return nil, fault.Conflict("This node is a witness. It has a copy of the cluster's records, and not the key that opens the cluster's CA and secrets: no cluster can be run from it. " +
			"Run \"skep init --force-new-cluster\" on a manager that survived; where none did, restore a backup (skep backup restore) and let this machine join anew (skep leave --force, then skep join --witness).")
	case rec.Role != RoleManager:
		return nil, fault.Conflict("This node is a worker and has no copy of the cluster's data. Run \"skep init --force-new-cluster\" on a manager that survived; this node follows by itself.")
	}
	return rec, nil
}

// mayRefound refuses while there is a majority: by the word of this node's own broker, or of another manager's.
func mayRefound(ctx context.Context, p Paths, rec *Record) error {
	place, err := bus.ReadPlace(p.Bus())
	if err != nil {
		return err
	}
	epoch := uint64(0)
	if place != nil {
		epoch = place.Epoch
	}
	list := askLocally(ctx, p)
	if list == nil || !majority(list) {
		var newer *skepv1.ListManagersReply
		for _, l := range askOthers(ctx, p, rec, place) {
			switch e := l.GetSet().GetEpoch(); {
			case e > epoch:
				newer = l
			case e == epoch && majority(l):
				list = l
			}
		}
		if newer != nil {
			return fault.Conflict("The cluster was founded anew already, without this node: its managers are %s. Take this node out with \"skep leave --force\" and let it join that cluster again.", strings.Join(present(newer), ", "))
		}
	}
	if list != nil && majority(list) {
		names := present(list)
		if len(list.GetSet().GetManagers()) <= 1 {
			return fault.Conflict("This node is the cluster's only manager and it works: there is nothing to found anew.")
		}
		return fault.Conflict("The managers have a majority (%s): there is nothing to found anew. A manager that is lost for good is taken out with \"skep node rm --force NODE\".", strings.Join(names, ", "))
	}
	return nil
}

// majority reports whether a manager's answer says that the group works: a leader alone may be one of a moment ago.
func majority(l *skepv1.ListManagersReply) bool {
	return l.GetLed() && l.GetPresent() > l.GetVoters()/2
}

// present names the managers that were heard of.
func present(l *skepv1.ListManagersReply) (names []string) {
	for _, v := range l.GetViews() {
		if !v.GetReachable() {
			continue
		}
		for _, m := range l.GetSet().GetManagers() {
			if m.GetNodeId() == v.GetNodeId() {
				names = append(names, fmt.Sprintf("%s at %s", m.GetHostname(), m.GetAddr()))
			}
		}
	}
	return names
}

// askLocally asks the broker of this machine, nil when none answers.
func askLocally(ctx context.Context, p Paths) *skepv1.ListManagersReply {
	ctx, cancel := context.WithTimeout(ctx, majorityFor)
	defer cancel()
	nc, err := conn.Dial(ctx, conn.Options{RunDir: p.Run, DataDir: p.Data, Timeout: majorityFor})
	if err != nil {
		return nil
	}
	defer nc.Close()
	l, err := api.Call(ctx, nc, api.ManagerList, &skepv1.Empty{})
	if err != nil {
		return nil
	}
	return l
}

// askOthers asks every other manager that this node knows of; those that do not answer are left out.
func askOthers(ctx context.Context, p Paths, rec *Record, place *bus.Place) (out []*skepv1.ListManagersReply) {
	store, err := pki.Open(p.Certs())
	if err != nil {
		return nil
	}
	addrs := slices.Clone(rec.Managers)
	for _, m := range place.Group().GetManagers() {
		if a := m.GetAddr(); a != "" && a != rec.Advertise && !slices.Contains(addrs, a) {
			addrs = append(addrs, a)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, majorityFor)
	defer cancel()
	answers := make(chan *skepv1.ListManagersReply, len(addrs))
	for _, a := range addrs {
		go func() {
			nc, err := nats.Connect("tls://"+a, nats.Secure(pki.ClientTLS(store)), nats.TLSHandshakeFirst(), nats.NoReconnect(),
				nats.Timeout(majorityFor), nats.CustomInboxPrefix(subject.Inbox("bus-"+rec.NodeID)))
			if err != nil {
				answers <- nil
				return
			}
			defer nc.Close()
			l, err := api.Call(ctx, nc, api.ManagerList, &skepv1.Empty{})
			if err != nil {
				l = nil
			}
			answers <- l
		}()
	}
	for range addrs {
		if l := <-answers; l != nil {
			out = append(out, l)
		}
	}
	return out
}

// readdress gives this manager another address at the same time.
func readdress(p Paths, m *membership) error {
	advertise, _, found, err := managerAddrs(m)
	if err != nil {
		return err
	}
	_, err = member.Update(p, func(r *Record) { r.Advertise, r.AdvertiseFound = advertise, found })
	return err
}

// carryOut has the node's broker do it, and tells each stage. A node that does not run is started.
func carryOut(ctx context.Context, out io.Writer, m *membership, asked *bus.Refounding) (*bus.Refounding, error) {
	p := m.paths
	started := make(chan error, 1)
	switch _, err := Running(ctx, p); {
	case err == nil:
	case len(member.Holders(p)) > 0 || m.noStart:
		if !slices.ContainsFunc(member.Holders(p), func(h string) bool { return strings.HasPrefix(h, "skep-bus ") }) {
			plain.Fprintf(out, "Start skep-bus on this node: it does the work.\n")
		}
	default:
		go func() {
			if err := launch(ctx, p, m.logLevel); err != nil {
				started <- fmt.Errorf("start the node: %w", err)
			}
		}()
	}
	last, said := asked, ""
	t := time.NewTicker(100 * time.Millisecond)
	defer t.Stop()
	for {
		now, err := bus.ReadRefounding(p.Bus())
		switch {
		case err != nil:
			return nil, err
		case now == nil:
			return last, nil
		case now.Stage != said:
			said = now.Stage
			plain.Fprintf(out, "  %s\n", said)
		}
		last = now
		select {
		case <-t.C:
		case err := <-started:
			return nil, err
		case <-ctx.Done():
			return nil, fmt.Errorf("%s: %w; see %s", said, ctx.Err(), p.Log())
		}
	}
}

func tellLost(out io.Writer, rec *Record, r *bus.Refounding) {
	plain.Fprintf(out, "Founding the cluster anew: this node (%s) becomes its only manager, with its copy of the data.\n", rec.NodeID)
	for _, l := range r.Lost {
		plain.Fprintf(out, "Lost for good: manager %s (%s at %s).\n", l.Hostname, l.NodeID, l.Addr)
	}
	if r.Partial {
		plain.Fprintf(out, "This manager was still joining when the others were lost: its copy may lack whole records.\n")
	}
	plain.Fprintf(out, "It takes up to a minute. Containers run on.\n")
}

func tellAfter(out io.Writer, r *bus.Refounding) {
	if !r.Newest.IsZero() {
		plain.Fprintf(out, "Its data goes up to %s. What the lost managers acknowledged after that is lost.\n", r.Newest.UTC().Format("2006-01-02 15:04:05 MST"))
	}
	if len(r.Lost) > 0 {
		plain.Fprintf(out, "\nThe lost managers are workers now, and down. One that returns serves nothing and becomes a worker by itself; one that\n"+
			"never will is removed with 'skep node rm NODE'.\n")
	}
	plain.Fprintf(out, "\nTo add a manager to this swarm, run 'skep join-token manager' and follow the instructions.\n")
}

// sealed reports whether this manager's master key rests under the unlock key alone.
func sealed(p Paths) bool {
	_, clear := os.Stat(filepath.Join(p.Vault(), "master.key"))
	_, under := os.Stat(filepath.Join(p.Vault(), "master.sealed"))
	return under == nil && clear != nil
}

// askUnlockKey reads the key from the terminal, without showing it, or the first line of what is piped in. Without one, ""
// is good: the manager stays locked.
func askUnlockKey(cmd *cobra.Command) (string, error) {
	var text []byte
	var err error
	in := cmd.InOrStdin()
	if f, ok := in.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		plain.Fprintf(cmd.ErrOrStderr(), "This manager is locked. Enter unlock key (empty: unlock it later): ")
		text, err = term.ReadPassword(int(f.Fd()))
		plain.Fprintf(cmd.ErrOrStderr(), "\n")
	} else {
		text, err = bufio.NewReader(io.LimitReader(in, 4<<10)).ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			err = nil
		}
	}
	defer clear(text)
	key := strings.TrimSpace(string(text))
	if err != nil || key == "" {
		return "", err
	}
	if _, err := unlockkey.Parse(key); err != nil {
		return "", fault.Invalid("%v", err)
	}
	return key, nil
}
