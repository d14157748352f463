package plugin

import (
	"context"
	"fmt"
	"slices"
	"time"

	"skep.dev/services/node-agent/internal/task"
)

const (
	unmountFirst, unmountMost = 500 * time.Millisecond, 30 * time.Second
	// maxExtra bounds the further unmounts of a volume that a plug-in may have counted more than once.
	maxExtra = 64
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
	undone  bool   // the plug-in has confirmed the unmount: what is left is the record

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
