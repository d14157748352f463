package member

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/rpc"
	skepv1 "skep.dev/proto/skep/v1"
)

// The states of a link.
const (
	LinkUp       = "up"       // a manager answers
	LinkCut      = "cut off"  // none can be reached
	LinkRefused  = "refused"  // the managers do not know the node, or not its certificate
	LinkSilent   = "silent"   // one takes the connection, and nobody answers
	LinkLeadless = "leadless" // they answer, and have no leader
)

// linkWithin is how long the managers may take to answer whoever asks how the node stands with them.
const linkWithin = time.Second

// Link is how a node stands with the managers, as far as the node knows.
type Link struct {
	State string `json:"state"`
	Why   string `json:"why,omitempty"`
	// SinceMs is when a manager was heard last before, unix ms; of a node that has heard none, when it was started.
	SinceMs int64 `json:"since_ms,omitempty"`
}

// Linked follows how a node stands with the managers. It asks them when it is asked, and never by itself: with thousands
// of nodes that would be a load.
type Linked struct {
	nc   *nats.Conn
	node string

	mu    sync.Mutex
	heard time.Time // when the managers, or their connection, were known to be there last
}

// NewLinked is for the connection of a node. It lives as long as ctx.
func NewLinked(ctx context.Context, nc *nats.Conn, node string) *Linked {
	l := &Linked{nc: nc, node: node, heard: time.Now()}
	changes := nc.StatusChanged(nats.CONNECTED, nats.RECONNECTING, nats.DISCONNECTED)
	go func() {
		defer nc.RemoveStatusListener(changes)
		for was := nc.IsConnected(); ; {
			select {
			case <-ctx.Done():
				return
			case s, open := <-changes:
				if !open {
					return
				}
				is := s == nats.CONNECTED
				if was || is { // an attempt that is refused is no connection
					l.Heard()
				}
				was = is
			}
		}
	}()
	return l
}

// Heard notes that a manager answered.
func (l *Linked) Heard() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.heard = time.Now()
}

// Look asks how the node stands now.
func (l *Linked) Look(ctx context.Context) Link {
	out := l.look(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	if out.State == LinkUp {
		l.heard = time.Now()
	} else if out.SinceMs == 0 {
		out.SinceMs = l.heard.UnixMilli()
	}
	return out
}

const joinAgain = "this node must join again: skep leave --force, then the command that skep join-token worker shows on a manager"

func (l *Linked) look(ctx context.Context) Link {
	if !l.nc.IsConnected() {
		err := l.nc.LastError()
		switch {
		case err == nil:
			return Link{State: LinkCut, Why: "no manager can be reached"}
		case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthRevoked):
			return Link{State: LinkRefused, Why: "the managers do not let this node in: it was removed from the cluster, or they were founded anew without it. If so, " + joinAgain}
		case strings.Contains(err.Error(), "remote error: tls:"):
			return Link{State: LinkRefused, Why: "the managers refuse the certificate of this node (" + err.Error() + "): " + joinAgain}
		}
		return Link{State: LinkCut, Why: "no manager can be reached: " + err.Error()}
	}
	ctx, cancel := context.WithTimeout(ctx, linkWithin)
	defer cancel()
	var asOf time.Time
	_, err := api.Call(rpc.OnStale(ctx, func(t time.Time) { asOf = t }), l.nc, api.StateManagers.At(l.node), &skepv1.Empty{})
	switch {
	case fault.Is(err, fault.CodeNotFound):
		return Link{State: LinkRefused, Why: "the managers do not know this node: it was removed from the cluster; " + joinAgain}
	case err != nil:
		return Link{State: LinkSilent, Why: "the manager at " + l.nc.ConnectedAddr() + " does not answer: " + err.Error()}
	case !asOf.IsZero():
		return Link{State: LinkLeadless, Why: "the managers have no leader", SinceMs: asOf.UnixMilli()}
	}
	return Link{State: LinkUp}
}
