// Command skep-state runs the state service on its own; `skep node` runs the same in a manager's process.
package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"skep.dev/libs/daemon"
	"skep.dev/libs/member"
	"skep.dev/services/state"
)

// founding is state that, on a cluster's first start, stores what `skep init` asked for.
type founding struct {
	*state.Service
	env daemon.Env
}

func (f founding) Run(ctx context.Context) error {
	if f.env.Record.Init == nil {
		return f.Service.Run(ctx)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-f.Ready():
		case <-ctx.Done():
			return
		}
		try, stop := context.WithTimeout(ctx, time.Minute)
		defer stop()
		if _, err := member.Found(try, f.env.NC, f.env.Paths); err != nil {
			cancel(err)
			return
		}
		f.env.Log.Info("the cluster is founded", zap.String("node", f.env.NodeID))
	}()
	err := f.Service.Run(ctx)
	if cause := context.Cause(ctx); err == nil && cause != nil && !errors.Is(cause, context.Canceled) {
		err = fmt.Errorf("found the cluster: %w", cause)
	}
	return err
}

func main() {
	daemon.Exit(daemon.Main{
		Name: "skep-state", About: "owns services, nodes and the cluster, and serves the object API; several instances share the work", Role: "state", Managers: true,
		New: func(_ context.Context, env daemon.Env) (daemon.Service, error) {
			cfg := state.Config{NC: env.NC, Log: env.Log, NodeID: env.NodeID, Instance: env.Instance, Version: env.Version, Metrics: env.Metrics}
			if env.Record.Advertise != "" {
				cfg.ManagerAddrs = member.AddrsOf(env.Paths, env.Record)
			}
			s, err := state.New(cfg)
			if err != nil {
				return nil, err
			}
			return founding{s, env}, nil
		},
	})
}
