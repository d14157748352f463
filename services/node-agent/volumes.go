package agent

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/fault"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/node-agent/internal/volume"
)

const (
	// pluginPatience is how long a plug-in may take to tell of its volumes.
	pluginPatience = 5 * time.Second
	// sizesPatience is how long all sizes of one answer may take; what is not measured then is not told.
	sizesPatience = 10 * time.Second
	// maxVolumes bounds how many volumes people make on a node, and maxVolumeSpec the bytes of options and labels of one.
	maxVolumes    = 10_000
	maxVolumeSpec = 16 << 10

	volumePage      = 500
	volumeBytesMost = 160 << 10 // of a reply in protobuf
)

// mounter is a task whose record is kept, by a volume that it mounts.
type mounter struct {
	id, name string
	ended    bool
}

// mounters tell which tasks mount which volumes. unknown is a task that has not ended and whose mounts are not known yet, as
// its spec has not come.
func (s *Service) mounters() (by map[volume.Key][]mounter, unknown string) {
	by = map[volume.Key][]mounter{}
	for _, st := range s.set.Statuses() {
		j, _ := s.set.Job(st.TaskId)
		if j == nil {
			continue
		}
		m := mounter{id: st.TaskId, ended: st.State >= skepv1.TaskState_TASK_STATE_COMPLETE}
		if j.Revision == nil {
			if !m.ended {
				unknown = m.id
			}
			continue
		}
		m.name = s.runtime.TaskName(j)
		keys := append(s.runtime.VolumesOf(j), s.volumes.Held(m.id)...)
		for _, k := range keys {
			if !slices.Contains(by[k], m) {
				by[k] = append(by[k], m)
			}
		}
	}
	return by, unknown
}

func taskNames(list []mounter) string {
	var out []string
	for _, m := range list {
		out = append(out, m.name)
	}
	return strings.Join(out, ", ")
}

// volumeError gives what the volumes' keeper says the code that people's programs look at.
func volumeError(err error, name string) error {
	var f *fault.Error
	switch {
	case errors.Is(err, volume.ErrNotFound):
		return fault.NotFound("no such volume: %s", name)
	case err == nil, errors.As(err, &f):
		return err
	}
	return fault.New(fault.CodeInternal, "%v", err)
}

func (s *Service) createVolume(ctx context.Context, r *skepv1.CreateVolumeRequest) (*skepv1.VolumeReply, error) {
	if err := spec.ValidateLabels(r.GetLabels()); err != nil {
		return nil, err
	}
	if n := proto.Size(r); n > maxVolumeSpec {
		return nil, fault.Invalid("options and labels of volume %s take %d bytes: at most %d", r.GetName(), n, maxVolumeSpec)
	}
	w := volume.Wanted{Driver: cmp.Or(r.GetDriver(), volume.Local), Name: r.GetName(), Options: r.GetOptions(), Labels: r.GetLabels()}
	if w.Name == "" {
		b := make([]byte, 32)
		_, _ = rand.Read(b) // it never fails
		w.Name = hex.EncodeToString(b)
	}
	if err := volume.CheckName(w.Name); err != nil {
		return nil, err
	}
	s.tell(ctx, &skepv1.ToldRequest{Verb: "volume-create", Subject: w.Name})
	d, err := s.volumes.Use(w.Driver)
	if err != nil {
		return nil, fault.Invalid("%v", err)
	}
	if w.Driver == volume.Local {
		if have, err := d.List(ctx); err == nil && len(have) >= maxVolumes {
			return nil, fault.Exhausted("node %s has %d volumes, as many as it keeps: remove some (skep volume prune)", s.cfg.Hostname, len(have))
		}
	}
	if err := s.volumes.Create(ctx, w); err != nil {
		return nil, volumeError(err, w.Name)
	}
	return s.inspectVolume(ctx, w.Driver, w.Name)
}

