package vault

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"skep.dev/libs/api"
	"skep.dev/libs/kv"
	"skep.dev/libs/life"
	"skep.dev/libs/pki"
	"skep.dev/libs/quiet"
	"skep.dev/libs/quorum"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// Config is everything a vault needs.
type Config struct {
	NC  *nats.Conn // as the vault (in process: bus.InProcess("vault"))
	Log *zap.Logger
	// Dir holds the master key.
	Dir    string
	NodeID string
	// DataDir is the node's: scheduled backups lie in a folder of it; "" = none are made here.
	DataDir string
	// Hostname and Certificate are this manager's: a locked vault says by them what to do where, and that it is itself.
	Hostname    string
	Certificate pki.Source
	// ManagerAddrs lists where nodes reach the managers (host:port), for joiners and with tokens, while the bus has not written
	// down the group.
	ManagerAddrs func() []string
	Version      string
	// Now is the clock (nil = time.Now).
	Now func() time.Time
	// Metrics is where the vault counts what it issues, nil = nowhere.
	Metrics prometheus.Registerer
}

// Service is the vault.
type Service struct {
	*life.Span

	cfg Config
	log *zap.Logger
	// refusals logs what strangers try; repetitions are counted.
	refusals *zap.Logger
	bucket   *kv.Bucket
	values   *kv.Bucket
	group    *group
	js       jetstream.JetStream
	idx      *index
	wrong    *rate.Limiter // see wrongPerSecond
	issued   *prometheus.CounterVec
	lock     *lock
	handed   handed
	gauge    prometheus.Gauge // 1 while locked

	feed *kv.Feed
	left left

	// dropped is when credentials that nobody refers to were last looked for, dropAfter where that ended. tend alone uses them.
	dropped   time.Time
	dropAfter string
	// keeper makes the scheduled backups of this manager.
	keeper *keeper
	// settleAfter is settleFor, less in tests.
	settleAfter time.Duration
}

// New checks the configuration and the master key, and starts nothing. Where the key is sealed the vault runs locked at
// first (lock_door.go).
func New(cfg Config) (*Service, error) {
	js, err := kv.Store(cfg.NC, "vault")
	if err != nil {
		return nil, err
	}
	if cfg.Dir == "" {
		return nil, errors.New("vault: a directory is needed")
	}
	cfg.Log = cmp.Or(cfg.Log, zap.NewNop())
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.ManagerAddrs == nil {
		cfg.ManagerAddrs = func() []string { return nil }
	}
	lock, err := readLock(cfg.Dir, cfg.Log, cfg.Now())
	if err != nil {
		return nil, err
	}
	if lock.missing != nil && cfg.Certificate == nil {
		return nil, lock.missing
	}
	if lock.locked() && cfg.Certificate == nil {
		return nil, errors.New("configure the vault: its master key is sealed, and there is no certificate to be unlocked with")
	}
	s, err := lock.sealer()
	if err != nil {
		return nil, err
	}
	keeper := newKeeper(cfg.DataDir)
	return &Service{
		cfg: cfg, log: cfg.Log, js: js, bucket: kv.Open(js, subject.Secret), values: kv.Open(js, subject.Value), wrong: rate.NewLimiter(wrongPerSecond, wrongBurst), issued: countIssued(cfg.Metrics),
		group: &group{bucket: kv.Open(js, subject.NodeB), log: cfg.Log},
		lock:  lock, gauge: showLocked(cfg.Metrics),
		idx:         &index{seal: s, lock: &lock.picture, log: cfg.Log, tokens: map[string]token{}, users: map[string]user{}, objects: newObjects(), turned: make(chan struct{}, 1), rekeyed: keeper.retry},
		settleAfter: settleFor, handed: newHanded(), keeper: keeper,
		Span: life.New(),
	}, nil
}

