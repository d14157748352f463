package bus

import (
	"context"

	"go.uber.org/zap"

	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

// The actions of a step, as ManagerStep has them.
const (
	actJoin         = "join"
	actScale        = "scale"
	actStartWitness = "start-witness"
	actStopWitness  = "stop-witness"
	actEvacuate     = "evacuate"
	actRetire       = "retire"
	actRemove       = "remove"
)

// changeWitness has this node run the witness of that name, or none. It may be asked again.
func (g *group) changeWitness(ctx context.Context, q *skepv1.WitnessRequest) (*skepv1.Empty, error) {
	g.witness.Lock()
	defer g.witness.Unlock()
	switch have := g.b.witnessName(); {
	case q.GetName() == "":
		return &skepv1.Empty{}, g.stopWitness(q.GetWipe())
	case have == q.GetName():
		return &skepv1.Empty{}, nil
	case have != "":
		return nil, fault.Conflict("start witness %s: this node runs %s", q.GetName(), have)
	}
	return &skepv1.Empty{}, g.startWitness(ctx, q.GetName())
}

// startWitness starts one; the store of another name is of no use to it.
func (g *group) startWitness(ctx context.Context, name string) error {
	g.mu.Lock()
	was := g.mine.Witness
	g.mu.Unlock()
	if was != name {
		if err := g.b.StopWitness(true); err != nil {
			return err
		}
		if err := g.noteWitness(name); err != nil {
			return err
		}
	}
	if err := g.b.StartWitness(ctx, name); err != nil {
		return err
	}
	g.log.Info("a witness runs beside this manager's server", zap.String("witness", name))
	return nil
}

// stopWitness stops it. Its name leaves group.json before its store goes: a name without its store would be another voter.
func (g *group) stopWitness(wipe bool) error {
	if wipe {
		if err := g.noteWitness(""); err != nil {
			return err
		}
	}
	return g.b.StopWitness(wipe)
}

// noteWitness keeps the witness's name for the next start.
func (g *group) noteWitness(name string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.mine.Witness == name {
		return nil
	}
	g.mine.Witness = name
	return g.mine.Write(g.b.cfg.DataDir)
}

// tend has the witness follow the set: a command may have been missed. What is being changed is left to whoever changes it.
func (g *group) tend(ctx context.Context) {
	g.witness.Lock()
	defer g.witness.Unlock()
	set, _ := g.known()
	me := memberOf(set, g.me())
	if me == nil || ctx.Err() != nil || me.GetState() != skepv1.ManagerState_MANAGER_STATE_VOTER {
		return
	}
	if s := set.GetStep(); s.GetNodeId() == me.GetNodeId() && (s.GetAction() == actStartWitness || s.GetAction() == actStopWitness) {
		return
	}
	var err error
	switch have := g.b.witnessName(); {
	case me.GetWitness() == have:
		return
	case have != "":
		err = g.stopWitness(true)
	default:
		err = g.startWitness(ctx, me.GetWitness())
	}
	if err != nil && ctx.Err() == nil {
		g.log.Warn("the witness does not follow the group", zap.String("witness", me.GetWitness()), zap.Error(err))
	}
}

// witnessName is the witness that runs here, "" when none does.
func (b *Bus) witnessName() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.witness == nil {
		return ""
	}
	return b.witness.Name()
}
