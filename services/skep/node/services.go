package node

import (
	"context"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"

	"skep.dev/libs/daemon"
	"skep.dev/libs/join"
	"skep.dev/libs/member"
	"skep.dev/services/bus"
	health "skep.dev/services/health-monitor"
	mesh "skep.dev/services/ingress-mesh"
	"skep.dev/services/ingress-mesh/controller"
	agent "skep.dev/services/node-agent"
	"skep.dev/services/scheduler"
	vault "skep.dev/services/secrets-vault"
	"skep.dev/services/state"
)

// localServices holds what outlives single services of this process.
type localServices struct {
	d       *Daemon
	bus     *bus.Manager
	conns   []*nats.Conn
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
		if nc, err = daemon.Connect("skep node", d.rec.Dial(), d.store, d.log.Named("node")); err != nil {
			return err
		}
		d.local.conns = append(d.local.conns, nc)
	}
	return d.local.startNode(ctx, nc)
}

func (l *localServices) startManager(ctx context.Context) (*nats.Conn, error) {
	d := l.d
	retire, err := envDuration("SKEP_RETIRE_AFTER")
	if err != nil {
		return nil, err
	}
	b, err := bus.NewManager(bus.Config{
		NodeID: d.rec.NodeID, DataDir: d.paths.Bus(), Listen: d.rec.Listen, Advertise: d.rec.Advertise,
		RoutePort: d.rec.RoutePort, TLS: d.store, Witness: d.rec.Witness, Log: d.log.Named("bus"), Metrics: d.metrics,
		RetireAfter: retire, Found: d.rec.Init != nil, Managers: d.rec.Managers, Hostname: d.rec.Hostname, Version: d.version,
	}, d.paths.Broker())
	if err != nil {
		return nil, err
	}
	l.bus = b
	if err := d.group.start(ctx, "bus", b); err != nil {
		return nil, err
	}
	// "manager" may do everything: it stores what init asked for.
	boss, err := l.connect("manager")
	if err != nil {
		return nil, err
	}
	if err := l.startServices(ctx, boss); err != nil {
		return nil, err
	}
	return l.connect("agent")
}

func (l *localServices) startServices(ctx context.Context, boss *nats.Conn) error {
	d := l.d
	nc := map[string]*nats.Conn{}
	for _, name := range []string{"state", "vault", "health", "mesh", "scheduler"} {
		c, err := l.connect(name)
		if err != nil {
			return err
		}
		nc[name] = c
	}
	addrs := d.rec.ManagerAddrs
	st, err := state.New(state.Config{NC: nc["state"], Log: d.log.Named("state"), NodeID: d.rec.NodeID, Version: d.version, ManagerAddrs: addrs, Metrics: d.metrics})
	if err != nil {
		return err
	}
	if err := d.group.start(ctx, "state", st); err != nil {
		return err
	}
	rec, err := member.Found(ctx, boss, d.paths)
	if err != nil {
		return err
	}
	d.rec = rec
	va, err := vault.New(vault.Config{NC: nc["vault"], Log: d.log.Named("vault"), Dir: d.paths.Vault(), NodeID: d.rec.NodeID, Hostname: d.rec.Hostname, Certificate: d.store, ManagerAddrs: addrs, Version: d.version, Metrics: d.metrics})
	if err != nil {
		return err
	}
	if err := d.group.start(ctx, "vault", va); err != nil {
		return err
	}
	he, err := health.New(health.Config{NC: nc["health"], Log: d.log.Named("health"), NodeID: d.rec.NodeID, Version: d.version, Metrics: d.metrics})
	if err != nil {
		return err
	}
	if err := d.group.start(ctx, "health", he); err != nil {
		return err
	}
	co, err := controller.New(controller.Config{NC: nc["mesh"], Log: d.log.Named("mesh-controller"), NodeID: d.rec.NodeID, Version: d.version, Metrics: d.metrics})
	if err != nil {
		return err
	}
	if err := d.group.start(ctx, "mesh-controller", co); err != nil {
		return err
	}
	sc, err := scheduler.New(scheduler.Config{NC: nc["scheduler"], Log: d.log.Named("scheduler"), NodeID: d.rec.NodeID, Version: d.version, Metrics: d.metrics})
	if err != nil {
		return err
	}
	return d.group.start(ctx, "scheduler", sc)
}

// startNode runs what every node has. A worker starts with its last known network when no manager answers.
func (l *localServices) startNode(ctx context.Context, nc *nats.Conn) error {
	d := l.d
	rec, err := member.LearnSubnet(ctx, nc, d.paths, d.log)
	if err != nil {
		return err
	}
	d.rec = rec
	me, err := mesh.New(mesh.Config{
		NC: nc, Log: d.log.Named("mesh"), NodeID: d.rec.NodeID, Version: d.version, DataDir: d.paths.Data, RunDir: d.paths.Run,
		Subnet: d.rec.Subnet, Number: d.rec.Number, Underlay: d.rec.Underlay(), DataPathPort: d.rec.DataPathPort, Metrics: d.metrics,
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
		Version: d.version, Certificate: d.store, Attacher: me, Hostname: d.rec.Hostname, AdvertiseAddr: d.rec.Host(), DataPathAddr: d.rec.DataPath,
		Manager: d.rec.Role == RoleManager, ContainerdAddress: d.rec.Containerd, MaxTasks: d.rec.TaskLimit(), Metrics: d.metrics,
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
		r := &join.Renewal{NC: nc, Store: d.store, Log: d.log.Named("renewal"), Version: d.version, Renewed: func() {
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
	for _, c := range l.conns {
		c.Close()
	}
	l.conns = nil
}
