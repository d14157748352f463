package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/id"
	"skep.dev/libs/pki"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// A cluster that was founded anew, or restored, has a larger epoch. Its old managers may return any day, and two of three
// would be a majority of the group that is over. So every manager asks those it knows of, before its store starts and now
// and then while it runs, and ends when one has a larger epoch. The question goes to the door where nodes ask to join,
// without a certificate: it is answered to those who were removed, too. The answer counts because of whose certificate the
// broker shows.

const (
	// epochFor bounds one question.
	epochFor = 2 * time.Second
	// epochEvery is how often a manager that does not hear from all others asks.
	epochEvery = 5 * time.Second
	// epochAtOnce bounds how many managers are asked at a time.
	epochAtOnce = 8
)

// newerEpoch asks managers for the epoch of their cluster and returns the first answer with a larger one than mine, nil when
// there is none: those that do not answer say nothing.
func newerEpoch(ctx context.Context, creds *pki.Store, addrs []string, mine uint64) (newer *skepv1.EpochReply, addr string) {
	ctx, cancel := context.WithTimeout(ctx, epochFor+time.Second)
	defer cancel()
	type answer struct {
		*skepv1.EpochReply
		addr string
	}
	answers := make(chan answer, len(addrs)) // who is away may take its time: nobody waits for it once one is newer
	turns := make(chan struct{}, epochAtOnce)
	for _, a := range addrs {
		go func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			r, err := AskEpoch(ctx, creds, a)
			if err != nil {
				r = nil
			}
			answers <- answer{r, a}
		}()
	}
	for range addrs {
		if r := <-answers; r.GetEpoch() > mine {
			return r.EpochReply, r.addr
		}
	}
	return nil, ""
}

// AskEpoch asks the manager at addr which founding of the cluster it is of. creds say which cluster that must be.
func AskEpoch(ctx context.Context, creds *pki.Store, addr string) (*skepv1.EpochReply, error) {
	tc := pki.ClientTLS(creds)
	tc.GetClientCertificate = nil // as one that has none
	name := "join-" + id.New()
	nc, err := nats.Connect("tls://"+addr, nats.Name("skep-bus "+creds.Identity().NodeID), nats.NoReconnect(), nats.Timeout(epochFor),
		nats.Secure(tc), nats.TLSHandshakeFirst(), nats.UserInfo(name, ""), nats.CustomInboxPrefix(subject.Inbox(name)))
	if err != nil {
		return nil, fmt.Errorf("ask the manager at %s for its epoch: %w", addr, err)
	}
	defer nc.Close()
	ctx, cancel := context.WithTimeout(ctx, epochFor)
	defer cancel()
	r, err := api.Call(ctx, nc, api.Epoch.At(name), &skepv1.Empty{})
	if err != nil {
		return nil, fmt.Errorf("ask the manager at %s for its epoch: %w", addr, err)
	}
	if r.GetClusterId() != creds.Identity().ClusterID {
		return nil, fmt.Errorf("ask the manager at %s for its epoch: it is of cluster %s", addr, r.GetClusterId())
	}
	return r, nil
}

// outlived is where a manager of a cluster that is over stands: if the new one has it as a manager again, it is let in with an
// empty store; else it serves nothing, and what it has stays on its disk.
func (g *group) outlived(ctx context.Context, p *Place, newer *skepv1.EpochReply, addr string) (*Place, error) {
	release, err := hold(&g.b.cfg)
	if err != nil {
		return nil, err
	}
	defer release()
	reply, err := g.ask(ctx, []string{addr})
	if err != nil {
		return nil, fmt.Errorf("start the broker %s: %w", p.Server, g.overBy(p, newer, addr))
	}
	g.log.Warn("the cluster was founded anew, and lets this node in again as a manager; the store it had is removed",
		zap.String("was", p.Server), zap.String("server", reply.GetServer()), zap.Uint64("epoch", reply.GetEpoch()))
	if err := wipe(g.b.cfg.DataDir); err != nil {
		return nil, err
	}
	p = &Place{Server: reply.GetServer(), Routes: reply.GetRoutes(), Epoch: reply.GetEpoch()}
	return p, g.keep(p)
}

// overBy is ErrOver with what to do.
func (g *group) overBy(p *Place, newer *skepv1.EpochReply, addr string) error {
	return fmt.Errorf("%w: it has epoch %d, the manager %s at %s has %d. Nothing of it is served. The node becomes what the cluster has it as now; one that "+
		"was removed leaves with \"skep leave --force\" and joins again with what \"skep join-token manager\" (or worker) prints there", ErrOver, p.Epoch, newer.GetNodeId(), addr, newer.GetEpoch())
}

// watchEpoch asks the managers that are not heard of for their epoch, until ctx ends. Those that are heard of tell it in
// their beats.
func (g *group) watchEpoch(ctx context.Context) {
	t := time.NewTicker(epochEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		g.mu.Lock()
		p := *g.mine
		set := g.set
		g.mu.Unlock()
		beats, now := g.heardOf(), time.Now()
		addrs := g.others(set)
		for _, m := range set.GetManagers() {
			if h, ok := beats[m.GetServer()]; ok && now.Sub(h.at) < heardFor && h.GetEpoch() <= p.Epoch {
				addrs = slices.DeleteFunc(addrs, func(a string) bool { return a == m.GetAddr() })
			}
		}
		if newer, addr := newerEpoch(ctx, g.b.cfg.TLS, addrs, p.Epoch); newer != nil {
			g.log.Error("this manager stops", zap.Error(g.overBy(&p, newer, addr)))
			g.finish(g.overBy(&p, newer, addr))
			return
		}
	}
}

// isOut reports whether a node was in the group and is not any more: it gets no route. One that this manager has not heard
// of yet may be newer than what it knows.
func (g *group) isOut(node string) bool {
	set, _ := g.known()
	if slices.ContainsFunc(set.GetManagers(), func(m *skepv1.Manager) bool { return m.GetNodeId() == node }) {
		return false
	}
	_, was := set.GetUsed()[node]
	return was
}

// epoch is that of the cluster as this manager knows it.
func (g *group) epoch() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.mine == nil {
		return 0
	}
	return g.mine.Epoch
}

// tell answers who asks at the door for the epoch.
func (d *door) tell(m *nats.Msg) {
	name := m.Subject[strings.LastIndexByte(m.Subject, '.')+1:]
	_, end, ok := d.b.guests.ask(name, admitWithin)
	if !ok {
		return
	}
	defer end()
	if subject.InboxOwner(m.Reply) != name || !subject.MayHear(m.Subject, m.Reply) {
		return
	}
	me := d.b.cfg.TLS.Identity()
	body, err := proto.Marshal(&skepv1.EpochReply{ClusterId: me.ClusterID, Epoch: d.b.epoch(), NodeId: me.NodeID})
	if err != nil {
		return
	}
	answer := nats.NewMsg(m.Reply)
	answer.Data = body
	answer.Header.Set(rpc.HeaderContentType, rpc.TypeProto)
	if err := d.outside.PublishMsg(answer); err != nil && !errors.Is(err, nats.ErrConnectionClosed) {
		d.b.slips.Warn("tell the epoch", zap.Error(err))
	}
}
