package engine

import (
	"context"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"

	"skep.dev/libs/containers"
	"skep.dev/services/engine-api/internal/translate"
	"skep.dev/services/engine-api/internal/wire"
)

var containerFilters = []string{"ancestor", "before", "exited", "expose", "health", "id", "is-task", "isolation", "label", "name", "network", "publish", "since", "status", "volume"}

// containerFilter is what a list of containers asks for.
type containerFilter struct {
	f             wire.Filters
	names         []*regexp.Regexp
	before, since int64           // created before and after, unix ms; 0 = whenever
	ancestors     map[string]bool // references of images, as specs have them; nil = any
	none          bool            // nothing here is what is asked for
}

const longestPattern = 256

func readContainerFilter(ctx context.Context, n containers.Node, f wire.Filters) (*containerFilter, error) {
	w := &containerFilter{f: f}
	for _, text := range f["name"] {
		if len(text) > longestPattern {
			return nil, wire.Invalid("invalid filter 'name': it is longer than %d bytes", longestPattern)
		}
		re, err := regexp.Compile(text)
		if err != nil {
			re = regexp.MustCompile(regexp.QuoteMeta(text)) // as Docker: what is no pattern is a part of a name
		}
		w.names = append(w.names, re)
	}
	for _, text := range f["status"] {
		if container.ValidateContainerState(container.ContainerState(text)) != nil {
			return nil, wire.Invalid("invalid filter 'status=%s': use created, running or exited", text)
		}
	}
	for _, text := range f["health"] {
		if container.ValidateHealthStatus(container.HealthStatus(text)) != nil {
			return nil, wire.Invalid("invalid filter 'health=%s': use none, starting, healthy or unhealthy", text)
		}
	}
	for _, text := range f["exited"] {
		if _, err := strconv.Atoi(text); err != nil {
			return nil, wire.Invalid("invalid filter 'exited=%s': it is a number", text)
		}
	}
	is, filtered, err := f.TakeBool("is-task")
	if err != nil {
		return nil, err
	}
	w.none = filtered && !is || f.Has("isolation") && !f.Exact("isolation", "default")
	for key, at := range map[string]*int64{"before": &w.before, "since": &w.since} {
		for _, ref := range f[key] {
			c, err := findContainer(n, ref)
			if err != nil {
				return nil, err
			}
			*at = c.Record.GetCreatedUnixMs()
		}
	}
	if f.Has("ancestor") {
		if w.ancestors, err = ancestors(ctx, n, f["ancestor"]); err != nil {
			return nil, err
		}
	}
	return w, nil
}

// ancestors are the references by which containers of the images were made: names, digests and ids are given.
func ancestors(ctx context.Context, n containers.Node, refs []string) (map[string]bool, error) {
	out := map[string]bool{}
	for _, ref := range refs {
		out[ref] = true
	}
	all, err := n.Images(ctx)
	if err != nil {
		return nil, err
	}
	for _, img := range all {
		if slices.ContainsFunc(refs, func(ref string) bool { return isImage(img, ref) }) {
			out[img.GetName()], out[img.GetDigest()] = true, true
		}
	}
	return out, nil
}

func (w *containerFilter) fits(c containers.Container, v translate.ContainerView) bool {
	name, f := translate.ContainerName(c, v), w.f
	named := len(w.names) == 0 || slices.ContainsFunc(w.names, func(re *regexp.Regexp) bool { return re.MatchString(name) || re.MatchString("/"+name) })
	at := c.Record.GetCreatedUnixMs()
	switch {
	case w.none, !named, !f.Prefix("id", c.ID()), w.before != 0 && at >= w.before, w.since != 0 && at <= w.since,
		!f.Exact("status", string(translate.ContainerState(c))), !f.Exact("health", string(translate.ContainerHealth(c))):
		return false
	case f.Has("exited") && (translate.ContainerState(c) != container.StateExited || !f.Exact("exited", strconv.Itoa(int(c.Status.GetExitCode())))):
		return false
	case f.Has("label") && !f.Labels("label", translate.ContainerLabels(c, v)):
		return false
	}
	return w.madeOf(c) && w.reaches(c, v)
}

// madeOf: the image is one of those asked for.
func (w *containerFilter) madeOf(c containers.Container) bool {
	if w.ancestors == nil {
		return true
	}
	ref := c.Revision.GetSpec().GetTask().GetContainer().GetImage()
	name, digest, _ := strings.Cut(ref, "@")
	untagged, tag, tagged := name, "", false
	if i := strings.LastIndex(name, ":"); i > strings.LastIndex(name, "/") {
		untagged, tag, tagged = name[:i], name[i+1:], true
	}
	return w.ancestors[ref] || w.ancestors[name] || digest != "" && w.ancestors[digest] || w.ancestors[untagged] && (!tagged || tag == "latest") ||
		!tagged && w.ancestors[name+":latest"]
}

// reaches: its networks, volumes and ports are among those asked for.
func (w *containerFilter) reaches(c containers.Container, v translate.ContainerView) bool {
	f := w.f
	if !f.Has("network") && !f.Has("volume") && !f.Has("publish") && !f.Has("expose") {
		return true
	}
	d := translate.ContainerSummary(c, v)
	var networks, volumes []string
	for name, e := range d.NetworkSettings.Networks {
		networks = append(networks, name, e.NetworkID)
	}
	for _, m := range d.Mounts {
		volumes = append(volumes, m.Name, m.Source, m.Destination)
	}
	port := func(key string, number func(container.PortSummary) uint16) bool {
		return !f.Has(key) || slices.ContainsFunc(f[key], func(want string) bool {
			text, proto, _ := strings.Cut(want, "/")
			return slices.ContainsFunc(d.Ports, func(p container.PortSummary) bool {
				n := number(p)
				return n != 0 && strconv.Itoa(int(n)) == text && (proto == "" || proto == p.Type)
			})
		})
	}
	return f.Exact("network", networks...) && f.Exact("volume", volumes...) &&
		port("publish", func(p container.PortSummary) uint16 { return p.PublicPort }) && port("expose", func(p container.PortSummary) uint16 { return p.PrivatePort })
}
