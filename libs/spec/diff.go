package spec

import (
	"fmt"
	"slices"
	"sort"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	skepv1 "skep.dev/proto/skep/v1"
)

// Diff says in words what differs between two specs, "" when nothing does: the summary of a revision. Values of
// environment variables are left out, they are often credentials.
func Diff(a, b *skepv1.ServiceSpec) string {
	out := Changes(a, b)
	const most = 8
	if len(out) > most {
		out = append(out[:most], fmt.Sprintf("%d more changes", len(out)-most))
	}
	return strings.Join(out, "; ")
}

// Changes are what Diff says, one by one and all of them.
func Changes(a, b *skepv1.ServiceSpec) []string {
	if a == nil {
		a = &skepv1.ServiceSpec{}
	}
	if b == nil {
		b = &skepv1.ServiceSpec{}
	}
	var d differ
	d.message("", a.ProtoReflect(), b.ProtoReflect())
	return d.out
}

type differ struct{ out []string }

func (d *differ) add(format string, a ...any) { d.out = append(d.out, fmt.Sprintf(format, a...)) }

func (d *differ) message(path string, a, b protoreflect.Message) {
	fields := a.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if a.Has(f) == b.Has(f) && a.Get(f).Equal(b.Get(f)) {
			continue
		}
		p := string(f.Name())
		if path != "" {
			p = path + "." + p
		}
		switch {
		case p == "task.container.registry_auth":
			d.add("registry credentials changed")
		case p == "task.container.image":
			was, is := images(a.Get(f).String(), b.Get(f).String())
			d.add("%s %s -> %s", words(p), was, is)
		case p == "task.container.env":
			d.env(a.Get(f).List(), b.Get(f).List())
		case p == "task.container.secrets", p == "task.container.configs":
			d.files(words(p), references(a.Get(f).List()), references(b.Get(f).List()))
		case f.IsMap():
			d.maps(words(p), a.Get(f).Map(), b.Get(f).Map())
		case f.IsList():
			d.lists(words(p), f, a.Get(f).List(), b.Get(f).List())
		case f.Message() != nil && !isLeaf(f.Message()):
			d.message(p, a.Get(f).Message(), b.Get(f).Message())
		default:
			d.scalar(words(p), f, a, b)
		}
	}
}

// images shortens two references to what tells them apart: the tags, or a dozen digits of the digests when only those
// differ.
func images(a, b string) (string, string) {
	cut := func(s string, digits int) string {
		name, digest, ok := strings.Cut(s, "@sha256:")
		switch {
		case s == "":
			return "unset"
		case !ok:
			return s
		case digits == 0 || len(digest) < digits:
			return name
		}
		return name + "@sha256:" + digest[:digits]
	}
	if x, y := cut(a, 0), cut(b, 0); x != y {
		return x, y
	}
	return cut(a, 12), cut(b, 12)
}

// isLeaf: durations read better whole.
func isLeaf(m protoreflect.MessageDescriptor) bool { return m.FullName() == "google.protobuf.Duration" }

func (d *differ) scalar(name string, f protoreflect.FieldDescriptor, a, b protoreflect.Message) {
	d.add("%s %s -> %s", name, show(f, a), show(f, b))
}

func show(f protoreflect.FieldDescriptor, m protoreflect.Message) string {
	if !m.Has(f) && (f.HasPresence() || f.Kind() == protoreflect.StringKind) {
		return "unset"
	}
	return value(f, m.Get(f))
}

func value(f protoreflect.FieldDescriptor, v protoreflect.Value) string {
	switch f.Kind() {
	case protoreflect.EnumKind:
		if e := f.Enum().Values().ByNumber(v.Enum()); e != nil {
			return strings.ReplaceAll(wordOf(f.Enum(), string(e.Name())), "_", "-")
		}
	case protoreflect.MessageKind:
		if d, ok := v.Message().Interface().(*durationpb.Duration); ok {
			return d.AsDuration().String()
		}
		return item(v.Message())
	case protoreflect.BytesKind:
		return fmt.Sprintf("%d bytes", len(v.Bytes()))
	case protoreflect.StringKind:
		if s := v.String(); s == "" || strings.ContainsAny(s, " ;,\"") {
			return fmt.Sprintf("%q", short(s))
		}
		return short(v.String())
	}
	return v.String()
}

func short(s string) string {
	if len(s) > 80 {
		return s[:77] + "..."
	}
	return s
}

