// Package witness is what a witness says of itself to the managers, beside its broker: that it is there, and what it is.
//
// A witness (`skep join --witness`) has no agent, which does this on every other node. It says that it offers nothing: no
// processors, no memory, no plug-ins.
//
// Failure story: without a manager it says nothing and tries again; its broker does not depend on it. The managers show a
// witness as Down when they do not hear of it, and it is no less a voter for that.
package witness

import (
	"context"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/id"
	"skep.dev/libs/pki"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

const (
	// beatEvery is the pause between two signs of life while the managers have not said what they expect.
	beatEvery = time.Second
	// describeWithin bounds one description, describeAgain is the pause after one that did not arrive.
	describeWithin = 5 * time.Second
	describeAgain  = time.Second
	// lookEvery is how often it looks whether what it said still holds: its certificate is renewed.
	lookEvery = time.Minute
)

// Config is all it needs.
type Config struct {
	NC       *nats.Conn // as the node
	Store    *pki.Store
	Log      *zap.Logger
	Hostname string
	Addr     string // the address others reach it at, without a port
	Version  string
}

// Service says it, from Run on.
type Service struct {
	cfg     Config
	session string
	ready   chan struct{}
	leaving atomic.Bool
	period  atomic.Int64  // of signs of life, ns
	paced   chan struct{} // the period changed
}

// New prepares one; Run does the work.
func New(cfg Config) *Service {
	s := &Service{cfg: cfg, session: id.New(), ready: make(chan struct{}), paced: make(chan struct{}, 1)}
	s.period.Store(int64(beatEvery))
	return s
}

// Ready is closed at once: nothing waits for it.
func (s *Service) Ready() <-chan struct{} { return s.ready }

// SetLeaving has the last sign of life say that it leaves the cluster.
func (s *Service) SetLeaving() { s.leaving.Store(true) }

// Close has nothing to end.
func (s *Service) Close() error { return nil }

// Run goes on until ctx ends (nil).
func (s *Service) Run(ctx context.Context) error {
	close(s.ready)
	described := make(chan struct{})
	go func() {
		defer close(described)
		s.describe(ctx)
	}()
	for {
		s.beat(false)
		period := time.Duration(s.period.Load())
		select {
		case <-ctx.Done():
			<-described
			if s.leaving.Load() {
				s.beat(true)
				_ = s.cfg.NC.FlushTimeout(time.Second) // they find out in any case
			}
			return nil
		case <-s.paced: // a minute may be left of the period that was
		case <-time.After(period*9/10 + rand.N(period/5)):
		}
	}
}

func (s *Service) beat(leaving bool) {
	if s.cfg.NC.Status() != nats.CONNECTED {
		return // an old one sent later would lie
	}
	node := s.cfg.Store.Identity().NodeID
	body, err := proto.Marshal(&skepv1.Heartbeat{NodeId: node, Session: s.session, SentUnixMs: time.Now().UnixMilli(), Leaving: leaving})
	if err == nil {
		err = s.cfg.NC.Publish(subject.Heartbeat(node), body)
	}
	if err != nil {
		s.cfg.Log.Debug("heartbeat", zap.Error(err))
	}
}

// describe tells the managers what it is: at the start, when it is connected again, when its certificate was renewed, and when
// the cluster's settings may have changed, which the answer has.
func (s *Service) describe(ctx context.Context) {
	states := s.cfg.NC.StatusChanged(nats.CONNECTED)
	defer s.cfg.NC.RemoveStatusListener(states)
	told := make(chan *nats.Msg, 16)
	sub, err := s.cfg.NC.ChanSubscribe(subject.PushFiles(s.cfg.Store.Identity().NodeID), told)
	if err != nil {
		s.cfg.Log.Warn("new settings of the cluster are learnt at the next connection", zap.Error(err))
	} else {
		defer func() { _ = sub.Unsubscribe() }() // the connection may be closed before us
	}
	var sent *skepv1.NodeDescription
	wait := time.Duration(0)
	for {
		select {
		case <-ctx.Done():
			return
		case _, open := <-states:
			if !open {
				return // the connection was closed
			}
			sent = nil
		case <-told:
			sent = nil
		case <-time.After(wait):
		}
		d := s.description()
		if wait = lookEvery; proto.Equal(d, sent) {
			continue
		}
		node := s.cfg.Store.Identity().NodeID
		try, cancel := context.WithTimeout(ctx, describeWithin)
		reply, err := api.Call(try, s.cfg.NC, api.StateDescribe.At(node), &skepv1.DescribeRequest{NodeId: node, Description: d})
		cancel()
		if err != nil {
			s.cfg.Log.Debug("describe the node", zap.Error(err))
			wait = describeAgain
			continue
		}
		sent = d
		if p := reply.GetCluster().GetHeartbeatPeriod().AsDuration(); p >= 50*time.Millisecond && s.period.Swap(int64(p)) != int64(p) {
			select {
			case s.paced <- struct{}{}:
			default:
			}
		}
	}
}

func (s *Service) description() *skepv1.NodeDescription {
	leaf := s.cfg.Store.Leaf()
	return &skepv1.NodeDescription{
		Hostname: s.cfg.Hostname, Platform: &skepv1.Platform{Os: runtime.GOOS, Arch: runtime.GOARCH}, Resources: &skepv1.Resources{},
		EngineVersion: s.cfg.Version, Addr: s.cfg.Addr,
		CertFromUnixMs: leaf.NotBefore.UnixMilli(), CertUntilUnixMs: leaf.NotAfter.UnixMilli(),
	}
}
