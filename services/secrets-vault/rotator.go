package vault

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/lease"
	"skep.dev/libs/pki"
	"skep.dev/libs/rpc"
	"skep.dev/libs/spec"
)

const (
	// askAtOnce bounds the nodes that move at once: each makes a key, asks for a certificate and connects again.
	askAtOnce  = 32
	askNodeFor = 5 * time.Second
	// turnEvery paces the driver while nodes that are up have not arrived; turnSlowly while it waits for what is away.
	turnEvery  = time.Second
	turnSlowly = 5 * time.Second
	// settleFor is how long a phase lasts at least. Other processes of a manager's node look for new roots in its files every
	// two seconds, and a join that was being answered has been recorded.
	settleFor = 6 * time.Second
	// waitingShown bounds the list of those it waits for.
	waitingShown = 20
)

// drive brings rotations to their end until ctx ends. Of several vaults one does it, by a lease it asks for only while there
// is a rotation; that two do is harmless, for the record changes by compare-and-set.
func (s *Service) drive(ctx context.Context) {
	for {
		if s.idx.authorities().Rotation != nil {
			lctx, cancel := context.WithCancel(ctx)
			l := lease.New(s.js, lease.Config{Name: string(keys.Vault), Holder: s.cfg.NodeID, Log: s.log})
			_ = l.Run(lctx, func(ctx context.Context, _ uint64) error { // it returns nil
				err := s.rotateOn(ctx)
				if s.idx.authorities().Rotation == nil {
					cancel()
				}
				return err
			})
			cancel()
		}
		select {
		case <-ctx.Done():
			return
		case <-s.idx.turned:
		}
	}
}

// rotateOn turns until there is no rotation any more.
func (s *Service) rotateOn(ctx context.Context) error {
	t := &turn{s: s}
	for ctx.Err() == nil {
		a := s.idx.authorities()
		if a.Rotation == nil {
			return nil
		}
		wait := turnEvery
		if s.settleAfter < settleFor {
			wait = s.settleAfter // of tests
		}
		v, err := t.look(ctx, a)
		switch {
		case err != nil:
			if ctx.Err() == nil {
				s.log.Warn("the rotation of the root does not see the nodes; trying again", zap.Error(err))
			}
		case a.over(v):
			next := a.advance(s.cfg.Now())
			verb := "finished"
			if next.Rotation != nil {
				verb = spec.Word(next.Rotation.Phase)
			}
			if err := s.storeCA(ctx, a, next, verb); err != nil && !errors.Is(err, kv.ErrConflict) && ctx.Err() == nil {
				s.log.Warn("the rotation of the root does not go on; trying again", zap.Error(err))
			} else if err == nil {
				continue
			}
		case v.up == 0 && v.managers == 0 && v.now.Sub(a.Rotation.Since) > v.settle:
			wait = max(wait, min(turnSlowly, s.settleAfter))
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		case <-s.idx.turned:
		}
	}
	return ctx.Err()
}

// turn remembers who arrived in the phase.
type turn struct {
	s       *Service
	goal    string // digest of the root
	phase   skepv1.CAPhase
	arrived map[string]bool
}