// item shows a list element: the fields that are set, in order, and lists of words such as a network's aliases.
func item(m protoreflect.Message) string {
	var parts []string
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if !m.Has(f) || f.IsMap() {
			continue
		}
		if f.IsList() {
			if f.Kind() == protoreflect.StringKind {
				parts = append(parts, itemList(m.Get(f).List()))
			}
			continue
		}
		parts = append(parts, value(f, m.Get(f)))
	}
	return strings.Join(parts, ":")
}

func itemList(l protoreflect.List) string {
	var all []string
	for i := range l.Len() {
		all = append(all, l.Get(i).String())
	}
	return short(strings.Join(all, ","))
}

func (d *differ) lists(name string, f protoreflect.FieldDescriptor, a, b protoreflect.List) {
	all := func(l protoreflect.List) (out []string) {
		for i := range l.Len() {
			out = append(out, value(f, l.Get(i)))
		}
		return out
	}
	d.sets(name, all(a), all(b))
}

func references(l protoreflect.List) (out []*skepv1.FileReference) {
	for i := range l.Len() {
		out = append(out, proto.CloneOf(l.Get(i).Message().Interface().(*skepv1.FileReference)))
	}
	return out
}

// files compares secrets or configs: a line for each that has another version, and one for what is asked for otherwise.
func (d *differ) files(name string, a, b []*skepv1.FileReference) {
	texts := func(l []*skepv1.FileReference) (out []string) {
		for _, f := range l {
			f = proto.CloneOf(f)
			f.Id, f.Version = "", 0 // what it is, not which one
			out = append(out, item(f.ProtoReflect()))
		}
		return out
	}
	as, bs := texts(a), texts(b)
	told := false
	for i, f := range b {
		if at := slices.Index(as, bs[i]); at >= 0 && (a[at].Version != f.Version || a[at].Id != f.Id) {
			d.add("%s %s version %d -> %d", strings.TrimSuffix(name, "s"), f.Name, a[at].Version, f.Version)
			told = true
		}
	}
	if !told || !slices.Equal(as, bs) {
		d.sets(name, as, bs)
	}
}

func (d *differ) sets(name string, a, b []string) {
	var parts []string
	for _, v := range b {
		if !slices.Contains(a, v) {
			parts = append(parts, "+"+v)
		}
	}
	for _, v := range a {
		if !slices.Contains(b, v) {
			parts = append(parts, "-"+v)
		}
	}
	if len(parts) == 0 {
		parts = []string{"changed"}
	}
	d.add("%s %s", name, strings.Join(parts, " "))
}

func (d *differ) maps(name string, a, b protoreflect.Map) {
	all := func(m protoreflect.Map) (out []string) {
		m.Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
			out = append(out, short(k.String()+"="+v.String()))
			return true
		})
		sort.Strings(out)
		return out
	}
	d.sets(name, all(a), all(b))
}

func (d *differ) env(a, b protoreflect.List) {
	vals := func(l protoreflect.List) map[string]string {
		out := map[string]string{}
		for i := range l.Len() {
			k, v, _ := strings.Cut(l.Get(i).String(), "=")
			out[k] = v
		}
		return out
	}
	av, bv := vals(a), vals(b)
	var parts []string
	for k, v := range bv {
		if old, ok := av[k]; !ok {
			parts = append(parts, "+"+k)
		} else if old != v {
			parts = append(parts, k+" changed")
		}
	}
	for k := range av {
		if _, ok := bv[k]; !ok {
			parts = append(parts, "-"+k)
		}
	}
	sort.Strings(parts)
	if len(parts) == 0 {
		parts = []string{"reordered"}
	}
	d.add("env %s", strings.Join(parts, ", "))
}

// words shortens a field's path to what the CLI calls it.
func words(path string) string {
	if w, ok := fieldWords[path]; ok {
		return w
	}
	for _, p := range []string{"task.container.", "task.", "mode.", "endpoint."} {
		if rest, ok := strings.CutPrefix(path, p); ok {
			path = rest
			break
		}
	}
	return strings.NewReplacer("_", " ", ".", " ").Replace(path)
}

var fieldWords = map[string]string{
	"mode.replicated.replicas":              "replicas",
	"mode.replicated_job.max_concurrent":    "max concurrent",
	"mode.replicated_job.total_completions": "completions",
	"endpoint.mode":                         "endpoint mode",
	"endpoint.dns_starting":                 "dns-starting",
	"endpoint.ports":                        "published ports",
	"task.force_update":                     "forced update",
	"task.resources.limits.nano_cpus":       "cpu limit (nano)",
	"task.resources.limits.memory_bytes":    "memory limit",
	"task.placement.constraints":            "constraints",
	"task.placement.preferences":            "placement preferences",
	"task.placement.max_replicas_per_node":  "max replicas per node",
	"labels":                                "labels",
	"task.container.labels":                 "container labels",
}
