// Package engine answers the Docker Engine API on a node's unix socket: HTTP in, skep's API out, so that the docker command and the
// tools people have for Docker Swarm work on a cluster of skep.
//
// It owns nothing and keeps nothing: each request is asked of the cluster anew, through the same socket and with the same rights
// as the skep command of who runs this process. It refuses what skep does not do, by name, with 501 and what to use instead.
//
// Failure story: without a manager on this node the cluster's part answers 503 with Docker's words for workers; a manager that is
// starting, or has lost the others, is waited for a few seconds and then told of with 503. A change whose answer was lost is asked
// again under one id, so it is made once. When the process ends, so do its streams; clients see the connection close.
package engine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"skep.dev/libs/containers"
	"skep.dev/libs/life"
	"skep.dev/libs/member"
	"skep.dev/services/engine-api/internal/wire"
)

// Group is the group that the socket usually belongs to, where the machine has it.
const Group = "skep"

// Config of the service.
type Config struct {
	Log     *zap.Logger
	Paths   member.Paths
	Version string
	Commit  string
	// CA is the cluster's root, PEM: the vault's key is checked against it before a secret is sealed to it.
	CA func() []byte
	// Group is the group that the socket belongs to where the machine has it, "" = it is root's alone.
	Group string
	// Socket is where to listen; default: Paths.Docker().
	Socket string
	// Node is this node's agent, for what belongs to the node alone; it gives nil while there is none. nil: the agent is another process.
	Node    func() containers.Node
	Limits  wire.Limits
	Metrics prometheus.Registerer // nil: nobody looks
}

// Service is the API on one node.
type Service struct {
	*life.Span
	cfg       Config
	log       *zap.Logger
	http      *wire.Server
	cluster   *cluster
	revisions revisions
	commands  commands
	onNode    nodeEvents
	execs     execs
	ends      context.Context // of streams: before the server waits for requests
	endAll    context.CancelFunc
}

// endWithin is how long requests under way may take when the service ends.
const endWithin = 3 * time.Second

// New checks the configuration and starts nothing.
func New(cfg Config) (*Service, error) {
	switch {
	case cfg.Log == nil:
		return nil, errors.New("engine: no log")
	case cfg.Paths.Run == "" || cfg.Paths.Data == "":
		return nil, errors.New("engine: no paths")
	case cfg.CA == nil:
		return nil, errors.New("engine: no CA")
	}
	if cfg.Socket == "" {
		cfg.Socket = cfg.Paths.Docker()
	}
	s := &Service{Span: life.New(), cfg: cfg, log: cfg.Log}
	s.ends, s.endAll = context.WithCancel(context.Background())
	s.cluster = &cluster{paths: cfg.Paths, log: cfg.Log, patience: patience}
	s.http = wire.NewServer(wire.Config{Routes: s.routes(), Limits: cfg.Limits, Log: cfg.Log, Server: "skep/" + cfg.Version, May: may})
	return s, nil
}

// Run serves until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	ctx, end := s.Begin(ctx)
	defer end()
	if err := s.register(); err != nil {
		return err
	}
	l, err := listen(s.cfg.Socket, s.cfg.Group, s.log)
	if err != nil {
		return fmt.Errorf("engine: %w", err)
	}
	defer s.cluster.close()
	defer s.endAll()
	served := make(chan error, 1)
	go func(l net.Listener) { served <- s.http.Serve(l) }(l)
	s.Begun()
	select {
	case <-ctx.Done():
	case err := <-served:
		return fmt.Errorf("engine: serve %s: %w", s.cfg.Socket, err)
	}
	s.endAll()
	within, cancel := context.WithTimeout(context.Background(), endWithin)
	defer cancel()
	s.http.Shutdown(within)
	s.execs.end() // their connections are not the server's any more
	return <-served
}
