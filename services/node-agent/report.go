package agent

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// firstRetry is the wait after a report that failed; each further one waits twice as long.
const firstRetry = 100 * time.Millisecond

// gap is how far apart reports of so many tasks are while changes keep coming; the first change after quiet goes at
// once. A report holds them all: its cost grows with them, on the managers too.
func gap(tasks int) time.Duration {
	return min(20*time.Millisecond+time.Duration(tasks)*time.Millisecond, 100*time.Millisecond)
}

// reporter sends the node's whole status: one request in flight, the newest state in each.
type reporter struct {
	s     *Service
	dirty chan struct{}
	seq   uint64
	tasks int // in the last report
}

func newReporter(s *Service) *reporter { return &reporter{s: s, dirty: make(chan struct{}, 1)} }

func (r *reporter) changed() {
	select {
	case r.dirty <- struct{}{}:
	default:
	}
}

func (r *reporter) run(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-r.s.Ready(): // an incomplete status would read as tasks lost
	}
	r.changed()
	backoff := firstRetry
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.dirty:
		}
		began := time.Now()
		err := r.send(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			r.s.log.Debug("report status", zap.Error(err))
			r.changed()
			wait(ctx, backoff/2+rand.N(backoff))
			backoff = min(2*backoff, 5*time.Second)
			continue
		}
		backoff = firstRetry
		wait(ctx, gap(r.tasks)-time.Since(began))
	}
}

func wait(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

func (r *reporter) send(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r.seq++
	st := &skepv1.NodeStatus{
		NodeId: r.s.cfg.NodeID, Report: r.seq, Session: r.s.session,
		AppliedGeneration: r.s.set.Generation(), Tasks: r.s.set.Statuses(),
	}
	st.Volumes = r.s.plugins.Held() // read after the generation: what it does not hold, it does not hold for that one
	r.tasks = len(st.Tasks)
	reply, err := api.Call(ctx, r.s.cfg.NC, api.StateStatus.At(r.s.cfg.NodeID), st)
	if err != nil {
		return err
	}
	r.s.set.Told(st.Tasks)
	if reply.GetGeneration() > r.s.set.Generation() {
		// A push takes a moment to arrive too: only what is still missing then was lost.
		time.AfterFunc(250*time.Millisecond, func() {
			if reply.GetGeneration() > r.s.set.Generation() {
				r.s.askSnapshot()
			}
		})
	}
	return nil
}

const defaultHeartbeat = time.Second

func (s *Service) heartbeats(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-s.Ready():
	}
	for {
		s.beat(&skepv1.Heartbeat{})
		period := s.heartbeat()
		t := time.NewTimer(period*9/10 + rand.N(period/5))
		select {
		case <-ctx.Done():
			t.Stop()
			if last := (&skepv1.Heartbeat{Leaving: s.leaving.Load(), Restarting: s.cfg.Restarts}); last.Leaving || last.Restarting {
				s.beat(last)
				_ = s.cfg.NC.FlushTimeout(time.Second) // they find out in any case
			}
			return
		case <-s.paced: // a minute may be left of the period that was
			t.Stop()
		case <-t.C:
		}
	}
}

// heartbeat is the period of heartbeats.
func (s *Service) heartbeat() time.Duration {
	if d := s.cluster.Load().GetHeartbeatPeriod(); d != nil && d.AsDuration() >= 50*time.Millisecond {
		return d.AsDuration()
	}
	return defaultHeartbeat
}

// beat sends a heartbeat; hb says what is special about it.
func (s *Service) beat(hb *skepv1.Heartbeat) {
	if s.cfg.NC.Status() != nats.CONNECTED || s.refused.Load() {
		return // an old one sent later would lie, and another machine's would speak for that one
	}
	hb.NodeId, hb.Session, hb.AppliedGeneration, hb.SentUnixMs = s.cfg.NodeID, s.session, s.set.Generation(), time.Now().UnixMilli()
	for _, st := range s.set.Statuses() {
		if st.State == skepv1.TaskState_TASK_STATE_RUNNING {
			hb.Running++
		}
	}
	hb.CpuNanos, hb.MemoryBytes = hostUse()
	body, err := proto.Marshal(hb)
	if err == nil {
		err = s.cfg.NC.Publish(subject.Heartbeat(s.cfg.NodeID), body)
	}
	if err != nil {
		s.log.Debug("heartbeat", zap.Error(err))
	}
}
