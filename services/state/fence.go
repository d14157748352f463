package state

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/rpc"
	skepv1 "skep.dev/proto/skep/v1"
)

// unfencePause is the least time between two looks at the nodes that were fenced.
const unfencePause = 100 * time.Millisecond

// fenceNode notes that a node was cut off: it writes nothing any more, so what it held may go to others.
func (s *Service) fenceNode(ctx context.Context, r *skepv1.FenceNodeRequest) (*skepv1.NodeReply, error) {
	id, err := s.findNode(ctx, r.Ref)
	if err != nil {
		return nil, err
	}
	asker := rpc.ActorOf(ctx)
	if r.ByCommand && asker.Person() {
		return nil, fault.Denied("fence node %s: only the managers' own services say that the fencing command did it", r.Ref)
	}
	changed := false
	err = s.retry(ctx, func() error {
		changed = false
		n, cur := s.ix.Node(id), s.ix.NodeObject(id)
		if n == nil || cur == nil {
			return noSuch("node", r.Ref, nil)
		}
		if (cur.Fence != nil) != r.Undo {
			return nil
		}
		cur.Fence = nil
		if !r.Undo {
			if err := mayFence(n, s.ix.Hostname(id), r.ByCommand); err != nil {
				return err
			}
			cur.Fence = &skepv1.NodeFence{At: timestamppb.Now(), Author: asker.Name, AuthorAddress: asker.Address, ByCommand: r.ByCommand}
		}
		changed = true
		return s.putNode(ctx, cur)
	})
	if err != nil {
		return nil, err
	}
	if changed {
		verb, text := "fence", "it was cut off: what it held goes to others"
		if r.Undo {
			verb, text = "unfence", "the fence was taken back"
		}
		s.tellFence(ctx, id, verb, text, r.ByCommand)
	}
	return &skepv1.NodeReply{Node: s.ix.Node(id)}, nil
}

// mayFence refuses what a slip of the hand would do to a node that works.
func mayFence(n *skepv1.Node, name string, byCommand bool) error {
	switch st := n.Status.GetState(); {
	case st == skepv1.NodeState_NODE_STATE_READY:
		return fault.Invalid("fence node %s: it is up and may be writing. Cut its power or its storage first and wait until node ls shows it down; to move its tasks while it works, use skep node update --availability drain %s", name, name)
	case byCommand && st != skepv1.NodeState_NODE_STATE_DOWN:
		return fault.Invalid("fence node %s: it is not down", name)
	}
	return nil
}

func (s *Service) tellFence(ctx context.Context, id, verb, text string, byCommand bool) {
	name := s.ix.Hostname(id)
	s.events.send(ctx, &skepv1.Event{Kind: "node", Id: id, Name: name, Verb: verb, Message: "node " + name + ": " + text, Attributes: map[string]string{"name": name, "by.command": fmt.Sprint(byCommand)}})
	s.log.Info("node "+verb, zap.String("node", id), zap.String("name", name), zap.Bool("command", byCommand))
}

// unfence ends the fence of nodes that are back: until a node has taken the task set made since, it could go on with what it
// had. Every instance looks; the object's revision decides who writes.
func (s *Service) unfence(ctx context.Context) {
	for {
		changed := s.ix.Changed()
		for _, id := range s.ix.Fenced() {
			if s.mayReturn(id) {
				s.endFence(ctx, id)
			}
		}
		select {
		case <-time.After(unfencePause):
		case <-ctx.Done():
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// mayReturn: the node is up, no claim names it any more (the scheduler ends them in one batch with the stop of its tasks, or
// after), it acts on its newest task set, and it holds nothing that another node has now.
func (s *Service) mayReturn(id string) bool {
	n := s.ix.Node(id)
	if n.GetStatus().GetState() != skepv1.NodeState_NODE_STATE_READY || len(s.ix.ClaimsOf(id)) > 0 {
		return false
	}
	st := s.ix.Report(id)
	if st.Revision == 0 || st.Status.GetAppliedGeneration() < s.ix.Generation(id) {
		return false
	}
	for _, v := range st.Status.GetVolumes() {
		if by := s.ix.ClaimHolder(v.GetDriver(), v.GetName()); by != "" && by != id {
			return false
		}
	}
	return true
}

func (s *Service) endFence(ctx context.Context, id string) {
	cur := s.ix.NodeObject(id)
	if cur.GetFence() == nil {
		return
	}
	cur.Fence = nil
	switch err := s.putNode(ctx, cur); {
	case err == nil:
		s.tellFence(rpc.WithActor(ctx, rpc.Actor{Name: "skep-state"}), id, "unfence", "it is back and has taken its new tasks", false)
	case errors.Is(err, kv.ErrConflict), ctx.Err() != nil:
	default:
		s.log.Warn("fence of a node that is back not ended yet", zap.String("node", id), zap.Error(err))
	}
}

// tellLostClaims says which volumes stay held by a node that was removed: nobody can tell any more whether it writes.
func (s *Service) tellLostClaims(ctx context.Context, id, name string) {
	for _, c := range s.ix.ClaimsOf(id) {
		s.events.send(ctx, &skepv1.Event{
			Kind: "volume", Id: strings.TrimPrefix(keys.ClaimKey(c.GetDriver(), c.GetName()), keys.Claim.Prefix()), Name: c.GetName(), Verb: "claim-lost",
			Message:    fmt.Sprintf("volume %s/%s is held by node %s, which was removed: skep volume release once that machine is certainly off", c.GetDriver(), c.GetName(), name),
			Attributes: map[string]string{"driver": c.GetDriver(), "node": name, "node.id": id, "service.id": c.GetServiceId()},
		})
	}
}
