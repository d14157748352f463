package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// Founding a cluster anew, after the majority of its managers was lost for good. Every step may have been done already, by
// an attempt that was killed: the next start does what is left. Nobody else may vote, lead or serve meanwhile: this server has
// no routes and lets none in (Config.Alone), and the new epoch is told to every manager that asks (epoch.go).

// askedEvery is how often a broker looks whether that was asked for.
const askedEvery = 500 * time.Millisecond

// alone is this manager's place while it founds the cluster anew.
func (r *Refounding) alone(p *Place, cfg *Config) (*Place, error) {
	was := p.set()
	set := &skepv1.ManagerSet{
		Managers: []*skepv1.Manager{{
			NodeId: cfg.NodeID, Server: p.Server, Addr: cfg.Advertise, Route: cfg.RouteAddr(), Hostname: cfg.Hostname, Bare: cfg.Bare,
			State: skepv1.ManagerState_MANAGER_STATE_VOTER, Witness: r.Witness,
		}},
		Replicas: 1, Used: was.GetUsed(), Epoch: r.Epoch,
	}
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(set)
	if err != nil {
		return nil, fmt.Errorf("found the cluster anew: %w", err)
	}
	return &Place{Server: p.Server, Witness: p.Witness, Epoch: r.Epoch, ClusterID: p.ClusterID, Set: text, Revision: p.Revision}, nil
}

// refound makes this manager, whose server was started alone, the only one. It returns when every stream takes writes and
// the new group is written down; what is then left is for state (followRefound).
func (g *group) refound(ctx context.Context, r *Refounding) error {
	dir, began := g.b.cfg.DataDir, time.Now()
	stage := func(s string) error {
		g.log.Warn("the cluster is founded anew", zap.String("stage", s), zap.Uint64("epoch", r.Epoch), zap.Duration("dur", time.Since(began)))
		r.Stage = s
		return r.write(dir)
	}
	if r.Newest.IsZero() {
		r.Newest = g.b.newest()
	}
	if err := stage(StageLead); err != nil {
		return err
	}
	// Until a server has a route no election begins on it.
	company, err := g.b.startCompany(ctx)
	if err != nil {
		return err
	}
	defer company.stop(false)
	if err := g.b.reform(ctx, r.Witness); err != nil {
		return fmt.Errorf("found the cluster anew: %w", err)
	}
	if err := stage(StageStreams); err != nil {
		return err
	}
	if err := g.b.Scale(ctx, 1); err != nil {
		return fmt.Errorf("found the cluster anew: %w", err)
	}
	boss, err := g.b.connect(ctx, string(RoleManager))
	if err != nil {
		return err
	}
	defer boss.Close()
	bucket, set, rev, err := readSet(ctx, boss)
	if err != nil {
		return fmt.Errorf("found the cluster anew: %w", err)
	}
	if r.Witness == "" {
		r.Witness = g.nextWitness(set)
	}
	if err := stage(StageWitness); err != nil {
		return err
	}
	if err := g.ownWitness(ctx, r.Witness); err != nil {
		return fmt.Errorf("found the cluster anew: %w", err)
	}
	if err := stage(StageRecord); err != nil {
		return err
	}
	if err := g.write(ctx, bucket, set, rev, r); err != nil {
		return fmt.Errorf("found the cluster anew: %w", err)
	}
	return stage(StageNodes)
}

// reform leads the group alone and removes every other server from it, but for the witness that an earlier attempt may have
// started. A restarted server knows no leader, so its quorum can be lowered at once; a running one refuses for 20 s after
// the loss. Lost servers are known by their ids alone: who tells their names is away.
func (b *Bus) reform(ctx context.Context, witness string) error {
	main := b.running()
	if main == nil {
		return errStopped
	}
	if err := b.rule(ctx, main); err != nil {
		return fmt.Errorf("lead the group alone: %w", err)
	}
	for {
		_, info := b.metaLeader()
		if info == nil {
			return errStopped
		}
		left := 0
		for _, p := range info.Replicas {
			if witness != "" && p.Peer == peerID(witness) || p.Peer == peerID(b.cfg.Name) {
				continue
			}
			left++
			b.log.Info("a lost server is removed from the group", zap.String("id", p.Peer), zap.String("name", p.Name))
			err := b.api(ctx, "remove the lost server "+p.Peer, server.JSApiRemoveServer, server.JSApiMetaServerRemoveRequest{Peer: p.Peer})
			var refused *server.ApiError
			if errors.As(err, &refused) && refused.ErrCode == uint16(server.JSClusterServerNotMemberErr) {
				continue // it was removed between
			}
			if err != nil {
				return err
			}
		}
		if left == 0 {
			return nil
		}
	}
}

// rule lowers the quorum to this server's own vote until it leads.
func (b *Bus) rule(ctx context.Context, main *instance) error {
	body, err := json.Marshal(server.JSApiMetaRescueRequest{QuorumNeeded: 1})
	if err != nil {
		return err
	}
	var last error
	err = await(ctx, 50*time.Millisecond, 0, func() bool {
		if main.JetStreamIsLeader() {
			return true
		}
		sys := b.system()
		if _, info := b.metaLeader(); sys == nil || info == nil || info.QuorumNeeded <= 1 {
			return false // the election is under way
		}
		last = request(ctx, sys, server.JSApiMetaRescue, body)
		return false
	})
	if err != nil {
		return errors.Join(err, last)
	}
	return nil
}

