// Package daemon is what every service's own binary shares: flags, the logger, signals, the node's record and
// certificate, the connection to the bus. It owns nothing of a service; `skep node` runs the same services in one
// process without it.
//
// Failure story: the binaries start in any order and wait, with one line in the log, for what is not there yet. Each
// may end and start again alone; what it needs from others is reached again by itself.
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
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"skep.dev/libs/kv"
	"skep.dev/libs/member"
	"skep.dev/libs/metrics"
	"skep.dev/libs/pki"
	"skep.dev/libs/subject"
)

// Service is the shape of every service of skep.
type Service interface {
	Run(ctx context.Context) error
	Close() error
}

// Env is what a service's constructor gets.
type Env struct {
	NC     *nats.Conn // nil without a Role
	Store  *pki.Store // the node's certificate
	Record *member.Record
	Paths  member.Paths
	Log    *zap.Logger
	NodeID string
	// Instance is NodeID for the first instance of a service on a node, NodeID-2 for the second: what tells apart those
	// that take turns. It is the same again after a restart.
	Instance string
	DataDir  string
	RunDir   string
	Version  string
	Commit   string
	// Metrics is where the service registers what it counts, nil unless the process was told to show it.
	Metrics prometheus.Registerer
}

// Main describes a binary.
type Main struct {
	Name string
	// About is the first line of -help.
	About string
	// Role is what the service's connection may do: the name of a manager's service, or "agent". Workers are workers
	// whatever they say. Without one there is no connection.
	Role string
	// Managers: the service belongs to managers, and waits for the cluster's streams.
	Managers bool
	// Single: a node has one of it; else several instances share the work or take turns.
	Single bool
	// Renews: it is the one that keeps the node's certificate alive; the others read it again when it has changed.
	Renews bool
	// Witness: it runs on a witness too, alone: there it connects as the node and keeps its certificate alive.
	Witness bool
	// Containers: it starts programs that run containers, whose limits are not to follow this process's own.
	Containers bool
	// Flags adds the service's own flags.
	Flags func(*flag.FlagSet)
	// New makes the service. It may wait for what it needs; an error after ctx ended counts for nothing.
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
		fmt.Fprintf(stderr, "%s: %s\n\nUsage: %s [flags]\n\nA node's own settings come from <data-dir>/node.json, which `skep init --no-start` and\n"+
			"`skep join --no-start` write; flags go before them.\n\n", m.Name, m.About, m.Name)
		fs.PrintDefaults()
	}
	var urls string
	if m.Role != "" {
		fs.StringVar(&urls, "nats", "", "the managers' addresses, host:port separated by commas")
	}
	certs := fs.String("certs", "", "directory with node.crt, node.key and ca.crt (default <data-dir>/certs)")
	dataDir := fs.String("data-dir", "/var/lib/skep", "state of this node")
	runDir := fs.String("run-dir", "/run/skep", "sockets of this node")
	node := fs.String("node-id", "", "this node's id (default: what its certificate says)")
	level := fs.String("log-level", "info", "debug, info, warn or error")
	show := fs.String("metrics-addr", "", "serve metrics for Prometheus at `host:port` (default: nowhere); each program needs one of its own")
	socket := fs.String("health-socket", "", "answer at this `path` how the program is, for -health (default: nowhere); each instance needs one of its own")
	ask := fs.Bool("health", false, "ask the instance that has -health-socket how it is, print what is wrong, and exit: 0 well, 1 not")
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
	if *ask {
		if *socket == "" {
			fmt.Fprintf(stderr, "%s: -health needs -health-socket, the same that the running program has\n", m.Name)
			return 2
		}
		if err := askHealth(ctx, *socket); err != nil {
			fmt.Fprintf(stderr, "%s: %v\n", m.Name, err)
			return 1
		}
		return 0
	}
	log, err := NewLogger(*level, stderr)
	if err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", m.Name, err)
		return 2
	}
	log = log.Named(m.Name)
	LimitMemory(log)
	NoCores(log, !m.Containers)
	giving, stop := context.WithCancel(ctx)
	defer stop()
	go GiveBack(giving, log)
	env := Env{Log: log, NodeID: *node, Paths: member.Paths{Data: *dataDir, Run: *runDir}, DataDir: *dataDir, RunDir: *runDir, Version: Version, Commit: Commit}
	if *show != "" {
		reg := metrics.New(Version, Commit)
		srv, err := metrics.Serve(*show, reg, log.Named("metrics"))
		if err != nil {
			fmt.Fprintf(stderr, "%s: %v\n", m.Name, err)
			return 2
		}
		defer srv.Close() //nolint:errcheck // the process ends
		env.Metrics = reg
	}
	var health condition
	if *socket != "" {
		stop, err := health.serve(*socket)
		if err != nil {
			fmt.Fprintf(stderr, "%s: %v\n", m.Name, err)
			return 1
		}
		defer stop()
	}
	if err := m.serve(ctx, env, urls, *certs, &health); err != nil {
		log.Error("stopped", zap.Error(err))
		return 1
	}
	return 0
}

