package state

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// dependsKey is written by every update that makes one service depend on one more, on the condition that no other did
// since it looked. Two updates that are each right alone and would close a circle together are so made one after the
// other, and the second is refused. A service that is being created needs it not: nothing can depend on it yet. Its value
// is the service that was given a dependency last.
var dependsKey = keys.Depends.Key()

// dependOps adds to a batch what an update that adds dependencies writes besides its service. It goes last in the batch:
// an index that shows the key shows the dependencies too. at is the revision of the key before mayDepend looked.
func dependOps(b *kv.Batch, before, after *skepv1.Service, at uint64) {
	had := map[string]bool{}
	for _, d := range before.GetSpec().GetDependsOn() {
		had[d.Service] = true
	}
	if !slices.ContainsFunc(after.GetSpec().GetDependsOn(), func(d *skepv1.Dependency) bool { return !had[d.Service] }) {
		return
	}
	val := []byte(after.Meta.Id)
	if at == 0 {
		b.Create(dependsKey, val)
	} else {
		b.Update(dependsKey, val, at)
	}
}

// resolveDependencies turns the names in depends_on into ids. A service that is not there is refused by name: one that
// waits for a slip of the pen would wait for ever.
func (s *Service) resolveDependencies(ctx context.Context, want *skepv1.ServiceSpec) error {
	var had []string
	if self, ok := s.ix.ServiceByName(want.Name); ok {
		had = s.ix.Dependencies(self)
	}
	seen := map[string]string{}
	for _, d := range want.DependsOn {
		if d.Service == want.Name {
			return fault.Invalid("service %s cannot depend on itself", want.Name)
		}
		if slices.Contains(had, d.Service) && s.ix.Service(d.Service) == nil {
			continue // gone since; the update may be about something else
		}
		id, err := s.findService(ctx, d.Service)
		if fault.Is(err, fault.CodeNotFound) {
			return fault.NotFound("service %s depends on %s, which does not exist: create that one first", want.Name, d.Service)
		}
		if err != nil {
			return err
		}
		if seen[id] != "" {
			return fault.Invalid("service %s depends on %s twice", want.Name, d.Service)
		}
		on := s.ix.Service(id)
		if d.Condition == skepv1.Dependency_CONDITION_COMPLETED && on != nil && !spec.IsJob(on.Spec) {
			return fault.Invalid("service %s cannot wait for %s to complete: it is not a job; use %s:started or %s:healthy", want.Name, on.Spec.Name, on.Spec.Name, on.Spec.Name)
		}
		seen[id] = d.Service
		d.Service = id
	}
	return nil
}

// mayDepend refuses dependencies that lead back to the service.
func (s *Service) mayDepend(id string, want *skepv1.ServiceSpec) error {
	seen := map[string]bool{}
	var path []string
	var walk func(at string) bool
	walk = func(at string) bool {
		if at == id {
			return true
		}
		if seen[at] {
			return false
		}
		seen[at] = true
		for _, next := range s.ix.Dependencies(at) {
			if walk(next) {
				path = append(path, s.ix.ServiceName(at))
				return true
			}
		}
		return false
	}
	for _, d := range want.DependsOn {
		if d.Service == id {
			return fault.Invalid("service %s cannot depend on itself", want.Name)
		}
		if !walk(d.Service) {
			continue
		}
		text := want.Name
		for i := len(path) - 1; i >= 0; i-- {
			text += " -> " + path[i]
		}
		return fault.Invalid("service %s cannot depend on %s: each would wait for the other (%s -> %s)", want.Name, s.ix.ServiceName(d.Service), text, want.Name)
	}
	return nil
}

// dependentsWarning says who waits for a service that is to be removed.
func (s *Service) dependentsWarning(id string) []string {
	var names []string
	for _, d := range s.ix.Dependents(id) {
		names = append(names, d.Name)
	}
	switch len(names) {
	case 0:
		return nil
	case 1:
		return []string{fmt.Sprintf("service %s depends on it: what runs goes on, its new tasks will wait until it depends on it no more (skep service update --depends-on-rm)", names[0])}
	}
	return []string{fmt.Sprintf("services %s depend on it: what runs goes on, their new tasks will wait until they depend on it no more (skep service update --depends-on-rm)", strings.Join(names, ", "))}
}
