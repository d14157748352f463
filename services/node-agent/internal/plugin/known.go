package plugin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/node-agent/internal/task"
	"skep.dev/services/node-agent/internal/volume"
)

const (
	// lookEvery is how often the folders are read: a few system calls. Plug-ins are asked only when a file is new.
	lookEvery = 2 * time.Second
	// dialEvery is how often it is tried whether a plug-in still listens. Nothing is sent.
	dialEvery = 10 * time.Second
	// Who was asked for its name and did not answer is asked again after a while.
	againFirst, againMost = time.Second, 30 * time.Second
	// patience is how long a task waits for a plug-in that is not there, such as one that is being restarted.
	patience = 5 * time.Second
)

// known are the plug-ins of this node, by name.
type known struct {
	cfg  *Config
	ctx  context.Context   // of everything that is asked
	came func(name string) // called when one answers that did not before

	looking sync.Mutex

	mu      sync.Mutex
	plugins map[string]*plugin
	changed chan struct{} // closed and replaced when one has come, gone or answered
	closed  bool
	asking  sync.WaitGroup
}

// plugin is one that was found.
type plugin struct {
	ep     endpoint
	client *client
	// volumes: it is a driver of volumes, of that scope.
	volumes bool
	scope   string
	err     error // why it cannot be used; errAsking = it has not answered yet
	asking  bool
	again   time.Time
	backoff time.Duration
	dialed  time.Time
}

var errAsking = errors.New("it has not answered yet")

func newKnown(ctx context.Context, cfg *Config) *known {
	return &known{cfg: cfg, ctx: ctx, plugins: map[string]*plugin{}, changed: make(chan struct{})}
}