// Run serves until ctx ends or Close is called.
func (s *Service) Run(ctx context.Context) error {
	ctx, cancel := s.Begin(ctx)
	defer cancel()
	refusals, stop := quiet.Logger(s.log, quiet.Options{Burst: 5, Window: time.Minute})
	defer stop()
	s.refusals = refusals
	err := s.serve(ctx)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// install carries the bootstrapped CA into the bucket, as soon as the broker takes writes: it may be starting as well.
func (s *Service) install(ctx context.Context) error {
	for said := false; ; said = true {
		err := install(ctx, s.bucket, s.cfg.Dir)
		if err == nil || errors.Is(err, errForeign) || ctx.Err() != nil {
			return err
		}
		if !said {
			s.log.Warn("the broker does not take the new CA yet; trying again", zap.Error(err))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (s *Service) serve(ctx context.Context) error {
	if err := s.install(ctx); err != nil {
		return err
	}
	if there, err := s.fetch(ctx); !there {
		return err
	}
	if open, err := s.awaitUnlock(ctx); !open {
		return err
	}
	feeds := kv.FollowAll(ctx, s.js, s.idx.source())
	defer feeds.Close()
	s.feed = feeds.Of(subject.Secret)
	if !feeds.Caught(ctx) {
		return nil
	}
	if s.idx.authorities() == nil {
		return errors.New("start the vault: the cluster has no CA this manager can open; was the master key in the data directory replaced?")
	}
	if err := s.makeCurve(ctx); err != nil {
		return err
	}

	srv, err := rpc.NewServer(s.cfg.NC, rpc.Config{
		Name: "skep-vault", Version: s.cfg.Version, Description: "secrets, configs, the cluster's CA, join tokens, certificates", Log: s.log, Metrics: s.cfg.Metrics,
		Quorum: quorum.Follow(s.cfg.NC, s.log),
	})
	if err != nil {
		return err
	}
	defer func() {
		if err := srv.Close(); err != nil {
			s.log.Warn("stop serving", zap.Error(err))
		}
	}()
	secrets, configs := kind{s, skepv1.SecretKind_SECRET_KIND_SECRET}, kind{s, skepv1.SecretKind_SECRET_KIND_CONFIG}
	err = errors.Join(
		api.Handle(srv, api.Join, s.join),
		api.HandleNode(srv, api.VaultRenew, s.renew),
		api.HandleNode(srv, api.VaultTrust, s.trust),
		api.Handle(srv, api.CAInspect, s.inspectCA),
		api.Handle(srv, api.CARotate, s.rotateCA),
		api.Handle(srv, api.UserExchange, s.exchangeUser),
		api.Handle(srv, api.TokenGet, s.token),
		api.Handle(srv, api.UserIssue, s.issueUser),
		api.Handle(srv, api.UserIssued, s.issuedUsers),
		api.Handle(srv, api.UserRevoke, s.revokeUser),
		api.Handle(srv, api.VaultKey, func(context.Context, *skepv1.Empty) (*skepv1.VaultKey, error) { return s.idx.publicKey() }),
		api.Handle(srv, api.SecretCreate, secrets.create),
		api.Handle(srv, api.SecretUpdate, secrets.update),
		api.Handle(srv, api.SecretRemove, secrets.remove),
		api.Handle(srv, api.SecretInspect, secrets.inspect),
		api.Handle(srv, api.SecretList, secrets.list),
		api.Handle(srv, api.ConfigCreate, configs.create),
		api.Handle(srv, api.ConfigUpdate, configs.update),
		api.Handle(srv, api.ConfigRemove, configs.remove),
		api.Handle(srv, api.ConfigInspect, configs.inspect),
		api.Handle(srv, api.ConfigList, configs.list),
		api.Handle(srv, api.RegistryCreate, s.createRegistry),
		api.Handle(srv, api.FilesResolve, s.resolve),
		api.Handle(srv, api.FilesDrop, s.dropFile),
		api.Handle(srv, api.VaultCheck, s.check),
		api.HandleNode(srv, api.VaultDeliver, s.deliver),
		api.HandleNode(srv, api.VaultMaster, s.giveMaster),
		s.handleLock(srv),
		s.handleKept(srv),
	)
	if err != nil {
		return err
	}
	backups, err := s.serveBackups()
	if err != nil {
		return err
	}
	defer backups.Close() //nolint:errcheck // the connection may be gone
	// The subscriptions have reached the broker before we call ourselves ready.
	if err := s.cfg.NC.FlushTimeout(10 * time.Second); err != nil {
		return fmt.Errorf("start the vault: %w", err)
	}
	s.Begun()
	var g errgroup.Group
	g.Go(func() error { s.pruneUsers(ctx); return nil })
	g.Go(func() error { s.tend(ctx); return nil })
	g.Go(func() error { s.tendLock(ctx); return nil })
	g.Go(func() error { s.drive(ctx); return nil })
	g.Go(func() error { s.keepBackups(ctx); return nil })
	return g.Wait()
}
