package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/render"
)

// countersTimeout is how long a node may take to read its own counters before it is left out.
const countersTimeout = time.Second

// countersAtOnce bounds how many nodes are asked at the same time: the question is a small one.
const countersAtOnce = 256

// rates are how many connections a second the services' published ports get, from two readings of every node's
// counters.
type rates struct {
	nodes   map[string]reading
	perSec  map[string]float64 // by service, of all nodes that answered twice
	known   bool               // some node did
	missing []string           // host names of ready nodes that did not answer
	denied  bool               // this user may not ask nodes
	at      time.Time          // of the last look
}

// reading is one node's counters.
type reading struct {
	at    int64 // unix ms, by the node's clock
	count map[string]uint64
}

func newRates() *rates { return &rates{nodes: map[string]reading{}} }

// look asks every ready node. A node that does not answer has no share in the rates until it has answered twice again.
func (r *rates) look(ctx context.Context, a *app, nodes []*skepv1.Node) {
	if r.denied {
		return
	}
	r.at = time.Now()
	replies := make([]*skepv1.MeshCountersReply, len(nodes))
	slot := make(chan struct{}, countersAtOnce)
	var wg sync.WaitGroup
	var mu sync.Mutex
	for i, n := range nodes {
		if !serves(n) {
			continue
		}
		slot <- struct{}{}
		wg.Go(func() {
			defer func() { <-slot }()
			ctx, cancel := context.WithTimeout(ctx, countersTimeout)
			defer cancel()
			reply, err := call(ctx, a, api.MeshCounters.At(n.GetMeta().GetId()), &skepv1.MeshCountersRequest{})
			switch {
			case err == nil:
				replies[i] = reply
			case fault.Is(err, fault.CodeDenied):
				mu.Lock()
				r.denied = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if ctx.Err() == nil {
		r.take(nodes, replies)
	}
}

// take compares the replies, one a node and nil for one that gave none, with the ones before.
func (r *rates) take(nodes []*skepv1.Node, replies []*skepv1.MeshCountersReply) {
	r.perSec, r.missing, r.known = map[string]float64{}, nil, false
	now := map[string]reading{}
	for i, n := range nodes {
		if replies[i] == nil {
			if serves(n) {
				r.missing = append(r.missing, render.Hostname(n))
			}
			continue
		}
		id := n.GetMeta().GetId()
		next := reading{at: replies[i].GetReadUnixMs(), count: map[string]uint64{}}
		for _, s := range replies[i].GetServices() {
			next.count[s.GetServiceId()] = s.GetConnections()
		}
		now[id] = next
		before, ok := r.nodes[id]
		if !ok || next.at <= before.at {
			continue
		}
		r.known = true
		for service, count := range next.count {
			grown := count
			if was := before.count[service]; was <= count {
				grown = count - was // else the rules were made anew, and count from there
			}
			r.perSec[service] += float64(grown) * 1000 / float64(next.at-before.at)
		}
	}
	r.nodes = now
}

// of is the CONNS/S column: "-" without published ports or before two readings, and with a * when a node's share is
// missing.
func (r *rates) of(s *skepv1.Service) string {
	ports := s.GetEndpoint().GetPorts()
	if len(ports) == 0 {
		ports = s.GetSpec().GetEndpoint().GetPorts()
	}
	if len(ports) == 0 || !r.known {
		return "-"
	}
	v := r.perSec[s.GetMeta().GetId()]
	text := fmt.Sprintf("%.1f", v)
	if v >= 100 {
		text = fmt.Sprintf("%.0f", v)
	}
	if len(r.missing) > 0 {
		text += "*"
	}
	return text
}

// note explains the *.
func (r *rates) note() string {
	if len(r.missing) == 0 || !r.known {
		return ""
	}
	names := slices.SortedFunc(slices.Values(r.missing), func(a, b string) int {
		if render.NaturalLess(a, b) {
			return -1
		}
		return 1
	})
	const few = 5
	if len(names) > few {
		names = append(names[:few], fmt.Sprintf("%d more", len(names)-few))
	}
	return "* without the connections at " + strings.Join(names, ", ") + ": no answer from there"
}
