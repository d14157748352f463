package mesh

import (
	"cmp"
	"context"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/keys"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/ingress-mesh/internal/ingress"
)

const (
	// watchEvery is the time between two rounds; each asks watchPeers of the peers, in turn, and as many of those that
	// did not answer before. That is two to four packets a second whatever the cluster's size.
	watchEvery = 5 * time.Second
	watchPeers = 5
	// suspectsMost bounds how many peers are remembered as not answering: all of them are asked again within 40 s, so a
	// verdict ends within a minute of its reason. Others are found again by the round, once there is room.
	suspectsMost = 40
	// convictAfter is how many times in a row a peer must not answer to count as blocked: a packet may be lost.
	convictAfter = 3
	// sayAgain is how many rounds without blocked peers the end is told in: a report may be lost.
	sayAgain = 3
)

// paths is which peers answer through the data path. It does no I/O.
type paths struct {
	mu       sync.Mutex
	last     string // id of the peer the round has come to
	suspects map[string]*suspect
	clean    int // rounds since a peer was blocked, up to sayAgain
	round    uint64
}

type suspect struct {
	failed int // times in a row
	round  uint64
}

func newPaths() *paths { return &paths{suspects: map[string]*suspect{}, clean: sayAgain} }

// pick gives the peers of the next round. peers are ordered by id.
func (p *paths) pick(peers []ingress.Peer) []ingress.Peer {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.round++
	byID := make(map[string]ingress.Peer, len(peers))
	for _, x := range peers {
		byID[x.ID] = x
	}
	maps.DeleteFunc(p.suspects, func(id string, _ *suspect) bool { _, ok := byID[id]; return !ok })
	at, found := slices.BinarySearchFunc(peers, p.last, func(x ingress.Peer, id string) int { return cmp.Compare(x.ID, id) })
	if found {
		at++
	}
	var out []ingress.Peer
	for i := range min(watchPeers, len(peers)) {
		x := peers[(at+i)%len(peers)]
		p.last = x.ID
		out = append(out, x)
		delete(byID, x.ID)
	}
	// Those that were not asked for the longest time come first.
	waiting := slices.SortedFunc(maps.Keys(p.suspects), func(a, b string) int {
		return cmp.Or(cmp.Compare(p.suspects[a].round, p.suspects[b].round), cmp.Compare(a, b))
	})
	for _, id := range waiting {
		if x, ok := byID[id]; ok && len(out) < 2*watchPeers {
			out = append(out, x)
		}
	}
	return out
}

// note takes one answer, or none.
func (p *paths) note(id string, answered bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.suspects[id]
	switch {
	case answered:
		delete(p.suspects, id)
		return
	case s == nil && len(p.suspects) >= suspectsMost:
		return
	case s == nil:
		s = &suspect{}
		p.suspects[id] = s
	}
	s.failed++
	s.round = p.round
}

// blocked are the ids of the peers that do not answer.
func (p *paths) blocked() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	for id, s := range p.suspects {
		if s.failed >= convictAfter {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

// tell says whether the managers are to hear of the blocked peers after this round.
func (p *paths) tell(blocked int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if blocked > 0 {
		p.clean = 0
		return true
	}
	p.clean++
	return p.clean <= sayAgain
}

// watch asks peers in turn whether they answer through the data path, and tells health-monitor which do not, until ctx
// ends.
func (s *Service) watch(ctx context.Context) {
	said := 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(watchEvery*9/10 + rand.N(watchEvery/5)):
		}
		if s.cleaned.Load() {
			return
		}
		nodes := s.follow.Scope(keys.ScopeNodes).Nodes
		var wg sync.WaitGroup
		for _, p := range s.paths.pick(peers(nodes, s.node)) {
			wg.Go(func() {
				err := s.probe(ctx, p.Subnet.Addr().Next())
				if ctx.Err() == nil {
					s.paths.note(p.ID, err == nil)
				}
			})
		}
		wg.Wait()
		blocked := s.paths.blocked()
		if len(blocked) != said && ctx.Err() == nil {
			s.log.Info("peers that do not answer through the data path", zap.Int("now", len(blocked)), zap.Int("before", said), zap.Strings("nodes", blocked))
			said = len(blocked)
		}
		if s.paths.tell(len(blocked)) && ctx.Err() == nil {
			s.reportPaths(blocked, nodes)
		}
	}
}

func (s *Service) reportPaths(blocked []string, nodes map[string]*skepv1.MeshNode) {
	r := &skepv1.MeshPathReport{NodeId: s.node}
	for _, id := range blocked {
		r.Blocked = append(r.Blocked, &skepv1.BlockedPeer{NodeId: id, Hostname: nodes[id].GetHostname()})
	}
	slices.SortFunc(r.Blocked, func(a, b *skepv1.BlockedPeer) int {
		return cmp.Or(strings.Compare(a.Hostname, b.Hostname), strings.Compare(a.NodeId, b.NodeId))
	})
	if !s.nc.IsConnected() {
		return // an old one sent later would lie
	}
	b, err := proto.Marshal(r)
	if err == nil {
		err = s.nc.Publish(subject.Path(s.node), b)
	}
	if err != nil {
		s.log.Warn("report blocked peers", zap.Error(err))
	}
}
