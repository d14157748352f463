package compose

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"

	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

var kinds = map[string]skepv1.SecretKind{
	"secrets": skepv1.SecretKind_SECRET_KIND_SECRET, "configs": skepv1.SecretKind_SECRET_KIND_CONFIG,
}

// file is a secret or config of the files.
type file struct {
	name           string
	external, used bool
}

// readFiles reads every secret or config, used or not, before anything is changed: half a stack helps nobody.
func (s *stack) readFiles(kind skepv1.SecretKind) {
	section, decls := "secrets", map[string]types.FileObjectConfig{}
	if kind == skepv1.SecretKind_SECRET_KIND_CONFIG {
		section = "configs"
		for k, c := range s.project.Configs {
			decls[k] = types.FileObjectConfig(c)
		}
	} else {
		for k, c := range s.project.Secrets {
			decls[k] = types.FileObjectConfig(c)
		}
	}
	s.files[kind] = map[string]*file{}
	names := map[string]string{}
	for _, key := range slices.Sorted(maps.Keys(decls)) {
		d, path := decls[key], []string{section, key}
		f := &file{external: bool(d.External)}
		s.files[kind][key] = f
		if f.external {
			f.name = externalName(key, d.Name)
			if d.File != "" || d.Environment != "" || d.Content != "" {
				s.noteAt(path, "it is external: its value is the one it has already")
			}
			continue
		}
		f.name = s.ownName(key, d.Name)
		if other, ok := names[f.name]; ok {
			s.wrongAt(path, "it has the name %s, as %s has: give it another", f.name, other)
			continue
		}
		names[f.name] = key
		data, ok := s.value(kind, path, d)
		if !ok {
			continue
		}
		labels := s.labels(d.Labels)
		if err := spec.CheckSecret(kind, &skepv1.SecretSpec{Name: f.name, Labels: labels, TemplateDriver: d.TemplateDriver}); err != nil {
			s.wrongAt(path, "the %s would have the name %s: %v", spec.KindWord(kind), f.name, err)
			continue
		}
		out := &skepv1.StackFile{Name: f.name, Labels: labels, TemplateDriver: d.TemplateDriver}
		if kind == skepv1.SecretKind_SECRET_KIND_CONFIG {
			s.out.Spec.Configs, s.out.Configs = append(s.out.Spec.Configs, out), append(s.out.Configs, Value{f.name, data})
		} else {
			s.out.Spec.Secrets, s.out.Secrets = append(s.out.Spec.Secrets, out), append(s.out.Secrets, Value{f.name, data})
		}
	}
	for _, list := range [][]*skepv1.StackFile{s.out.Spec.Secrets, s.out.Spec.Configs} {
		slices.SortFunc(list, func(a, b *skepv1.StackFile) int { return strings.Compare(a.Name, b.Name) })
	}
	for _, list := range [][]Value{s.out.Secrets, s.out.Configs} {
		slices.SortFunc(list, func(a, b Value) int { return strings.Compare(a.Name, b.Name) })
	}
}

// value is the bytes of a secret or config. What is wrong never holds a part of it.
func (s *stack) value(kind skepv1.SecretKind, path []string, d types.FileObjectConfig) (data []byte, ok bool) {
	given := 0
	raw, _ := rawAt(s.dict, path...).(map[string]any)
	for _, source := range []string{"file", "environment", "content"} {
		if raw[source] != nil && (source != "content" || d.Environment == "") {
			given++
		}
	}
	word := spec.KindWord(kind)
	if given != 1 {
		want := "file or environment, or external: true"
		if kind == skepv1.SecretKind_SECRET_KIND_CONFIG {
			want = "file, content or environment, or external: true"
		}
		s.wrongAt(path, "the %s has %d sources: give it one, %s", word, given, want)
		return nil, false
	}
	switch {
	case d.File != "":
		var err error
		if data, err = readFile(d.File, spec.SecretLimit(kind)); err != nil {
			s.wrongAt(append(path, "file"), "cannot read %s: %v", s.short(d.File), err)
			return nil, false
		}
	case d.Environment != "":
		text, set := s.env[d.Environment]
		if !set && d.Content == "" {
			s.wrongAt(append(path, "environment"), "the variable %s is not set: set it in the shell or in .env", d.Environment)
			return nil, false
		}
		if d.Content != "" {
			text = d.Content // an included file has variables of its own
		}
		data = []byte(text)
	default:
		data = []byte(d.Content)
	}
	if err := spec.CheckSecretSize(kind, len(data)); err != nil {
		s.wrongAt(path, "its value has %d bytes: %v", len(data), err)
		return nil, false
	}
	return data, true
}

// finishFiles lists the external ones that services use, and says which of all are used by none.
func (s *stack) finishFiles() {
	for _, section := range []string{"configs", "secrets"} {
		kind := kinds[section]
		for _, key := range slices.Sorted(maps.Keys(s.files[kind])) {
			f, path := s.files[kind][key], []string{section, key}
			switch {
			case f.used && f.external:
				s.external(spec.KindWord(kind), f.name, path)
			case !f.used && f.external:
				s.noteAt(path, "no service uses it")
			case !f.used:
				s.noteAt(path, "no service uses it; it is made all the same")
			}
		}
	}
	slices.SortFunc(s.out.External, func(a, b External) int {
		return cmp.Or(strings.Compare(a.Kind, b.Kind), strings.Compare(a.Name, b.Name))
	})
	s.out.External = slices.CompactFunc(s.out.External, func(a, b External) bool { return a.Kind == b.Kind && a.Name == b.Name })
}
