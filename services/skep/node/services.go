package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/daemon"
	"skep.dev/libs/join"
	"skep.dev/libs/kv"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
	"skep.dev/services/bus"
	health "skep.dev/services/health-monitor"
	mesh "skep.dev/services/ingress-mesh"
	agent "skep.dev/services/node-agent"
	"skep.dev/services/scheduler"
	vault "skep.dev/services/secrets-vault"
	"skep.dev/services/state"
)

// localServices holds what outlives single services of this process.
type localServices struct {
	d       *Daemon
	bus     *bus.Bus
	relay   *relay
	conns   []*nats.Conn
	feed    *kv.Feed
	renewal context.CancelFunc
	agent   *agent.Service
	mesh    *mesh.Service
}

// start brings the node up: on a manager the broker and the manager services first, then on every node the mesh
// and the agent.
func (d *Daemon) start(ctx context.Context) error {
	d.local = &localServices{d: d}
	var nc *nats.Conn
	var err error
	if d.rec.Role == RoleManager {
		if nc, err = d.local.startManager(ctx); err != nil {
			return err
		}
	} else {
		if nc, err = daemon.Connect("skep node", d.rec.Managers, d.store, d.log.Named("node")); err != nil {
			return err
		}
		d.local.conns = append(d.local.conns, nc)
	}
	return d.local.startNode(ctx, nc)
}

func (l *localServices) startManager(ctx context.Context) (*nats.Conn, error) {
	d := l.d
	// A removed node may have connected before the members were known: Sweep closes such connections.
	m := &members{removed: func(id string) { l.bus.Disconnect(id) }, loaded: func() { l.bus.Sweep() }}
	b, err := bus.New(bus.Config{
		NodeID: d.rec.NodeID, DataDir: d.paths.bus(), Listen: d.rec.Listen, Advertise: d.rec.Advertise,
		RoutePort: d.rec.RoutePort, TLS: d.store, Witness: d.rec.Witness, Revoked: m.revoked, Log: d.log.Named("bus"),
	})
	if err != nil {
		return nil, err
	}
	l.bus = b
	if err := d.group.startUntil(ctx, "bus", b, b.Serving()); err != nil {
		return nil, err
	}
	// "manager" may do everything: it makes the streams and stores what init asked for.
	boss, err := l.connect("manager")
	if err != nil {
		return nil, err
	}
	js, err := jetstream.New(boss)
	if err != nil {
		return nil, err
	}
	if err := kv.Ensure(ctx, js, 1); err != nil {
		return nil, fmt.Errorf("prepare the cluster's streams: %w", err)
	}
	if err := l.startServices(ctx, boss); err != nil {
		return nil, err
	}
	if l.feed, err = followMembers(context.WithoutCancel(ctx), js, m); err != nil {
		return nil, err
	}
	if l.relay, err = newRelay(d.paths.broker(), b.InProcessConn, d.log.Named("relay")); err != nil {
		return nil, err
	}
	return l.connect("agent")
}

func (l *localServices) startServices(ctx context.Context, boss *nats.Conn) error {
	d := l.d
	nc := map[string]*nats.Conn{}
	for _, name := range []string{"state", "vault", "health", "scheduler"} {
		c, err := l.connect(name)
		if err != nil {
			return err
		}
		nc[name] = c
	}
	addrs := func() []string { return []string{d.rec.Advertise} }
	st, err := state.New(state.Config{NC: nc["state"], Log: d.log.Named("state"), NodeID: d.rec.NodeID, Version: d.version, ManagerAddrs: addrs})
	if err != nil {
		return err
	}
	if err := d.group.start(ctx, "state", st); err != nil {
		return err
	}
	if err := d.initialise(ctx, boss); err != nil {
		return err
	}
	va, err := vault.New(vault.Config{NC: nc["vault"], Log: d.log.Named("vault"), Dir: d.paths.vault(), NodeID: d.rec.NodeID, ManagerAddrs: addrs, Version: d.version})
	if err != nil {
		return err
	}
	if err := d.group.start(ctx, "vault", va); err != nil {
		return err
	}
	he, err := health.New(health.Config{NC: nc["health"], Log: d.log.Named("health"), NodeID: d.rec.NodeID, Version: d.version})
	if err != nil {
		return err
	}
	if err := d.group.start(ctx, "health", he); err != nil {
		return err
	}
	sc, err := scheduler.New(scheduler.Config{NC: nc["scheduler"], Log: d.log.Named("scheduler"), NodeID: d.rec.NodeID, Version: d.version})
	if err != nil {
		return err
	}
	return d.group.start(ctx, "scheduler", sc)
}

