package bus

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"go.uber.org/zap"

	"skep.dev/libs/pki"
	"skep.dev/libs/subject"
)

const (
	// startWithin is how long a server may take until it accepts connections; recovering a store of a million keys after
	// a kill took 1.3 s.
	startWithin = 60 * time.Second
	// maxSubs bounds the subscriptions of a connection, and with them how many copies of one message it can have made: the
	// logs of a service with 5,000 tasks take three each. What a role may have is in allowanceOf.
	maxSubs = 16 << 10
	// closedClients is how many connections that ended the broker remembers, about 1 KB each, for its own monitoring, which
	// nobody asks about them. Left alone it remembers 10,000, and every command is a connection.
	closedClients = 16
	// uniqueTag: a server without a tag of this prefix is never given a stream. It is one of two locks that keep streams
	// off the witness; the tag noStreams is the other.
	uniqueTag = "mgr:"
	noStreams = "!jetstream"
)

// instance is one embedded server.
type instance struct {
	*server.Server
	log *serverLog
}

// options are common to the server and its witness: either may lead the meta group and then answers the API.
func (b *Bus) options(name, dir string) (*server.Options, error) {
	acc, err := accounts(name)
	if err != nil {
		return nil, err
	}
	o := &server.Options{
		ServerName: name, NoSigs: true,
		JetStream: true, StoreDir: filepath.Join(b.cfg.DataDir, dir), SyncAlways: true,
		JetStreamUniqueTag: uniqueTag,
		SystemAccount:      systemAccount,
		Accounts:           acc,
		TLSConfig:          pki.ServerTLS(b.cfg.TLS), TLSHandshakeFirst: true, TLSTimeout: 5, AuthTimeout: 5,
		CustomRouterAuthentication: routeAuth{b},
		Cluster: server.ClusterOpts{
			Name: b.cfg.Cluster, TLSConfig: pki.RouteTLS(b.cfg.TLS), TLSTimeout: 5,
			Username: name, // what it says who it is where it dials (isDouble); who may have a route, the certificate says
			// A manager without power says nothing. Until its route ends, a part of all requests goes to its services.
			PingInterval: time.Second, MaxPingsOut: 3,
			// What is asked of the nearest instance stays here.
			Permissions: &server.RoutePermissions{
				Import: &server.SubjectPermission{Deny: []string{subject.AllNear}}, Export: &server.SubjectPermission{Deny: []string{subject.AllNear}},
			},
		},
		LameDuckGracePeriod: 200 * time.Millisecond, LameDuckDuration: 2 * time.Second,
		MaxPayload: 1 << 20, MaxPending: 64 << 20, MaxControlLine: 4096, WriteDeadline: 10 * time.Second, MaxSubs: maxSubs,
		PingInterval: 20 * time.Second, MaxPingsOut: 2, MaxClosedClients: closedClients,
		// A manager that is away is dialled every second and need not be in the log as often.
		ConnectErrorReports: 60, ReconnectErrorReports: 60,
	}
	o.JetStreamLimits.DefaultMaxConsumers = -1
	o.Cluster.TLSConfig.VerifyConnection = b.notRemoved(o.Cluster.TLSConfig.VerifyConnection)
	return o, nil
}

// notRemoved refuses to dial a manager that was removed: routeAuth has no word on routes that this server makes.
func (b *Bus) notRemoved(verify func(tls.ConnectionState) error) func(tls.ConnectionState) error {
	return func(st tls.ConnectionState) error {
		if err := verify(st); err != nil {
			return err
		}
		ident, err := pki.FromCertificate(st.PeerCertificates[0])
		if err == nil && b.shut(ident.NodeID) {
			err = fmt.Errorf("node %s was removed from the cluster", ident.NodeID)
		}
		return err
	}
}

func (b *Bus) startMain(ctx context.Context) (*instance, error) {
	o, err := b.options(b.cfg.Name, "main")
	if err != nil {
		return nil, err
	}
	host, port, err := splitAddr(b.cfg.Listen)
	if err != nil {
		return nil, err
	}
	for _, p := range []int{port, b.cfg.RoutePort} {
		if err := portFree(host, p); err != nil {
			return nil, err
		}
	}
	o.Host, o.Port, o.ClientAdvertise = host, port, b.cfg.Advertise
	o.Cluster.Host, o.Cluster.Port, o.Cluster.Advertise = host, b.cfg.RoutePort, b.cfg.RouteAddr()
	o.Cluster.NoAdvertise = b.cfg.Bare // nodes and people have no business with a witness
	o.Tags = []string{uniqueTag + b.cfg.Name}
	o.MaxConn = b.cfg.MaxConn
	o.JetStreamMaxMemory, o.JetStreamMaxStore = 256<<20, b.cfg.MaxStore
	routes := b.cfg.Routes
	if len(routes) == 0 {
		// Clustered JetStream refuses to start without a route: a lone server is its own.
		routes = []string{b.cfg.localRoute()}
	}
	auth := &clientAuth{bus: b}
	o.CustomClientAuthentication = auth
	return b.start(ctx, o, routes, func(s *server.Server) { auth.srv = s }, b.slip)
}

