package state

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"skep.dev/libs/constraint"
	"skep.dev/libs/printable"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

const (
	// mostVolumes is how many volumes one warning names.
	mostVolumes = 3
	// mostPath is how much of a path it shows: an image's maker, or a node that lies, chooses it.
	mostPath = 120
	// mostIgnored is how many things without effect are told at once.
	mostIgnored = 5
)

// uncovered warns of volumes that an image declares and no mount of the service covers: each task gets new ones, empty
// but for what the image has there, which end with it.
func uncovered(want *skepv1.ServiceSpec, declared []string) []string {
	covered := map[string]bool{}
	for _, m := range want.GetTask().GetContainer().GetMounts() {
		covered[path.Clean(m.Target)] = true
	}
	var open []string
	for _, v := range declared {
		if v = path.Clean(v); path.IsAbs(v) && v != "/" && !covered[v] {
			open = append(open, shown(v))
		}
	}
	if len(open) == 0 {
		return nil
	}
	slices.Sort(open)
	more := ""
	if over := len(open) - mostVolumes; over > 0 {
		more = fmt.Sprintf(" and %d more", over)
	}
	return []string{fmt.Sprintf("image %s keeps data in %s%s, where nothing is mounted: what a task writes there ends with it; "+
		"to keep it use --mount type=volume,source=NAME,target=%s", shown(name(want)), strings.Join(open[:min(len(open), mostVolumes)], ", "), more, open[0])}
}

// shown is a text of somebody's as a warning shows it.
func shown(s string) string {
	return printable.Cut(strings.Map(func(r rune) rune {
		if printable.Hidden(r) {
			return -1
		}
		return r
	}, s), mostPath)
}

// name is the service's image without its digest.
func name(s *skepv1.ServiceSpec) string {
	n, _, _ := strings.Cut(s.GetTask().GetContainer().GetImage(), "@")
	return n
}

// leftBehind warns, once, of named local volumes that do not follow their task: when the spec before did not have that
// already. Tasks of one service are then on nodes that each have a volume of their own.
func (s *Service) leftBehind(want, had *skepv1.ServiceSpec) []string {
	if len(s.ix.NodeIDs()) < 2 {
		return nil
	}
	was := wandering(had)
	fresh := slices.DeleteFunc(wandering(want), func(v string) bool { return slices.Contains(was, v) })
	if len(fresh) == 0 {
		return nil
	}
	what, it := "volume "+fresh[0]+" is", "it"
	if len(fresh) > 1 {
		what, it = "volumes "+strings.Join(fresh[:min(len(fresh), mostVolumes)], ", ")+" are", "them"
	}
	return []string{fmt.Sprintf("%s local to each node: a task of service %s that comes to another node does not find %s there; use --volume-pin, or a constraint that leads it to one node", what, want.Name, it)}
}

// wandering are the named local volumes of a service that nothing keeps its tasks with.
func wandering(s *skepv1.ServiceSpec) (out []string) {
	p := s.GetTask().GetPlacement()
	if spec.Mode(s) != "replicated" || p.GetVolumePin() || slices.ContainsFunc(p.GetConstraints(), leads) {
		return nil
	}
	for _, m := range s.GetTask().GetContainer().GetMounts() {
		local := m.Type == skepv1.Mount_TYPE_VOLUME && (m.VolumeDriver == "" || m.VolumeDriver == "local")
		// With options it may be a server's; a name with a template is meant to differ.
		if local && m.Source != "" && len(m.VolumeOpts) == 0 && !m.ReadOnly && !strings.Contains(m.Source, "{{") {
			out = append(out, shown(m.Source))
		}
	}
	return out
}

// leads: the constraint names a node, or a label that some nodes have.
func leads(text string) bool {
	cs, err := constraint.Parse([]string{text})
	if err != nil || cs[0].Negate {
		return false
	}
	key := strings.ToLower(cs[0].Key)
	return slices.Contains([]string{"node.id", "node.hostname", "node.ip"}, key) || strings.HasPrefix(key, "node.labels.") || strings.HasPrefix(key, "engine.labels.")
}

// withoutEffect warns of what a spec says and nothing follows from here, as in Docker on Linux.
func withoutEffect(want, had *skepv1.ServiceSpec) (out []string) {
	say := func(s *skepv1.ServiceSpec) (lines []string) {
		for _, m := range s.GetTask().GetContainer().GetMounts() {
			if m.Consistency != "" && m.Consistency != "default" {
				lines = append(lines, fmt.Sprintf("consistency=%s of the mount at %s has no effect on Linux", m.Consistency, shown(m.Target)))
			}
		}
		for _, n := range s.GetTask().GetNetworks() {
			if word := spec.Predefined(n.Target); word != "" && len(n.Aliases) > 0 {
				lines = append(lines, fmt.Sprintf("alias %s on network %s has no effect: names are told on networks of the cluster", shown(n.Aliases[0]), word))
			}
			for _, k := range slices.Sorted(maps.Keys(n.DriverOpts)) {
				lines = append(lines, fmt.Sprintf("driver-opt %s of a task on a network has no effect: the options of a network are its own (network create --opt)", shown(k)))
			}
		}
		return lines
	}
	was := say(had)
	for _, line := range say(want) {
		if !slices.Contains(was, line) && !slices.Contains(out, line) {
			out = append(out, line)
		}
	}
	return out[:min(len(out), mostIgnored)]
}
