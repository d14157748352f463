package cli

import (
	"context"
	"time"

	"github.com/nats-io/nats.go"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/rpc"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/render"
)

const (
	// nodeAnswers is how long a node is waited for before the managers are asked whether it is there at all. One that
	// answers sooner costs no second request, and one that answers is there, whatever the managers think.
	nodeAnswers = 250 * time.Millisecond
	// nodeLook paces the questions after that: a node may go down while it works.
	nodeLook = time.Second
)

// whileUp ends what is asked of a node when the managers say that the node is down: nothing will come of it. It returns
// with ctx.
func (a *app) whileUp(ctx context.Context, nc *nats.Conn, node string, end context.CancelCauseFunc) {
	for wait := nodeAnswers; ; wait = nodeLook {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		if err := a.isDown(ctx, nc, node); err != nil {
			end(err)
			return
		}
	}
}

// isDown is an error when the managers say that a node is down; nil when they say something else, or nothing that is of now.
func (a *app) isDown(ctx context.Context, nc *nats.Conn, node string) error {
	asked, cancel := context.WithTimeout(ctx, nodeLook)
	defer cancel()
	stale := false
	r, err := api.Call(rpc.OnStale(asked, func(time.Time) { stale = true }), nc, api.NodeInspect, &skepv1.Ref{Ref: node})
	n := r.GetNode()
	if err != nil || stale || n.GetMeta().GetId() != node || n.GetStatus().GetState() != skepv1.NodeState_NODE_STATE_DOWN {
		return nil
	}
	since := ""
	if ms := n.GetStatus().GetSinceUnixMs(); ms > 0 {
		since = ", not heard since " + render.Ago(time.UnixMilli(ms), a.Now())
	}
	return fault.Unavailable("node %s is down%s: nothing can be asked of it until it is back", render.Hostname(n), since)
}
