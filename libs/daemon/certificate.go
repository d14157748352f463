package daemon

import (
	"context"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"

	"skep.dev/libs/join"
	"skep.dev/libs/pki"
)

// reloadEvery bounds how long a process goes on with what another process of its node replaced. A rotation of the root gives
// a manager's processes three times as long (services/secrets-vault, settleFor).
const reloadEvery = 2 * time.Second

// certificate keeps this process on the node's newest certificate until ctx ends: it renews it, or reads what another
// process of the node renewed. A connection made with an old one ends with it, so it moves over as soon as there is a new
// one.
func (m Main) certificate(ctx context.Context, env Env) {
	if m.Renews {
		r := &join.Renewal{NC: env.NC, Store: env.Store, Log: env.Log.Named("renewal"), Version: Version, Renewed: func() { reconnect(env.NC, env.Log) }}
		if err := r.Run(ctx); err != nil {
			env.Log.Error("the certificate is not renewed any more", zap.Error(err))
		}
		return
	}
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
		case changed:
			env.Log.Info("certificate renewed", zap.Time("until", env.Store.Leaf().NotAfter))
			reconnect(env.NC, env.Log)
		}
	}
}

func reconnect(nc *nats.Conn, log *zap.Logger) {
	if nc == nil {
		return
	}
	if err := nc.ForceReconnect(); err != nil {
		log.Warn("reconnect with the renewed certificate", zap.Error(err))
	}
}
