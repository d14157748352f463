package bus

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"skep.dev/libs/pki"
)

// DefaultListen is where a manager listens for nodes; routes between managers use the next port.
const DefaultListen = "0.0.0.0:2377"

// Config is everything a bus needs; nothing is global.
type Config struct {
	// NodeID is this manager's id, as its certificate has it.
	NodeID string
	// Name is the server's name in the JetStream group, unique for ever: a manager that was removed and returns needs
	// another one and an empty DataDir. Default: NodeID.
	Name string
	// DataDir holds main/ and witness/.
	DataDir string
	// Listen is the address for nodes, host:port (DefaultListen).
	Listen string
	// Advertise is how others reach Listen, host:port.
	Advertise string
	// RoutePort is where other managers connect, on the same addresses (default: the port of Listen plus one).
	RoutePort int
	// TLS is the manager's certificate; renewals are picked up.
	TLS *pki.Store `json:"-"`
	// Cluster is the name of the NATS cluster (default "skep").
	Cluster string
	// Routes are the route addresses (host:port) of the other managers; empty when this one is alone.
	Routes []string
	// Alone: the group is founded anew with this server. No other manager gets a route, whatever Routes says.
	Alone bool
	// Witness names the witness to run, "" for none: one while there are one or two managers. The name outlives a lost
	// store; after SERVER.REMOVE it must never be used again.
	Witness string
	// The rest of the group is Manager's (group.go); a Bus alone goes by Name, Routes and Witness.

	// Found lets this start found the group: only the first start of `skep init` may.
	Found bool
	// Told are route addresses of other managers beside those of the group as this one knows it: they all have moved.
	Told []string
	// Managers are the client addresses (host:port) of managers, which a node without a place in the group asks for one.
	Managers []string
	// Hostname and Version are told to the other managers.
	Hostname, Version string
	// Bare: nothing else of a manager runs here. Its certificate says so; whatever this says is replaced.
	Bare bool
	// Revoked reports whether a node was removed from the cluster. It is asked on every connection of a node (not of a
	// user) and must not block. Call Sweep when its answers change other than by Disconnect.
	Revoked func(nodeID string) bool `json:"-"`
	// Peer reports whether a node is a manager of the group by what was last known of it, while the list of nodes was not read
	// from the store yet: to read it takes a majority, and that takes routes to managers that may have come since the list was
	// written.
	Peer func(nodeID string) bool `json:"-"`
	// RevokedUser reports whether a user's certificate was revoked, by pki.Serial. It is asked on every connection of a user
	// and must not block. Call SweepUsers when its answers change.
	RevokedUser func(serial string) bool `json:"-"`
	// MaxStore bounds the disk JetStream may use (default 20 GiB).
	MaxStore int64
	// MaxConn bounds client connections (default 65,536).
	MaxConn int
	// RetireAfter is how long deletions stay marked in the store (default kv.RetireAfter).
	RetireAfter time.Duration
	Log         *zap.Logger `json:"-"`
	// Metrics is where the broker shows what it does, nil = nowhere.
	Metrics prometheus.Registerer `json:"-"`
}

func (c *Config) complete() error {
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	switch {
	case c.NodeID == "":
		return errors.New("configure the bus: the node id is missing")
	case c.DataDir == "":
		return errors.New("configure the bus: the data directory is missing")
	case c.TLS == nil:
		return errors.New("configure the bus: the certificate is missing")
	}
	id := c.TLS.Identity()
	if id.Role != pki.Manager && id.Role != pki.Witness || id.NodeID != c.NodeID {
		return fmt.Errorf("configure the bus: the certificate is of %s %s, not of manager %s", id.Role, id.NodeID, c.NodeID)
	}
	if c.Bare = id.Role == pki.Witness; c.Bare && c.Found {
		return errors.New("configure the bus: a witness founds no group: it has nothing of a cluster but votes")
	}
	if c.Name == "" {
		c.Name = c.NodeID
	}
	if c.Witness == c.Name {
		return fmt.Errorf("configure the bus: the witness must not have the server's name %s", c.Name)
	}
	if c.Listen == "" {
		c.Listen = DefaultListen
	}
	_, port, err := splitAddr(c.Listen)
	if err != nil {
		return fmt.Errorf("configure the bus: listen address: %w", err)
	}
	if c.RoutePort == 0 && port > 0 {
		c.RoutePort = port + 1
	}
	if c.RoutePort <= 0 || c.RoutePort > 65535 {
		return fmt.Errorf("configure the bus: route port %d is not a port; give one", c.RoutePort)
	}
	host, _, err := splitAddr(c.Advertise)
	if err != nil {
		return fmt.Errorf("configure the bus: advertise address: %w", err)
	}
	ip := net.ParseIP(host)
	if host == "" || ip != nil && ip.IsUnspecified() {
		return fmt.Errorf("configure the bus: advertise address %q names no host others could dial", c.Advertise)
	}
	if at, _, err := splitAddr(c.Listen); err == nil && at == "0.0.0.0" && ip != nil && ip.To4() == nil {
		// At every address, and that is of IPv4 alone where it is said so; this one also hears IPv4.
		c.Listen = net.JoinHostPort("::", strconv.Itoa(port))
	}
	if c.Cluster == "" {
		c.Cluster = "skep"
	}
	if c.MaxStore == 0 {
		c.MaxStore = 20 << 30
	}
	if c.MaxConn == 0 {
		c.MaxConn = 64 << 10
	}
	return nil
}

// RouteAddr is what another manager lists in its Routes to reach this one.
func (c Config) RouteAddr() string {
	host, _, err := net.SplitHostPort(c.Advertise)
	if err != nil {
		return ""
	}
	return net.JoinHostPort(host, strconv.Itoa(c.RoutePort))
}

// localRoute reaches our own route port from this machine, where the advertised address may not (NAT).
func (c Config) localRoute() string {
	host, _, err := splitAddr(c.Listen)
	if ip := net.ParseIP(host); err != nil || host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, strconv.Itoa(c.RoutePort))
}

func splitAddr(s string) (string, int, error) {
	host, p, err := net.SplitHostPort(s)
	if err != nil {
		return "", 0, fmt.Errorf("%q is not host:port: %w", s, err)
	}
	port, err := strconv.Atoi(p)
	if err != nil || port < 0 || port > 65535 {
		return "", 0, fmt.Errorf("%q: %q is not a port", s, p)
	}
	return host, port, nil
}
