package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"

	"skep.dev/libs/member"
	"skep.dev/libs/metrics"
	"skep.dev/libs/pki"
	"skep.dev/services/bus"
)

// Daemon is a running node.
type Daemon struct {
	paths               Paths
	store               *pki.Store
	log                 *zap.Logger
	version             string
	commit              string
	advertise, dataPath string      // addresses to take, "" = the record's
	shown               string      // where metrics are served, "" = nowhere
	metrics             *registries // nil: nobody looks

	mu  sync.Mutex
	rec *Record // replaced, never changed
	run *managing

	control *member.Control
	leaving chan bool // true: forced
	left    chan error
	turns   chan turn
	local   *localServices
}

// turn is a change of the node's role that the certificate and the record have made.
type turn struct {
	rec  *Record
	done chan struct{}
}

// Options of a daemon.
type Options struct {
	Paths   Paths
	Log     *zap.Logger
	Version string
	Commit  string
	// MetricsAddr takes the place of the record's; "" leaves it.
	MetricsAddr string
	// AdvertiseAddr and DataPathAddr are this machine's addresses from now on, "" = those of the record.
	AdvertiseAddr, DataPathAddr string
}

// New reads the node's record and certificate; nothing is started.
func New(o Options) (*Daemon, error) {
	rec, err := Load(o.Paths)
	if err != nil {
		return nil, err
	}
	store, err := pki.Open(o.Paths.Certs())
	if err != nil {
		return nil, fmt.Errorf("read the node's certificate: %w", err)
	}
	if got := store.Identity().NodeID; got != rec.NodeID {
		return nil, fmt.Errorf("the certificate in %s is of node %s, the record says %s: restore the one that belongs to the other", o.Paths.Certs(), got, rec.NodeID)
	}
	// A crash may have come between the certificate of a new role and the record.
	if rec, err = member.Settle(o.Paths, store.Identity().Role); err != nil {
		return nil, err
	}
	return &Daemon{
		paths: o.Paths, rec: rec, store: store, log: o.Log, version: o.Version, commit: o.Commit, shown: cmp.Or(o.MetricsAddr, rec.MetricsAddr),
		advertise: o.AdvertiseAddr, dataPath: o.DataPathAddr,
		leaving: make(chan bool, 1), left: make(chan error, 1), turns: make(chan turn),
	}, nil
}

// record is what makes this machine a node, as it is now.
func (d *Daemon) record() *Record {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rec
}

// learn takes the record as it is on the disk, where several parts of the node write. was is what it is known to be at least.
func (d *Daemon) learn(was *Record) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if now, err := Load(d.paths); err == nil {
		was = now
	}
	d.rec = was
}

// followed takes a record whose managers changed.
func (d *Daemon) followed(rec *Record) {
	d.learn(rec)
	d.control.Change(func(i *Info) { i.ManagerAddrs = d.record().ManagerAddrs() })
}

// localConn is the node's connection to its own broker in process, nil while it has none.
func (d *Daemon) localConn() *nats.Conn {
	d.mu.Lock()
	m := d.run
	d.mu.Unlock()
	if m == nil {
		return nil
	}
	return m.local.Load()
}

// manages starts the managers' part, or with nil forgets the one that has stopped.
func (d *Daemon) manages(m *managing) {
	d.mu.Lock()
	d.run = m
	d.mu.Unlock()
}

