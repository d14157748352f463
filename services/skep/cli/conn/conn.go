// Package conn connects a command to a cluster: as local root through the daemon's socket, or from anywhere with a
// context (an address and a client certificate). It owns the context files and refuses to guess: when there is no
// manager behind the socket it says what this machine is and what to do about it.
package conn

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go"

	"skep.dev/libs/fault"
	"skep.dev/libs/pki"
)

// DefaultRunDir holds the daemon's sockets.
const DefaultRunDir = "/run/skep"

// LocalUser names local root's connection in the broker's logs; the socket's file mode is what admits it.
const LocalUser = "admin"

// What a machine that is no manager is told.
var (
	ErrWorker = fault.Denied("This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. " +
		"Please run this command on a manager node or promote the current node to a manager.")
	ErrNoCluster = fault.Denied("This node is not part of a swarm. " +
		`Use "skep init" or "skep join" to connect this node to a swarm, or "skep context use" to reach one elsewhere, and try again.`)
)

// Options say where the cluster is.
type Options struct {
	RunDir  string // of the local daemon
	Context string // name of a context; "" = the local daemon
	Store   Store
	Timeout time.Duration // for connecting; default 5 s
}

// Socket is the broker's socket for local root.
func (o Options) Socket() string { return filepath.Join(o.RunDir, "skep.sock") }

type unixDialer struct {
	path    string
	timeout time.Duration
}

func (d unixDialer) Dial(string, string) (net.Conn, error) {
	return net.DialTimeout("unix", d.path, d.timeout)
}

// Dial connects to the cluster.
func Dial(ctx context.Context, o Options) (*nats.Conn, error) {
	if o.Timeout <= 0 {
		o.Timeout = 5 * time.Second
	}
	opts := []nats.Option{
		nats.Name("skep CLI"), nats.Timeout(o.Timeout), nats.MaxReconnects(-1), nats.ReconnectWait(200 * time.Millisecond),
		nats.IgnoreDiscoveredServers(), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}),
	}
	if o.Context != "" {
		return dialRemote(o, opts)
	}
	opts = append(opts, nats.SetCustomDialer(unixDialer{o.Socket(), o.Timeout}), nats.UserInfo(LocalUser, ""))
	// The address is never looked up: the dialer goes to the socket.
	nc, err := nats.Connect("nats://127.0.0.1:2377", opts...)
	if err == nil {
		return nc, nil
	}
	return nil, localError(ctx, o, err)
}

// localError finds out why there is no broker behind the socket.
func localError(ctx context.Context, o Options, err error) error {
	c, derr := net.DialTimeout("unix", o.Socket(), o.Timeout)
	if derr == nil {
		_ = c.Close()
		return fault.Unavailable("connect to the manager on this node: %v: is the daemon still starting? See %s", err, "skep.log in its data directory")
	}
	if errors.Is(derr, fs.ErrPermission) {
		return fault.Denied("permission denied at %s: run this as root, or use a context (skep context create)", o.Socket())
	}
	info, ierr := LocalInfo(ctx, o.RunDir)
	switch {
	case errors.Is(ierr, fs.ErrPermission):
		return fault.Denied("permission denied at %s: run this as root, or use a context (skep context create)", o.RunDir)
	case ierr != nil, info.NodeID == "":
		return ErrNoCluster
	case info.Role == "manager":
		return fault.Unavailable("the manager on this node does not accept connections at %s (its state: %s); see skep.log in its data directory", o.Socket(), info.State)
	}
	if len(info.ManagerAddrs) > 0 {
		return fault.Denied("%s Managers: %v", ErrWorker.Message, info.ManagerAddrs)
	}
	return ErrWorker
}

func dialRemote(o Options, opts []nats.Option) (*nats.Conn, error) {
	c, err := o.Store.Load(o.Context)
	if err != nil {
		return nil, err
	}
	id, err := pki.Memory([]byte(c.Cert), []byte(c.Key), []byte(c.CA))
	if err != nil {
		return nil, fmt.Errorf("context %s: %w", c.Name, err)
	}
	opts = append(opts,
		nats.Secure(pki.ClientTLS(id)), nats.TLSHandshakeFirst(),
		nats.CustomInboxPrefix("_INBOX_"+id.Identity().NodeID),
	)
	nc, err := nats.Connect("tls://"+c.Addr, opts...)
	if err != nil {
		return nil, fault.Unavailable("connect to %s (context %s): %v", c.Addr, c.Name, err)
	}
	return nc, nil
}
