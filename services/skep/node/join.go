package node

import (
	"context"
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
	"skep.dev/libs/pki"
	"skep.dev/services/skep/cli/plain"
)

func joinCommand(version string) *cobra.Command {
	var m membership
	var token string
	cmd := &cobra.Command{
		Use:   "join [OPTIONS] --token TOKEN HOST:PORT",
		Short: "Make this machine a node of a cluster",
		Long: "Make this machine a node of the cluster whose manager is at HOST:PORT.\n\n" +
			"The token (see `skep join-token`) names the cluster and says whether the node becomes a worker or a manager.",
		Example: "  skep join --token SKEP-1-… 192.168.56.101:2377",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := m.check(cmd); err != nil {
				return err
			}
			if token == "" {
				return fault.Invalid("A valid join token is necessary to join this cluster: add --token; a manager shows it with \"skep join-token worker\"")
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
			if !m.noStart {
				if err := launch(ctx, m.paths, m.logLevel); err != nil {
					return fmt.Errorf("start the node: %w", err)
				}
			}
			plain.Fprintf(cmd.OutOrStdout(), "This node joined a swarm as a %s.\n", rec.Role)
			return nil
		},
	}
	m.add(cmd)
	cmd.Flags().StringVar(&token, "token", "", "token for entry into the cluster")
	return cmd
}

// enter gets a certificate for this machine and writes what makes it a node. The record is written last.
func enter(ctx context.Context, m *membership, token, manager, version string) (*Record, error) {
	now, err := clock()
	if err != nil {
		return nil, err
	}
	advertise, err := workerAddr(m.advertise, manager)
	if err != nil {
		return nil, fault.Invalid("%v", err)
	}
	r, err := join.Join(ctx, manager, token, join.Params{
		Hostname: m.hostname, Addr: advertise, Availability: availability(m.availability), Version: version, Now: now,
	})
	if err != nil {
		return nil, err
	}
	if r.Reply.Role == skepv1.NodeRole_NODE_ROLE_MANAGER {
		return nil, fault.Invalid("join: this version runs one manager; join as a worker with the token of \"skep join-token worker\", and remove the entry this attempt made with \"skep node rm --force %s\"", r.Reply.NodeId)
	}
	if _, err := pki.Create(m.paths.Certs(), r.Cert, r.Key, r.CA); err != nil {
		return nil, err
	}
	managers := r.Reply.ManagerAddrs
	if !slices.Contains(managers, manager) && strings.Contains(manager, ":") {
		// The address that just worked comes first: an advertised one may not be reachable from here.
		managers = append([]string{manager}, managers...)
	}
	rec := &Record{
		NodeID: r.Reply.NodeId, ClusterID: r.Reply.ClusterId, Role: RoleWorker, Hostname: m.hostname, Joined: time.Now().UTC(),
		Advertise: advertise, DataPath: m.dataPath, Managers: managers, Containerd: m.containerd, MaxTasks: m.maxTasks, MetricsAddr: m.metrics,
	}
	return rec, rec.Save(m.paths)
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
		return 0, fault.Invalid("%s: %v", name, err)
	}
	return d, nil
}
