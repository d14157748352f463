package vault

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/member"
)

// readGroupWithin bounds how long an answer waits for the list of managers that goes with it.
const readGroupWithin = 2 * time.Second

// group is the managers as the bus wrote them down, read when somebody is to be told where they are: rarely.
type group struct {
	bucket *kv.Bucket
	log    *zap.Logger

	mu   sync.Mutex
	last *skepv1.ManagerSet // as it was read last, for when the store does not answer
}

// read asks the store's leader; nil where nobody wrote the group down yet.
func (g *group) read(ctx context.Context) (*skepv1.ManagerSet, error) {
	ctx, cancel := context.WithTimeout(ctx, readGroupWithin)
	defer cancel()
	e, err := g.bucket.Get(ctx, keys.Managers.Key())
	if errors.Is(err, kv.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	set := &skepv1.ManagerSet{}
	return set, proto.Unmarshal(e.Value, set)
}

// now is the group as it is, or as it was last known.
func (g *group) now(ctx context.Context) *skepv1.ManagerSet {
	set, err := g.read(ctx)
	g.mu.Lock()
	defer g.mu.Unlock()
	if err != nil {
		g.log.Warn("the list of managers cannot be read; the last one is told", zap.Error(err))
		return g.last
	}
	g.last = set
	return set
}

// managers are the addresses that who joins, and who is shown a token, is told: those of the group, or what this manager
// was started with.
func (s *Service) managers(ctx context.Context) (addrs []string, epoch uint64) {
	set := s.group.now(ctx)
	if addrs = member.Addrs(set, s.cfg.NodeID); len(addrs) == 0 {
		addrs = s.cfg.ManagerAddrs()
	}
	return addrs, set.GetEpoch()
}

// hosts are the names that a manager's certificate is good for, beside its id: the hosts of its addresses.
func hosts(addrs ...string) (out []string) {
	for _, a := range addrs {
		if h := member.HostOf(a); h != "" && len(h) <= maxNameLen && !slices.Contains(out, h) {
			out = append(out, h)
		}
	}
	return out
}

// hostsOf are those of a manager that the cluster knows.
func (s *Service) hostsOf(ctx context.Context, n *skepv1.Node) []string {
	addrs := []string{n.GetDescription().GetAddr()}
	for _, m := range s.group.now(ctx).GetManagers() {
		if m.NodeId == n.GetMeta().GetId() {
			addrs = append(addrs, m.Addr)
		}
	}
	return hosts(addrs...)
}
