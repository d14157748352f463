// Package plugin speaks Docker's volume plug-in protocol, version 1, as the one who asks: it finds the plug-ins of a node,
// has volumes made, mounted and unmounted, and keeps the record of what may be mounted.
//
// It refuses to take a plug-in from whom it cannot be root's, to give a container a folder of the system because a plug-in
// named it, and to believe that a volume is not mounted before the plug-in has said so.
//
// Failure story: a plug-in may be absent, hang, crash, lie or answer garbage at any call. Each volume has a goroutine of its
// own, so one that hangs keeps nobody else waiting. What it was asked to mount is on disk before it is asked, and stays there,
// and in the node's status, until it has confirmed the unmount, which is tried again for ever. An agent that was killed in
// between reads the record and goes on.
//
// Docker's own client (github.com/docker/docker/pkg/plugins) is not used: it comes with the whole of the engine's module,
// reads answers of any length, retries calls that may have been heard, and keeps no record.
package plugin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/node-agent/internal/volume"
)

// Config is what Plugins need.
type Config struct {
	Dirs  Dirs
	State string   // folder of the record of mounts
	Keep  []string // folders of the host that no plug-in may hand to a container, beside the system's
	Node  string   // the node's name, for what people read
	Log   *zap.Logger
	// Changed is called, without locks, when Held may have changed.
	Changed func()
	// Described is called when List has changed.
	Described func()
	// Called is told of every call of a plug-in.
	Called func(plugin, call string, took time.Duration, err error)
	// Boot names this start of the machine; "" = the kernel's own name for it.
	Boot string

	limits   limits
	patience time.Duration // see get
	wait     time.Duration // how long a task's worker is kept by a plug-in that does not answer
}

// Plugins are the volume plug-ins of a node.
type Plugins struct {
	cfg     Config
	known   *known
	records records
	ctx     context.Context
	cancel  context.CancelFunc
	wg      sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	volumes map[[2]string]*volumeOf // by plug-in and name
}

// Open reads the record of mounts and begins to look for plug-ins. Nothing is unmounted before Reconcile.
func Open(cfg Config) (*Plugins, error) {
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	if cfg.Changed == nil {
		cfg.Changed = func() {}
	}
	if cfg.Described == nil {
		cfg.Described = func() {}
	}
	if cfg.Called == nil {
		cfg.Called = func(string, string, time.Duration, error) {}
	}
	if cfg.limits == (limits{}) {
		cfg.limits = dockers
	}
	if cfg.patience == 0 {
		cfg.patience = patience
	}
	if cfg.wait == 0 {
		cfg.wait = 2 * time.Second
	}
	if cfg.Boot == "" {
		b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			return nil, fmt.Errorf("volume plug-ins: %w", err)
		}
		cfg.Boot = strings.TrimSpace(string(b))
	}
	cfg.Keep = slices.Clone(cfg.Keep)
	for _, dir := range cfg.Keep {
		if real, err := filepath.EvalSymlinks(dir); err == nil && real != dir {
			cfg.Keep = append(cfg.Keep, real) // as mount points are compared
		}
	}
	p := &Plugins{cfg: cfg, records: records{cfg.State}, volumes: map[[2]string]*volumeOf{}}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.known = newKnown(p.ctx, &p.cfg)
	p.known.came = p.retry
	found, err := p.records.load()
	if err != nil {
		p.cancel()
		return nil, fmt.Errorf("volume plug-ins: %w", err)
	}
	for k, e := range found {
		_, h := p.holdLocked(k)
		h.entry, h.wanted = e, true // until Reconcile knows better
	}
	p.wg.Go(p.known.run)
	return p, nil
}

// Close lets go of everything. Volumes stay mounted for the tasks that run.
func (p *Plugins) Close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.cancel()
	p.wg.Wait()
}

// Reconcile unmounts what no task needs, such as what an agent that was killed had mounted. needed must say yes for every task
// whose container may still be there.
func (p *Plugins) Reconcile(needed func(task string) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, v := range p.volumes {
		for task, h := range v.holds {
			if h.wanted && !needed(task) {
				h.wanted, h.asked = false, false
				p.workLocked(id, v)
			}
		}
	}
}

// Drain unmounts everything, for a node that leaves, and says what could not be unmounted within the limit.
func (p *Plugins) Drain(ctx context.Context, limit time.Duration) error {
	p.Reconcile(func(string) bool { return false })
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		held := p.Held()
		if len(held) == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			var failed []error
			for _, h := range held {
				failed = append(failed, fmt.Errorf("volume %s of plug-in %s may still be mounted: %s", h.Name, h.Driver, cmp.Or(h.Err, "it was not unmounted in time")))
			}
			return errors.Join(failed...)
		}
	}
}

// retry tries again at once what waits for a plug-in.
func (p *Plugins) retry(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, v := range p.volumes {
		if id[0] != name {
			continue
		}
		for _, h := range v.holds {
			h.due = time.Time{}
		}
		p.workLocked(id, v)
	}
}

// Held is what may be mounted, for the node's status.
func (p *Plugins) Held() []*skepv1.HeldVolume {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []*skepv1.HeldVolume
	for id, v := range p.volumes {
		if len(v.holds) == 0 {
			continue
		}
		tasks, err := v.tasksLocked()
		h := &skepv1.HeldVolume{Driver: id[0], Name: id[1], TaskIds: tasks}
		if err != nil {
			h.Err = short(err.Error()) // there may be many
		}
		out = append(out, h)
	}
	slices.SortFunc(out, func(a, b *skepv1.HeldVolume) int {
		return strings.Compare(a.Driver+"\x00"+a.Name, b.Driver+"\x00"+b.Name)
	})
	return out
}

// List are the plug-ins that answer, for the node's description.
func (p *Plugins) List() []*skepv1.Plugin { return p.known.list() }

// Answers tells whether a plug-in is there and answers.
func (p *Plugins) Answers(name string) bool {
	return slices.ContainsFunc(p.List(), func(d *skepv1.Plugin) bool { return d.Name == plainName(name) })
}

// Names are the plug-ins whose volumes can be listed: those there are, and those whose volumes may be mounted.
func (p *Plugins) Names() []string {
	out := p.known.names()
	for _, h := range p.Held() {
		out = append(out, h.Driver)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Forget drops the record of a volume that could not be unmounted, by a person's word that it is not mounted. It refuses what
// a task needs.
func (p *Plugins) Forget(driver, name string) error {
	defer p.cfg.Changed()
	p.mu.Lock()
	defer p.mu.Unlock()
	id := [2]string{plainName(driver), name}
	v := p.volumes[id]
	if v == nil {
		return nil
	}
	if tasks, _ := v.tasksLocked(); len(tasks) > 0 {
		return fmt.Errorf("volume %s is in use by %s", name, strings.Join(tasks, ", "))
	}
	for task, h := range v.holds {
		if err := p.records.remove(h.key); err != nil {
			return err
		}
		delete(v.holds, task)
	}
	v.nudge()
	return nil
}

// Driver is a plug-in by its name, also one that is not there: what is asked of it says so.
func (p *Plugins) Driver(name string) (volume.Driver, error) {
	plain := plainName(name)
	if !validPlugin.MatchString(plain) {
		return nil, errName(name)
	}
	return driver{p, plain}, nil
}

func errName(name string) error {
	return fmt.Errorf("volume plug-in %q: names have letters, digits, '_', '.' and '-'; one that `docker plugin install` manages is run as a program of the host instead", cut(name))
}
