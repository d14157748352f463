package plugin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"

	"skep.dev/services/node-agent/internal/task"
)

const (
	unmountFirst, unmountMost = 500 * time.Millisecond, 30 * time.Second
	// maxExtra bounds the further unmounts of a volume that a plug-in may have counted more than once.
	maxExtra = 8
)

// hold is one use of a volume, from before the plug-in is asked to mount until it has confirmed the unmount.
type hold struct {
	key
	entry

	wanted  bool   // a task needs it; otherwise it is to be unmounted
	asked   bool   // somebody waits for Mount
	tries   int    // Mounts that came to an end, whatever end
	untold  bool   // nobody has heard of the last one's end
	path    string // of the last one that succeeded
	err     error  // of the last one
	refused bool   // the plug-in said itself that it did not mount it

	unmountErr error
	due        time.Time // of the next try to unmount
	backoff    time.Duration
}

// volumeOf is a volume that is held: one goroutine does what is to be done about it, one thing after the other. That of
// another volume does not wait for it.
type volumeOf struct {
	holds   map[string]*hold // by task
	working bool
	kick    chan struct{}
	changed chan struct{} // closed and replaced after everything that was done
}

func (v *volumeOf) nudge() {
	select {
	case v.kick <- struct{}{}:
	default:
	}
}

// holdLocked finds a hold or makes one.
func (p *Plugins) holdLocked(k key) (*volumeOf, *hold) {
	id := [2]string{k.driver, k.name}
	v := p.volumes[id]
	if v == nil {
		v = &volumeOf{holds: map[string]*hold{}, kick: make(chan struct{}, 1), changed: make(chan struct{})}
		p.volumes[id] = v
	}
	h := v.holds[k.task]
	if h == nil {
		h = &hold{key: k, entry: entry{Since: time.Now()}}
		v.holds[k.task] = h
	}
	return v, h
}

// workLocked sees to it that a volume is worked on.
func (p *Plugins) workLocked(id [2]string, v *volumeOf) {
	if v.working {
		v.nudge()
		return
	}
	if p.closed {
		return
	}
	v.working = true
	p.wg.Go(func() { p.work(id, v) })
}

// work does what is due about a volume until there is nothing left.
func (p *Plugins) work(id [2]string, v *volumeOf) {
	for {
		p.mu.Lock()
		do, next := v.next()
		if do == nil && next.IsZero() || p.ctx.Err() != nil {
			v.working = false
			if len(v.holds) == 0 {
				delete(p.volumes, id)
			}
			p.mu.Unlock()
			return
		}
		p.mu.Unlock()
		if do == nil {
			t := time.NewTimer(time.Until(next))
			select {
			case <-p.ctx.Done():
			case <-v.kick:
			case <-t.C:
			}
			t.Stop()
			continue
		}
		p.mu.Lock()
		wanted := do.wanted
		p.mu.Unlock()
		if wanted {
			p.mount(v, do)
		} else {
			p.unmount(v, do)
		}
		p.mu.Lock()
		close(v.changed)
		v.changed = make(chan struct{})
		p.mu.Unlock()
		p.cfg.Changed()
	}
}

// next is what is to be done now, or when to look again; neither: nothing.
func (v *volumeOf) next() (do *hold, at time.Time) {
	for _, h := range v.holds {
		switch {
		case h.wanted && h.asked:
			return h, time.Time{}
		case h.wanted:
		case !h.due.After(time.Now()):
			do = h
		case at.IsZero() || h.due.Before(at):
			at = h.due
		}
	}
	return do, at
}

// mount asks the plug-in, or makes sure of what it gave before.
func (p *Plugins) mount(v *volumeOf, h *hold) {
	path, err := p.mounted(h)
	p.mu.Lock()
	defer p.mu.Unlock()
	h.asked = false
	h.tries++
	h.err, h.untold = err, true
	if err == nil {
		h.path, h.refused = path, false
	}
}

