package plugin

import (
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"skep.dev/services/node-agent/internal/task"
)

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
			if path, err := p.checked(now); err == nil || task.IsTemporary(err) {
				return path, err
			}
		}
		if err != nil && !errors.As(err, new(refused)) {
			return "", task.Temporary(fmt.Errorf("%s: is it mounted still: %w", where, err))
		}
		// A plug-in that was restarted may not know of its mounts any more: it is asked anew, in the name of the same task.
	}
	h.undone = false
	was := h.path
	if was == "" && h.Boot == p.cfg.Boot {
		was = h.Path // as an agent before this one was told
	}
	e := entry{Calls: h.Calls + 1, Boot: p.cfg.Boot, Since: h.Since, Start: pl.ep.version}
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
	path, err := p.checked(r.Mountpoint)
	if err != nil {
		return "", fmt.Errorf("%s: %w", where, err)
	}
	if was != "" && was != path && was != r.Mountpoint {
		// Its container may have been made with the other one: what it would write there is not in the volume.
		return "", fmt.Errorf("%s: it is at %s now and was at %s before", where, path, was)
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
	var err error
	if !h.undone {
		err = p.unmounted(v, h)
	}
	if err == nil {
		h.undone = true
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
	if err := p.remind(pl, v, h); err != nil {
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
	// What was asked for more than once, because the plug-in was not heard or had been started again, may have been counted
	// more than once. With nobody else left on this node that can be given back too; until then it is another's to give back.
	if !alone {
		return p.handOver(v, h)
	}
	for n := 1; n < min(h.Calls, maxExtra); n++ {
		if unmount() != nil {
			break
		}
	}
	return nil
}

// remind tells a plug-in that was started again who has the volume, before it is told that one has not any more: one that keeps
// count in memory would take it from the others, or not know what it is to undo.
func (p *Plugins) remind(pl *plugin, v *volumeOf, h *hold) error {
	p.mu.Lock()
	var have []*hold
	for _, o := range v.holds {
		if (o == h || o.wanted) && o.Path != "" && o.Boot == p.cfg.Boot && o.Start != pl.ep.version {
			have = append(have, o)
		}
	}
	p.mu.Unlock()
	for _, o := range have {
		e := o.entry
		e.Calls, e.Start = e.Calls+1, pl.ep.version
		if err := p.records.write(o.key, e); err != nil {
			return err
		}
		var r errText
		err := pl.client.call(p.ctx, "VolumeDriver.Mount", pl.client.limits.slow, request{Name: o.name, ID: o.task}, &r)
		if err != nil && !errors.As(err, new(refused)) { // refused: it knows, or does not care
			return fmt.Errorf("volume plug-in %s of node %s: tell it that task %s has volume %s: %w", h.driver, p.cfg.Node, o.task, h.name, err)
		}
		p.setEntry(o, e)
	}
	return nil
}

// handOver leaves to another use what one may have had counted beyond itself.
func (p *Plugins) handOver(v *volumeOf, h *hold) error {
	if h.Calls < 2 {
		return nil
	}
	p.mu.Lock()
	var to *hold
	for _, o := range v.holds {
		if o != h && o.Calls > 0 {
			to = o
		}
	}
	p.mu.Unlock()
	if to == nil {
		return nil // forgotten meanwhile
	}
	e := to.entry
	e.Calls += h.Calls - 1
	if err := p.records.write(to.key, e); err != nil {
		return err
	}
	p.setEntry(to, e)
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

// checked looks at a mount point within a limit: that of a server that is gone does not answer, and never will.
func (p *Plugins) checked(path string) (string, error) {
	p.mu.Lock()
	if p.checking[path] {
		p.mu.Unlock()
		return "", task.Temporary(fmt.Errorf("its mount point %s still does not answer", cut(path)))
	}
	p.checking[path] = true
	p.mu.Unlock()
	type result struct {
		path string
		err  error
	}
	done := make(chan result, 1)
	go func() {
		real, err := p.cfg.check(path, p.cfg.Keep)
		p.mu.Lock()
		delete(p.checking, path)
		p.mu.Unlock()
		done <- result{real, err}
	}()
	limit := time.NewTimer(p.cfg.limits.look)
	defer limit.Stop()
	select {
	case r := <-done:
		return r.path, r.err
	case <-p.ctx.Done():
		return "", task.Temporary(p.ctx.Err())
	case <-limit.C:
		return "", task.Temporary(fmt.Errorf("its mount point %s does not answer within %s: does the storage behind it?", cut(path), p.cfg.limits.look))
	}
}
