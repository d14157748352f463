package mesh

import (
	"context"
	"fmt"
	"time"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/id"
	"skep.dev/libs/keys"
	skepv1 "skep.dev/proto/skep/v1"
)

const (
	// drainFor bounds the request to the controller, which waits for every node that is up: without managers a task stops
	// all the same.
	drainFor = 7 * time.Second
	// settle is for connections that were on their way when the last node took the task out of its maps: they have to be
	// accepted before the program closes its socket, which resets those that wait. Swarm gives them two seconds.
	settle = 300 * time.Millisecond
)

// Drain implements attach.Attacher. The task leaves this node's maps at once, and the controller answers when the other
// nodes have taken it out of theirs.
func (s *Service) Drain(ctx context.Context, task string) error {
	if !id.Safe(task) {
		return fault.Invalid("drain: %q is not a task id", task)
	}
	s.liveMu.Lock()
	rec, here := s.live[task]
	again := s.draining[task]
	s.liveMu.Unlock()
	elsewhere := len(rec.Networks) > 0 || s.follow != nil && rec.Service != "" && s.follow.Publishes(rec.Service)
	if !here || again || !elsewhere && len(rec.Ports) == 0 {
		return nil
	}
	s.liveMu.Lock()
	s.draining[task] = true
	s.liveMu.Unlock()
	s.dirty.add(append(rec.networks(), keys.ScopeIngress)...)
	if !elsewhere || s.follow == nil {
		return nil
	}
	if !s.nc.IsConnected() {
		return fault.Unavailable("tell the other nodes that task %s ends: no connection to a manager", task)
	}
	ask, cancel := context.WithTimeout(ctx, drainFor)
	defer cancel()
	req := &skepv1.DrainRequest{NodeId: s.node, TaskIds: []string{task}}
	if _, err := api.Call(ask, s.nc, api.MeshDrain.At(s.node), req); err != nil {
		return fmt.Errorf("tell the other nodes that task %s ends: %w", task, err)
	}
	select {
	case <-time.After(settle):
	case <-ctx.Done():
	}
	return nil
}