func (p *Plugins) mounted(h *hold) (string, error) {
	pl, err := p.known.get(p.ctx, h.driver)
	if err != nil {
		return "", err
	}
	where := fmt.Sprintf("volume plug-in %s of node %s: mount volume %s", h.driver, p.cfg.Node, h.name)
	if h.Path != "" && h.Boot == p.cfg.Boot {
		now, err := pl.client.path(p.ctx, h.name)
		if err == nil && now == h.Path {
			if path, err := checkMountpoint(now, p.cfg.Keep); err == nil {
				return path, nil
			}
		}
		if err != nil && !errors.As(err, new(refused)) {
			return "", task.Temporary(fmt.Errorf("%s: is it mounted still: %w", where, err))
		}
		// A plug-in that was restarted may not know of its mounts any more: it is asked anew, in the name of the same task.
	}
	e := entry{Calls: h.Calls + 1, Boot: p.cfg.Boot, Since: h.Since}
	if err := p.records.write(h.key, e); err != nil {
		return "", task.Temporary(err)
	}
	p.setEntry(h, e)
	p.cfg.Changed()
	var r struct {
		errText
		Mountpoint string
	}
	err = pl.client.call(p.ctx, "VolumeDriver.Mount", pl.client.limits.slow, request{Name: h.name, ID: h.task}, &r)
	switch {
	case err == nil:
	case unsent(err):
		e.Calls--
		p.setEntry(h, e)
		return "", task.Temporary(fmt.Errorf("%s: %w", where, err))
	case errors.As(err, new(refused)):
		p.mu.Lock()
		h.refused = true
		p.mu.Unlock()
		return "", fmt.Errorf("%s: it says: %w", where, err)
	default:
		// It may have mounted it, or be about to: asked again in the name of the same task, and held until it has confirmed
		// that it is not.
		return "", task.Temporary(fmt.Errorf("%s: %w", where, err))
	}
	path, err := checkMountpoint(r.Mountpoint, p.cfg.Keep)
	if err != nil {
		return "", fmt.Errorf("%s: %w", where, err)
	}
	if before := h.path; before != "" && before != path {
		// Its container may have been made with the other one: what it would write there is not in the volume.
		return "", fmt.Errorf("%s: it is at %s now and was at %s before", where, path, before)
	}
	e.Path = r.Mountpoint
	if err := p.records.write(h.key, e); err != nil {
		p.cfg.Log.Warn("where a volume is mounted is not on disk", zap.String("volume", h.name), zap.Error(err)) // it is asked again
	}
	p.setEntry(h, e)
	return path, nil
}

func (p *Plugins) setEntry(h *hold, e entry) {
	p.mu.Lock()
	h.entry = e
	p.mu.Unlock()
}

// unmount gives a use back and forgets it once the plug-in has confirmed that.
func (p *Plugins) unmount(v *volumeOf, h *hold) {
	err := p.unmounted(v, h)
	if err == nil {
		err = p.records.remove(h.key)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		delete(v.holds, h.task)
		return
	}
	if h.unmountErr == nil && p.ctx.Err() == nil {
		p.cfg.Log.Warn("volume not unmounted, trying again", zap.String("volume", h.name), zap.String("plugin", h.driver), zap.String("task", h.task), zap.Error(err))
	}
	h.unmountErr = err
	h.backoff = min(max(2*h.backoff, unmountFirst), unmountMost)
	h.due = time.Now().Add(h.backoff)
}

