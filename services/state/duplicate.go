package state

import (
	"context"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/printable"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// That two machines run as one node is told by whoever refuses the second: an instance of this service (sole), or a manager's
// broker. They tell it again each minute for as long as it lasts, so every instance knows it from the events, and it is over when
// nobody has told for a while.
const (
	tellDuplicateEvery = time.Minute
	duplicateFor       = 3 * time.Minute
)

// duplicate is the last that was told of a node.
type duplicate struct {
	*skepv1.NodeDuplicate
	until time.Time
}

// followDuplicates hears of second machines until ctx ends.
func (s *Service) followDuplicates(ctx context.Context) {
	sub, err := s.cfg.NC.Subscribe(subject.Event("node", "*", "duplicate"), func(m *nats.Msg) {
		e := &skepv1.Event{}
		if protojson.Unmarshal(m.Data, e) != nil || m.Subject != subject.Event("node", e.Id, "duplicate") || !s.ix.HasNode(e.Id) {
			return
		}
		now := time.Now()
		text := func(key string) string { return printable.Cut(e.Attributes[key], 256) }
		s.duplicates.Store(e.Id, duplicate{&skepv1.NodeDuplicate{
			Hostname: text("hostname"), Addr: text("addr"), SecondHostname: text("second.hostname"), SecondAddr: text("second.addr"), Seen: timestamppb.New(now),
		}, now.Add(duplicateFor)})
		s.duplicates.Range(func(node, v any) bool {
			if now.After(v.(duplicate).until) {
				s.duplicates.Delete(node)
			}
			return true
		})
	})
	if err != nil {
		s.log.Error("it is not heard which nodes two machines run as", zap.Error(err))
		return
	}
	<-ctx.Done()
	_ = sub.Unsubscribe() // the connection may be gone
}

// viewNode is a node as clients see it, nil when there is none.
func (s *Service) viewNode(id string) *skepv1.Node {
	n := s.ix.Node(id)
	if v, ok := s.duplicates.Load(id); ok && n != nil && time.Now().Before(v.(duplicate).until) {
		n.Duplicate = v.(duplicate).NodeDuplicate
	}
	return n
}
