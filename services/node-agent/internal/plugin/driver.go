package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"skep.dev/libs/id"
	"skep.dev/services/node-agent/internal/task"
	"skep.dev/services/node-agent/internal/volume"
)

const (
	maxVolumes = 10_000 // of one answer to List
	maxStatus  = 64     // words of a volume's status
	maxValue   = 256    // bytes of one
)

// validVolume are the names a volume can have: Docker's, and a folder's in the record of mounts.
var validVolume = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}$`)

func (k key) valid() bool {
	return validPlugin.MatchString(k.driver) && validVolume.MatchString(k.name) && id.Valid(k.task)
}

// request is the body of every call.
type request struct {
	Name string            `json:",omitempty"`
	ID   string            `json:",omitempty"`
	Opts map[string]string `json:",omitempty"`
}

// told is a volume in a plug-in's words.
type told struct {
	Name, Mountpoint, CreatedAt string
	Status                      map[string]json.RawMessage
}

// path asks where a volume is mounted, "" = it is not.
func (c *client) path(ctx context.Context, name string) (string, error) {
	var r struct {
		errText
		Mountpoint string
	}
	err := c.ask(ctx, "VolumeDriver.Path", c.limits.look, request{Name: name}, &r)
	return r.Mountpoint, err
}

// hasNot tells whether the plug-in says clearly that it does not have a volume mounted.
func (c *client) hasNot(ctx context.Context, name string) bool {
	if at, err := c.path(ctx, name); err == nil {
		return at == ""
	}
	all, err := c.list(ctx)
	return err == nil && !slices.ContainsFunc(all, func(t told) bool { return t.Name == name })
}

func (c *client) list(ctx context.Context) ([]told, error) {
	var r struct {
		errText
		Volumes []told
	}
	if err := c.ask(ctx, "VolumeDriver.List", c.limits.quick, struct{}{}, &r); err != nil {
		return nil, err
	}
	if len(r.Volumes) > maxVolumes {
		return nil, fmt.Errorf("VolumeDriver.List: the answer has %d volumes, at most %d are taken", len(r.Volumes), maxVolumes)
	}
	return r.Volumes, nil
}

// driver is one plug-in as volume.Driver.
type driver struct {
	p    *Plugins
	name string
}

func (d driver) errorf(what string, err error) error {
	err = fmt.Errorf("volume plug-in %s of node %s: %s: %w", d.name, d.p.cfg.Node, what, err)
	if errors.As(err, new(refused)) {
		return err
	}
	return task.Temporary(err)
}

// Create makes a volume unless the plug-in has one of that name: of a plug-in whose volumes are the same everywhere, another
// node may have made it a moment ago.
func (d driver) Create(ctx context.Context, name string, opts map[string]string) error {
	_, err := d.Get(ctx, name)
	if !errors.Is(err, volume.ErrNotFound) {
		return err
	}
	pl, err := d.p.known.get(ctx, d.name)
	if err != nil {
		return err
	}
	var r errText
	if opts == nil {
		opts = map[string]string{}
	}
	err = pl.client.call(ctx, "VolumeDriver.Create", pl.client.limits.slow, request{Name: name, Opts: opts}, &r)
	if err == nil {
		return nil
	}
	if _, gerr := d.Get(ctx, name); gerr == nil {
		return nil
	}
	return d.errorf("create volume "+name, err)
}

// Remove removes a volume with its data.
func (d driver) Remove(ctx context.Context, name string) error {
	pl, err := d.plugin(ctx, name)
	if err != nil {
		return err
	}
	d.p.mu.Lock()
	v := d.p.volumes[[2]string{d.name, name}]
	held := v != nil && len(v.holds) > 0
	d.p.mu.Unlock()
	if held {
		return fmt.Errorf("volume %s of plug-in %s is mounted on node %s: it is removed once it is not", name, d.name, d.p.cfg.Node)
	}
	var r errText
	if err := pl.client.call(ctx, "VolumeDriver.Remove", pl.client.limits.quick, request{Name: name}, &r); err != nil {
		return d.errorf("remove volume "+name, err)
	}
	return nil
}

// Mount has a volume mounted for a task, once for each, and returns where. A plug-in that takes its time keeps the caller for a
// moment only: the error is temporary, and the next call hears what became of it.
func (d driver) Mount(ctx context.Context, name, taskID string) (string, error) {
	k := key{d.name, name, taskID}
	if !k.valid() {
		return "", fmt.Errorf("invalid volume name %q: use letters, digits, '_', '.' and '-', and begin with a letter or digit", cut(name))
	}
	return d.p.await(ctx, k)
}

// Unmount gives up a task's use of a volume. The plug-in is asked until it confirms it; that is not waited for.
func (d driver) Unmount(ctx context.Context, name, taskID string) error {
	d.p.giveBack(ctx, key{d.name, name, taskID})
	return nil
}

// Get asks what the plug-in knows of a volume.
func (d driver) Get(ctx context.Context, name string) (volume.Info, error) {
	pl, err := d.plugin(ctx, name)
	if err != nil {
		return volume.Info{}, err
	}
	var r struct {
		errText
		Volume told
	}
	err = pl.client.ask(ctx, "VolumeDriver.Get", pl.client.limits.quick, request{Name: name}, &r)
	switch {
	case errors.As(err, new(refused)):
		return volume.Info{}, fmt.Errorf("%w: %s of plug-in %s: it says: %w", volume.ErrNotFound, name, d.name, err)
	case err != nil:
		return volume.Info{}, d.errorf("ask for volume "+name, err)
	case r.Volume.Name == "":
		return volume.Info{}, fmt.Errorf("%w: %s of plug-in %s", volume.ErrNotFound, name, d.name)
	}
	r.Volume.Name = name // some answer with a longer form of it
	return d.info(r.Volume), nil
}

// List returns the plug-in's volumes, those with names of another kind left out. Those that may be mounted here are among
// them, also when there is an error because the plug-in cannot be asked.
func (d driver) List(ctx context.Context) ([]volume.Info, error) {
	var all []told
	pl, err := d.p.known.get(ctx, d.name)
	if err == nil {
		if all, err = pl.client.list(ctx); err != nil {
			err = d.errorf("list its volumes", err)
		}
	}
	for _, h := range d.p.Held() {
		if h.Driver == d.name && !slices.ContainsFunc(all, func(t told) bool { return t.Name == h.Name }) {
			all = append(all, told{Name: h.Name})
		}
	}
	out := make([]volume.Info, 0, len(all))
	for _, t := range all {
		if validVolume.MatchString(t.Name) {
			out = append(out, d.info(t))
		}
	}
	slices.SortFunc(out, func(a, b volume.Info) int { return strings.Compare(a.Name, b.Name) })
	return out, err
}

// Scope tells whether a volume of a name is the same one on every node.
func (d driver) Scope(ctx context.Context) (string, error) {
	pl, err := d.p.known.get(ctx, d.name)
	if err != nil {
		return "", err
	}
	return pl.scope, nil
}

func (d driver) plugin(ctx context.Context, volume string) (*plugin, error) {
	if !validVolume.MatchString(volume) {
		return nil, fmt.Errorf("invalid volume name %q: use letters, digits, '_', '.' and '-', and begin with a letter or digit", cut(volume))
	}
	return d.p.known.get(ctx, d.name)
}

func (d driver) info(t told) volume.Info {
	i := volume.Info{Name: t.Name, Driver: d.name, Mountpoint: cut(t.Mountpoint), Status: map[string]string{}}
	if at, err := time.Parse(time.RFC3339, t.CreatedAt); err == nil {
		i.CreatedAt = at
	}
	for k, v := range t.Status {
		if len(i.Status) == maxStatus {
			break
		}
		text := string(v)
		if s := ""; json.Unmarshal(v, &s) == nil {
			text = s
		}
		i.Status[short(k)] = short(text)
	}
	d.p.mu.Lock()
	defer d.p.mu.Unlock()
	if v := d.p.volumes[[2]string{d.name, t.Name}]; v != nil && len(v.holds) > 0 {
		i.Mounted = true
		if _, err := v.tasksLocked(); err != nil {
			i.Status["not unmounted"] = short(err.Error())
		}
	}
	return i
}

func short(s string) string {
	if s = cut(s); len(s) > maxValue {
		s = strings.ToValidUTF8(s[:maxValue], "")
	}
	return s
}