// turned has the node go over to the role that its record has now.
func (d *Daemon) turned(ctx context.Context, rec *Record) error {
	t := turn{rec, make(chan struct{})}
	select {
	case d.turns <- t:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-t.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Run starts every service of the node and blocks until ctx ends, a service fails or the node was told to leave.
func (d *Daemon) Run(ctx context.Context) error {
	release, err := holdPID(d.paths)
	if err != nil {
		return err
	}
	defer release()
	if d.rec, err = renumber(d.paths, d.rec, d.advertise, d.dataPath, d.log); err != nil {
		return err
	}
	if d.rec, err = findAddress(ctx, d.paths, d.rec, keepAddress, d.log); err != nil {
		if ctx.Err() != nil {
			return nil // it was told to end while it waited
		}
		return err
	}
	if d.shown != "" {
		d.metrics = newRegistries(d.version, d.commit)
		srv, err := metrics.Serve(d.shown, d.metrics, d.log.Named("metrics"))
		if err != nil {
			return err
		}
		defer srv.Close() //nolint:errcheck // the process ends
	}
	d.control = member.NewControl(Info{
		NodeID: d.rec.NodeID, ClusterID: d.rec.ClusterID, Role: d.rec.Role, Hostname: d.rec.Hostname,
		Addr: d.rec.Host(), ManagerAddrs: d.rec.ManagerAddrs(), Version: d.version,
	}, d.requestLeave)
	d.control.CA = d.store.CAPEM
	if err := d.control.Serve(d.paths.Control()); err != nil {
		return err
	}
	defer d.control.Close()

	d.local = &localServices{d: d, group: newGroup(d.log)}
	if d.local.upgrader, err = newUpgrader(d); err != nil {
		return err
	}
	began := time.Now()
	if err = d.start(ctx); err == nil {
		err = d.wait(ctx, began)
	}
	if err != nil && d.control.Starting() {
		d.control.Settle("failed", err)
		// Whoever started us is waiting for the reason.
		time.Sleep(200 * time.Millisecond)
	}
	d.stop()
	return err
}

// start brings the node up. A manager that never ran before starts its managers' part first: there is nothing for the rest
// of the node before the group has let it in, and nothing to take back when it does not. Otherwise neither waits for the
// other: tasks go on whatever the managers do.
func (d *Daemon) start(ctx context.Context) error {
	if rec := d.record(); rec.Votes() {
		first, err := d.neverVoted(rec)
		if err != nil {
			return err
		}
		m := d.manage(ctx)
		d.manages(m)
		if first {
			select {
			case <-m.ready:
			case <-m.ended:
				if errors.Is(m.err, bus.ErrRefused) {
					d.control.Change(func(i *Info) { i.Refused = true })
				}
				if m.err == nil {
					return fmt.Errorf("start the node: %w", context.Cause(ctx))
				}
				return m.err
			}
		}
	}
	return d.local.start(ctx)
}

// neverVoted reports whether the managers' part of this node has not been up before.
func (d *Daemon) neverVoted(rec *Record) (bool, error) {
	if rec.Role == RoleManager {
		return rec.Subnet == "", nil
	}
	place, err := bus.ReadPlace(d.paths.Bus()) // a witness has no subnet
	return place == nil, err
}

// wait has the node run, until ctx ends (nil), a service fails or the node has left.
func (d *Daemon) wait(ctx context.Context, began time.Time) error {
	var again <-chan time.Time // when a manager that is not in the group tries again
	for told := false; ; {
		m := d.run
		var ready, ended <-chan struct{}
		if m != nil {
			ended = m.ended
			if !told {
				ready = m.ready
			}
		}
		if rec := d.record(); !told && rec.Role == RoleWorker {
			ready = closed
		}
		select {
		case <-ready:
			told = true
			d.control.Ready()
			d.log.Info("node ready", zap.String("node", d.record().NodeID), zap.String("role", d.record().Role), zap.Duration("dur", time.Since(began)))
		case <-ctx.Done():
			d.log.Info("stopping")
			return nil
		case <-d.local.group.failed:
			return d.local.group.err
		case <-ended:
			if ctx.Err() != nil {
				continue
			}
			m.stop()
			d.manages(nil)
			pause, err := d.apart(m.err)
			if err != nil {
				return err
			}
			again = time.After(pause)
		case <-again:
			if d.record().Votes() && d.run == nil {
				d.manages(d.manage(ctx))
			}
		case t := <-d.turns:
			again = nil
			d.turn(ctx, t)
		case force := <-d.leaving:
			d.control.Settle("leaving", nil)
			err := d.leave(force)
			d.left <- err
			return err
		}
	}
}

// apart decides what the end of the managers' part means: without it the tasks go on, and the node's role may follow. An
// error ends the node.
func (d *Daemon) apart(err error) (pause time.Duration, _ error) {
	switch {
	case d.record().Role == RoleWitness && (errors.Is(err, bus.ErrRetired) || errors.Is(err, bus.ErrRefused) || errors.Is(err, bus.ErrOver)):
		level := zap.WarnLevel
		d.control.Change(func(i *Info) {
			if i.Error == err.Error() {
				level = zap.DebugLevel // it asks again and again
			}
			i.Error = err.Error()
		})
		d.log.Log(level, "the group of managers does not have this witness (any more): it does nothing until \"skep node promote\" gives it its vote again; \"skep leave --force\" takes it out of the cluster", zap.Error(err))
		return enlistAgain, nil
	case errors.Is(err, bus.ErrRetired):
		d.log.Info("the group of managers has let this node go; its tasks run on", zap.Error(err))
		d.local.follower.Ask()
		return enlistAgain, nil
	case bus.StartsAgain(err):
		d.log.Warn("the managers' services start again; the tasks of this node run on", zap.Error(err))
		return 0, nil
	case errors.Is(err, bus.ErrDuplicate):
		d.log.Error("this machine is not the manager: nothing is served and begun here", zap.Error(err), zap.Duration("again", refusedWait))
		d.control.Change(func(i *Info) { i.Error = err.Error() })
		return refusedWait, nil
	case errors.Is(err, bus.ErrRefused), errors.Is(err, bus.ErrOver):
		d.log.Error("this node is a manager by its certificate, and the group of managers does not have it; its tasks run on",
			zap.Error(err), zap.Duration("again", refusedWait))
		d.control.Change(func(i *Info) { i.Error = err.Error() })
		d.local.follower.Ask()
		return refusedWait, nil
	case err == nil:
		return 0, errors.New("the managers' services ended by themselves")
	}
	return 0, err
}

// turn makes a manager or a worker of the running node. Its certificate and record are the new role's already; mesh and
// agent run on, with the new certificate.
func (d *Daemon) turn(ctx context.Context, t turn) {
	defer close(t.done)
	d.learn(t.rec)
	rec := d.record()
	d.log.Info("this node has another role", zap.String("role", rec.Role))
	manager := rec.Role == RoleManager
	d.run.end(!manager) // a node becomes a worker once the group has let it go
	d.manages(nil)
	if a := d.local.agent; a != nil && !manager {
		a.SetManager(false)
	}
	d.local.reconnect()
	if manager {
		d.manages(d.manage(ctx))
	}
	if a := d.local.agent; a != nil && manager {
		a.SetManager(true)
	}
	d.control.Change(func(i *Info) { i.Role, i.ManagerAddrs, i.Error = rec.Role, rec.ManagerAddrs(), "" })
}

var closed = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// stop ends what runs: the node first, which tells the managers, then the managers' part.
func (d *Daemon) stop() {
	d.local.close()
	d.run.stop()
	d.manages(nil)
}

// requestLeave is POST /leave: it returns when nothing of the node is left but the directory.
func (d *Daemon) requestLeave(ctx context.Context, force bool) error {
	select {
	case d.leaving <- force:
	default:
		return errors.New("this node is leaving already")
	}
	select {
	case err := <-d.left:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
