package engine

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"github.com/moby/moby/api/pkg/authconfig"
	"github.com/moby/moby/api/types/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/seal"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/engine-api/internal/wire"
)

// headerAuth is where clients put the credentials of an image's registry.
const headerAuth = "X-Registry-Auth"

// mostAuth is how long that may be, bytes: tokens of registries take some kilobytes.
const mostAuth = 32 << 10

// registryAuth gives the vault the credentials that came with a request, and returns their id there; "" = none came. They leave this
// process sealed, and are kept nowhere else. The same credentials have the same id.
func (s *Service) registryAuth(ctx context.Context, r *wire.Request, image string) (string, error) {
	text := r.Header.Get(headerAuth)
	if text == "" {
		return "", nil
	}
	if len(text) > mostAuth {
		return "", wire.Invalid("the %s header is %d bytes: at most %d are taken", headerAuth, len(text), mostAuth)
	}
	c, err := authconfig.Decode(text)
	if err != nil {
		return "", wire.Invalid("invalid %s header: it is no credentials in base64url", headerAuth) // the error would hold a part of them
	}
	if c.IdentityToken == "" && (c.Username == "" || c.Password == "") {
		return "", nil
	}
	host, err := spec.RegistryOf(image)
	if err != nil {
		return "", err
	}
	value, err := json.Marshal(map[string]string{"username": c.Username, "password": c.Password, "identitytoken": c.IdentityToken})
	if err != nil {
		return "", err
	}
	defer seal.Wipe(value)
	sealed, err := s.sealed(ctx, skepv1.SecretKind_SECRET_KIND_REGISTRY, host, 1, value)
	if err != nil {
		return "", err
	}
	reply, err := call(ctx, s.cluster, api.RegistryCreate, &skepv1.CreateSecretRequest{Spec: &skepv1.SecretSpec{Name: host}, Sealed: sealed})
	if err != nil {
		return "", err
	}
	return reply.GetSecret().GetMeta().GetId(), nil
}

// resolveWithin is how long a registry may take: docker waits for the answer before it creates the service, and goes on without it.
const resolveWithin = 10 * time.Second

// distribution is the digest and the platforms of an image, as the managers' agents find them. Without an answer docker warns and goes on.
func (s *Service) distribution(w http.ResponseWriter, r *wire.Request) error {
	ref := r.Var("name")
	ctx, cancel := context.WithTimeout(r.Context(), resolveWithin)
	defer cancel()
	if _, err := s.cluster.conn(); err != nil {
		return err
	}
	auth, err := s.registryAuth(ctx, r, ref)
	if err != nil {
		return err
	}
	reply, err := call(ctx, s.cluster, api.ImageResolve, &skepv1.ResolveImageRequest{Ref: ref, RegistryAuth: auth})
	switch {
	case fault.Is(err, fault.CodeDenied):
		return wire.Errorf(http.StatusUnauthorized, "%v", err)
	case fault.Is(err, fault.CodeInvalid):
		return err
	case err != nil:
		return wire.NotFound("manifest unknown: %v", err)
	}
	_, sum, ok := strings.Cut(reply.Ref, "@")
	if !ok {
		return wire.NotFound("manifest unknown: no registry says which digest %s has", ref)
	}
	out := registry.DistributionInspect{Descriptor: ocispec.Descriptor{Digest: digest.Digest(sum)}, Platforms: []ocispec.Platform{}}
	for _, p := range reply.Platforms {
		out.Platforms = append(out.Platforms, ocispec.Platform{OS: p.Os, Architecture: p.Arch})
	}
	return wire.WriteJSON(w, http.StatusOK, out)
}
