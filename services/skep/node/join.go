package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/fault"
	"skep.dev/libs/join"
	"skep.dev/libs/member"
	"skep.dev/libs/pki"
	"skep.dev/services/bus"
	"skep.dev/services/skep/cli/plain"
)

func joinCommand(version string) *cobra.Command {
	var m membership
	var token string
	var witness bool
	cmd := &cobra.Command{
		Use:   "join [OPTIONS] --token TOKEN HOST:PORT",
		Short: "Make this machine a node of a cluster",
		Long: "Make this machine a node of the cluster whose manager is at HOST:PORT.\n\n" +
			"The token (see `skep join-token`) names the cluster and says whether the node becomes a worker or a manager.\n\n" +
			"With --witness and the managers' token the machine only votes: it runs a broker and no tasks, and is the third voter of a cluster\n" +
			"with two managers, which then survives the loss of either.",
		Example: "  skep join --token SKEP-1-… 192.168.56.101:2377\n  skep join --witness --token SKEP-1-… 192.168.56.101:2377",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if m.witness = witness; witness {
				if err := onlyVotes(cmd); err != nil {
					return err
				}
			}
			if err := m.check(cmd); err != nil {
				return err
			}
			if token == "" {
				return fault.Usage("A valid join token is necessary to join this cluster: add --token; a manager shows it with \"skep join-token worker\"")
			}
			if err := m.become(); err != nil {
				return err
			}
			release, err := outsider(m.paths)
			if err != nil {
				return err
			}
			defer release()
			if err := m.checkMetrics(); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), startLimit)
			defer cancel()
			rec, err := enter(ctx, &m, token, args[0], version)
			if err != nil {
				return err
			}
			m.warnForeign(cmd, rec)
			if !m.noStart {
				if err := launch(ctx, m.paths, m.logLevel); err != nil {
					return refused(cmd.Context(), m.paths, rec, err)
				}
			}
			plain.Fprintf(cmd.OutOrStdout(), "This node joined a swarm as a %s.\n", rec.Role)
			if rec.Votes() && !m.noStart {
				if n := voters(cmd.Context(), m.paths, rec); n > 0 && n%2 == 0 {
					plain.Fprintf(cmd.ErrOrStderr(), "Warning: %s\n", even(n))
				}
			}
			return nil
		},
	}
	m.add(cmd)
	cmd.Flags().StringVar(&token, "token", "", "token for entry into the cluster")
	cmd.Flags().BoolVar(&witness, "witness", false, "only vote: no tasks, no data of services, no keys (with the managers' token)")
	return cmd
}

// onlyVotes refuses what is for nodes that run tasks.
func onlyVotes(cmd *cobra.Command) error {
	for _, name := range []string{"availability", "containerd", "data-path-addr", "max-tasks"} {
		if cmd.Flags().Changed(name) {
			return fault.Usage("--%s is for nodes that run tasks, and a witness runs none: leave it out, or --witness", name)
		}
	}
	return nil
}

// voters is how many managers and witnesses there are, as this node that has just become one knows; 0 = it is not known.
func voters(ctx context.Context, p Paths, rec *Record) int {
	if rec.Role == RoleManager {
		return len(managersNow(ctx, p).GetSet().GetManagers())
	}
	place, err := bus.ReadPlace(p.Bus()) // a witness answers nobody
	if err != nil {
		return 0
	}
	return len(place.Group().GetManagers())
}

// even is what an even number of managers is worth.
func even(n int) string {
	if n == 2 {
		return "2 managers are no safer than 1: the swarm survives the loss of the second, not of the first. Add a third."
	}
	return fmt.Sprintf("%d managers survive the loss of %d, as %d do. Use an odd number.", n, (n-1)/2, n-1)
}

// refused is what a failed start of a node that has just joined comes to. A manager that the others do not let in is undone:
// nothing of it was started.
func refused(ctx context.Context, p Paths, rec *Record, err error) error {
	var failed startError
	if !errors.As(err, &failed) || !failed.refused {
		return fmt.Errorf("start the node: %w", err)
	}
	if uerr := undo(ctx, p); uerr != nil {
		return plain.Errorf("join as a manager: %w\nThis attempt is not undone: %w", err, uerr)
	}
	return plain.Errorf("join as a manager: %w\nNothing of it stays on this machine. Remove its entry on a manager before you try again: skep node rm --force %s", err, rec.NodeID)
}

