// Package conn connects a command to a cluster: as local root through the daemon's socket, or from anywhere with a
// context (an address and a client certificate). It owns the context files and refuses to guess: when there is no
// manager behind the socket it says what this machine is and what to do about it.
package conn

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"

	"skep.dev/libs/fault"
	"skep.dev/libs/member"
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
	Timeout time.Duration // for one attempt to connect; default 5 s
	// Patience is how long to try again while the manager is away: it may be restarting. Notice is told once, after a
	// second.
	Patience time.Duration
	Notice   func()
	// Elsewhere is told when the broker of this machine does not answer and another manager is asked instead.
	Elsewhere func(addr string)
	// Kept is told why a context's certificate was not exchanged although the cluster's root is being rotated.
	Kept func(error)
	// DataDir of the local daemon tells a node whose daemon is down from a machine that is no node; default: the usual one
	// if RunDir is the usual one.
	DataDir string
}

// DefaultDataDir is where a node keeps its state.
const DefaultDataDir = "/var/lib/skep"

func (o Options) dataDir() string {
	if o.DataDir == "" && o.RunDir == DefaultRunDir {
		return DefaultDataDir
	}
	return o.DataDir
}

// Socket is the broker's socket for local root.
func (o Options) Socket() string {
	return member.Paths{Data: o.dataDir(), Run: o.RunDir}.BrokerNow()
}

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
	began, told := time.Now(), false
	for {
		nc, err := connect(ctx, o)
		if err == nil || !fault.Is(err, fault.CodeUnavailable) || time.Since(began) >= o.Patience {
			return nc, err
		}
		if !told && o.Notice != nil && time.Since(began) > time.Second {
			told = true
			o.Notice()
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// A connection that was cut without a word is noticed after 7.5 s, when the third ping is due, and made anew: a command that
// follows events or logs would wait for minutes with the client library's two minutes a ping.
const (
	pingEvery = 2500 * time.Millisecond
	pingsOut  = 2
)

// lasting are the options of every connection.
func lasting(within time.Duration) []nats.Option {
	return []nats.Option{
		nats.Name("skep CLI"), nats.Timeout(within), nats.MaxReconnects(-1), nats.ReconnectWait(200 * time.Millisecond),
		nats.PingInterval(pingEvery), nats.MaxPingsOutstanding(pingsOut), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}),
	}
}

func connect(ctx context.Context, o Options) (*nats.Conn, error) {
	opts := lasting(o.Timeout)
	if o.Context != "" {
		return dialRemote(ctx, o, opts)
	}
	return dialLocal(ctx, o, opts)
}

// localError finds out why there is no broker behind the socket.
func localError(ctx context.Context, o Options, err error) error {
	c, derr := net.DialTimeout("unix", o.Socket(), o.Timeout)
	if derr == nil {
		_ = c.Close()
		return fault.Unavailable("the manager on this node is starting, or stopping (%v); its log tells more: %s", err, o.log())
	}
	if errors.Is(derr, fs.ErrPermission) {
		return fault.Denied("permission denied at %s: run this as root, or use a context (skep context import)", o.Socket())
	}
	info, ierr := LocalInfo(ctx, o.RunDir)
	switch {
	case errors.Is(ierr, fs.ErrPermission):
		return fault.Denied("permission denied at %s: run this as root, or use a context (skep context import)", o.RunDir)
	case ierr != nil && (errors.Is(derr, syscall.ECONNREFUSED) || o.member()):
		return fault.Unavailable("the skep daemon of this node is not running: start it with `systemctl start skep` (without systemd: `%s`); its log: %s", o.start(), o.log())
	case ierr != nil, info.NodeID == "":
		return ErrNoCluster
	case info.Role == "manager" && info.Error != "":
		return fault.Unavailable("the manager on this node does not take connections: %s", info.Error)
	case info.Role == "manager":
		return fault.Unavailable("the manager on this node does not take connections (its state: %s); its log tells more: %s", info.State, o.log())
	}
	if info.Role == "witness" {
		return fault.Denied("This node is a witness: it votes, and answers no commands. Run this on a manager: %v", info.ManagerAddrs)
	}
	if len(info.ManagerAddrs) > 0 {
		return fault.Denied("%s Managers: %v", ErrWorker.Message, info.ManagerAddrs)
	}
	return ErrWorker
}

// member reports whether this machine belongs to a cluster, running or not.
func (o Options) member() bool {
	if o.dataDir() == "" {
		return false
	}
	_, err := os.Stat(filepath.Join(o.dataDir(), "node.json"))
	return err == nil
}

func (o Options) log() string { return filepath.Join(o.dataDir(), "skep.log") }

func (o Options) start() string {
	s := "skep node run"
	if o.RunDir != DefaultRunDir {
		s += " --run-dir " + o.RunDir
	}
	if d := o.dataDir(); d != "" && d != DefaultDataDir {
		s += " --data-dir " + d
	}
	return s
}
