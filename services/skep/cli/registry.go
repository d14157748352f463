package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/specflag"
)

// registryAuth acts on --with-registry-auth. Credentials travel only sealed to the node that pulls; as long as there is
// nothing to seal them with they are refused here rather than stored in the clear.
func (a *app) registryAuth(f *specflag.Flags, s *skepv1.ServiceSpec) error {
	if !f.RegistryAuth() {
		return nil
	}
	host := registryOf(s.GetTask().GetContainer().GetImage())
	has, err := hasCredentials(a.dockerConfig(), host)
	if err != nil {
		return err
	}
	if has {
		return fault.Invalid("--with-registry-auth: there are credentials for %s in %s, but this cluster cannot seal them to its nodes yet, and they are never sent in the clear; configure them on the nodes", host, a.dockerConfig())
	}
	return nil
}

// registryOf is the registry a reference names; docker.io by default.
func registryOf(image string) string {
	first, _, more := strings.Cut(image, "/")
	if more && (strings.ContainsAny(first, ".:") || first == "localhost") {
		return first
	}
	return "docker.io"
}

func hasCredentials(path, host string) (bool, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read registry credentials: %w", err)
	}
	var c struct {
		Auths       map[string]json.RawMessage `json:"auths"`
		CredHelpers map[string]string          `json:"credHelpers"`
		CredsStore  string                     `json:"credsStore"`
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return false, fmt.Errorf("read registry credentials in %s: %w", path, err)
	}
	for k := range c.Auths {
		k = strings.TrimPrefix(strings.TrimPrefix(k, "https://"), "http://")
		k, _, _ = strings.Cut(k, "/")
		if k == host || host == "docker.io" && (k == "index.docker.io" || k == "registry-1.docker.io") {
			return true, nil
		}
	}
	_, helper := c.CredHelpers[host]
	return helper, nil
}
