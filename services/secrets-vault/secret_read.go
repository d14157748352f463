package vault

import (
	"context"
	"strings"

	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/patience"
	"skep.dev/libs/rpc"
	"skep.dev/libs/seal"
	"skep.dev/libs/subject"
)

// inspect shows an object and who uses it. A config's value is answered, sealed to whoever asks, when it is asked for; a
// secret's never.
func (k kind) inspect(ctx context.Context, r *skepv1.InspectSecretRequest) (*skepv1.InspectSecretReply, error) {
	o, err := k.lookup(ctx, r.Ref)
	if err != nil {
		return nil, err
	}
	out := &skepv1.InspectSecretReply{Secret: o.view()}
	if !patience.IsAsIs(ctx) { // without a majority nobody can say
		uses, err := k.uses(ctx, false, o.id())
		if err != nil {
			return nil, err
		}
		out.Secret.Uses = uses[o.id()].GetUses()
	}
	if r.Reader == "" {
		return out, nil
	}
	switch {
	case k.SecretKind != skepv1.SecretKind_SECRET_KIND_CONFIG:
		return nil, fault.Denied("%s %s: its value is shown to nobody", k.word(), o.name())
	case subject.IsViewerInbox(rpc.ReplyTo(ctx)):
		return nil, fault.Denied("config %s: viewers may not read its value", o.name())
	case rpc.Asker(ctx) == rpc.Unknown:
		return nil, fault.Denied("config %s: who reads its value is recorded, and this request does not prove who asks: use skep config inspect", o.name())
	}
	version := r.Version
	if version == 0 {
		version = o.current()
	}
	value, err := k.value(ctx, o, version)
	if err != nil {
		return nil, fault.NotFound("%v", err)
	}
	defer seal.Wipe(value)
	k.said(ctx, o, "read", version, nil)
	out.Sealed, err = k.idx.curveKey().To(r.Reader, &skepv1.SealedValue{Kind: k.SecretKind, Name: o.name(), Version: version, Value: value})
	return out, err
}

// uses asks state who refers to objects, by object; and, unless brief, which tasks have them, also of services that do not
// refer to them any more.
func (s *Service) uses(ctx context.Context, brief bool, objects ...string) (map[string]*skepv1.SecretUses, error) {
	r, err := askState(ctx, s, api.FilesUses, &skepv1.SecretUsesRequest{Ids: objects, Brief: brief})
	return r.GetUses(), err
}

// list lists objects by name.
func (k kind) list(ctx context.Context, r *skepv1.ListSecretsRequest) (*skepv1.ListSecretsReply, error) {
	if err := k.feed.Current(ctx); err != nil {
		return nil, fault.Unavailable("list the %ss: %v", k.word(), err)
	}
	f, err := filtersOf(r.Filters)
	if err != nil {
		return nil, err
	}
	size := int(r.GetPage().GetSize())
	if size == 0 || size > listPage {
		size = listPage
	}
	out := &skepv1.ListSecretsReply{}
	bytes := 0
	k.idx.mu.Lock()
	defer k.idx.mu.Unlock()
	for _, o := range k.idx.objects.list(k.SecretKind) {
		name := strings.ToLower(o.name())
		if name <= r.GetPage().GetAfter() || !f.fits(o) {
			continue
		}
		v := o.view()
		bytes += proto.Size(v)
		if n := len(out.Secrets); n == size || n > 0 && bytes > listBytesMost {
			out.Next = strings.ToLower(out.Secrets[n-1].Spec.Name)
			break
		}
		out.Secrets = append(out.Secrets, v)
	}
	return out, nil
}

const (
	listPage      = 500
	listBytesMost = 160 << 10 // of a reply in protobuf; the same as protojson is some four times as large
)

// filters are those of secret ls: the values of a key are alternatives.
type filters map[string][]string

func filtersOf(list []*skepv1.Filter) (filters, error) {
	f := filters{}
	for _, x := range list {
		switch x.Key {
		case "id", "name", "names", "label":
			f[x.Key] = append(f[x.Key], x.Values...)
		default:
			return nil, fault.Usage("invalid filter '%s': use id, name, names or label", printable(x.Key))
		}
	}
	return f, nil
}

func (f filters) fits(o *object) bool {
	any := func(key string, fits func(want string) bool) bool {
		if len(f[key]) == 0 {
			return true
		}
		for _, want := range f[key] {
			if fits(want) {
				return true
			}
		}
		return false
	}
	return any("id", func(w string) bool { return strings.HasPrefix(o.id(), w) }) &&
		any("name", func(w string) bool { return strings.HasPrefix(strings.ToLower(o.name()), strings.ToLower(w)) }) &&
		any("names", func(w string) bool { return o.name() == w }) &&
		any("label", func(w string) bool {
			key, value, valued := strings.Cut(w, "=")
			have, ok := o.Secret.Spec.Labels[key]
			return ok && (!valued || have == value)
		})
}