// startNode runs what every node has. A worker starts with its last known network when no manager answers.
func (l *localServices) startNode(ctx context.Context, nc *nats.Conn) error {
	d := l.d
	if err := d.learnSubnet(ctx, nc); err != nil {
		return err
	}
	me, err := mesh.New(mesh.Config{
		Log: d.log.Named("mesh"), NodeID: d.rec.NodeID, DataDir: d.paths.Data, RunDir: d.paths.Run, Subnet: d.rec.Subnet,
		Underlay: d.underlay(),
	})
	if err != nil {
		return err
	}
	l.mesh = me
	if err := d.group.start(ctx, "mesh", me); err != nil {
		return err
	}
	ag, err := agent.New(agent.Config{
		NC: nc, Log: d.log.Named("agent"), NodeID: d.rec.NodeID, DataDir: d.paths.Data, RunDir: d.paths.Run,
		Version: d.version, Attacher: me, Hostname: d.rec.Hostname, AdvertiseAddr: hostOf(d.rec.Advertise), DataPathAddr: d.rec.DataPath,
		Manager: d.rec.Role == RoleManager, ContainerdAddress: d.rec.Containerd, MaxTasks: d.maxTasks(),
	})
	if err != nil {
		return err
	}
	l.agent = ag
	if err := d.group.start(ctx, "agent", ag); err != nil {
		return err
	}
	renew, cancel := context.WithCancel(context.Background())
	l.renewal = cancel
	go func() {
		r := join.Renewal{NC: nc, Store: d.store, Log: d.log.Named("renewal"), Renewed: func() {
			if d.rec.Role == RoleWorker {
				if err := nc.ForceReconnect(); err != nil {
					d.log.Warn("reconnect with the renewed certificate", zap.Error(err))
				}
			}
		}}
		if err := r.Run(renew); err != nil {
			d.log.Error("the certificate is not renewed any more", zap.Error(err))
		}
	}()
	return nil
}

func (l *localServices) connect(name string) (*nats.Conn, error) {
	nc, err := l.bus.InProcess(name)
	if err == nil {
		l.conns = append(l.conns, nc)
	}
	return nc, err
}

// leave stops every task and takes the network and containerd away. The agent was started last: it is stopped
// first, telling the managers that it leaves, and then cleans up.
func (l *localServices) leave(ctx context.Context) error {
	if l.agent != nil {
		l.agent.SetLeaving(true)
		l.d.group.stopLast()
		if err := l.agent.Leave(ctx); err != nil {
			return err
		}
	}
	if l.mesh != nil {
		return l.mesh.Cleanup()
	}
	return nil
}

func (l *localServices) close() {
	if l.renewal != nil {
		l.renewal()
	}
	if l.relay != nil {
		l.relay.close()
	}
	if l.feed != nil {
		l.feed.Close()
	}
	for _, c := range l.conns {
		c.Close()
	}
	l.conns = nil
}

// learnSubnet asks the managers for this node's number and subnet, once; the record keeps them.
func (d *Daemon) learnSubnet(ctx context.Context, nc *nats.Conn) error {
	if d.rec.Subnet != "" {
		return nil
	}
	for {
		try, cancel := context.WithTimeout(ctx, 2*time.Second)
		var reply skepv1.SnapshotReply
		err := rpc.Call(try, nc, subject.Svc("state", "snapshot", d.rec.NodeID), &skepv1.SnapshotRequest{NodeId: d.rec.NodeID}, &reply)
		cancel()
		if err == nil && reply.GetNode().GetSubnet() == "" {
			err = errors.New("it has no subnet yet")
		}
		if err == nil {
			rec := *d.rec
			rec.Subnet = reply.Node.Subnet
			if err := rec.Save(d.paths); err != nil {
				return err
			}
			d.rec = &rec
			return nil
		}
		d.log.Info("waiting for this node's subnet", zap.Error(err))
		select {
		case <-ctx.Done():
			return fmt.Errorf("learn this node's subnet: %w", err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// underlay is the address the other nodes reach this one's containers by.
func (d *Daemon) underlay() string {
	if d.rec.DataPath != "" {
		return d.rec.DataPath
	}
	return hostOf(d.rec.Advertise)
}

// maxTasks is what the operator said, at most what the subnet has addresses for.
func (d *Daemon) maxTasks() uint32 {
	_, n, err := net.ParseCIDR(d.rec.Subnet)
	if err != nil {
		return d.rec.MaxTasks
	}
	ones, bits := n.Mask.Size()
	room := uint32(1)<<(bits-ones) - 3 // network, gateway, broadcast
	if d.rec.MaxTasks == 0 {
		return room
	}
	return min(d.rec.MaxTasks, room)
}