func (s *Service) inspectVolume(ctx context.Context, driver, name string) (*skepv1.VolumeReply, error) {
	d, err := s.volumes.Use(driver)
	if err != nil {
		return nil, fault.Invalid("%v", err)
	}
	i, err := d.Get(ctx, name)
	if err != nil {
		return nil, volumeError(err, name)
	}
	scope, err := d.Scope(ctx)
	if err != nil {
		return nil, volumeError(err, name)
	}
	by, _ := s.mounters()
	return &skepv1.VolumeReply{Volume: s.volumeOf(i, driver, scope, by)}, nil
}

func (s *Service) volumeOf(i volume.Info, driver, scope string, by map[volume.Key][]mounter) *skepv1.Volume {
	v := &skepv1.Volume{
		Name: i.Name, Driver: driver, Scope: scope, Mountpoint: i.Mountpoint, Labels: i.Labels, Options: volume.Shown(i.Options),
		SizeBytes: -1, Anonymous: i.Anonymous, Mounted: i.Mounted, Status: i.Status,
	}
	if !i.CreatedAt.IsZero() {
		v.CreatedAt = timestamppb.New(i.CreatedAt)
	}
	if driver != volume.Local {
		v.Labels, _ = s.volumes.Labels(driver, i.Name) // unreadable: none to show
	}
	for _, m := range by[volume.Key{Driver: driver, Name: i.Name}] {
		v.TaskIds = append(v.TaskIds, m.id)
	}
	if t := volume.AnonymousTask(i.Name); t != "" && driver == volume.Local && s.set.Known(t) {
		v.TaskIds = append(v.TaskIds, t)
	}
	return v
}

// allVolumes asks every driver, all at once, and tells which did not answer.
func (s *Service) allVolumes(ctx context.Context) (out []*skepv1.Volume, warnings []string) {
	by, _ := s.mounters()
	var wg sync.WaitGroup
	var mu sync.Mutex
	for _, driver := range append([]string{volume.Local}, s.volumes.Plugins()...) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			ctx, cancel := context.WithTimeout(ctx, pluginPatience)
			defer cancel()
			d, err := s.volumes.Use(driver)
			var list []volume.Info
			var scope string
			if err == nil {
				list, err = d.List(ctx)
			}
			if err == nil {
				scope, err = d.Scope(ctx)
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				warnings = append(warnings, "volumes of driver "+driver+" may be left out: "+err.Error())
			}
			for _, i := range list { // with an error, those this node knows of itself
				out = append(out, s.volumeOf(i, driver, scope, by))
			}
		}()
	}
	wg.Wait()
	slices.SortFunc(out, func(a, b *skepv1.Volume) int { return strings.Compare(volumeCursor(a), volumeCursor(b)) })
	slices.Sort(warnings)
	return out, warnings
}

// volumeCursor is where a list of volumes goes on after one.
func volumeCursor(v *skepv1.Volume) string { return v.Name + "\x00" + v.Driver }

func (s *Service) listVolumes(ctx context.Context, r *skepv1.ListVolumesRequest) (*skepv1.ListVolumesReply, error) {
	f, err := volumeFilters(r.GetFilters(), "name", "driver", "label", "dangling")
	if err != nil {
		return nil, err
	}
	size := int(r.GetPage().GetSize())
	if size == 0 || size > volumePage {
		size = volumePage
	}
	all, warnings := s.allVolumes(ctx)
	out := &skepv1.ListVolumesReply{Warnings: warnings}
	bytes := 0
	until := time.Now().Add(sizesPatience)
	for _, v := range all {
		if volumeCursor(v) <= r.GetPage().GetAfter() || !f.fits(v) {
			continue
		}
		bytes += proto.Size(v)
		if n := len(out.Volumes); n == size || n > 0 && bytes > volumeBytesMost {
			out.Next = volumeCursor(out.Volumes[n-1])
			break
		}
		if r.GetSize() && v.Driver == volume.Local && time.Now().Before(until) {
			v.SizeBytes = s.volumes.Size(ctx, v.Name)
		}
		out.Volumes = append(out.Volumes, v)
	}
	return out, nil
}

