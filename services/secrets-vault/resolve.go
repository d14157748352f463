package vault

import (
	"context"

	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/fault"
	"skep.dev/libs/spec"
)

// resolve fills in what a service refers to: ids, names and versions. A reference that has been resolved before keeps its
// version; a newer one comes by the object's update alone, so that a revision can be gone back to as it was.
func (s *Service) resolve(ctx context.Context, r *skepv1.ResolveFilesRequest) (*skepv1.ResolveFilesReply, error) {
	if err := s.feed.Current(ctx); err != nil {
		return nil, fault.Unavailable("look for secrets: %v", err)
	}
	s.whole(ctx)
	defer s.idx.mu.Unlock()
	out := &skepv1.ResolveFilesReply{}
	for _, l := range []struct {
		kind skepv1.SecretKind
		from []*skepv1.FileReference
		to   *[]*skepv1.FileReference
	}{{skepv1.SecretKind_SECRET_KIND_SECRET, r.Secrets, &out.Secrets}, {skepv1.SecretKind_SECRET_KIND_CONFIG, r.Configs, &out.Configs}} {
		for _, f := range l.from {
			f, err := s.idx.objects.resolve(l.kind, f)
			if err != nil {
				return nil, err
			}
			*l.to = append(*l.to, f)
		}
	}
	if id := r.RegistryAuth; id != "" {
		switch o := s.idx.objects.byID[id]; {
		case o == nil || o.Secret.Kind != skepv1.SecretKind_SECRET_KIND_REGISTRY:
			return nil, errNoCredentials
		case !s.idx.objects.genuine(o):
			return nil, fault.Denied("%v", errAltered(o))
		}
	}
	return out, nil
}

func (x *objects) resolve(kind skepv1.SecretKind, ref *skepv1.FileReference) (*skepv1.FileReference, error) {
	f := proto.CloneOf(ref)
	var o *object
	if f.Id != "" {
		if o = x.byID[f.Id]; o != nil && (o.Secret.Kind != kind || o.RemovedAt != nil) {
			o = nil
		}
	} else if id, ok := x.byName[nameOf(&skepv1.Secret{Kind: kind, Spec: &skepv1.SecretSpec{Name: f.Name}})]; ok {
		o = x.byID[id]
	}
	word := spec.KindWord(kind)
	switch {
	case o == nil:
		name := f.Name
		if name == "" {
			name = f.Id
		}
		return nil, fault.Invalid("%s not found: %s; %s", word, printable(name), x.instead(kind, name))
	case !x.genuine(o):
		return nil, fault.Denied("%v", errAltered(o))
	case f.Version == 0:
		f.Version = o.current()
	case o.offered(f.Version) == nil && !(ref.Id != "" && o.version(f.Version) != nil): // what a spec has already, it keeps
		return nil, fault.Invalid("%s %s has no version %d: skep %s history %s lists them", word, o.name(), f.Version, word, o.name())
	}
	f.Id, f.Name = o.id(), o.name()
	return f, nil
}

// instead says what to do about a reference to what is not there.
func (x *objects) instead(kind skepv1.SecretKind, name string) string {
	word := spec.KindWord(kind)
	for k := range x.byName {
		if k.kind == kind {
			return "skep " + word + " ls lists those there are"
		}
	}
	return "there are no " + word + "s yet: skep " + word + " create " + printable(name) + " FILE"
}
