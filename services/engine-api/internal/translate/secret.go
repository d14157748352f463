package translate

import (
	"maps"
	"slices"

	"github.com/moby/moby/api/types/swarm"

	"skep.dev/libs/fault"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// SecretFromDocker is a new secret, and its value.
func SecretFromDocker(in swarm.SecretSpec) (*skepv1.SecretSpec, []byte, error) {
	if d := in.Driver; d != nil && (d.Name != "" || len(d.Options) > 0) {
		return nil, nil, notKept("Driver", "secrets are kept by the cluster itself, give Data")
	}
	return vaultObject(skepv1.SecretKind_SECRET_KIND_SECRET, in.Annotations, in.Templating, in.Data)
}

// ConfigFromDocker is a new config, and its value.
func ConfigFromDocker(in swarm.ConfigSpec) (*skepv1.SecretSpec, []byte, error) {
	return vaultObject(skepv1.SecretKind_SECRET_KIND_CONFIG, in.Annotations, in.Templating, in.Data)
}

func vaultObject(kind skepv1.SecretKind, a swarm.Annotations, t *swarm.Driver, data []byte) (*skepv1.SecretSpec, []byte, error) {
	out := &skepv1.SecretSpec{Name: a.Name, Labels: a.Labels}
	if t != nil {
		if len(t.Options) > 0 {
			return nil, nil, notKept("Templating.Options", "templates have none")
		}
		out.TemplateDriver = t.Name
	}
	if err := checkText(out.ProtoReflect(), ""); err != nil {
		return nil, nil, err
	}
	if err := spec.CheckSecret(kind, out); err != nil {
		return nil, nil, err
	}
	return out, data, spec.CheckSecretSize(kind, len(data))
}

// SecretToDocker is a secret in Docker's form. Its value is told to nobody.
func SecretToDocker(s *skepv1.Secret) swarm.Secret {
	return swarm.Secret{ID: s.GetMeta().GetId(), Meta: metaToDocker(s.GetMeta()), Spec: swarm.SecretSpec{
		Annotations: annotations(s.GetSpec().GetName(), s.GetSpec().GetLabels()), Templating: templating(s)}}
}

// ConfigToDocker is a config with its value, nil where it is not asked for.
func ConfigToDocker(s *skepv1.Secret, data []byte) swarm.Config {
	return swarm.Config{ID: s.GetMeta().GetId(), Meta: metaToDocker(s.GetMeta()), Spec: swarm.ConfigSpec{
		Annotations: annotations(s.GetSpec().GetName(), s.GetSpec().GetLabels()), Templating: templating(s), Data: data}}
}

func templating(s *skepv1.Secret) *swarm.Driver {
	if d := s.GetSpec().GetTemplateDriver(); d != "" {
		return &swarm.Driver{Name: d}
	}
	return nil
}

// OnlyLabels is the refusal of any other change of a secret or config.
func OnlyLabels() error { return fault.Invalid("only updates to Labels are allowed") }

// SecretUpdateFromDocker is the change of labels that a client asks for by sending a whole spec. A value it sends, data, must be
// the one there is, which the vault tells: with another one the update is refused by OnlyLabels. Clients rely on that, and a new version
// is skep's own to make.
func SecretUpdateFromDocker(current *skepv1.Secret, in swarm.SecretSpec) (change *skepv1.UpdateSecretRequest, data []byte, err error) {
	if d := in.Driver; d != nil && d.Name != "" {
		return nil, nil, OnlyLabels()
	}
	return vaultUpdate(current, in.Annotations, in.Templating, in.Data)
}

// ConfigUpdateFromDocker is SecretUpdateFromDocker for configs.
func ConfigUpdateFromDocker(current *skepv1.Secret, in swarm.ConfigSpec) (change *skepv1.UpdateSecretRequest, data []byte, err error) {
	return vaultUpdate(current, in.Annotations, in.Templating, in.Data)
}

func vaultUpdate(current *skepv1.Secret, a swarm.Annotations, t *swarm.Driver, data []byte) (*skepv1.UpdateSecretRequest, []byte, error) {
	had := current.GetSpec()
	if a.Name != had.GetName() || t != nil && t.Name != had.GetTemplateDriver() {
		return nil, nil, OnlyLabels()
	}
	out := &skepv1.UpdateSecretRequest{Ref: current.GetMeta().GetId()}
	for _, k := range slices.Sorted(maps.Keys(a.Labels)) {
		if v, ok := had.GetLabels()[k]; ok && v == a.Labels[k] {
			continue
		}
		if out.LabelAdd == nil {
			out.LabelAdd = map[string]string{}
		}
		out.LabelAdd[k] = a.Labels[k]
	}
	for _, k := range slices.Sorted(maps.Keys(had.GetLabels())) {
		if _, ok := a.Labels[k]; !ok {
			out.LabelRm = append(out.LabelRm, k)
		}
	}
	if err := checkText(out.ProtoReflect(), ""); err != nil {
		return nil, nil, err
	}
	return out, data, nil
}
