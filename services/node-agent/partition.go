package agent

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"skep.dev/libs/api"
	"skep.dev/libs/partition"
	skepv1 "skep.dev/proto/skep/v1"
)

// watchManagers ends tasks of services with --on-partition stop when no manager was heard for so long that they may be given
// to other nodes soon (libs/partition). Heard means: one that knows the newest records answered, and this node is not down
// by them. What counts is when the question was put. Without such tasks nothing is asked.
func (s *Service) watchManagers(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-s.Ready():
	}
	heard, alone := sinceBoot(), false
	for ctx.Err() == nil {
		period := s.heartbeat()
		asked := sinceBoot()
		if !s.set.StopsAlone() {
			heard, alone = asked, false
			wait(ctx, period)
			continue
		}
		switch err := s.heardBy(ctx, period); {
		case err == nil:
			if alone {
				s.log.Info("managers are heard again", zap.Duration("after", asked-heard))
			}
			heard, alone = asked, false
			s.set.Alone("")
		case ctx.Err() != nil:
			return
		default:
			if silent := sinceBoot() - heard; silent > partition.Silence(period) {
				alone = true
				s.set.Alone(fmt.Sprintf("no manager was heard for %s, and the service says --on-partition stop", silent.Round(time.Second)))
			}
		}
		wait(ctx, period-(sinceBoot()-asked))
	}
}

// heardBy asks the managers whether this node counts as running.
func (s *Service) heardBy(ctx context.Context, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	r, err := api.Call(ctx, s.cfg.NC, api.StateSnapshot.At(s.cfg.NodeID), &skepv1.SnapshotRequest{NodeId: s.cfg.NodeID})
	if err == nil && r.GetState() == skepv1.NodeState_NODE_STATE_DOWN {
		err = fmt.Errorf("the managers take this node for down")
	}
	return err
}

// sinceBoot is a clock that nobody sets and that runs while the machine sleeps.
func sinceBoot() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return time.Since(began)
	}
	return time.Duration(ts.Nano())
}

var began = time.Now()
