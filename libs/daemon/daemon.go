// Package daemon is what every service's own binary shares: flags, the logger, signals, the connection to the bus.
// It owns nothing of a service; `skep node` runs the same services in one process without it.
package daemon

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"

	"skep.dev/libs/pki"
)

// Service is the shape of every service of skep.
type Service interface {
	Run(ctx context.Context) error
	Close() error
}

// Env is what a service's constructor gets.
type Env struct {
	NC      *nats.Conn // nil when the binary was made with NoBus
	Log     *zap.Logger
	NodeID  string
	DataDir string
	RunDir  string
	Version string
	Commit  string
}

// Main describes a binary.
type Main struct {
	Name string
	// About is the first line of -help.
	About string
	// NoBus: the service does not connect to the bus by itself.
	NoBus bool
	// Flags adds the service's own flags.
	Flags func(*flag.FlagSet)
	// New makes the service.
	New func(ctx context.Context, env Env) (Service, error)
}

// Version and Commit are set by the linker.
var (
	Version = "dev"
	Commit  = ""
)

// Exit runs m with the process's arguments and exits: 0 after a signal, 1 on an error, 2 on bad usage.
func Exit(m Main) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := m.run(ctx, os.Args[1:], os.Stderr)
	stop()
	os.Exit(code)
}

func (m Main) run(ctx context.Context, args []string, stderr io.Writer) int {
	fs := flag.NewFlagSet(m.Name, flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() {
		fmt.Fprintf(stderr, "%s: %s\n\nUsage: %s [flags]\n\n", m.Name, m.About, m.Name)
		fs.PrintDefaults()
	}
	urls := fs.String("nats", "", "bus addresses, host:port separated by commas")
	certs := fs.String("certs", "", "directory with node.crt, node.key and ca.crt (default <data-dir>/certs)")
	dataDir := fs.String("data-dir", "/var/lib/skep", "state of this node")
	runDir := fs.String("run-dir", "/run/skep", "sockets of this node")
	node := fs.String("node-id", "", "this node's id (default: what its certificate says)")
	level := fs.String("log-level", "info", "debug, info, warn or error")
	version := fs.Bool("version", false, "print the version and exit")
	if m.Flags != nil {
		m.Flags(fs)
	}
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	if *version {
		fmt.Fprintf(stderr, "%s %s %s\n", m.Name, Version, Commit)
		return 0
	}
	if fs.NArg() > 0 {
		fmt.Fprintf(stderr, "%s: unexpected argument %q; see %s -help\n", m.Name, fs.Arg(0), m.Name)
		return 2
	}
	log, err := NewLogger(*level, stderr)
	if err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", m.Name, err)
		return 2
	}
	log = log.Named(m.Name)
	if err := m.serve(ctx, log, *urls, *certs, *node, *dataDir, *runDir); err != nil {
		log.Error("stopped", zap.Error(err))
		return 1
	}
	return 0
}

func (m Main) serve(ctx context.Context, log *zap.Logger, urls, certs, node, dataDir, runDir string) error {
	env := Env{Log: log, NodeID: node, DataDir: dataDir, RunDir: runDir, Version: Version, Commit: Commit}
	if !m.NoBus {
		if certs == "" {
			certs = dataDir + "/certs"
		}
		if urls == "" {
			return errors.New("-nats is missing: name the managers' addresses, such as -nats 10.0.0.1:2377")
		}
		store, err := pki.Open(certs)
		if err != nil {
			return fmt.Errorf("read the node's certificate: %w", err)
		}
		nc, err := Connect(m.Name, strings.Split(urls, ","), store, log)
		if err != nil {
			return err
		}
		defer nc.Close()
		env.NC = nc
		if env.NodeID == "" {
			env.NodeID = store.Identity().NodeID
		}
	}
	svc, err := m.New(ctx, env)
	if err != nil {
		return fmt.Errorf("prepare %s: %w", m.Name, err)
	}
	defer svc.Close()
	log.Info("started", zap.String("version", Version), zap.String("node", env.NodeID))
	return svc.Run(ctx)
}

// Connect opens a connection to the bus with the certificate in certDir and returns it with the node's id. It
// keeps trying for ever, and takes the certificate from the store for every attempt, so a renewed one is used
// without a restart.
func Connect(name string, addrs []string, store *pki.Store, log *zap.Logger) (*nats.Conn, error) {
	urls := make([]string, len(addrs))
	for i, a := range addrs {
		urls[i] = "tls://" + a
	}
	opts := append(Options(name, store.Identity().NodeID, log), nats.Secure(pki.ClientTLS(store)), nats.TLSHandshakeFirst())
	nc, err := nats.Connect(strings.Join(urls, ","), opts...)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", strings.Join(addrs, ", "), err)
	}
	return nc, nil
}

// Options are the connection options every long-lived connection of a node shares: reconnect for ever with
// jitter, an inbox prefix its permissions name, and disconnects in the log.
func Options(name, nodeID string, log *zap.Logger) []nats.Option {
	return []nats.Option{
		nats.Name(name + " " + nodeID),
		nats.CustomInboxPrefix("_INBOX_" + nodeID),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(250 * time.Millisecond),
		nats.ReconnectJitter(250*time.Millisecond, 2*time.Second),
		nats.RetryOnFailedConnect(true),
		nats.IgnoreAuthErrorAbort(),
		nats.PingInterval(5 * time.Second),
		nats.MaxPingsOutstanding(2),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				log.Warn("disconnected from the bus", zap.Error(err))
			}
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) { log.Info("connected to the bus again", zap.String("addr", nc.ConnectedAddr())) }),
		nats.ErrorHandler(func(_ *nats.Conn, sub *nats.Subscription, err error) {
			f := []zap.Field{zap.Error(err)}
			if sub != nil {
				f = append(f, zap.String("subject", sub.Subject))
			}
			log.Warn("bus connection", f...)
		}),
	}
}
