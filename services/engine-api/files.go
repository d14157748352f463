package engine

import (
	"context"
	"crypto/x509"
	"fmt"
	"net/http"

	"github.com/moby/moby/api/types/swarm"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/pki"
	"skep.dev/libs/seal"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/engine-api/internal/translate"
	"skep.dev/services/engine-api/internal/wire"
)

// files is what secrets and configs differ in.
type files struct {
	kind    skepv1.SecretKind
	word    string // secret, config
	create  api.Endpoint[*skepv1.CreateSecretRequest, *skepv1.SecretReply]
	update  api.Endpoint[*skepv1.UpdateSecretRequest, *skepv1.SecretReply]
	remove  api.Endpoint[*skepv1.RemoveSecretRequest, *skepv1.RemoveSecretReply]
	inspect api.Endpoint[*skepv1.InspectSecretRequest, *skepv1.InspectSecretReply]
	list    api.Endpoint[*skepv1.ListSecretsRequest, *skepv1.ListSecretsReply]
}

var (
	aSecret = &files{skepv1.SecretKind_SECRET_KIND_SECRET, "secret", api.SecretCreate, api.SecretUpdate, api.SecretRemove, api.SecretInspect, api.SecretList}
	aConfig = &files{skepv1.SecretKind_SECRET_KIND_CONFIG, "config", api.ConfigCreate, api.ConfigUpdate, api.ConfigRemove, api.ConfigInspect, api.ConfigList}
)

// root is the cluster's root certificate.
func (s *Service) root() (*x509.Certificate, error) {
	ca, err := pki.ParseCertificate(s.cfg.CA())
	if err != nil {
		return nil, fmt.Errorf("read the cluster's root, which vouches for the vault's key: %w", err)
	}
	return ca, nil
}

// sealed seals a value to the vault before it leaves this process.
func (s *Service) sealed(ctx context.Context, kind skepv1.SecretKind, name string, version uint64, value []byte) ([]byte, error) {
	ca, err := s.root()
	if err != nil {
		return nil, err
	}
	key, err := call(ctx, s.cluster, api.VaultKey, &skepv1.Empty{})
	if err != nil {
		return nil, err
	}
	return seal.ToVault(ca, key, &skepv1.SealedValue{Kind: kind, Name: name, Version: version, Value: value})
}

// file finds a secret or config by id, name or the beginning of its id.
func (s *Service) file(ctx context.Context, k *files, ref string) (*skepv1.Secret, error) {
	r, err := call(ctx, s.cluster, k.inspect, &skepv1.InspectSecretRequest{Ref: ref})
	if err != nil {
		return nil, named(err, k.word, ref)
	}
	return r.Secret, nil
}

// filesOf lists all of a kind.
func (s *Service) filesOf(ctx context.Context, k *files) ([]*skepv1.Secret, error) {
	return pages(func(p *skepv1.Page) ([]*skepv1.Secret, string, error) {
		r, err := call(ctx, s.cluster, k.list, &skepv1.ListSecretsRequest{Page: p})
		return r.GetSecrets(), r.GetNext(), err
	})
}

func (s *Service) listFiles(k *files) wire.Handler {
	return func(w http.ResponseWriter, r *wire.Request) error {
		f, err := r.Filters("id", "name", "names", "label")
		if err != nil {
			return err
		}
		all, err := s.filesOf(r.Context(), k)
		if err != nil {
			return err
		}
		out := []any{}
		for _, o := range all {
			name := o.GetSpec().GetName()
			if f.Prefix("id", o.GetMeta().GetId()) && f.Prefix("name", name) && f.Exact("names", name) && f.Labels("label", o.GetSpec().GetLabels()) {
				out = append(out, k.toDocker(o, nil))
			}
		}
		return wire.WriteJSON(w, http.StatusOK, out)
	}
}

func (s *Service) inspectFile(k *files) wire.Handler {
	return func(w http.ResponseWriter, r *wire.Request) error {
		o, value, err := s.readFile(r.Context(), k, r.Var("id"))
		if err != nil {
			return err
		}
		return wire.WriteJSON(w, http.StatusOK, k.toDocker(o, value))
	}
}

// readFile is one with its value, if it is a config: nobody is ever answered a secret's.
func (s *Service) readFile(ctx context.Context, k *files, ref string) (*skepv1.Secret, []byte, error) {
	if k != aConfig {
		o, err := s.file(ctx, k, ref)
		return o, nil, err
	}
	reader, err := seal.NewReader()
	if err != nil {
		return nil, nil, err
	}
	defer reader.Close()
	r, err := call(ctx, s.cluster, k.inspect, &skepv1.InspectSecretRequest{Ref: ref, Reader: reader.Key()})
	if err != nil {
		return nil, nil, named(err, k.word, ref)
	}
	ca, err := s.root()
	if err != nil {
		return nil, nil, err
	}
	key, err := call(ctx, s.cluster, api.VaultKey, &skepv1.Empty{})
	if err != nil {
		return nil, nil, err
	}
	v := &skepv1.SealedValue{}
	if err := reader.Open(ca, key, r.Sealed, v); err != nil {
		return nil, nil, fmt.Errorf("read config %s: %w", ref, err)
	}
	return r.Secret, v.Value, nil
}