// filtersOfVolumes are those of volume ls: the values of a key are alternatives.
type filtersOfVolumes map[string][]string

func volumeFilters(list []*skepv1.Filter, known ...string) (filtersOfVolumes, error) {
	f := filtersOfVolumes{}
	for _, x := range list {
		if !slices.Contains(known, x.Key) {
			return nil, fault.Invalid("invalid filter %q: use %s", x.Key, strings.Join(known, ", "))
		}
		if x.Key == "dangling" {
			for _, v := range x.Values {
				if !slices.Contains([]string{"true", "false", "1", "0"}, v) {
					return nil, fault.Invalid("invalid filter 'dangling=%s': use true or false", v)
				}
			}
		}
		f[x.Key] = append(f[x.Key], x.Values...)
	}
	return f, nil
}

func (f filtersOfVolumes) fits(v *skepv1.Volume) bool {
	fits := func(key string, one func(want string) bool) bool {
		return len(f[key]) == 0 || slices.ContainsFunc(f[key], one)
	}
	labelled := func(want string) bool {
		key, value, valued := strings.Cut(want, "=")
		have, ok := v.Labels[key]
		return ok && (!valued || have == value)
	}
	return fits("name", func(w string) bool { return strings.Contains(v.Name, w) }) &&
		fits("driver", func(w string) bool { return v.Driver == w }) &&
		fits("label", labelled) &&
		(len(f["label!"]) == 0 || !slices.ContainsFunc(f["label!"], labelled)) &&
		fits("dangling", func(w string) bool { return (w == "true" || w == "1") == (len(v.TaskIds) == 0) })
}

func (s *Service) updateVolume(ctx context.Context, r *skepv1.UpdateVolumeRequest) (*skepv1.VolumeReply, error) {
	s.tell(ctx, &skepv1.ToldRequest{Verb: "volume-update", Subject: r.GetName()})
	driver, err := s.driverOf(ctx, r.GetName())
	if err != nil {
		return nil, err
	}
	have, err := s.volumes.Labels(driver, r.GetName())
	if err != nil {
		return nil, volumeError(err, r.GetName())
	}
	labels := maps.Clone(have)
	if labels == nil {
		labels = map[string]string{}
	}
	for _, k := range r.GetLabelRm() {
		delete(labels, k)
	}
	maps.Copy(labels, r.GetLabelAdd())
	if err := spec.ValidateLabels(labels); err != nil {
		return nil, err
	}
	if n := proto.Size(&skepv1.CreateVolumeRequest{Labels: labels}); n > maxVolumeSpec {
		return nil, fault.Invalid("the labels of volume %s take %d bytes: at most %d", r.GetName(), n, maxVolumeSpec)
	}
	if err := s.volumes.SetLabels(ctx, driver, r.GetName(), labels); err != nil {
		return nil, volumeError(err, r.GetName())
	}
	return s.inspectVolume(ctx, driver, r.GetName())
}

// driverOf finds who has a volume: the local driver is asked first.
func (s *Service) driverOf(ctx context.Context, name string) (string, error) {
	var failed error
	for _, driver := range append([]string{volume.Local}, s.volumes.Plugins()...) {
		d, err := s.volumes.Use(driver)
		if err == nil {
			ctx, cancel := context.WithTimeout(ctx, pluginPatience)
			_, err = d.Get(ctx, name)
			cancel()
		}
		switch {
		case err == nil:
			return driver, nil
		case !errors.Is(err, volume.ErrNotFound):
			failed = err
		}
	}
	if failed != nil {
		return "", volumeError(failed, name)
	}
	return "", fault.NotFound("no such volume: %s", name)
}

