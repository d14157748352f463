package node

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/fault"
	"skep.dev/libs/metrics"
	"skep.dev/libs/spec"
)

// placement are the flags init, join and the daemon share.
type placement struct {
	paths    Paths
	logLevel string
	// Without an init system, what the daemon is started from, and with which arguments (default: this program, node run).
	program    string
	daemonArgs []string
}

func (p *placement) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&p.paths.Data, "data-dir", DefaultPaths.Data, "where this node keeps its state")
	f.StringVar(&p.logLevel, "log-level", "info", "the daemon's log level: debug, info, warn, error")
}

// resolve is called first by every command: --run-dir is the root command's.
func (p *placement) resolve(cmd *cobra.Command) {
	p.paths.Run = DefaultPaths.Run
	if f := cmd.Flag("run-dir"); f != nil {
		p.paths.Run = f.Value.String()
	}
}

// membership are the flags init and join share.
type membership struct {
	placement
	advertise    string
	listen       string
	dataPath     string
	availability string
	containerd   string
	maxTasks     uint32
	hostname     string
	metrics      string
	noStart      bool
	owner        int  // the user id that the node's files are to belong to, 0 = root
	witness      bool // it only votes
}

func (m *membership) add(cmd *cobra.Command) {
	m.placement.add(cmd)
	f := cmd.Flags()
	f.StringVar(&m.advertise, "advertise-addr", "", "address others reach this node at (<ip|interface>[:port])")
	f.StringVar(&m.listen, "listen-addr", "0.0.0.0:2377", "address a manager listens on (<ip|interface>[:port])")
	f.StringVar(&m.dataPath, "data-path-addr", "", "address or interface for the traffic of containers (default: the advertised address)")
	f.StringVar(&m.availability, "availability", "active", `availability of the node ("active", "pause", "drain")`)
	f.StringVar(&m.containerd, "containerd", "", "socket of a containerd 2.x to use (default: the node runs one of its own)")
	f.Uint32Var(&m.maxTasks, "max-tasks", 0, "tasks this node holds at most (default: what its subnet has addresses for)")
	addMetrics(cmd, &m.metrics)
	f.BoolVar(&m.noStart, "no-start", false, "write the node's identity only, for services that are started as processes of their own")
	f.IntVar(&m.owner, "owner", 0, "with --no-start: `user` id of the manager's services where these do not run as root; the node's files are its")
	f.StringVar(&m.hostname, "node-name", "", "name of the node (default: the host name)")
	if err := f.MarkHidden("node-name"); err != nil {
		panic(err) // the flag was added two lines above
	}
}

func addMetrics(cmd *cobra.Command, addr *string) {
	cmd.Flags().StringVar(addr, "metrics-addr", "", "serve metrics for Prometheus at this address (HOST:PORT, default: nowhere)")
}

// check resolves what can be wrong before anything is touched.
func (m *membership) check(cmd *cobra.Command) error {
	m.resolve(cmd)
	switch strings.ToLower(m.availability) {
	case "active", "pause", "drain":
	default:
		return fault.Usage("invalid availability %q, only active, pause and drain are supported", m.availability)
	}
	if os.Geteuid() != 0 && !m.witness {
		return fault.Denied("a node runs containers: run this as root")
	}
	if m.hostname == "" {
		h, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("read the host name: %w", err)
		}
		m.hostname = h
	}
	switch {
	case m.owner < 0:
		return fault.Usage("--owner %d: give the number of a user", m.owner)
	case m.owner != 0 && !m.noStart:
		return fault.Usage("--owner is for services that are started as processes of their own: give --no-start too")
	}
	var err error
	if m.dataPath, err = resolveDataPath(m.dataPath); err != nil {
		return fault.Usage("%v", err)
	}
	return nil
}

// checkMetrics refuses an address metrics cannot be served at.
func (m *membership) checkMetrics() error {
	if m.metrics == "" {
		return nil
	}
	return fault.AsUsage(metrics.Check(m.metrics))
}

func availability(s string) skepv1.Availability {
	return skepv1.Availability(skepv1.Availability_value["AVAILABILITY_"+strings.ToUpper(s)])
}

// clusterFlags are those of the cluster's own settings at init.
type clusterFlags struct {
	pools      []string
	maskLength uint32
	history    int64
	heartbeat  time.Duration
	certExpiry time.Duration
	dataPort   uint32
	nodePool   string
	nodeMask   uint32
	autolock   bool
	fence      string

	caCert, caKey string // files
}

func (c *clusterFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringSliceVar(&c.pools, "default-addr-pool", []string{spec.DefaultAddrPool}, "pools overlay networks are cut from (CIDR)")
	f.Uint32Var(&c.maskLength, "default-addr-pool-mask-length", spec.DefaultSubnetSize, "mask length of a network cut from a pool")
	f.Int64Var(&c.history, "task-history-limit", spec.DefaultTaskHistory, "tasks kept per slot; negative keeps all")
	f.DurationVar(&c.heartbeat, "dispatcher-heartbeat", spec.DefaultHeartbeat, "period of the nodes' heartbeats (ns|us|ms|s|m|h)")
	f.DurationVar(&c.certExpiry, "cert-expiry", spec.DefaultCertExpiry, "validity of node certificates (ns|us|ms|s|m|h)")
	f.StringVar(&c.caCert, "ca-cert", "", "file with a root certificate of your own (PEM)")
	f.StringVar(&c.caKey, "ca-key", "", "file with its ECDSA key (PEM), which nobody else may read")
	f.Uint32Var(&c.dataPort, "data-path-port", spec.DefaultDataPathPort, "UDP port of the traffic between containers (1024-49151)")
	f.StringVar(&c.nodePool, "node-subnet-pool", spec.DefaultNodeSubnetPool, "pool the nodes' own container subnets are cut from (CIDR)")
	f.Uint32Var(&c.nodeMask, "node-subnet-mask-length", spec.DefaultNodeSubnetSize, "mask length of a node's container subnet")
	f.StringVar(&c.fence, "fence-cmd", "", "program on every manager, run as root with a node's name, that cuts off a node that is down and holds volumes")
	f.BoolVar(&c.autolock, "autolock", false, "require an unlock key before a manager that was restarted gives out secrets")
}

func (c *clusterFlags) spec() (*skepv1.ClusterSpec, error) {
	s := &skepv1.ClusterSpec{
		Name: "default", TaskHistoryLimit: c.history, HeartbeatPeriod: durationpb.New(c.heartbeat),
		NodeCertExpiry: durationpb.New(c.certExpiry), DefaultAddrPools: c.pools, SubnetSize: c.maskLength,
		DataPathPort: c.dataPort, NodeSubnetPool: c.nodePool, NodeSubnetSize: c.nodeMask, Autolock: c.autolock,
		FenceCommand: c.fence,
	}
	spec.ClusterDefaults(s)
	return s, fault.AsUsage(spec.ValidateCluster(s))
}
