package agent

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/node-agent/internal/volume"
)

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
			return nil, fault.Usage("invalid filter %q: use %s", x.Key, strings.Join(known, ", "))
		}
		if x.Key == "dangling" {
			for _, v := range x.Values {
				if !slices.Contains([]string{"true", "false", "1", "0"}, v) {
					return nil, fault.Usage("invalid filter 'dangling=%s': use true or false", v)
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