// read is what Docker says of a secret or config: they are alike on the wire but for the driver, which configs have not.
func (k *files) read(r *wire.Request) (in swarm.SecretSpec, _ error) {
	_, err := r.ReadJSON(&in)
	return in, err
}

func configSpec(in swarm.SecretSpec) swarm.ConfigSpec {
	return swarm.ConfigSpec{Annotations: in.Annotations, Data: in.Data, Templating: in.Templating}
}

func (k *files) fromDocker(in swarm.SecretSpec) (*skepv1.SecretSpec, []byte, error) {
	if k == aConfig {
		return translate.ConfigFromDocker(configSpec(in))
	}
	return translate.SecretFromDocker(in)
}

func (k *files) toDocker(o *skepv1.Secret, value []byte) any {
	if k == aConfig {
		return translate.ConfigToDocker(o, value)
	}
	return translate.SecretToDocker(o)
}

func (k *files) changeFromDocker(cur *skepv1.Secret, in swarm.SecretSpec) (*skepv1.UpdateSecretRequest, []byte, error) {
	if k == aConfig {
		return translate.ConfigUpdateFromDocker(cur, configSpec(in))
	}
	return translate.SecretUpdateFromDocker(cur, in)
}

func (s *Service) createFile(k *files) wire.Handler {
	return func(w http.ResponseWriter, r *wire.Request) error {
		in, err := k.read(r)
		if err != nil {
			return err
		}
		defer seal.Wipe(in.Data)
		sp, value, err := k.fromDocker(in)
		if err != nil {
			return unkept(err)
		}
		ctx := r.Context()
		sealed, err := s.sealed(ctx, k.kind, sp.Name, 1, value)
		if err != nil {
			return err
		}
		reply, err := call(ctx, s.cluster, k.create, &skepv1.CreateSecretRequest{Spec: sp, Sealed: sealed})
		if err != nil {
			return clash(err)
		}
		return wire.WriteJSON(w, http.StatusCreated, map[string]string{"ID": reply.GetSecret().GetMeta().GetId()})
	}
}

// updateFile changes labels. A value that comes along must be the one it has, as Docker has it: new values are made with skep, by which
// services are given them.
func (s *Service) updateFile(k *files) wire.Handler {
	return func(w http.ResponseWriter, r *wire.Request) error {
		version, err := r.ObjectVersion()
		if err != nil {
			return err
		}
		in, err := k.read(r)
		if err != nil {
			return err
		}
		defer seal.Wipe(in.Data)
		ctx := r.Context()
		cur, err := s.file(ctx, k, r.Var("id"))
		if err != nil {
			return err
		}
		if version != cur.GetMeta().GetVersion() {
			return outOfSequence()
		}
		change, value, err := k.changeFromDocker(cur, in)
		if err != nil {
			return k.onlyLabels(unkept(err))
		}
		if len(value) > 0 {
			same, err := s.sameValue(ctx, k, cur, value)
			if err != nil {
				return err
			}
			if !same {
				return k.onlyLabels(translate.OnlyLabels())
			}
		}
		if len(change.LabelAdd)+len(change.LabelRm) > 0 {
			change.Version = version
			if _, err := call(ctx, s.cluster, k.update, change); err != nil {
				return named(err, k.word, r.Var("id"))
			}
		}
		return wire.None(w, http.StatusOK)
	}
}

// onlyLabels says how another value is given.
func (k *files) onlyLabels(err error) error {
	if err.Error() != translate.OnlyLabels().Error() {
		return err
	}
	return wire.Invalid("rpc error: code = InvalidArgument desc = %v (skep %s update gives it another value, and the services that use it)", err, k.word)
}

// sameValue asks the vault whether a value is that of the newest version. Nothing is changed.
func (s *Service) sameValue(ctx context.Context, k *files, cur *skepv1.Secret, value []byte) (bool, error) {
	if err := spec.CheckSecretSize(k.kind, len(value)); err != nil {
		return false, err
	}
	next := uint64(1)
	if n := len(cur.Versions); n > 0 {
		next = cur.Versions[n-1].Number + 1
	}
	sealed, err := s.sealed(ctx, k.kind, cur.GetSpec().GetName(), next, value)
	if err != nil {
		return false, err
	}
	r, err := call(ctx, s.cluster, k.update, &skepv1.UpdateSecretRequest{Ref: cur.GetMeta().GetId(), Sealed: sealed, IfChanged: true, DryRun: true})
	if err != nil {
		return false, err
	}
	return r.Unchanged, nil
}

func (s *Service) removeFile(k *files) wire.Handler {
	return func(w http.ResponseWriter, r *wire.Request) error {
		o, err := s.file(r.Context(), k, r.Var("id"))
		if err != nil {
			return err
		}
		if _, err := call(r.Context(), s.cluster, k.remove, &skepv1.RemoveSecretRequest{Ref: o.GetMeta().GetId()}); err != nil {
			if fault.Is(err, fault.CodeInvalid) { // it is in use
				return wire.Invalid("rpc error: code = InvalidArgument desc = %v", err)
			}
			return named(err, k.word, r.Var("id"))
		}
		return wire.None(w, http.StatusNoContent)
	}
}
