package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/fault"
	"skep.dev/libs/member"
	"skep.dev/libs/pki"
	"skep.dev/libs/unlockkey"
	vault "skep.dev/services/secrets-vault"
	"skep.dev/services/skep/cli/plain"
)

// startLimit bounds how long init and join wait for the daemon.
const startLimit = 60 * time.Second

func initCommand() *cobra.Command {
	var m membership
	var c clusterFlags
	var anew bool
	cmd := &cobra.Command{
		Use:   "init [OPTIONS]",
		Short: "Start a cluster with this machine as its first manager",
		Long: "Start a cluster with this machine as its first manager.\n\n" +
			"Makes the cluster's certificate authority, starts this node's daemon and prints the command\n" +
			"with which other machines join.",
		Example: "  skep init\n  skep init --advertise-addr 192.168.56.101",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if anew {
				return refoundCommand(cmd, &m)
			}
			if err := m.check(cmd); err != nil {
				return err
			}
			cs, err := c.spec()
			if err != nil {
				return err
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
			own, err := c.ownRoot()
			if err != nil {
				return err
			}
			rec, boot, err := found(&m, cs, own)
			if err != nil {
				return err
			}
			m.warnForeign(cmd, rec)
			token := boot.WorkerToken
			ctx, cancel := context.WithTimeout(cmd.Context(), startLimit)
			defer cancel()
			if !m.noStart {
				err := launch(ctx, m.paths, m.logLevel)
				if err == nil && cs.Autolock {
					err = firstUnlock(ctx, m.paths, rec.NodeID, boot)
				}
				if err != nil && cs.Autolock {
					// The node is made, and nobody else knows its key.
					plain.Fprintf(cmd.OutOrStdout(), unlockkey.Notice, boot.UnlockKey)
				}
				if err != nil {
					return fmt.Errorf("start the node: %w", err)
				}
			}
			plain.Fprintf(cmd.OutOrStdout(), "Swarm initialized: current node (%s) is now a manager.\n\n"+
				"To add a worker to this swarm, run the following command:\n\n    skep join --token %s %s\n\n"+
				"To add a manager to this swarm, run 'skep join-token manager' and follow the instructions.\n",
				rec.NodeID, token, rec.Advertise)
			if cs.Autolock {
				plain.Fprintf(cmd.OutOrStdout(), "\n")
				plain.Fprintf(cmd.OutOrStdout(), unlockkey.Notice, boot.UnlockKey)
				if m.noStart {
					plain.Fprintf(cmd.OutOrStdout(), "Its first start waits for the key as well.\n")
				}
			}
			return nil
		},
	}
	m.add(cmd)
	c.add(cmd)
	cmd.Flags().BoolVar(&anew, "force-new-cluster", false, "on a manager that survived: make it the only one of its cluster, with all its data, after the majority of the managers was lost for good")
	return cmd
}

// ownRoot is a root certificate and its key, nil for one that is to be made.
type ownRoot struct{ cert, key []byte }

// ownRoot reads the files of a root of one's own, and refuses what the cluster could not work with before anything is made.
func (c *clusterFlags) ownRoot() (own ownRoot, err error) {
	if c.caCert == "" && c.caKey == "" {
		return own, nil
	}
	if own.cert, own.key, err = pki.ReadOwnCA(c.caCert, c.caKey); err != nil {
		err = fault.Usage("%v", err)
	}
	return own, err
}

// outsider refuses a machine that is a node already, or about to become one by another process. Until release nobody
// else can make it one.
func outsider(p Paths) (release func(), err error) {
	if release, err = member.HoldSetup(p); err != nil {
		return nil, fault.Conflict("%v", err)
	}
	_, err = Load(p)
	if errors.Is(err, ErrNoNode) {
		return release, nil
	}
	release()
	if err == nil {
		err = fault.Conflict("This node is already part of a swarm. Use \"skep leave\" to leave this swarm and join another one.")
	}
	return nil, err
}

// found makes the cluster's authority and this node's identity on disk and returns what was made. The record is written last: before it there
// is no membership, and an attempt that died half-way is simply made again.
func found(m *membership, cs *skepv1.ClusterSpec, own ownRoot) (rec *Record, boot *vault.Bootstrapped, err error) {
	place, err := newManager(m)
	if err != nil {
		return nil, nil, err
	}
	spec, err := protojson.Marshal(cs)
	if err != nil {
		return nil, nil, err
	}
	boot, err = vault.Bootstrap(vault.BootstrapParams{
		Dir: m.paths.Vault(), Hosts: []string{member.HostOf(place.advertise)}, Expiry: cs.NodeCertExpiry.AsDuration(), Autolock: cs.Autolock, OwnCert: own.cert, OwnKey: own.key,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("make the cluster's authority: %w", err)
	}
	if _, err := pki.Create(m.paths.Certs(), boot.Cert, boot.Key, boot.CA); err != nil {
		return nil, nil, err
	}
	rec = place.record(m, boot, &Initial{Cluster: spec, CADigest: boot.CADigest, Availability: strings.ToUpper(m.availability)})
	return rec, boot, rec.Save(m.paths)
}

// managerAddrs resolves where a manager listens and how others reach it. A listen address of one interface is the
// advertised one too unless another is named; found: neither was given.
func managerAddrs(m *membership) (advertise, listen string, found bool, err error) {
	if listen, err = resolveListen(m.listen); err != nil {
		return "", "", false, fault.Usage("%v", err)
	}
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return "", "", false, err
	}
	p, err := strconv.Atoi(port)
	if err != nil {
		return "", "", false, err
	}
	want := m.advertise
	if want == "" && !net.ParseIP(host).IsUnspecified() {
		want = host
	}
	if advertise, err = resolveAdvertise(want, p); err != nil {
		return "", "", false, fault.Usage("%v", err)
	}
	return advertise, listen, want == "", nil
}

// freePorts refuses a listen address whose port, or the next one (for other managers), is taken, before anything is made.
func freePorts(listen string) (port int, err error) {
	host, p, err := net.SplitHostPort(listen)
	if err != nil {
		return 0, fault.Usage("listen address %q: %v", listen, err)
	}
	if port, err = strconv.Atoi(p); err != nil {
		return 0, fault.Usage("listen address %q: %v", listen, err)
	}
	for _, n := range []int{port, port + 1} {
		if err := member.Free(net.JoinHostPort(host, strconv.Itoa(n))); err != nil {
			return port, fault.Conflict("%v; is another skep or Docker swarm running here? Choose another with --listen-addr", err)
		}
	}
	return port, nil
}

// metricsApart refuses to serve metrics on a manager's ports.
func metricsApart(metrics string, port int) error {
	if _, p, err := net.SplitHostPort(metrics); err == nil && (p == strconv.Itoa(port) || p == strconv.Itoa(port+1)) {
		return fault.Usage("metrics address %q: port %s is for the nodes: name another with --metrics-addr", metrics, p)
	}
	return nil
}