// look asks every node that has not arrived, and stores what it sees.
func (t *turn) look(ctx context.Context, a *authorities) (scene, error) {
	goal := a.current.Cert
	if a.next != nil {
		goal = a.next.Cert
	}
	if d := pki.Digest(goal); t.goal != d || t.phase != a.phase() {
		t.goal, t.phase, t.arrived = d, a.phase(), map[string]bool{}
	}
	v := scene{now: t.s.cfg.Now(), settle: t.s.settleAfter, asked: true}
	nodes, err := t.s.allNodes(ctx)
	if err != nil {
		return v, err
	}
	why := t.ask(ctx, a, nodes)
	p := &skepv1.CAProgress{Digest: t.goal, Phase: t.phase, Nodes: uint64(len(nodes))}
	for _, n := range nodes {
		if t.arrived[n.Meta.Id] {
			p.Moved++
			continue
		}
		down := n.GetStatus().GetState() == skepv1.NodeState_NODE_STATE_DOWN
		switch {
		case down:
			v.away++
		case n.Role == skepv1.NodeRole_NODE_ROLE_MANAGER:
			v.managers++
		default:
			v.up++
		}
		p.Waiting = append(p.Waiting, &skepv1.CAWaiting{NodeId: n.Meta.Id, Hostname: n.GetDescription().GetHostname(), Why: why[n.Meta.Id]})
	}
	v.nodes = len(nodes)
	slices.SortFunc(p.Waiting, func(x, y *skepv1.CAWaiting) int { return cmp.Compare(x.NodeId, y.NodeId) })
	p.Waiting = p.Waiting[:min(len(p.Waiting), waitingShown)]
	if a.next != nil {
		users := t.s.idx.certificates(func(c *skepv1.UserCertificate) bool { return a.leaves(c, v.now) })
		v.users, p.UsersLeft = len(users), uint64(len(users))
		for _, u := range users {
			if !slices.Contains(p.Users, u.Name) && len(p.Users) < waitingShown {
				p.Users = append(p.Users, u.Name)
			}
		}
	}
	return v, t.s.storeProgress(ctx, p)
}

// leaves reports whether a user's certificate is of the root that goes, and was neither exchanged nor revoked.
func (a *authorities) leaves(c *skepv1.UserCertificate, now time.Time) bool {
	if c.RevokedAt != nil || c.ExchangedFor != "" || c.Name == "" || !c.NotAfter.AsTime().After(now) {
		return false
	}
	return c.Issuer == pki.Digest(a.current.Cert) || c.Issuer == "" && a.Rotated == 0
}

// ask has nodes ask the vault, and says why those that did not arrive have not.
func (t *turn) ask(ctx context.Context, a *authorities, nodes []*skepv1.Node) map[string]string {
	var mu sync.Mutex
	why, here := map[string]string{}, map[string]bool{}
	var g errgroup.Group
	g.SetLimit(askAtOnce)
	for _, n := range nodes {
		id := n.Meta.Id
		if t.arrived[id] {
			continue
		}
		if n.GetStatus().GetState() == skepv1.NodeState_NODE_STATE_DOWN {
			mu.Lock()
			why[id] = "it is down"
			mu.Unlock()
			continue
		}
		g.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, askNodeFor)
			defer cancel()
			r, err := api.Call(ctx, t.s.cfg.NC, api.NodeCertificate.At(id), &skepv1.Empty{})
			mu.Lock()
			defer mu.Unlock()
			switch {
			case errors.Is(err, rpc.ErrNobody):
				why[id] = "it is not connected"
			case err != nil:
				why[id] = err.Error()
			case a.arrived(holding{r.Issuer, r.Roots}):
				here[id] = true
			default:
				why[id] = "it has not moved yet"
			}
			return nil
		})
	}
	_ = g.Wait() // the functions return nil
	maps.Copy(t.arrived, here)
	return why
}

// allNodes are all that state knows.
func (s *Service) allNodes(ctx context.Context) (out []*skepv1.Node, err error) {
	for after := ""; ; {
		r, err := askState(ctx, s, api.NodeList, &skepv1.ListNodesRequest{Page: &skepv1.Page{After: after}})
		if err != nil {
			return nil, err
		}
		out = append(out, r.Nodes...)
		if after = r.Next; after == "" {
			break
		}
	}
	if len(out) == 0 {
		return nil, fault.Unavailable("there are no nodes yet")
	}
	return out, nil
}

// storeProgress writes what people are shown, if it changed.
func (s *Service) storeProgress(ctx context.Context, p *skepv1.CAProgress) error {
	s.idx.mu.Lock()
	same, over := proto.Equal(s.idx.progress, p), s.idx.progressRev
	s.idx.mu.Unlock()
	if same {
		return nil
	}
	body, err := proto.Marshal(p)
	if err != nil {
		return err
	}
	rev, err := s.bucket.Set(ctx, keys.Rotation.Key(), body, over)
	if err != nil {
		return fmt.Errorf("store how far the rotation is: %w", err)
	}
	return s.feed.Wait(ctx, rev)
}
