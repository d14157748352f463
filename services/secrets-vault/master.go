package vault

import (
	"context"
	"strconv"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/limit"
	"skep.dev/libs/pki"
	"skep.dev/libs/seal"
)

// The master key goes to managers alone: whoever asks signs with the key of a manager's certificate, in the name of the node
// the broker lets it ask as, and state must have that node for a manager now. The answer opens with a key that the asker made
// for this one question. Each answer is an event, before it is sent.

const (
	// masterEvery and mastersAtOnce bound how often one manager is answered. It needs one.
	masterEvery   = 10 * time.Second
	mastersAtOnce = 6
)

// handed remembers what was answered, for as long as a question is good. Another vault, or this one after a restart, may
// answer it again: to a key that its maker has forgotten.
type handed struct {
	often *limit.PerKey

	mu   sync.Mutex
	seen map[string]time.Time
}

func newHanded() handed {
	return handed{often: limit.New(rate.Every(masterEvery), mastersAtOnce), seen: map[string]time.Time{}}
}

// first reports whether a question was not answered before.
func (h *handed) first(digest []byte, now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for d, at := range h.seen {
		if now.Sub(at).Abs() > 2*pki.ClockTolerance {
			delete(h.seen, d)
		}
	}
	if _, was := h.seen[string(digest)]; was {
		return false
	}
	h.seen[string(digest)] = now
	return true
}

// giveMaster gives a manager the master key.
func (s *Service) giveMaster(ctx context.Context, node string, r *skepv1.DeliverRequest) (*skepv1.MasterReply, error) {
	now := s.cfg.Now()
	refuse := func(format string, args ...any) error {
		return fault.Denied("give the master key to node "+node+": "+format, args...)
	}
	ask, who, err := seal.AskedMaster(s.idx.authorities().roots, r)
	switch {
	case err != nil:
		return nil, refuse("%v", err)
	case who.NodeID != node:
		return nil, refuse("asked for with the certificate of %s", who.NodeID)
	case who.Role != pki.Manager:
		return nil, refuse("its certificate is no manager's")
	case ask.ClusterId != s.clusterID():
		return nil, refuse("it asks for the key of cluster %s", printable(ask.ClusterId))
	case now.Sub(ask.GetAskedAt().AsTime()).Abs() > pki.ClockTolerance:
		return nil, refuse("the question is of %s, and it is %s here: set the clock there", ask.GetAskedAt().AsTime().UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	case !s.handed.often.Allow(node, now):
		return nil, fault.Exhausted("give the master key to node %s: it asks too often; it is answered every %s", node, masterEvery)
	case !s.handed.first(seal.Digest(r), now):
		return nil, refuse("the question was answered before")
	}
	n, err := askState(ctx, s, api.NodeInspect, &skepv1.Ref{Ref: node})
	manager := skepv1.NodeRole_NODE_ROLE_MANAGER
	switch n := n.GetNode(); {
	case fault.Is(err, fault.CodeNotFound) || err == nil && n.GetMeta().GetId() != node:
		return nil, refuse("it was removed from the cluster")
	case err != nil:
		return nil, err
	case n.Role != manager || n.Spec.GetRole() != manager:
		return nil, refuse("it is no manager, or is to be one no more")
	}
	key, err := s.idx.publicKey()
	if err != nil {
		return nil, err
	}
	if err := s.feed.Current(ctx); err != nil {
		return nil, fault.Unavailable("give the master key to node %s: %v", node, err)
	}
	record := s.lock.picture.now()
	if s.stale(record) {
		return nil, fault.Conflict("give the master key to node %s: this manager was sealed under a later unlock key than the store knows of: make a new key with skep unlock-key --rotate", node)
	}
	inner := &skepv1.MasterKey{Ask: seal.Digest(r), ClusterId: s.clusterID(), Unlock: proto.CloneOf(record.Info()), Master: s.lock.copy()}
	defer seal.Wipe(inner.Master)
	sealed, err := s.idx.curveKey().To(ask.Reader, inner)
	if err != nil {
		return nil, fault.Invalid("give the master key to node %s: %v", node, err)
	}
	s.publish(ctx, &skepv1.Event{Kind: "cluster", Id: s.clusterID(), Name: "default", Verb: "master-deliver", Actor: node, Attributes: map[string]string{
		"node": node, "hostname": n.Node.GetDescription().GetHostname(), "autolock": strconv.FormatBool(record.Info().GetOn()), "by": s.cfg.NodeID,
	}})
	return &skepv1.MasterReply{Key: key, Sealed: sealed}, nil
}
