package cli

import (
	"context"
	"fmt"
	"os/user"
	"path/filepath"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/seal"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/login"
	"skep.dev/services/skep/cli/specflag"
)

var aRegistry = secretKind{kind: skepv1.SecretKind_SECRET_KIND_REGISTRY, word: "registry"}

// dockerConfig is the file in which Docker keeps registry credentials.
func (a *app) dockerConfig() (string, error) {
	if d := a.Getenv("DOCKER_CONFIG"); d != "" {
		return filepath.Join(d, "config.json"), nil
	}
	home := a.Getenv("HOME")
	if home == "" {
		u, err := user.Current()
		if err != nil {
			return "", fmt.Errorf("find the file of registry credentials: %w; set HOME or DOCKER_CONFIG", err)
		}
		home = u.HomeDir
	}
	return filepath.Join(home, ".docker", "config.json"), nil
}

func (a *app) logins() (*login.File, string, error) {
	path, err := a.dockerConfig()
	if err != nil {
		return nil, "", err
	}
	f, err := login.Open(path)
	return f, path, err
}

// registryAuth acts on --with-registry-auth: the credentials for the image's registry are sealed to the vault, and the
// spec is given their id. was is the spec before an update.
func (a *app) registryAuth(ctx context.Context, f *specflag.Flags, s, was *skepv1.ServiceSpec, dry bool) error {
	c := s.GetTask().GetContainer()
	if f.NoRegistryAuth() {
		c.RegistryAuth = ""
	}
	if !f.RegistryAuth() {
		return nil
	}
	id, host, err := a.sendCredentials(ctx, c.GetImage(), dry)
	if err != nil || dry {
		return err
	}
	if id != "" {
		c.RegistryAuth = id
		return nil
	}
	if c.RegistryAuth == "" {
		return nil
	}
	if before, err := spec.RegistryOf(was.GetTask().GetContainer().GetImage()); err == nil && before == host {
		a.warnf("the service keeps the credentials for %s that it has", host)
		return nil
	}
	c.RegistryAuth = "" // they are for the registry of the image before
	return nil
}

// sendCredentials gives the vault what this user has for an image's registry, and returns its id there; "" when there is
// nothing, of which it warns. dry: it only looks.
func (a *app) sendCredentials(ctx context.Context, image string, dry bool) (id, host string, err error) {
	if host, err = spec.RegistryOf(image); err != nil {
		return "", "", &Failure{ExitUsage, err}
	}
	file, path, err := a.logins()
	if err != nil {
		return "", host, err
	}
	cred, err := file.Get(ctx, host)
	if err != nil {
		return "", host, fmt.Errorf("--with-registry-auth: %w", err)
	}
	if cred.Empty() {
		a.warnf("--with-registry-auth: there are no credentials for %s in %s: log in with skep login %s", host, path, host)
		return "", host, nil
	}
	if dry {
		return "", host, nil
	}
	value, err := cred.Value()
	if err != nil {
		return "", host, err
	}
	defer seal.Wipe(value)
	sealed, err := a.sealed(ctx, aRegistry, host, 1, value)
	if err != nil {
		return "", host, err
	}
	r, err := call(ctx, a, api.RegistryCreate, &skepv1.CreateSecretRequest{Spec: &skepv1.SecretSpec{Name: host}, Sealed: sealed})
	if err != nil {
		return "", host, fmt.Errorf("give the vault the credentials for %s: %w", host, err)
	}
	if id = r.GetSecret().GetMeta().GetId(); id == "" {
		return "", host, fault.Unavailable("give the vault the credentials for %s: it does not say where it keeps them", host)
	}
	return id, host, nil
}
