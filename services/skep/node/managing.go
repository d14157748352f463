package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"

	"skep.dev/libs/member"
	"skep.dev/services/bus"
	health "skep.dev/services/health-monitor"
	"skep.dev/services/ingress-mesh/controller"
	"skep.dev/services/scheduler"
	vault "skep.dev/services/secrets-vault"
	"skep.dev/services/state"
)

const (
	// enlistAgain is the pause before a manager that the group let go, or did not let in, asks to be let in: usually its role
	// has changed by then.
	enlistAgain = 5 * time.Second
	refusedWait = 20 * time.Second
)

// managing is what a manager has beside what every node has: the broker and the services that keep the cluster. It comes
// and goes with the node's role, while the tasks run.
type managing struct {
	d     *Daemon
	group *group
	bus   *bus.Manager
	ends  *ending // of bus
	conns []*nats.Conn
	// Connections in process, once there is a broker: the node's own, and one that may do everything.
	local, boss atomic.Pointer[nats.Conn]
	reg         prometheus.Registerer // nil: nobody looks
	cancel      context.CancelFunc

	ready chan struct{} // closed when all of it serves
	ended chan struct{} // closed with err set
	err   error
}

// manage starts the managers' part and does not wait for it: the group may let this node in soon, or late.
func (d *Daemon) manage(ctx context.Context) *managing {
	ctx, cancel := context.WithCancel(ctx)
	m := &managing{d: d, group: newGroup(d.log), cancel: cancel, reg: d.metrics.managing(), ready: make(chan struct{}), ended: make(chan struct{})}
	go func() {
		defer close(m.ended)
		defer func() { m.err = m.because(ctx, m.err) }()
		if m.err = m.start(ctx); m.err != nil {
			return
		}
		close(m.ready)
		d.control.Change(func(i *Info) { i.Error = "" }) // what kept it from the group is over
		select {
		case <-m.group.failed:
			m.err = m.group.err
		case <-ctx.Done():
		}
	}()
	return m
}

// brokerEnds is how long after the error of another service the end of the broker, which caused it, may be heard of.
const brokerEnds = 3 * time.Second

// because is what ended the managers' part. A node that is let go while it still starts, or whose store stopped, has services that
// fail for want of a broker; why the broker ended decides what becomes of the node.
func (m *managing) because(ctx context.Context, err error) error {
	if err == nil || m.ends == nil || ctx.Err() != nil {
		return err
	}
	late := time.NewTimer(brokerEnds)
	defer late.Stop()
	select {
	case <-m.ends.done:
		if m.ends.err != nil {
			return fmt.Errorf("bus: %w", m.ends.err)
		}
	case <-ctx.Done():
	case <-late.C:
	}
	return err
}

// ending is a service whose end is known to others than who runs it.
type ending struct {
	service
	done chan struct{} // closed with err set
	err  error
}

func (e *ending) Run(ctx context.Context) error {
	defer close(e.done)
	e.err = e.service.Run(ctx)
	return e.err
}

// stop ends the managers' part in order. nil has nothing to end.
func (m *managing) stop() { m.end(false) }

// end is stop; over says that the group has let the node go: the broker is gone, or about to.
func (m *managing) end(over bool) {
	if m == nil {
		return
	}
	m.cancel()
	<-m.ended
	m.local.Store(nil)
	m.boss.Store(nil)
	if over || errors.Is(m.err, bus.ErrRetired) || errors.Is(m.err, bus.ErrOver) || errors.Is(m.err, bus.ErrDuplicate) || bus.StartsAgain(m.err) {
		m.disconnect() // what the services still ask of a broker without a majority fails now, not after each request's time
	}
	m.group.stop()
	m.disconnect()
}

func (m *managing) disconnect() {
	for _, c := range m.conns {
		c.Close()
	}
	m.conns = nil
}

