package state

import (
	"net/netip"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/fault"
	"skep.dev/libs/printable"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// What a node may say of itself and its tasks. A node is believed about what only it can know, within what a machine
// can be: all of it is stored, shown to people and weighed by the scheduler.
const (
	maxDescription = 64 << 10
	maxNanoCPUs    = 16_384 * 1e9
	maxMemory      = 64 << 40 // bytes; the largest machines have 32 TiB
	maxLabels      = 256
	maxRoutes      = 128
	maxWord        = 256 // bytes of a name, a version, a label
	maxTasksOfNode = 10_000
	maxTaskID      = 64
	maxText        = 1 << 10 // of a message; more is cut
	maxOutput      = 4 << 10 // of a probe's output; more is cut
	maxPerTask     = 4096    // ports, addresses and networks of a task
	maxVolumes     = 10_000  // of plug-ins that a node holds
	maxStale       = 8       // sources of bind mounts that changed
)

// checkDescription refuses what no machine is.
func checkDescription(d *skepv1.NodeDescription) error {
	if n := proto.Size(d); n > maxDescription {
		return fault.Invalid("the node's description is %d bytes: at most %d", n, maxDescription)
	}
	if err := checkHostname(d.Hostname); err != nil {
		return err
	}
	for _, a := range []string{d.Addr, d.DataPathAddr} {
		if a == "" {
			continue
		}
		host := a
		if ap, err := netip.ParseAddrPort(a); err == nil {
			host = ap.Addr().String()
		}
		if _, err := netip.ParseAddr(host); err != nil {
			return fault.Invalid("the node's address %q is no IP address", printable.Cut(a, maxWord))
		}
	}
	r := d.Resources
	switch {
	case r.GetNanoCpus() < 0 || r.GetNanoCpus() > maxNanoCPUs:
		return fault.Invalid("the node claims %d nano CPUs: believed are 0 to %d", r.NanoCpus, int64(maxNanoCPUs))
	case r.GetMemoryBytes() < 0 || r.GetMemoryBytes() > maxMemory:
		return fault.Invalid("the node claims %d bytes of memory: believed are 0 to %d", r.MemoryBytes, int64(maxMemory))
	case len(d.EngineLabels) > maxLabels || len(d.Plugins) > maxLabels || len(r.GetGeneric()) > maxLabels:
		return fault.Invalid("the node has %d labels, %d plugins and %d kinds of resources: at most %d each", len(d.EngineLabels), len(d.Plugins), len(r.GetGeneric()), maxLabels)
	}
	if n := len(d.Routes); n > maxRoutes {
		return fault.Invalid("the node names %d routes: at most %d", n, maxRoutes)
	}
	for _, r := range d.Routes {
		if p, err := netip.ParsePrefix(r); err != nil || p != p.Masked() || p.String() != r {
			return fault.Invalid("the node's route %q is no network", printable.Cut(r, maxWord))
		}
	}
	for k, v := range d.EngineLabels {
		if k == "" || !plain(k) || !plain(v) {
			return fault.Invalid("the node's label %q is not printable text of at most %d bytes", printable.Cut(k, maxWord), maxWord)
		}
	}
	d.Trouble = printable.Cut(strings.Map(func(c rune) rune {
		if !unicode.IsPrint(c) {
			return ' '
		}
		return c
	}, strings.ToValidUTF8(d.Trouble, "")), maxWord) // what an error says is nobody's fault here
	words := []string{d.EngineVersion, d.RuntimeVersion, d.Platform.GetOs(), d.Platform.GetArch()}
	for _, p := range d.Plugins {
		words = append(words, p.GetType(), p.GetName(), p.GetScope())
	}
	for _, w := range words {
		if !plain(w) {
			return fault.Invalid("the node says %q of itself, which is not printable text of at most %d bytes", printable.Cut(w, maxWord), maxWord)
		}
	}
	return nil
}

// checkHostname takes what Linux takes for a host's name (none included) and people can read.
func checkHostname(h string) error {
	bad := func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '.' && c != '_'
	}
	if len(h) > 253 || strings.ContainsFunc(h, bad) {
		return fault.Invalid("the node's host name %q is not made of letters, digits, dots and hyphens, at most 253", printable.Cut(h, maxWord))
	}
	return nil
}

