package spec

import (
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"skep.dev/libs/fault"
	"skep.dev/libs/printable"
	skepv1 "skep.dev/proto/skep/v1"
)

// The defaults and limits of a cluster. The heartbeat is faster than Swarm's 5 s: losing a node must cost seconds.
const (
	DefaultTaskHistory    = 5
	DefaultHeartbeat      = time.Second
	DefaultCertExpiry     = 90 * 24 * time.Hour
	MinCertExpiry         = time.Hour
	DefaultAddrPool       = "10.0.0.0/8"
	DefaultSubnetSize     = 20 // Swarm's /24 is full at some 250 tasks
	MaxSubnetSize         = 29
	DefaultDataPathPort   = 4789
	DefaultNodeSubnetPool = "100.64.0.0/10"
	DefaultNodeSubnetSize = 23
	// MinHeartbeat keeps a slip (1ms for 1s) from melting the managers.
	MinHeartbeat = 100 * time.Millisecond
)

// ClusterDefaults fills in a new cluster's spec. A task history limit of 0 is taken as unset only when the heartbeat
// is unset too: a client that fills the form in means 0.
func ClusterDefaults(c *skepv1.ClusterSpec) {
	if c.Name == "" {
		c.Name = "default"
	}
	if c.HeartbeatPeriod.AsDuration() == 0 {
		if c.HeartbeatPeriod == nil && c.TaskHistoryLimit == 0 {
			c.TaskHistoryLimit = DefaultTaskHistory
		}
		c.HeartbeatPeriod = durationpb.New(DefaultHeartbeat)
	}
	if c.NodeCertExpiry.AsDuration() == 0 {
		c.NodeCertExpiry = durationpb.New(DefaultCertExpiry)
	}
	if len(c.DefaultAddrPools) == 0 {
		c.DefaultAddrPools = []string{DefaultAddrPool}
	}
	if c.SubnetSize == 0 {
		c.SubnetSize = DefaultSubnetSize
	}
	if c.DataPathPort == 0 {
		c.DataPathPort = DefaultDataPathPort
	}
	if c.NodeSubnetPool == "" {
		c.NodeSubnetPool = DefaultNodeSubnetPool
	}
	if c.NodeSubnetSize == 0 {
		c.NodeSubnetSize = DefaultNodeSubnetSize
	}
	if c.Backups != nil && c.Backups.Keep == 0 {
		c.Backups.Keep = DefaultBackupKeep
	}
}

// ValidateCluster checks a cluster's spec after ClusterDefaults.
func ValidateCluster(c *skepv1.ClusterSpec) error {
	if c == nil {
		return fault.Invalid("cluster spec is missing")
	}
	if c.Name != "" && c.Name != "default" {
		return fault.Invalid("swarm spec must be named \"default\"")
	}
	hb := c.HeartbeatPeriod.AsDuration()
	switch {
	case hb < 0:
		return fault.Invalid("heartbeat time period cannot be a negative duration")
	case hb != 0 && hb < MinHeartbeat:
		return fault.Invalid("dispatcher-heartbeat %s is too short: use %s or more", hb, MinHeartbeat)
	case hb > 10*time.Minute:
		return fault.Invalid("dispatcher-heartbeat %s is too long: use 10m or less", hb)
	}
	if c.NodeCertExpiry != nil && c.NodeCertExpiry.AsDuration() < MinCertExpiry {
		return fault.Invalid("minimum certificate expiry time is: %s", MinCertExpiry)
	}
	if c.DataPathPort != 0 && (c.DataPathPort < 1024 || c.DataPathPort > 49151) {
		return fault.Invalid("Datapath port number is not in valid range (1024-49151) : %d", c.DataPathPort)
	}
	if err := validateFence(c.FenceCommand); err != nil {
		return err
	}
	if err := validateBackups(c.Backups); err != nil {
		return err
	}
	return validatePools(c)
}

// validateFence checks the program that cuts a node off. It is run as it stands, without a shell.
func validateFence(p string) error {
	switch {
	case p == "":
	case len(p) > 4096 || !filepath.IsAbs(p) || filepath.Clean(p) != p || strings.ContainsFunc(p, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return fault.Invalid("invalid fencing command %q: use the absolute path of a program that every manager has, without arguments", printable.Cut(p, 256))
	}
	return nil
}

func validatePools(c *skepv1.ClusterSpec) error {
	if c.SubnetSize > MaxSubnetSize {
		return fault.Invalid("subnet size is out of range: %d", c.SubnetSize)
	}
	var pools []netip.Prefix
	for _, s := range c.DefaultAddrPools {
		p, err := pool("default-addr-pool", s)
		if err != nil {
			return err
		}
		if int(c.SubnetSize) < p.Bits() {
			return fault.Invalid("invalid CIDR: %q. Subnet size is too small for pool: %d", s, c.SubnetSize)
		}
		for _, o := range pools {
			if o.Overlaps(p) {
				return fault.Invalid("default-addr-pool %s overlaps %s: use pools apart from one another", p, o)
			}
		}
		pools = append(pools, p)
	}
	if c.NodeSubnetPool == "" {
		return nil
	}
	p, err := pool("node-subnet-pool", c.NodeSubnetPool)
	if err != nil {
		return err
	}
	if int(c.NodeSubnetSize) <= p.Bits() || c.NodeSubnetSize > 28 {
		return fault.Invalid("node-subnet-size %d does not fit pool %s: use %d to 28", c.NodeSubnetSize, p, p.Bits()+1)
	}
	for _, o := range pools {
		if o.Overlaps(p) {
			return fault.Invalid("node-subnet-pool %s overlaps default-addr-pool %s: use pools apart from one another", p, o)
		}
	}
	return nil
}

func pool(field, s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil || !p.Addr().Is4() {
		return p, fault.Invalid("invalid %s %q: use an IPv4 CIDR such as 10.0.0.0/8", field, s)
	}
	if p != p.Masked() {
		return p, fault.Invalid("invalid %s %q: the address has host bits, use %s", field, s, p.Masked())
	}
	return p, nil
}
