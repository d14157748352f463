package cli

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/rpc"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/render"
)

const (
	// stateTimeout is how long a node may take to look at its own kernel and at its peers.
	stateTimeout = 3 * time.Second
	// statesAtOnce bounds how many nodes are asked at the same time.
	statesAtOnce = 32
)

// meshStates asks every node what its kernel has. A node that does not answer has an error instead; only what is the
// same for all of them (a certificate that may not ask nodes, Ctrl-C, no connection) ends it.
func (a *app) meshStates(ctx context.Context, nodes []*skepv1.Node) ([]render.NodeMesh, error) {
	if _, err := a.conn(ctx); err != nil {
		return nil, err
	}
	out := make([]render.NodeMesh, len(nodes))
	slot := make(chan struct{}, statesAtOnce)
	var wg sync.WaitGroup
	for i, n := range nodes {
		slot <- struct{}{}
		wg.Go(func() {
			defer func() { <-slot }()
			out[i] = a.meshState(ctx, n)
		})
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	for _, o := range out {
		if fault.Is(o.Err, fault.CodeDenied) {
			return nil, o.Err
		}
	}
	return out, nil
}

func (a *app) meshState(ctx context.Context, n *skepv1.Node) render.NodeMesh {
	ctx, cancel := context.WithTimeout(ctx, a.NodeTimeout)
	defer cancel()
	state, err := call(ctx, a, api.MeshState.At(n.GetMeta().GetId()), &skepv1.MeshStateRequest{})
	out := render.NodeMesh{Node: n, State: state}
	switch {
	case err == nil:
	case errors.Is(err, rpc.ErrNobody):
		out.Err = fault.Unavailable("its mesh is not connected to the managers: look at skep's log there, and at skep@mesh where the services run apart")
	case ctx.Err() != nil:
		out.Err = fault.Unavailable("its mesh did not answer within %s: look at skep's log there", a.NodeTimeout)
	default:
		out.Err = fmt.Errorf("ask its mesh: %w", err)
	}
	return out
}
