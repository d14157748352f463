package agent

import (
	"context"
	"time"

	"go.uber.org/zap"

	"skep.dev/libs/api"
	"skep.dev/libs/rpc"
	skepv1 "skep.dev/proto/skep/v1"
)

// toldWithin is how long a manager may take to note what a person does here. Who has to look into a task while the managers
// are away still can: this node's log has it.
const toldWithin = 2 * time.Second

// tell has noted who asks this node for something, before it is done.
func (s *Service) tell(ctx context.Context, r *skepv1.ToldRequest) {
	who := rpc.ActorOf(ctx)
	if !who.Person() {
		return
	}
	r.Actor, r.Address = who.Name, who.Address
	log := s.log.With(zap.String("by", who.Name), zap.String("from", who.Address), zap.String("verb", r.Verb), zap.String("task", r.TaskId))
	log.Info("asked by a person")
	ctx, cancel := context.WithTimeout(ctx, toldWithin)
	defer cancel()
	if _, err := api.Call(ctx, s.cfg.NC, api.StateTold.At(s.cfg.NodeID), r); err != nil {
		log.Warn("no manager has noted who asked this node", zap.Error(err))
	}
}
