package daemon

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"

	"skep.dev/libs/join"
	"skep.dev/libs/member"
	"skep.dev/libs/pki"
)

// reloadEvery bounds how long a process goes on with what another process of its node replaced. A rotation of the root gives
// a manager's processes three times as long (services/secrets-vault, settleFor).
const reloadEvery = 2 * time.Second

// certificate keeps this process on the node's newest certificate until ctx ends: it renews it, or reads what another
// process of the node renewed. A connection made with an old one ends with it, so it moves over as soon as there is a new
// one.
//
// The same two parts follow the node's role: who renews also asks the managers what the node should be (member.Follower) and
// gets the certificate of another role; the others find it on the disk. A manager's service of a node that is a worker now is
// done; turned is called in what every node has.
func (m Main) certificate(ctx context.Context, env Env, done context.CancelCauseFunc, turned func(manager bool)) {
	if m.Renews {
		m.renew(ctx, env, turned)
		return
	}
	was := env.Store.Identity().Role
	for {
		leaf := env.Store.Leaf()
		life := leaf.NotAfter.Sub(leaf.NotBefore) - pki.Backdate
		select {
		case <-ctx.Done():
			return
		case <-time.After(min(max(life/100, 500*time.Millisecond), reloadEvery)):
		}
		changed, err := env.Store.Reload()
		switch {
		case err != nil:
			env.Log.Warn("the certificate on disk is not usable; going on with the one in use", zap.Error(err))
		case changed && m.Managers && env.Store.Identity().Role != pki.Manager:
			done(fmt.Errorf("this node is a worker now, and %s runs on managers: %w", m.Name, ErrDone))
			return
		case changed:
			env.Log.Info("certificate renewed", zap.Time("until", env.Store.Leaf().NotAfter))
			reconnect(env.NC, env.Log)
			if now := env.Store.Identity().Role; now != was {
				was = now
				turned(now == pki.Manager)
			}
		}
	}
}

// renew keeps the certificate alive and follows the node's role.
func (m Main) renew(ctx context.Context, env Env, turned func(manager bool)) {
	r := &join.Renewal{NC: env.NC, Store: env.Store, Log: env.Log.Named("renewal"), Version: Version}
	f := member.NewFollower(env.NC, env.NodeID, env.Paths, env.Log.Named("role"))
	r.Renewed = func() {
		reconnect(env.NC, env.Log)
		f.Ask() // the certificate may be of another role
	}
	f.Turn = func(ctx context.Context, role string) error {
		if _, err := member.TurnNode(ctx, env.Paths, role, r.Turn); err != nil {
			return err
		}
		env.Log.Info("this node has another role", zap.String("role", role))
		// What only managers may is given up before the connection is a worker's, and taken up once it is a manager's.
		if role == member.RoleManager {
			reconnect(env.NC, env.Log)
			turned(true)
		} else {
			turned(false)
			reconnect(env.NC, env.Log)
		}
		return nil
	}
	var both sync.WaitGroup
	if env.Record.NodeID != "" { // with flags in place of a record there is nothing to write down
		both.Go(func() {
			if err := f.Run(ctx); err != nil {
				env.Log.Error("the managers are not followed", zap.Error(err))
			}
		})
	}
	if err := r.Run(ctx); err != nil {
		env.Log.Error("the certificate is not renewed any more", zap.Error(err))
	}
	both.Wait()
}

func reconnect(nc *nats.Conn, log *zap.Logger) {
	if nc == nil {
		return
	}
	if err := nc.ForceReconnect(); err != nil {
		log.Warn("reconnect with the renewed certificate", zap.Error(err))
	}
}