func (s *Service) removeVolume(ctx context.Context, r *skepv1.RemoveVolumeRequest) (*skepv1.Empty, error) {
	name, driver := r.GetName(), r.GetDriver()
	s.tell(ctx, &skepv1.ToldRequest{Verb: "volume-remove", Subject: name})
	if driver == "" {
		var err error
		driver, err = s.driverOf(ctx, name)
		if err != nil && r.GetForce() {
			driver, err = s.goneDriver(name, err)
		}
		if err != nil {
			return nil, err
		}
	}
	by, unknown := s.mounters()
	users := by[volume.Key{Driver: driver, Name: name}]
	if t := volume.AnonymousTask(name); t != "" && driver == volume.Local {
		return nil, fault.Conflict("remove volume %s: it is task %s's own, and goes with that task's record", name, t)
	}
	live := slices.DeleteFunc(slices.Clone(users), func(m mounter) bool { return m.ended })
	switch {
	case len(live) > 0:
		return nil, fault.Conflict("remove volume %s: volume is in use on node %s by task %s", name, s.cfg.Hostname, taskNames(live))
	case unknown != "":
		return nil, fault.Unavailable("remove volume %s: node %s does not know yet what task %s mounts: try again", name, s.cfg.Hostname, unknown)
	case len(users) > 0 && !r.GetForce():
		return nil, fault.Conflict("remove volume %s: ended tasks that are still kept on node %s mounted it: %s; use --force to remove it all the same", name, s.cfg.Hostname, taskNames(users))
	}
	err := s.volumes.Remove(ctx, driver, name)
	if err != nil && r.GetForce() && driver != volume.Local && !s.plugins.Answers(driver) {
		// By a person's word it is not mounted here any more.
		if err = s.plugins.Forget(driver, name); err == nil {
			err = s.volumes.DropLabels(driver, name)
		}
	}
	if err != nil {
		return nil, volumeError(err, name)
	}
	return &skepv1.Empty{}, nil
}

// pruneVolumes removes local volumes that no task whose record is kept mounts: those of tasks that are gone, and with all named ones too.
func (s *Service) pruneVolumes(ctx context.Context, r *skepv1.PruneVolumesRequest) (*skepv1.PruneVolumesReply, error) {
	f, err := volumeFilters(r.GetFilters(), "label", "label!")
	if err != nil {
		return nil, err
	}
	s.tell(ctx, &skepv1.ToldRequest{Verb: "volume-prune"})
	d, err := s.volumes.Use(volume.Local)
	if err != nil {
		return nil, volumeError(err, "")
	}
	list, err := d.List(ctx)
	if err != nil {
		return nil, volumeError(err, "")
	}
	// After the list: what a task has come for since is looked at again by Remove.
	by, unknown := s.mounters()
	if unknown != "" && r.GetAll() {
		return nil, fault.Unavailable("prune volumes: node %s does not know yet what task %s mounts: try again", s.cfg.Hostname, unknown)
	}
	out := &skepv1.PruneVolumesReply{}
	until := time.Now().Add(sizesPatience)
	var failed []error
	for _, i := range list {
		v := s.volumeOf(i, volume.Local, volume.ScopeLocal, by)
		if len(v.TaskIds) > 0 || !v.Anonymous && !r.GetAll() || !f.fits(v) {
			continue
		}
		size := int64(-1)
		if len(i.Options) == 0 && time.Now().Before(until) { // what is mounted there stays
			size = s.volumes.Size(ctx, i.Name)
		}
		if v.Anonymous {
			err = s.volumes.Forget(volume.AnonymousTask(i.Name))
		} else {
			err = s.volumes.Remove(ctx, volume.Local, i.Name)
		}
		switch {
		case err == nil:
			out.Removed = append(out.Removed, i.Name)
			out.ReclaimedBytes += max(size, 0)
		case errors.Is(err, volume.ErrNotFound), fault.Is(err, fault.CodeConflict): // somebody was faster
		default:
			failed = append(failed, err)
		}
	}
	return out, volumeError(errors.Join(failed...), "")
}