func (p *Plugins) unmounted(v *volumeOf, h *hold) error {
	if h.Calls == 0 {
		return nil // never asked
	}
	alone := p.alone(v, h)
	if h.refused && !alone {
		// A plug-in that only counts would take it for one of the others.
		return nil
	}
	pl, err := p.known.get(p.ctx, h.driver)
	if err != nil {
		return err
	}
	unmount := func() error {
		var r errText
		return pl.client.call(p.ctx, "VolumeDriver.Unmount", pl.client.limits.quick, request{Name: h.name, ID: h.task}, &r)
	}
	err = unmount()
	switch {
	case err == nil:
	case errors.As(err, new(refused)) && (h.refused || h.Boot != p.cfg.Boot || pl.client.hasNot(p.ctx, h.name)):
		// It does not have it: it refused to mount it, the machine was started anew, or it says so now.
		return nil
	default:
		return fmt.Errorf("volume plug-in %s of node %s: %w", h.driver, p.cfg.Node, err)
	}
	// What was asked for more than once because the plug-in was not heard may have been counted more than once. With nobody
	// else left on this node, that can be given back too.
	for n := 1; alone && n < min(h.Calls, maxExtra); n++ {
		if unmount() != nil {
			break
		}
	}
	return nil
}

// alone tells whether no other use of the volume may be mounted here.
func (p *Plugins) alone(v *volumeOf, h *hold) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, o := range v.holds {
		if o != h && o.Calls > 0 {
			return false
		}
	}
	return true
}

// await waits until a Mount that was asked for has come to an end, for as long as a caller may be kept.
func (p *Plugins) await(ctx context.Context, k key) (string, error) {
	limit := time.NewTimer(p.cfg.wait)
	defer limit.Stop()
	p.mu.Lock()
	v, h := p.holdLocked(k)
	before := h.tries
	if h.wanted && !h.asked && h.untold && h.err != nil {
		before-- // it failed after the last one who waited had gone
	} else {
		h.wanted, h.asked = true, true
		h.unmountErr, h.due, h.backoff = nil, time.Time{}, 0
	}
	p.workLocked([2]string{k.driver, k.name}, v)
	for {
		if p.closed || v.holds[k.task] != h {
			p.mu.Unlock()
			return "", task.Temporary(fmt.Errorf("mount volume %s: the agent ends, or the task", k.name))
		}
		if h.tries > before {
			path, err := h.path, h.err
			if err != nil {
				path = ""
			}
			h.untold = false
			p.mu.Unlock()
			return path, err
		}
		changed := v.changed
		p.mu.Unlock()
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("mount volume %s: %w", k.name, ctx.Err())
		case <-p.ctx.Done():
			return "", task.Temporary(fmt.Errorf("mount volume %s: the agent ends", k.name))
		case <-changed:
		case <-limit.C:
			return "", task.Soon(fmt.Errorf("volume plug-in %s of node %s is mounting volume %s and has not answered yet", k.driver, p.cfg.Node, k.name))
		}
		p.mu.Lock()
	}
}

// giveBack marks a use as one that nobody needs, and waits a moment for it to be gone: what takes longer is done in time.
func (p *Plugins) giveBack(ctx context.Context, k key) {
	limit := time.NewTimer(p.cfg.wait / 2)
	defer limit.Stop()
	p.mu.Lock()
	v := p.volumes[[2]string{k.driver, k.name}]
	if v == nil || v.holds[k.task] == nil {
		p.mu.Unlock()
		return
	}
	h := v.holds[k.task]
	h.wanted, h.asked, h.due = false, false, time.Time{}
	p.workLocked([2]string{k.driver, k.name}, v)
	for v.holds[k.task] == h && h.unmountErr == nil {
		changed := v.changed
		p.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-p.ctx.Done():
			return
		case <-limit.C:
			return
		case <-changed:
		}
		p.mu.Lock()
	}
	p.mu.Unlock()
}

// tasksLocked are those that need a volume, sorted.
func (v *volumeOf) tasksLocked() (tasks []string, err error) {
	for t, h := range v.holds {
		if h.wanted {
			tasks = append(tasks, t)
		} else if h.unmountErr != nil {
			err = h.unmountErr
		}
	}
	slices.Sort(tasks)
	return tasks, err
}