func (b *Bus) startWitnessServer(ctx context.Context, name string) (*instance, error) {
	o, err := b.options(name, "witness")
	if err != nil {
		return nil, err
	}
	// DontListen is impossible: routing waits for the client listener.
	o.Host, o.Port, o.MaxConn = "127.0.0.1", -1, 8
	o.Cluster.Host, o.Cluster.Port = "127.0.0.1", -1
	o.Cluster.NoAdvertise = true // clients are not told of it; servers still are
	o.Tags = []string{noStreams}
	o.JetStreamMaxMemory, o.JetStreamMaxStore = 1<<20, 64<<20
	o.CustomClientAuthentication = noClients{}
	return b.start(ctx, o, []string{b.cfg.localRoute()}, nil, func(_ uint64, text string) { b.slip(0, text) })
}

// start runs a server until it accepts connections; an error it would end the process for is returned instead. peer hears
// what peers do wrong.
func (b *Bus) start(ctx context.Context, o *server.Options, routes []string, made func(*server.Server), peer func(cid uint64, text string)) (*instance, error) {
	for _, r := range routes {
		o.Routes = append(o.Routes, &url.URL{Scheme: "nats-route", Host: r, User: url.User(o.ServerName)})
	}
	if o.JetStream {
		if err := os.MkdirAll(o.StoreDir, 0o700); err != nil {
			return nil, fmt.Errorf("start the broker %s: %w", o.ServerName, err)
		}
	}
	s, err := server.NewServer(o)
	if err != nil {
		return nil, fmt.Errorf("start the broker %s: %w", o.ServerName, err)
	}
	if made != nil {
		made(s)
	}
	in := &instance{Server: s, log: newServerLog(b.log.With(zap.String("server", o.ServerName)), peer)}
	s.SetLoggerV2(in.log, false, false, false)
	started := make(chan struct{})
	go func() { defer close(started); s.Start() }() // recovers the store first
	deadline := time.Now().Add(startWithin)
	for !s.ReadyForConnections(20 * time.Millisecond) {
		select {
		case err = <-in.log.fatal:
		case <-ctx.Done():
			err = ctx.Err()
		default:
			if time.Now().After(deadline) {
				err = fmt.Errorf("it accepts no connections after %s", startWithin)
			}
		}
		if err != nil {
			// What a start opens after the shutdown stays open. One that hangs is left to it.
			select {
			case <-started:
			case <-time.After(10 * time.Second):
			}
			s.Shutdown()
			s.WaitForShutdown()
			return nil, fmt.Errorf("start the broker %s: %w", o.ServerName, err)
		}
	}
	if !o.JetStream {
		return in, nil
	}
	acc, err := s.LookupAccount(accountName)
	if err == nil {
		none := server.JetStreamAccountLimits{
			MaxMemory: -1, MaxStore: -1, MaxStreams: -1, MaxConsumers: -1, MaxAckPending: -1, MemoryMaxStreamBytes: -1, StoreMaxStreamBytes: -1,
		}
		err = acc.EnableJetStream(map[string]server.JetStreamAccountLimits{"": none}, nil)
	}
	if err != nil {
		s.Shutdown()
		s.WaitForShutdown()
		return nil, fmt.Errorf("start the broker %s: enable its store: %w", o.ServerName, err)
	}
	return in, nil
}

// stop ends a server. With peers it first hands its leaderships over and lets clients move; alone there is nobody to
// hand over to.
func (in *instance) stop(peers bool) {
	if in == nil {
		return
	}
	in.log.stopping.Store(true)
	if peers {
		in.LameDuckShutdown()
	}
	in.Shutdown()
	in.WaitForShutdown()
}

// portFree turns the commonest start failure into an exact error; nats-server only logs it.
func portFree(host string, port int) error {
	if port <= 0 {
		return nil
	}
	addr := net.JoinHostPort(host, fmt.Sprint(port))
	l, err := net.Listen("tcp", addr)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("listen on %s: the port is in use: another skep, or a Docker Swarm manager, runs on this machine; stop it or give another --listen-addr", addr)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("listen on %s: this machine has no such address; give one of its own as --listen-addr", addr)
	case err != nil:
		return fmt.Errorf("listen on %s: %w", addr, err)
	}
	return l.Close()
}