func (m *managing) start(ctx context.Context) error {
	d, rec := m.d, m.d.record()
	retire, err := envDuration("SKEP_RETIRE_AFTER")
	if err != nil {
		return err
	}
	m.bus, err = bus.NewManager(bus.Config{
		NodeID: rec.NodeID, DataDir: d.paths.Bus(), Listen: rec.Listen, Advertise: rec.Advertise,
		RoutePort: rec.RoutePort, TLS: d.store, Witness: rec.Witness, Log: d.log.Named("bus"), Metrics: m.reg,
		RetireAfter: retire, Found: rec.Init != nil, Managers: append(slices.Clone(rec.Told), rec.Managers...), Told: routesAt(rec.Told), Hostname: rec.Hostname, Version: d.version,
	}, d.paths.Broker())
	if err != nil {
		return err
	}
	m.ends = &ending{service: m.bus, done: make(chan struct{})}
	if err := m.group.start(ctx, "bus", m.ends); err != nil {
		return err
	}
	if len(rec.Told) > 0 { // the group has come together: it knows where everybody is
		if rec, err = member.Update(d.paths, func(r *Record) { r.Told = nil }); err != nil {
			return err
		}
		d.learn(rec)
	}
	// "manager" may do everything: it stores what init asked for.
	boss, err := m.connect("manager")
	if err != nil {
		return err
	}
	if rec.Role == RoleWitness {
		m.boss.Store(boss)
		return nil
	}
	local, err := m.connect("agent")
	if err != nil {
		return err
	}
	m.local.Store(local)
	m.boss.Store(boss)
	return m.startServices(ctx, boss)
}

func (m *managing) startServices(ctx context.Context, boss *nats.Conn) error {
	d := m.d
	nc := map[string]*nats.Conn{}
	for _, name := range []string{"state", "vault", "health", "mesh", "scheduler"} {
		c, err := m.connect(name)
		if err != nil {
			return err
		}
		nc[name] = c
	}
	id := d.record().NodeID
	addrs := func() []string { return d.record().ManagerAddrs() }
	st, err := state.New(state.Config{NC: nc["state"], Log: d.log.Named("state"), NodeID: id, Version: d.version, ManagerAddrs: addrs, Metrics: m.reg})
	if err != nil {
		return err
	}
	if err := m.group.start(ctx, "state", st); err != nil {
		return err
	}
	rec, err := member.Found(ctx, boss, d.paths)
	if err != nil {
		return err
	}
	d.learn(rec)
	va, err := vault.New(vault.Config{NC: nc["vault"], Log: d.log.Named("vault"), Dir: d.paths.Vault(), DataDir: d.paths.Data, NodeID: id, Hostname: rec.Hostname, Certificate: d.store, ManagerAddrs: addrs, Version: d.version, Metrics: m.reg})
	if err != nil {
		return err
	}
	if err := m.group.start(ctx, "vault", va); err != nil {
		return err
	}
	he, err := health.New(health.Config{NC: nc["health"], Log: d.log.Named("health"), NodeID: id, Version: d.version, Metrics: m.reg})
	if err != nil {
		return err
	}
	if err := m.group.start(ctx, "health", he); err != nil {
		return err
	}
	co, err := controller.New(controller.Config{NC: nc["mesh"], Log: d.log.Named("mesh-controller"), NodeID: id, Version: d.version, Metrics: m.reg})
	if err != nil {
		return err
	}
	if err := m.group.start(ctx, "mesh-controller", co); err != nil {
		return err
	}
	sc, err := scheduler.New(scheduler.Config{NC: nc["scheduler"], Log: d.log.Named("scheduler"), NodeID: id, Version: d.version, Metrics: m.reg})
	if err != nil {
		return err
	}
	return m.group.start(ctx, "scheduler", sc)
}

func (m *managing) connect(name string) (*nats.Conn, error) {
	nc, err := m.bus.InProcess(name)
	if err == nil {
		m.conns = append(m.conns, nc)
	}
	return nc, err
}