func (m Main) serve(ctx context.Context, env Env, urls, certs string, health *condition) error {
	log, paths := env.Log, env.Paths
	rec, err := member.Load(paths)
	if errors.Is(err, member.ErrNoNode) && (certs != "" || urls != "") {
		// Told by flags what it needs; a record of nothing answers the rest.
		rec, err = &member.Record{}, nil
	}
	if err != nil {
		return err
	}
	if certs == "" {
		certs = paths.Certs()
	}
	store, err := pki.Open(certs)
	if err != nil {
		return err
	}
	if store.Identity().Role == pki.Witness {
		if !m.Witness {
			return fmt.Errorf("this node is a witness: skep-bus runs on it and nothing else, so %s does not", m.Name)
		}
		m.Role, m.Managers, m.Renews = "agent", false, true
	}
	if m.Managers && store.Identity().Role != pki.Manager {
		return fmt.Errorf("this node is a %s: %s runs on managers; start it again once the node is one (skep node promote)", member.Certified(store.Identity().Role), m.Name)
	}
	if rec.NodeID != "" {
		if rec, err = member.Settle(paths, store.Identity().Role); err != nil {
			return err
		}
	}
	instance, release, err := member.HoldPart(paths, m.Name, m.Single)
	if err != nil {
		return err
	}
	defer release()
	env.Store, env.Record = store, rec
	if env.NodeID == "" {
		env.NodeID = store.Identity().NodeID
	}
	env.Instance = env.NodeID
	if instance > 1 {
		env.Instance += fmt.Sprintf("-%d", instance)
	}
	if m.Role != "" {
		if env.NC, err = m.connect(ctx, urls, rec, store, log); err != nil {
			return ended(ctx, err)
		}
		defer env.NC.Close()
	}
	ctx, done := context.WithCancelCause(ctx)
	defer done(nil)
	roles := make(chan bool, 1) // the newest that the service was not told yet
	go m.certificate(ctx, env, done, func(manager bool) {
		select {
		case <-roles:
		default:
		}
		roles <- manager
	})
	svc, err := m.New(ctx, env)
	if err != nil {
		return ended(ctx, fmt.Errorf("prepare %s: %w", m.Name, err))
	}
	defer svc.Close()
	if t, ok := svc.(turning); ok {
		go func() {
			for {
				select {
				case <-ctx.Done():
					return
				case manager := <-roles:
					t.SetManager(manager)
				}
			}
		}()
	}
	health.is(serving(env.NC, svc))
	log.Info("started", zap.String("version", Version), zap.String("node", env.NodeID), zap.Int("instance", instance))
	err = svc.Run(ctx)
	if errors.Is(err, ErrDone) || errors.Is(context.Cause(ctx), ErrDone) {
		if err == nil || !errors.Is(err, ErrDone) {
			err = context.Cause(ctx)
		}
		log.Info("stopped", zap.NamedError("reason", err))
		return nil
	}
	if ctx.Err() != nil {
		log.Info("stopped", zap.Error(err))
		return nil
	}
	if err == nil {
		err = errors.New("it ended by itself")
	}
	return err
}

// ErrDone ends a service whose work on this node is over: its process ends well, and is not to be started again.
var ErrDone = errors.New("nothing is left to do here")

// turning is a service that works on managers and workers, and minds which of them the node is.
type turning interface{ SetManager(is bool) }

// ended: an error during the start counts for nothing when the start was called off.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// connect reaches the managers. A manager's service waits here until the cluster has its streams; what every node runs
// does without the managers for as long as it has to.
func (m Main) connect(ctx context.Context, urls string, rec *member.Record, store *pki.Store, log *zap.Logger) (*nats.Conn, error) {
	addrs := rec.Dial()
	if urls != "" {
		addrs = strings.Split(urls, ",")
	}
	if len(addrs) == 0 {
		return nil, errors.New("-nats is missing: name the managers' addresses, such as -nats 10.0.0.1:2377")
	}
	to := Managers{Addrs: addrs}
	more := []nats.Option{nats.UserInfo(m.Role, "")}
	if m.Managers {
		// As in process: what a service hears is told from what its node does.
		more = append(more, nats.CustomInboxPrefix(subject.Inbox(m.Role+"-"+store.Identity().NodeID)))
	}
	if store.Identity().Role == pki.Manager {
		// The broker on this machine comes first: what this manager has decided does not pass through another one. Streams
		// of the agent would break on the way back, so it waits for the next time it has to connect anyway.
		to.Home, to.HomeOutside, to.Return = addrs[0], rec.Advertise, m.Managers
		more = append(more, nats.ReconnectWait(100*time.Millisecond), nats.ReconnectJitter(50*time.Millisecond, 50*time.Millisecond))
	}
	nc, err := ConnectTo(m.Name, to, store, log, more...)
	if err != nil || !m.Managers {
		return nc, err
	}
	js, err := jetstream.New(nc)
	if err == nil {
		err = kv.Await(ctx, js, log)
	}
	if err != nil {
		nc.Close()
		return nil, err
	}
	return nc, nil
}

// Options are the connection options every long-lived connection of a node shares: reconnect for ever with
// jitter, an inbox prefix its permissions name, and disconnects in the log.
func Options(name, nodeID string, log *zap.Logger) []nats.Option {
	return []nats.Option{
		nats.Name(name + " " + nodeID),
		nats.CustomInboxPrefix(subject.Inbox(nodeID)),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(250 * time.Millisecond),
		nats.ReconnectJitter(250*time.Millisecond, 2*time.Second),
		nats.RetryOnFailedConnect(true),
		nats.IgnoreAuthErrorAbort(),
		nats.PingInterval(pingEvery),
		nats.MaxPingsOutstanding(pingsOut),
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
