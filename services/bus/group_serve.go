package bus

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// serve answers what is asked of every manager, with a store or without, and beats, until the returned function is called.
func (g *group) serve(boss *nats.Conn) (stop func(), err error) {
	srv, err := rpc.NewServer(boss, rpc.Config{Name: "skep-bus-group", Version: g.b.cfg.Version, Description: "the group of managers", Log: g.log, Metrics: g.b.cfg.Metrics})
	if err != nil {
		return nil, fmt.Errorf("serve the group of managers: %w", err)
	}
	me := g.b.cfg.NodeID
	g.mu.Lock()
	g.boss = boss
	g.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	var beats sync.WaitGroup
	var sub *nats.Subscription
	stop = func() {
		if err := srv.Close(); err != nil {
			g.log.Debug("stop serving the group of managers", zap.Error(err))
		}
		cancel()
		beats.Wait()
		if sub != nil {
			_ = sub.Unsubscribe() // it goes with the connection anyway
		}
		// Whoever was answered last waits for it.
		if err := boss.FlushTimeout(time.Second); err != nil {
			g.log.Debug("flush", zap.Error(err))
		}
	}
	for _, handle := range []func() error{
		func() error { return api.Handle(srv, api.ManagerList, g.list) },
		func() error { return api.Handle(srv, api.BusReach.At(me), g.reach) },
		func() error { return api.Handle(srv, api.BusSelf.At(me), g.self) },
		func() error { return api.Handle(srv, api.BusWitness.At(me), g.changeWitness) },
		func() error { return api.Handle(srv, api.BusRetire.At(me), g.retire) },
	} {
		if err = handle(); err != nil {
			stop()
			return nil, fmt.Errorf("serve the group of managers: %w", err)
		}
	}
	if sub, err = boss.Subscribe(subject.AllManagerBeats, g.hear); err != nil {
		stop()
		return nil, fmt.Errorf("listen to the other managers: %w", err)
	}
	beats.Go(func() { g.here(ctx, boss) })
	return stop, nil
}

// list tells of the managers as this one knows them.
func (g *group) list(context.Context, *skepv1.Empty) (*skepv1.ListManagersReply, error) {
	set, _ := g.known()
	beats, now := g.heardOf(), time.Now()
	out := &skepv1.ListManagersReply{Set: proto.CloneOf(set)}
	leader, _ := g.b.metaLeader()
	out.Led = leader != ""
	voters, present := g.b.voters(names(set))
	out.Voters, out.Present = uint32(len(voters)), uint32(len(present))
	for _, m := range set.GetManagers() {
		v := &skepv1.ManagerView{NodeId: m.GetNodeId()}
		if h, ok := beats[m.GetServer()]; ok {
			v.Reachable, v.Version, v.Heard = now.Sub(h.at) < heardFor, h.GetVersion(), timestamppb.New(h.at)
		}
		v.Leader = leader != "" && (leader == m.GetServer() || leader == m.GetWitness())
		out.Views = append(out.Views, v)
	}
	return out, nil
}

// names are the servers and witnesses of a set.
func names(set *skepv1.ManagerSet) (out []string) {
	for _, m := range set.GetManagers() {
		out = append(out, m.GetServer())
		if m.GetWitness() != "" {
			out = append(out, m.GetWitness())
		}
	}
	return out
}

// reach tells which addresses this manager does not reach.
func (g *group) reach(ctx context.Context, q *skepv1.ReachRequest) (*skepv1.ReachReply, error) {
	if len(q.GetAddrs()) > 8 {
		return nil, fault.Invalid("reach %d addresses: ask for at most 8", len(q.GetAddrs()))
	}
	out := &skepv1.ReachReply{Failed: map[string]string{}}
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, addr := range q.GetAddrs() {
		all.Go(func() {
			if err := reach(ctx, g.b.cfg.TLS, addr, q.GetNodeId()); err != nil {
				mu.Lock()
				out.Failed[addr] = err.Error()
				mu.Unlock()
			}
		})
	}
	all.Wait()
	return out, nil
}

// retire ends this broker for good. The answer goes out first.
func (g *group) retire(_ context.Context, q *skepv1.RetireRequest) (*skepv1.Empty, error) {
	if me := g.me(); q.GetServer() != me {
		return nil, fault.Conflict("retire server %s: this node runs %s", q.GetServer(), me)
	}
	g.log.Info("the group of managers lets this node go", zap.String("server", q.GetServer()))
	g.finish(ErrRetired)
	return &skepv1.Empty{}, nil
}

// metaLeader is the server that leads the group as this one knows it, "" when none does. It asks nobody.
func (b *Bus) metaLeader() (leader string, info *server.MetaClusterInfo) {
	main := b.running()
	if main == nil {
		return "", nil
	}
	j, err := main.Jsz(&server.JSzOptions{})
	if err != nil || j.Meta == nil {
		return "", nil
	}
	return j.Meta.Leader, j.Meta
}

// voters are the servers of the group as this one knows it, and those of them that have a connection with it now. It asks
// nobody. A server that was not heard of since this one started has no name: known has those it may have.
func (b *Bus) voters(known []string) (voters, present []string) {
	_, info := b.metaLeader()
	main := b.running()
	if info == nil || main == nil {
		return nil, nil
	}
	for _, p := range info.Replicas {
		voters = append(voters, nameOf(p.Name, p.Peer, known))
	}
	for _, own := range []string{b.cfg.Name, info.Leader} {
		if own != "" && !slices.Contains(voters, own) {
			voters = append(voters, own)
		}
	}
	connected := []string{b.cfg.Name}
	if r, err := main.Routez(nil); err == nil {
		for _, c := range r.Routes {
			connected = append(connected, c.RemoteName)
		}
	}
	for _, v := range voters {
		if slices.Contains(connected, v) {
			present = append(present, v)
		}
	}
	return voters, present
}
