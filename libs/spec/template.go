package spec

import (
	"maps"
	"path"
	"slices"
	"strings"

	"skep.dev/libs/fault"
	"skep.dev/libs/taskname"
	skepv1 "skep.dev/proto/skep/v1"
)

// validateTemplates fills in every template once, as a node will: what fails with the names of an example fails on every
// node. What depends on a node's own names, as the length of a host name, the node says.
func validateTemplates(s *skepv1.ServiceSpec) error {
	c := s.GetTask().GetContainer()
	names := taskname.Example(s.Name, s.Labels)
	for _, e := range c.GetEnv() {
		name, value, _ := strings.Cut(e, "=")
		if _, err := names.Expand(value); err != nil {
			return fault.Invalid("invalid env %s=%s: %v; where the braces belong to the value, write it as %s=%s", name, cut(value), err, name, cut(taskname.Literal(value)))
		}
	}
	if h := c.GetHostname(); strings.Contains(h, "{{") {
		got, err := names.Hostname(h)
		if err != nil {
			return fault.Invalid("invalid hostname %q: %v", h, err)
		}
		if len(got) > 63 || !domainName.MatchString(got) {
			return fault.Invalid("invalid hostname %q: it comes to %q; use letters, digits and hyphens, at most 63", h, got)
		}
	}
	for _, m := range c.GetMounts() {
		if err := validateMountTemplates(m, names); err != nil {
			return err
		}
	}
	return nil
}

func validateMountTemplates(m *skepv1.Mount, names taskname.Names) error {
	target, err := names.Expand(m.Target)
	if err != nil {
		return fault.Invalid("invalid mount target %q: %v", m.Target, err)
	}
	if path.Clean(target) == "/" {
		return fault.Invalid("invalid mount target %q: it comes to the root directory", m.Target)
	}
	if strings.Contains(m.Source, "{{") {
		source, err := names.Expand(m.Source)
		switch {
		case err != nil:
			return fault.Invalid("invalid mount source %q: %v", m.Source, err)
		case m.Type == skepv1.Mount_TYPE_BIND && !path.IsAbs(source):
			return fault.Invalid("invalid bind mount source %q: it comes to %q, and must be an absolute path", m.Source, source)
		case m.Type == skepv1.Mount_TYPE_VOLUME && (strings.ContainsAny(source, "/ \t\n") || source == "" || source == "." || source == ".."):
			return fault.Invalid("invalid volume name %q: it comes to %q; use letters, digits, '.', '_' and '-'", m.Source, source)
		}
	}
	for what, values := range map[string]map[string]string{"volume-opt": m.VolumeOpts, "volume-label": m.VolumeLabels} {
		for _, k := range slices.Sorted(maps.Keys(values)) {
			if _, err := names.Expand(values[k]); err != nil {
				return fault.Invalid("invalid %s %s=%s of the mount at %s: %v; where the braces belong to the value, write %s", what, k, cut(values[k]), m.Target, err, cut(taskname.Literal(values[k])))
			}
		}
	}
	return nil
}

// cut keeps an error readable.
func cut(s string) string {
	const most = 120
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "…"
	}
	return s
}
