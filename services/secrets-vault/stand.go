package vault

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/api"
	"skep.dev/libs/rpc"
)

// standEvery is how often a vault that cannot serve looks whether another one is open.
const standEvery = time.Second

// silences are how many questions in a row may go unanswered before the others are taken for gone.
const silences = 3

// stand is a vault that cannot serve: while no other vault of the cluster is open it refuses their verbs, so that who asks
// learns why instead of waiting.
type stand struct {
	s   *Service
	why func() error
	// state answers how managers are locked; nil: that is refused as well.
	state func(context.Context, *skepv1.Empty) (*skepv1.AutolockState, error)
}

// run stands in until ctx ends. The vault counts as ready once it is known who answers.
func (d stand) run(ctx context.Context) {
	var srv *rpc.Server
	drop := func() {
		if srv != nil {
			_ = srv.Close() // the connection may be gone
			srv = nil
		}
	}
	defer drop()
	for silent := 0; ; {
		ask, cancel := context.WithTimeout(ctx, standEvery)
		_, err := api.Call(ask, d.s.cfg.NC, api.VaultOpen, &skepv1.Empty{})
		cancel()
		// Nobody is there, or nobody has answered for a while: an open one that is busy is not to be spoken for.
		if silent++; errors.Is(err, rpc.ErrNobody) {
			silent = silences
		}
		switch {
		case err == nil:
			silent = 0
			drop()
		case srv == nil && silent >= silences:
			if srv, err = d.refuse(); err != nil {
				d.s.log.Warn("a vault that cannot serve cannot say so", zap.Error(err))
			}
		}
		if srv != nil || err == nil {
			d.s.Begun()
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(standEvery):
		}
	}
}

// refuse serves the vault's verbs with refusals.
func (d stand) refuse() (*rpc.Server, error) {
	srv, err := rpc.NewServer(d.s.cfg.NC, rpc.Config{Name: "skep-vault", Version: d.s.cfg.Version, Description: "not open: " + d.why().Error(), Log: d.s.log})
	if err != nil {
		return nil, err
	}
	if d.state != nil {
		err = api.Handle(srv, api.AutolockGet, d.state)
	}
	for _, v := range api.All() {
		if v.Service != api.VaultKey.Service || v == api.AutolockGet.Verb && d.state != nil || v == api.VaultOpen.Verb || v == api.VaultDoor.Verb || v == api.VaultUnlock.Verb {
			continue
		}
		err = errors.Join(err, rpc.Refuse(srv, v.Subject, d.why))
	}
	if err != nil {
		_ = srv.Close()
		return nil, err
	}
	return srv, d.s.cfg.NC.FlushTimeout(10 * time.Second)
}
