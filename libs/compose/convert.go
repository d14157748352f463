package compose

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/tree"
	"github.com/compose-spec/compose-go/v2/types"

	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// convert makes the StackSpec out of the merged model.
func (l *loading) convert(context.Context) {
	for _, key := range slices.Sorted(maps.Keys(l.dict)) {
		part := map[string]any{key: l.dict[key]}
		if key == "services" {
			part = map[string]any{key: l.enabled()}
		}
		l.walk(part, nil, "")
	}
	if len(l.project.Services) == 0 {
		text := "there are no services: write at least one"
		if len(l.project.DisabledServices) > 0 {
			text = "every service belongs to a profile: name one with --profile"
		}
		l.wrongAt([]string{"services"}, "%s", text)
		return
	}
	s := &stack{loading: l, files: map[skepv1.SecretKind]map[string]*file{}, networks: map[string]*network{}}
	s.readFiles(skepv1.SecretKind_SECRET_KIND_SECRET)
	s.readFiles(skepv1.SecretKind_SECRET_KIND_CONFIG)
	for _, name := range l.project.ServiceNames() {
		s.service(name)
	}
	s.links()
	s.dependencies()
	s.sharedPorts()
	s.finishNetworks()
	s.finishVolumes()
	s.finishFiles()
	for _, one := range s.services {
		s.finish(one)
	}
	s.printed()
}

// enabled are the services of the model that a profile does not keep out.
func (l *loading) enabled() map[string]any {
	all, _ := l.dict["services"].(map[string]any)
	out := map[string]any{}
	for name, s := range all {
		if _, ok := l.project.Services[name]; ok {
			out[name] = s
		}
	}
	return out
}

// stack is what convert puts together.
type stack struct {
	*loading
	services []*service
	files    map[skepv1.SecretKind]map[string]*file // by kind and the key in the files
	networks map[string]*network                    // those that services use, by key
	volumes  map[string]string                      // names of those that services use, by key
}

// service is one of them on its way.
type service struct {
	*stack
	name string
	path []string
	in   types.ServiceConfig
	raw  map[string]any
	ext  extension
	out  *skepv1.ServiceSpec
}

// at is the path of an attribute of the service.
func (s *service) at(parts ...string) []string { return append(slices.Clone(s.path), parts...) }

// full is the cluster's name of something of the stack.
func (l *loading) full(key string) string { return l.o.Stack + "_" + key }

// ownName is the name of a network, volume, secret or config that is the stack's own. Tools that print a whole file name
// everything after their project: what is named so has no name of its own.
func (l *loading) ownName(key, given string) string {
	if project, _ := l.dict["name"].(string); given == "" || project != "" && given == project+"_"+key {
		return l.full(key)
	}
	return given
}

// externalName is the name of an object that somebody else makes.
func externalName(key, given string) string {
	if given != "" {
		return given
	}
	return key
}

// labels adds the label that says whose it is.
func (l *loading) labels(given map[string]string) map[string]string {
	out := map[string]string{}
	maps.Copy(out, given)
	out[LabelNamespace] = l.o.Stack
	return out
}

func (s *stack) service(name string) {
	all, _ := s.dict["services"].(map[string]any)
	one := &service{stack: s, name: name, path: []string{"services", name}, in: s.project.Services[name]}
	one.raw, _ = all[name].(map[string]any)
	one.out = &skepv1.ServiceSpec{
		Name: s.full(name),
		Task: &skepv1.TaskSpec{Container: &skepv1.ContainerSpec{}, Placement: &skepv1.Placement{}, Resources: &skepv1.ResourceRequirements{}},
	}
	if err := spec.ValidateName(one.out.Name); err != nil {
		s.wrongAt(one.path, "the service would have the name %s: %v", one.out.Name, err)
	}
	one.ext = one.extension()
	one.image()
	one.mode()
	one.container()
	one.environment()
	one.health()
	one.rights()
	one.mounts()
	one.references()
	one.ports()
	one.attach()
	one.resources()
	one.restart()
	one.placement()
	one.updates()
	one.extend()
	one.hints()
	s.services = append(s.services, one)
	s.out.Spec.Services = append(s.out.Spec.Services, one.out)
}

// finish checks a service as the cluster will.
func (s *stack) finish(one *service) {
	if len(s.problems) > 0 {
		return // it would say the same again, without the place
	}
	if err := spec.Validate(one.out); err != nil {
		s.wrongAt(one.path, "%v", err)
	}
}

// extensionPlace refuses x-skep where it has no meaning: whoever wrote it expects one. Other extensions are everybody's.
func (l *loading) extensionPlace(path []string, row tree.Path, key string) {
	switch {
	case key != extensionKey:
	case row == "services.*", row == "volumes.*", row == "services.*.volumes.[]":
	case strings.HasPrefix(string(row), "services.*"):
		l.wrongAt(path, "x-skep stands directly below a service, or below one of its volumes")
	default:
		l.wrongAt(path, "x-skep stands below a service or a volume")
	}
}
