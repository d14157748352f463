package scheduler

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/event"
	"skep.dev/libs/fault"
	"skep.dev/libs/lease"
	"skep.dev/libs/reconcile"
	"skep.dev/libs/rpc"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

const (
	// claimBytes bounds a reply: as JSON it may be four times as large, and must fit into one message.
	claimBytes = 160 << 10
	// releaseFor is how long a person's request waits for the leader, who may be in the middle of a plan.
	releaseFor = 10 * time.Second
)

// serveLeader answers what only the leader can do, as long as it leads.
func (s *Service) serveLeader() (*rpc.Server, error) {
	srv, err := rpc.NewServer(s.cfg.NC, rpc.Config{
		Name: "skep-scheduler-leader", Version: s.cfg.Version, Log: s.cfg.Log, Description: "releases volumes", Parallel: 16,
	})
	if err != nil {
		return nil, fmt.Errorf("serve as the leader: %w", err)
	}
	if err := api.Handle(srv, api.VolumeRelease, s.releaseClaim); err != nil {
		return nil, errors.Join(fmt.Errorf("serve as the leader: %w", err), srv.Close())
	}
	return srv, nil
}

// listClaims shows which node holds which volume, by name and driver.
func (s *Service) listClaims(_ context.Context, r *skepv1.ListClaimsRequest) (*skepv1.ListClaimsReply, error) {
	for _, f := range r.GetFilters() {
		if !slices.Contains([]string{"name", "driver", "node", "service"}, f.GetKey()) {
			return nil, fault.Usage("invalid filter '%s': use driver, name, node, service", f.GetKey())
		}
	}
	s.mu.Lock()
	all := s.state.Claims()
	s.mu.Unlock()
	out := &skepv1.ListClaimsReply{}
	size := 0
	for _, c := range all {
		if after := r.GetPage().GetAfter(); after != "" && cursor(c) <= after || !shown(c, r.GetFilters()) {
			continue
		}
		n := proto.Size(c) + 8
		if most := int(r.GetPage().GetSize()); len(out.Claims) > 0 && (size+n > claimBytes || most > 0 && len(out.Claims) >= most) {
			out.Next = cursor(out.Claims[len(out.Claims)-1])
			break
		}
		size += n
		out.Claims = append(out.Claims, c)
	}
	return out, nil
}

// cursor orders claims as they are listed.
func cursor(c *skepv1.VolumeClaim) string { return c.GetName() + "\x00" + c.GetDriver() }

// shown: one value of each filter fits. Names and ids may be cut short, as everywhere.
func shown(c *skepv1.VolumeClaim, filters []*skepv1.Filter) bool {
	for _, f := range filters {
		var have []string
		switch f.GetKey() {
		case "name":
			have = []string{c.GetName()}
		case "driver":
			have = []string{c.GetDriver()}
		case "node":
			have = []string{c.GetNodeId(), c.GetNodeHostname()}
		case "service":
			have = []string{c.GetServiceId(), c.GetServiceName()}
		}
		if !slices.ContainsFunc(f.GetValues(), func(want string) bool {
			return slices.ContainsFunc(have, func(h string) bool { return strings.HasPrefix(h, want) })
		}) {
			return false
		}
	}
	return true
}

// release is a claim to be ended by a person's word.
type release struct {
	ctx   context.Context
	req   *skepv1.ReleaseClaimRequest
	claim *skepv1.VolumeClaim // what was ended
	done  chan error
}

// releaseClaim hands the request to the loop, the only one that writes.
func (s *Service) releaseClaim(ctx context.Context, r *skepv1.ReleaseClaimRequest) (*skepv1.ReleaseClaimReply, error) {
	if r.GetName() == "" {
		return nil, fault.Invalid("which volume? Give its name: skep volume claims shows those that are held")
	}
	ctx, cancel := context.WithTimeout(ctx, releaseFor)
	defer cancel()
	claim := &skepv1.VolumeClaim{}
	x := release{ctx: ctx, req: r, claim: claim, done: make(chan error, 1)}
	select {
	case s.releases <- x:
	case <-ctx.Done():
		return nil, fault.Unavailable("release volume %s: the scheduler did not come to it: ask again", r.GetName())
	}
	select {
	case err := <-x.done:
		if err != nil {
			return nil, err
		}
		return &skepv1.ReleaseClaimReply{Claim: claim}, nil
	case <-ctx.Done():
		return nil, fault.Unavailable("release volume %s: no answer yet: look at skep volume claims", r.GetName())
	}
}

// release ends a claim. It is called by the loop, between two plans.
func (s *Service) release(ctx context.Context, r release) error {
	s.mu.Lock()
	key, claim, err := s.state.FindClaim(r.req.GetDriver(), r.req.GetName())
	if err == nil {
		err = s.state.MayRelease(claim, r.req.GetForce())
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	revs, err := s.fence.Write(ctx, lease.Op{Key: key})
	if err != nil {
		return fault.Unavailable("release volume %s: %v: ask again", claim.GetName(), err)
	}
	s.mu.Lock()
	err = s.state.PutTask(key, nil, revs[0])
	s.mu.Unlock()
	if err != nil {
		return err
	}
	s.nudge()
	proto.Merge(r.claim, claim)
	s.tellClaim(r.ctx, claim, "release", fmt.Sprintf("volume %s of node %s was released by a person's word", spec.VolumeTitle(claim.GetDriver(), claim.GetName()), claim.GetNodeHostname()))
	return nil
}

// tellClaim publishes what became of a claim, as an event of its service: the volume's name may be no word of a subject.
func (s *Service) tellClaim(ctx context.Context, c *skepv1.VolumeClaim, verb, text string) {
	e := event.By(ctx, &skepv1.Event{
		Kind: "volume", Id: strings.TrimPrefix(reconcile.ClaimKey(c), "claim."), Name: c.GetName(), Verb: verb, Message: text,
		Attributes: map[string]string{"driver": c.GetDriver(), "node": c.GetNodeHostname(), "node.id": c.GetNodeId(), "service.id": c.GetServiceId()},
	})
	if err := event.Publish(s.cfg.NC, e); err != nil {
		s.cfg.Log.Warn("event not published", zap.Error(err))
	}
	s.cfg.Log.Info(text, zap.String("volume", c.GetName()), zap.String("driver", c.GetDriver()), zap.String("node", c.GetNodeId()))
}