func plain(s string) bool {
	return len(s) <= maxWord && utf8.ValidString(s) && !strings.ContainsFunc(s, func(c rune) bool { return !unicode.IsPrint(c) })
}

// boundStatus refuses a report no agent makes and cuts the texts of the others.
func boundStatus(r *skepv1.NodeStatus) error {
	if len(r.Session) > maxTaskID {
		return fault.Invalid("the report's session is %d bytes: at most %d", len(r.Session), maxTaskID)
	}
	if n := len(r.Tasks); n > maxTasksOfNode {
		return fault.Invalid("the report has %d tasks: at most %d", n, maxTasksOfNode)
	}
	if n := len(r.Volumes); n > maxVolumes {
		return fault.Invalid("the report has %d volumes: at most %d", n, maxVolumes)
	}
	for _, v := range r.Volumes {
		if v.GetDriver() == "" || v.GetName() == "" || !plain(v.GetDriver()) || !plain(v.GetName()) {
			return fault.Invalid("the report names volume %q of plug-in %q, which is not printable text of at most %d bytes", printable.Cut(v.GetName(), maxWord), printable.Cut(v.GetDriver(), maxWord), maxWord)
		}
		if len(v.TaskIds) > maxTasksOfNode || slices.ContainsFunc(v.TaskIds, func(id string) bool { return len(id) > maxTaskID }) {
			return fault.Invalid("the report gives volume %s %d tasks, or ids that are none: at most %d", v.Name, len(v.TaskIds), maxTasksOfNode)
		}
		v.Err = printable.Cut(v.Err, maxText)
	}
	seen := make(map[string]bool, len(r.Tasks))
	for _, t := range r.Tasks {
		id := t.GetTaskId()
		switch {
		case id == "" || len(id) > maxTaskID || strings.ContainsFunc(id, func(c rune) bool { return c <= ' ' || c > '~' || strings.ContainsRune(".*>", c) }):
			return fault.Invalid("the report names a task %q, which is no task's id", printable.Cut(id, maxTaskID))
		case seen[id]:
			return fault.Invalid("the report names task %s twice", id)
		case skepv1.TaskState_name[int32(t.State)] == "" || skepv1.HealthState_name[int32(t.Health)] == "":
			return fault.Invalid("the report gives task %s state %d and health %d: there are none such", id, t.State, t.Health)
		case len(t.Ports) > maxPerTask || len(t.Addresses) > maxPerTask || len(t.Networks) > maxPerTask:
			return fault.Invalid("the report gives task %s %d ports, %d addresses and %d networks: at most %d each", id, len(t.Ports), len(t.Addresses), len(t.Networks), maxPerTask)
		case len(t.Files) > spec.MaxFiles || slices.ContainsFunc(t.Files, func(f *skepv1.HeldFile) bool { return len(f.GetId()) > maxTaskID }):
			return fault.Invalid("the report gives task %s %d secrets and configs, or ids that are none: at most %d", id, len(t.Files), spec.MaxFiles)
		case len(t.StaleBinds) > maxStale:
			return fault.Invalid("the report gives task %s %d bind mounts that changed: at most %d", id, len(t.StaleBinds), maxStale)
		}
		seen[id] = true
		for i, source := range t.StaleBinds {
			t.StaleBinds[i] = printable.Cut(source, maxText)
		}
		t.Message, t.Err, t.ContainerId = printable.Cut(t.Message, maxText), printable.Cut(t.Err, maxText), printable.Cut(t.ContainerId, maxWord)
		t.HealthOutput = printable.Cut(t.HealthOutput, maxOutput)
	}
	return nil
}