// run looks for plug-ins until its context ends.
func (k *known) run() {
	ctx := k.ctx
	defer func() {
		k.mu.Lock()
		k.closed = true
		k.mu.Unlock()
		k.asking.Wait()
	}()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		k.look()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// look reads the folders and asks those who are new, or have not answered before.
func (k *known) look() {
	k.looking.Lock() // what was read earlier is not taken for the newer
	defer k.looking.Unlock()
	found, more := k.cfg.Dirs.scan()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed || k.ctx.Err() != nil {
		return
	}
	gone := false
	for name, p := range k.plugins {
		if e, ok := found[name]; ok && e == p.ep {
			continue
		}
		delete(k.plugins, name)
		gone = gone || p.usable()
		if _, ok := found[name]; !ok {
			k.cfg.Log.Info("volume plug-in gone", zap.String("plugin", name))
		}
	}
	for name, e := range found {
		p := k.plugins[name]
		if p == nil {
			if p = k.add(e); more > 0 {
				k.cfg.Log.Warn("more plug-ins than are looked at", zap.Int("most", maxPlugins), zap.Int("left_out", more))
			}
		}
		switch now := time.Now(); {
		case p.client == nil || p.asking:
		case p.err != nil && now.After(p.again), p.err == nil && p.volumes && now.Sub(p.dialed) > dialEvery:
			p.asking = true
			k.asking.Go(func() { k.ask(p) })
		}
	}
	if gone {
		k.toldLocked()
	}
}

// add makes a plug-in of an endpoint. k.mu is held.
func (k *known) add(e endpoint) *plugin {
	p := &plugin{ep: e, err: errAsking, backoff: againFirst}
	k.plugins[e.name] = p
	if e.bad != "" {
		p.err = errors.New(e.bad)
	} else {
		p.client, p.err = newClient(e, k.cfg.limits, func(call string, took time.Duration, err error) { k.cfg.Called(e.name, call, took, err) })
		if p.err == nil {
			p.err = errAsking
		}
	}
	if p.client == nil {
		k.cfg.Log.Warn("volume plug-in not used", zap.String("plugin", e.name), zap.Error(p.err))
	}
	return p
}

// ask settles what a plug-in is, or whether it still listens.
func (k *known) ask(p *plugin) {
	ctx := k.ctx
	k.mu.Lock()
	first := p.err != nil
	k.mu.Unlock()
	var (
		volumes bool
		scope   string
		err     error
	)
	if first {
		volumes, scope, err = p.client.activate(ctx)
	} else {
		volumes, scope = true, p.scope
		err = p.client.listens(ctx)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if ctx.Err() != nil {
		return
	}
	was := p.usable()
	before := p.err
	p.asking, p.volumes, p.scope, p.err, p.dialed = false, volumes, scope, err, time.Now()
	if err != nil {
		if before == nil || before.Error() != err.Error() {
			k.cfg.Log.Warn("volume plug-in does not answer", zap.String("plugin", p.ep.name), zap.Error(err))
		}
		p.again = time.Now().Add(p.backoff)
		p.backoff = min(2*p.backoff, againMost)
	} else {
		p.backoff = againFirst
		if first && volumes {
			k.cfg.Log.Info("volume plug-in found", zap.String("plugin", p.ep.name), zap.String("scope", scope), zap.String("file", p.ep.file))
		}
	}
	if was != p.usable() && k.plugins[p.ep.name] == p {
		k.toldLocked()
		if p.usable() {
			k.asking.Go(func() { k.came(p.ep.name) })
		}
	} else if first {
		k.wakeLocked()
	}
}

func (p *plugin) usable() bool { return p.err == nil && p.volumes }

func (k *known) toldLocked() {
	k.wakeLocked()
	k.cfg.Described()
}

func (k *known) wakeLocked() {
	close(k.changed)
	k.changed = make(chan struct{})
}

// list are the plug-ins that can be used.
func (k *known) list() []*skepv1.Plugin {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []*skepv1.Plugin
	for name, p := range k.plugins {
		if p.usable() {
			out = append(out, &skepv1.Plugin{Type: "Volume", Name: name, Scope: p.scope})
		}
	}
	slices.SortFunc(out, func(a, b *skepv1.Plugin) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// names are the plug-ins that are drivers of volumes, or may be: they have not said.
func (k *known) names() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []string
	for name, p := range k.plugins {
		if p.usable() || p.err != nil {
			out = append(out, name)
		}
	}
	return out
}

// get returns a plug-in that answers, waiting a little for one that is just coming. The error says which is missing where; it is
// temporary where the plug-in is there and does not answer.
func (k *known) get(ctx context.Context, name string) (*plugin, error) {
	name = plainName(name)
	if !validPlugin.MatchString(name) {
		return nil, errName(name)
	}
	deadline := time.NewTimer(k.cfg.patience)
	defer deadline.Stop()
	for looked := false; ; looked = true {
		k.mu.Lock()
		p, changed := k.plugins[name], k.changed
		var q plugin
		if p != nil {
			q = *p
		}
		k.mu.Unlock()
		if p != nil && q.usable() {
			return &q, nil
		}
		switch {
		case !looked:
			k.look() // it may have come a moment ago
			continue
		case p == nil, errors.Is(q.err, errAsking):
			select {
			case <-changed:
				continue
			case <-ctx.Done():
			case <-deadline.C:
			}
		}
		switch {
		case p == nil:
			return nil, fmt.Errorf("node %s has no volume plug-in %q: start it there, or let the service run where it is", k.cfg.Node, name)
		case q.err == nil:
			return nil, fmt.Errorf("plug-in %q of node %s is not one for volumes", name, k.cfg.Node)
		}
		err := fmt.Errorf("volume plug-in %q of node %s cannot be used: %w", name, k.cfg.Node, q.err)
		if q.client == nil {
			return nil, err // until somebody mends its files
		}
		return nil, task.Temporary(err)
	}
}

// activate asks a plug-in what it is.
func (c *client) activate(ctx context.Context) (volumes bool, scope string, err error) {
	var a struct {
		errText
		Implements []string
	}
	if err := c.ask(ctx, "Plugin.Activate", c.limits.look, nil, &a); err != nil {
		return false, "", err
	}
	if !slices.Contains(a.Implements, "VolumeDriver") {
		return false, "", nil
	}
	var cp struct {
		errText
		Capabilities struct{ Scope string }
	}
	err = c.ask(ctx, "VolumeDriver.Capabilities", c.limits.look, struct{}{}, &cp)
	// One that does not know the question has volumes of each node, as Docker takes it. One that does not answer is not
	// taken for that: whether a volume is the same one everywhere decides whether two nodes may write it.
	if err != nil && !errors.Is(err, errNoCall) && !errors.As(err, new(refused)) {
		return false, "", err
	}
	if err == nil && cp.Capabilities.Scope == volume.ScopeGlobal {
		return true, volume.ScopeGlobal, nil
	}
	return true, volume.ScopeLocal, nil
}

// listens tries whether somebody takes connections there.
func (c *client) listens(ctx context.Context) error {
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(ctx, c.ep.network, c.ep.address)
	if err != nil {
		return fmt.Errorf("nobody listens there: %w", err)
	}
	return conn.Close()
}