// startCompany starts a server without a store and without a vote: company for one that would have no route.
func (b *Bus) startCompany(ctx context.Context) (*instance, error) {
	o, err := b.options(b.cfg.Name+"-company", "company")
	if err != nil {
		return nil, err
	}
	o.JetStream = false
	o.Host, o.Port, o.MaxConn = "127.0.0.1", -1, 8
	o.Cluster.Host, o.Cluster.Port = "127.0.0.1", -1
	o.Cluster.NoAdvertise = true
	o.CustomClientAuthentication = noClients{}
	return b.start(ctx, o, []string{b.cfg.localRoute()}, nil, func(_ uint64, text string) { b.slip(0, text) })
}

// newest is when the newest record of this server's streams was written. Leases are renewed every second, so it is about
// when this copy was last current.
func (b *Bus) newest() (t time.Time) {
	main := b.running()
	if main == nil {
		return t
	}
	j, err := main.Jsz(&server.JSzOptions{Accounts: true, Streams: true})
	if err != nil {
		return t
	}
	for _, a := range j.AccountDetails {
		for _, s := range a.Streams {
			if s.State.LastTime.After(t) {
				t = s.State.LastTime
			}
		}
	}
	return t
}

// readSet reads the group as the store has it; a cluster of an older version has none.
func readSet(ctx context.Context, boss *nats.Conn) (*kv.Bucket, *skepv1.ManagerSet, uint64, error) {
	js, err := jetstream.New(boss)
	if err != nil {
		return nil, nil, 0, err
	}
	b, set := kv.Open(js, subject.NodeB), &skepv1.ManagerSet{}
	var e kv.Entry
	err = again(ctx, func(ctx context.Context) (err error) {
		if e, err = b.Get(ctx, keys.Managers.Key()); errors.Is(err, kv.ErrNotFound) {
			err = nil
		}
		return err
	})
	if err != nil {
		return nil, nil, 0, fmt.Errorf("read the group of managers: %w", err)
	}
	if err := proto.Unmarshal(e.Value, set); err != nil {
		return nil, nil, 0, fmt.Errorf("read the group of managers: %w", err)
	}
	return b, set, e.Revision, nil
}

// nextWitness is a name that no server or witness of this node ever had.
func (g *group) nextWitness(set *skepv1.ManagerSet) string {
	node := g.b.cfg.NodeID
	g.mu.Lock()
	n := max(int(set.GetUsed()[node]), int(g.set.GetUsed()[node]), numberOf(g.mine.Server, node), numberOf(g.mine.Witness, node))
	g.mu.Unlock()
	return witnessName(node, uint32(n)+1)
}

// ownWitness runs the witness and returns once it is current.
func (g *group) ownWitness(ctx context.Context, name string) error {
	g.witness.Lock()
	defer g.witness.Unlock()
	if g.b.witnessName() != name {
		if err := g.startWitness(ctx, name); err != nil {
			return err
		}
	}
	return g.b.WaitMembers(ctx, g.me(), name)
}

// write stores the group of this manager alone, unless an earlier attempt did. Nobody else can write: the lease of the
// managers would only be waited for, since who held it is lost.
func (g *group) write(ctx context.Context, bucket *kv.Bucket, was *skepv1.ManagerSet, rev uint64, r *Refounding) error {
	g.mu.Lock()
	set := proto.CloneOf(g.set)
	node := g.b.cfg.NodeID
	g.mu.Unlock()
	if was.GetEpoch() < r.Epoch {
		set.Managers[0].Witness, set.Step = r.Witness, nil
		set.Used = map[string]uint32{}
		for n, used := range was.GetUsed() {
			set.Used[n] = used
		}
		for _, m := range was.GetManagers() {
			set.Used[m.GetNodeId()] = max(set.Used[m.GetNodeId()], uint32(numberOf(m.GetServer(), m.GetNodeId())))
		}
		set.Used[node] = max(set.Used[node], uint32(numberOf(r.Witness, node)))
		body, err := proto.Marshal(set)
		if err != nil {
			return err
		}
		if rev == 0 {
			rev, err = bucket.Create(ctx, keys.Managers.Key(), body)
		} else {
			rev, err = bucket.Update(ctx, keys.Managers.Key(), body, rev)
		}
		if err != nil {
			return fmt.Errorf("write the group of managers: %w", err)
		}
		was = set
	}
	g.learn(ctx, was, rev)
	return nil
}

// awaitAsked ends the broker when somebody asks for the cluster to be founded anew: a server that runs would refuse for 20 s
// after the loss, one that starts alone does not.
func (g *group) awaitAsked(ctx context.Context) {
	t := time.NewTicker(askedEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if _, err := os.Stat(filepath.Join(g.b.cfg.DataDir, refoundFile)); err == nil {
			g.log.Warn("the cluster is to be founded anew by this manager: the broker starts again, alone")
			g.finish(ErrAsked)
			return
		}
	}
}

// followRefound has state make workers of the lost managers, and then the founding is over. State may start after the
// broker does.
func (g *group) followRefound(ctx context.Context, boss *nats.Conn, r *Refounding) {
	for {
		try, cancel := context.WithTimeout(ctx, 5*time.Second)
		_, err := api.Call(try, boss, api.ClusterRefound, &skepv1.RefoundRequest{NodeId: g.b.cfg.NodeID, Epoch: r.Epoch})
		cancel()
		if err == nil {
			err = r.done(g.b.cfg.DataDir)
		}
		if err == nil {
			g.log.Warn("the cluster was founded anew: this node is its only manager", zap.Uint64("epoch", r.Epoch), zap.Time("newest", r.Newest))
			return
		}
		if ctx.Err() != nil {
			return
		}
		g.log.Debug("the lost managers are not workers yet", zap.Error(err))
		select {
		case <-ctx.Done():
			return
		case <-time.After(500 * time.Millisecond):
		}
	}
}
