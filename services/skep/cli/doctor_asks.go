package cli

import (
	"context"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/doctor"
)

// say asks one service how what it looks after is. Who takes longer than a node may gets a line that says so.
func say[Q, R proto.Message](ctx context.Context, a *app, e api.Endpoint[Q, R], q Q) (R, error) {
	ctx, cancel := context.WithTimeout(ctx, a.NodeTimeout)
	defer cancel()
	return call(ctx, a, e, q)
}

// upkeep asks, all at once, for what is not compared with anything: clocks, stores, what is left over. What goes wrong, also that
// somebody may not ask, is in the picture.
func (a *app) upkeep(ctx context.Context, p *doctor.Picture) error {
	var wg sync.WaitGroup
	wg.Go(func() {
		p.Clocks, p.ClocksErr = say(ctx, a, api.HealthClocks, &skepv1.ClocksRequest{BeyondMs: doctor.ClockNear.Milliseconds()})
	})
	wg.Go(func() { p.State, p.StateErr = say(ctx, a, api.ClusterCheck, &skepv1.Empty{}) })
	wg.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, a.NodeTimeout)
		defer cancel()
		p.Claims, p.ClaimsErr = a.claims(ctx)
	})
	wg.Go(func() { p.Group = a.group(ctx) })
	wg.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, a.NodeTimeout)
		defer cancel()
		if p.Cluster, _ = a.cluster(ctx); p.Cluster.GetSpec().GetBackups() != nil { // what is not known is not judged
			p.Backups = a.kept(ctx, p.Before.Nodes)
		}
	})
	wg.Go(func() { p.Vault, p.VaultErr = say(ctx, a, api.VaultCheck, &skepv1.Empty{}) })
	for _, n := range p.Before.Nodes {
		if n.GetManager() != nil && n.GetStatus().GetState() == skepv1.NodeState_NODE_STATE_READY {
			p.Stores = append(p.Stores, doctor.NodeStore{Node: n})
		}
	}
	for i := range p.Stores {
		wg.Go(func() {
			s := &p.Stores[i]
			s.State, s.Err = say(ctx, a, api.StoreState.At(s.Node.GetMeta().GetId()), &skepv1.StoreStateRequest{})
		})
	}
	wg.Wait()
	p.Now = a.Now()
	if now := p.Clocks.GetNowUnixMs(); now != 0 {
		p.Now = time.UnixMilli(now)
	}
	return ctx.Err()
}