// enter gets a certificate for this machine and writes what makes it a node. The record is written last.
func enter(ctx context.Context, m *membership, token, manager, version string) (*Record, error) {
	now, err := clock()
	if err != nil {
		return nil, err
	}
	host, err := workerAddr(m.advertise, manager)
	if err != nil {
		return nil, fault.Usage("%v", err)
	}
	// Which of the two it becomes, only the vault knows. What a manager could not do is said before it is one, if it can be.
	as := *m
	if l, _, err := net.SplitHostPort(m.listen); m.advertise == "" && (err != nil || l == "" || l == "0.0.0.0" || l == "::") {
		as.advertise = host
	}
	advertise, listen, found, badAddr := managerAddrs(&as)
	if as.advertise == "" && badAddr == nil {
		host = member.HostOf(advertise) // the one address it listens on
	}
	found = found || m.advertise == "" && as.advertise == host // by the way to the manager
	port, busy := freePorts(listen)
	if m.witness {
		// It can be nothing but a voter: what would keep it from being one is said before it is known to anybody.
		if err := errors.Join(badAddr, busy, metricsApart(m.metrics, port)); err != nil {
			return nil, fmt.Errorf("join as a witness: %w", err)
		}
	}
	r, err := join.Join(ctx, manager, token, join.Params{
		Witness: m.witness, Hostname: m.hostname, Addr: host, Availability: availability(m.availability), Version: version, Now: now,
	})
	if err != nil {
		return nil, err
	}
	managers := r.Reply.ManagerAddrs
	if !slices.Contains(managers, manager) && strings.Contains(manager, ":") {
		// The address that just worked comes first: an advertised one may not be reachable from here.
		managers = append([]string{manager}, managers...)
	}
	rec := &Record{
		NodeID: r.Reply.NodeId, ClusterID: r.Reply.ClusterId, Role: RoleWorker, Hostname: m.hostname, Joined: time.Now().UTC(),
		Advertise: host, AdvertiseFound: found, DataPath: m.dataPath, Managers: managers, Containerd: m.containerd, MaxTasks: m.maxTasks, MetricsAddr: m.metrics,
	}
	if m.listen != member.DefaultListen && badAddr == nil {
		rec.Listen = listen // for the day it is promoted
	}
	if r.Reply.Role == skepv1.NodeRole_NODE_ROLE_MANAGER {
		bad := errors.Join(badAddr, busy)
		if bad == nil {
			bad = metricsApart(m.metrics, port)
		}
		if bad != nil {
			return nil, fmt.Errorf("join as a manager: %w; remove the entry this attempt made with \"skep node rm --force %s\" on a manager", bad, r.Reply.NodeId)
		}
		rec.Role, rec.Advertise, rec.Listen, rec.RoutePort = RoleManager, advertise, listen, port+1
	}
	if m.witness {
		if err := isWitness(r); err != nil {
			return nil, err
		}
		rec.Role = RoleWitness
	}
	// What an attempt that died half-way left; without a record there is no membership in it.
	for _, dir := range []string{m.paths.Vault(), m.paths.Bus()} {
		if err := os.RemoveAll(dir); err != nil {
			return nil, fmt.Errorf("clear %s: %w", dir, err)
		}
	}
	if _, err := pki.Create(m.paths.Certs(), r.Cert, r.Key, r.CA); err != nil {
		return nil, err
	}
	return rec, rec.Save(m.paths)
}

// isWitness refuses what an older version gives, which knows no witnesses: a certificate that may do all that managers do.
func isWitness(r *join.Result) error {
	leaf, err := pki.ParseCertificate(r.Cert)
	if err != nil {
		return fmt.Errorf("join as a witness: %w", err)
	}
	id, err := pki.FromCertificate(leaf)
	if err != nil {
		return fmt.Errorf("join as a witness: %w", err)
	}
	if id.Role != pki.Witness {
		return fault.Conflict("join as a witness: the managers are of an older version that knows no witnesses: upgrade them first, and remove the entry this attempt made with \"skep node rm --force %s\" on a manager", r.Reply.NodeId)
	}
	return nil
}

// workerAddr is the address this machine advertises: the one named, or the one it reaches the manager from.
func workerAddr(flag, manager string) (string, error) {
	if flag != "" {
		a, err := resolveAdvertise(flag, DefaultPort)
		if err != nil {
			return "", err
		}
		host, _, err := net.SplitHostPort(a)
		return host, err
	}
	target := manager
	if _, _, err := net.SplitHostPort(target); err != nil {
		target = net.JoinHostPort(manager, join.DefaultPort)
	}
	// Connecting a UDP socket sends nothing; the kernel only picks the source address.
	c, err := net.Dial("udp", target)
	if err != nil {
		return "", nil // join says better what is wrong with the address
	}
	defer c.Close()
	host, _, err := net.SplitHostPort(c.LocalAddr().String())
	return host, err
}

// clock is this machine's, shifted by SKEP_CLOCK_OFFSET (a duration): tests join with a clock that is wrong.
func clock() (func() time.Time, error) {
	d, err := envDuration("SKEP_CLOCK_OFFSET")
	if err != nil || d == 0 {
		return time.Now, err
	}
	return func() time.Time { return time.Now().Add(d) }, nil
}

// envDuration is a duration that tests give in the environment, 0 when they do not.
func envDuration(name string) (time.Duration, error) {
	s := os.Getenv(name)
	if s == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, fault.Usage("%s: %v", name, err)
	}
	return d, nil
}
