package node

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"skep.dev/libs/member"
	"skep.dev/libs/metrics"
	"skep.dev/libs/pki"
)

// Daemon is a running node.
type Daemon struct {
	paths               Paths
	rec                 *Record
	store               *pki.Store
	log                 *zap.Logger
	version             string
	commit              string
	advertise, dataPath string                // addresses to take, "" = the record's
	shown               string                // where metrics are served, "" = nowhere
	metrics             prometheus.Registerer // nil: nobody looks

	group   *group
	control *member.Control
	leaving chan bool // true: forced
	left    chan error
	local   *localServices
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
	return &Daemon{
		paths: o.Paths, rec: rec, store: store, log: o.Log, version: o.Version, commit: o.Commit, shown: cmp.Or(o.MetricsAddr, rec.MetricsAddr),
		advertise: o.AdvertiseAddr, dataPath: o.DataPathAddr,
		leaving: make(chan bool, 1), left: make(chan error, 1),
	}, nil
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
	if d.shown != "" {
		reg := metrics.New(d.version, d.commit)
		srv, err := metrics.Serve(d.shown, reg, d.log.Named("metrics"))
		if err != nil {
			return err
		}
		defer srv.Close() //nolint:errcheck // the process ends
		d.metrics = reg
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

	d.group = newGroup(d.log)
	began := time.Now()
	err = d.start(ctx)
	if err == nil {
		d.control.Ready()
		d.log.Info("node ready", zap.String("node", d.rec.NodeID), zap.String("role", d.rec.Role), zap.Duration("dur", time.Since(began)))
		err = d.wait(ctx)
	} else {
		d.control.Settle("failed", err)
		// Whoever started us is waiting for the reason.
		time.Sleep(200 * time.Millisecond)
	}
	d.stop()
	return err
}

func (d *Daemon) wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		d.log.Info("stopping")
		return nil
	case <-d.group.failed:
		return d.group.err
	case force := <-d.leaving:
		d.control.Settle("leaving", nil)
		err := d.leave(force)
		d.left <- err
		return err
	}
}

func (d *Daemon) stop() {
	d.group.stop()
	if d.local != nil {
		d.local.close()
	}
}

// requestLeave is POST /leave: it returns when nothing of the node is left but the directory.
func (d *Daemon) requestLeave(ctx context.Context, force bool) error {
	select {
	case d.leaving <- force:
	default:
		return fmt.Errorf("this node is leaving already")
	}
	select {
	case err := <-d.left:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// leave stops every task, takes the node's network and containerd away and forgets the membership. The sockets
// and the record go last, so a leave that dies half-way can be repeated.
func (d *Daemon) leave(bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := d.local.leave(ctx); err != nil {
		return fmt.Errorf("leave: %w", err)
	}
	d.group.stop()
	d.local.close()
	return forget(d.paths)
}

// forget removes what makes this machine a node. The data directory itself stays: it may be a mount point.
func forget(p Paths) error {
	entries, err := os.ReadDir(p.Data)
	if err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("forget the cluster: %w", err)
	}
	for _, e := range entries {
		switch e.Name() {
		case "node.json", "skep.pid", "lock":
			continue
		case "registries.toml": // the administrator's, for the next cluster too
			continue
		}
		if strings.HasPrefix(e.Name(), filepath.Base(p.Log())) { // and the older ones
			continue
		}
		if err := os.RemoveAll(p.Data + "/" + e.Name()); err != nil {
			return fmt.Errorf("forget the cluster: %w; something still uses it", err)
		}
	}
	if err := os.Remove(p.Record()); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("forget the cluster: %w", err)
	}
	return nil
}
