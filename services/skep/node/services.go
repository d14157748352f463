package node

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"

	"skep.dev/libs/containers"
	"skep.dev/libs/daemon"
	"skep.dev/libs/join"
	"skep.dev/libs/member"
	"skep.dev/libs/witness"
	engine "skep.dev/services/engine-api"
	mesh "skep.dev/services/ingress-mesh"
	agent "skep.dev/services/node-agent"
)

// localServices is what every node has: the mesh and the agent, and who keeps the certificate and follows the node's role.
// They stay while the node becomes a manager or a worker.
type localServices struct {
	d        *Daemon
	group    *group
	nc       *nats.Conn
	agent    *agent.Service
	local    atomic.Pointer[agent.Service] // for the Docker API, which is served before there is one
	mesh     *mesh.Service
	follower *member.Follower
	says     *witness.Service // of a witness: it has neither agent nor mesh
	docker   *group           // the Docker API: what fails there leaves the node alone
	upgrader *upgrader
	keeping  context.CancelFunc // of the certificate and the role
	kept     sync.WaitGroup
}

// connect opens the node's connection, to the nearest manager that answers: a manager's own broker may be away, or not in
// the group yet, while its tasks need the others.
func (l *localServices) connect() error {
	d := l.d
	rec := d.record()
	more := []nats.Option{nats.UserInfo("agent", "")}
	if rec.Role == RoleManager {
		// The broker is on this machine: no crowd to be kept apart.
		more = append(more, nats.ReconnectWait(100*time.Millisecond), nats.ReconnectJitter(50*time.Millisecond, 50*time.Millisecond))
	}
	nc, err := daemon.Connect("skep node", rec.Dial(), d.store, d.log.Named("node"), more...)
	l.nc = nc
	return err
}

// start runs what every node has. A node starts with its last known network when no manager answers.
func (l *localServices) start(ctx context.Context) error {
	d := l.d
	if err := l.connect(); err != nil {
		return err
	}
	l.keep()
	if rec := d.record(); rec.Role == RoleWitness {
		l.says = witness.New(witness.Config{NC: l.nc, Store: d.store, Log: d.log.Named("witness"), Hostname: rec.Hostname, Addr: rec.Host(), Version: d.version})
		return l.group.start(ctx, "witness", l.says)
	}
	l.serveDocker(ctx)
	rec, err := member.LearnSubnet(ctx, l.nc, d.paths, d.log)
	if err != nil {
		return err
	}
	d.learn(rec)
	me, err := mesh.New(mesh.Config{
		NC: l.nc, Log: d.log.Named("mesh"), NodeID: rec.NodeID, Version: d.version, DataDir: d.paths.Data, RunDir: d.paths.Run,
		Subnet: rec.Subnet, Number: rec.Number, Underlay: rec.Underlay(), DataPathPort: rec.DataPathPort, Metrics: d.metrics.node(),
	})
	if err != nil {
		return err
	}
	l.mesh = me
	if err := l.group.start(ctx, "mesh", me); err != nil {
		return err
	}
	ag, err := agent.New(agent.Config{
		NC: l.nc, Log: d.log.Named("agent"), NodeID: rec.NodeID, DataDir: d.paths.Data, RunDir: d.paths.Run,
		Version: d.version, Certificate: d.store, Attacher: me, Hostname: rec.Hostname, AdvertiseAddr: rec.Host(), DataPathAddr: rec.DataPath,
		Manager: d.record().Role == RoleManager, ContainerdAddress: rec.Containerd, MaxTasks: rec.TaskLimit(), Metrics: d.metrics.node(),
		Upgrader: l.upgrader,
	})
	if err != nil {
		return err
	}
	l.agent = ag
	l.local.Store(ag)
	return l.group.start(ctx, "agent", ag)
}

// serveDocker answers Docker's API on this node. A node without it runs its tasks all the same.
func (l *localServices) serveDocker(ctx context.Context) {
	d := l.d
	l.docker = newGroup(d.log)
	en, err := engine.New(engine.Config{Log: d.log.Named("engine"), Paths: d.paths, Group: engine.Group, CA: d.store.CAPEM, Version: d.version, Commit: d.commit, Metrics: d.metrics.node(), Node: l.onNode})
	if err == nil {
		err = l.docker.start(ctx, "engine", en)
	}
	if err != nil {
		d.log.Error("the Docker API is not served on this node", zap.Error(err))
	}
}

// onNode is the agent for the Docker API in this process, nil while it does not serve.
func (l *localServices) onNode() containers.Node {
	if a := l.local.Load(); a != nil {
		return a.Local()
	}
	return nil
}

// keep renews the certificate and follows what the managers say of this node.
func (l *localServices) keep() {
	d := l.d
	ctx, cancel := context.WithCancel(context.Background())
	l.keeping = cancel
	r := &join.Renewal{NC: l.nc, Store: d.store, Log: d.log.Named("renewal"), Version: d.version, Local: d.localConn}
	l.follower = member.NewFollower(l.nc, d.record().NodeID, d.paths, d.log.Named("role"))
	r.Renewed = func() {
		l.reconnect()
		l.follower.Ask() // the certificate may be of another role
	}
	l.follower.Changed = d.followed
	linked := member.NewLinked(ctx, l.nc, d.record().NodeID)
	l.follower.Heard = linked.Heard
	d.control.Links(linked.Look)
	l.follower.Turn = func(ctx context.Context, role string) error {
		rec, err := member.TurnNode(ctx, d.paths, role, r.Turn)
		if err != nil {
			return err
		}
		return d.turned(ctx, rec)
	}
	l.kept.Go(func() { l.upgrader.resume(ctx, d) })
	l.kept.Go(func() {
		if err := r.Run(ctx); err != nil {
			d.log.Error("the certificate is not renewed any more", zap.Error(err))
		}
	})
	l.kept.Go(func() {
		if err := l.follower.Run(ctx); err != nil {
			d.log.Error("the managers are not followed", zap.Error(err))
		}
	})
}

// reconnect moves the node's connection over to the certificate in use.
func (l *localServices) reconnect() {
	if err := l.nc.ForceReconnect(); err != nil {
		l.d.log.Warn("reconnect with the new certificate", zap.Error(err))
	}
}

// leave stops every task and takes the network and containerd away. The agent was started last: it is stopped
// first, telling the managers that it leaves, and then cleans up.
func (l *localServices) leave(ctx context.Context) error {
	if l.says != nil {
		l.says.SetLeaving()
		l.group.stopLast()
	}
	if l.agent != nil {
		l.agent.SetLeaving(true)
		l.group.stopLast()
		if err := l.agent.Leave(ctx); err != nil {
			return err
		}
	}
	if l.mesh != nil {
		return l.mesh.Cleanup()
	}
	return nil
}

// unkeep ends what follows the node's role: nothing turns while the node stops.
func (l *localServices) unkeep() {
	if l.keeping != nil {
		l.keeping()
		l.kept.Wait()
	}
}

// close ends what is left, the last started first.
func (l *localServices) close() {
	l.unkeep()
	if l.docker != nil {
		l.docker.stop()
	}
	l.group.stop()
	if l.nc != nil {
		l.nc.Close()
	}
}
