// Package registry knows how a node reaches image registries: which mirrors stand for which, which may be
// spoken to without TLS, and with whose credentials.
//
// It refuses plain HTTP to any host that is not listed for it, and never sends a registry's credentials to a mirror.
// Failure story: a malformed file is an error at start, with the line; a missing one means https to everybody.
package registry

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/pelletier/go-toml/v2"

	"skep.dev/libs/seal"
	skepv1 "skep.dev/proto/skep/v1"
)

// Config is `<data-dir>/registries.toml`:
//
//	[registries."docker.io"]
//	mirrors = ["http://10.0.0.5:5000"]   # asked first, in order; http only because it says so
//	[registries."reg.lan:5000"]
//	plain_http = true                    # or: ca = "/etc/ssl/reg.pem"
type Config struct {
	Registries map[string]Host `toml:"registries"`
}

// Host is what is known of one registry, by the name that stands in image references.
type Host struct {
	Mirrors   []string `toml:"mirrors"`
	PlainHTTP bool     `toml:"plain_http"`
	CA        string   `toml:"ca"`
	// MirrorsOnly never asks the registry itself.
	MirrorsOnly bool `toml:"mirrors_only"`
}

// Load reads the file; none is an empty configuration.
func Load(path string) (Config, error) {
	var c Config
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return c, fmt.Errorf("read registry configuration: %w", err)
	}
	dec := toml.NewDecoder(strings.NewReader(string(b))).DisallowUnknownFields()
	if err := dec.Decode(&c); err != nil {
		var miss *toml.StrictMissingError
		if errors.As(err, &miss) {
			return c, fmt.Errorf("registry configuration %s: unknown key:\n%s", path, miss.String())
		}
		return c, fmt.Errorf("registry configuration %s: %w", path, err)
	}
	return c, c.Check()
}

// Check reports the first thing wrong.
func (c Config) Check() error {
	for name, h := range c.Registries {
		for _, m := range h.Mirrors {
			u, err := url.Parse(m)
			if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
				return fmt.Errorf("registry %s: mirror %q is not an http:// or https:// URL", name, m)
			}
		}
		if h.MirrorsOnly && len(h.Mirrors) == 0 {
			return fmt.Errorf("registry %s: mirrors_only without a mirror", name)
		}
	}
	return nil
}

// Auth are credentials as the vault keeps them, in the form of docker's X-Registry-Auth.
type Auth struct {
	Username      string `json:"username"`
	Password      string `json:"password"`
	IdentityToken string `json:"identitytoken"`
	// Registry is the host they are for, and the only one they are sent to. The vault vouches for it, not the value.
	Registry string `json:"-"`
	Object   string `json:"-"` // id of the vault's object, "" = none
}

// ParseAuth reads what the vault delivered, and overwrites it; nil are no credentials.
func ParseAuth(v *skepv1.DeliveredValue) (Auth, error) {
	var a Auth
	if v == nil {
		return a, nil
	}
	defer seal.Wipe(v.Value)
	if v.Kind != skepv1.SecretKind_SECRET_KIND_REGISTRY || json.Unmarshal(v.Value, &a) != nil { // whose error could quote them
		return Auth{}, errors.New("registry credentials are not readable: log in again and update the service with --with-registry-auth")
	}
	a.Registry, a.Object = v.Name, v.Id
	return a, nil
}

// Resolver talks to registries under this configuration.
func (c Config) Resolver(a Auth) remotes.Resolver {
	return docker.NewResolver(docker.ResolverOptions{Hosts: c.hosts(a)})
}

func (c Config) hosts(a Auth) docker.RegistryHosts {
	return func(name string) ([]docker.RegistryHost, error) {
		h := c.Registries[name]
		var out []docker.RegistryHost
		for _, m := range h.Mirrors {
			u, err := url.Parse(m)
			if err != nil {
				return nil, fmt.Errorf("mirror %s of %s: %w", m, name, err)
			}
			client, err := httpClient("")
			if err != nil {
				return nil, err
			}
			out = append(out, docker.RegistryHost{
				Client: client, Authorizer: docker.NewDockerAuthorizer(docker.WithAuthClient(client)),
				Host: u.Host, Scheme: u.Scheme, Path: strings.TrimSuffix(u.Path, "/") + "/v2",
				Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve,
			})
		}
		if h.MirrorsOnly {
			return out, nil
		}
		client, err := httpClient(h.CA)
		if err != nil {
			return nil, fmt.Errorf("registry %s: %w", name, err)
		}
		origin := docker.RegistryHost{
			Client: client, Host: name, Scheme: "https", Path: "/v2",
			Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve | docker.HostCapabilityPush,
		}
		if name == "docker.io" {
			origin.Host = "registry-1.docker.io"
		}
		if h.PlainHTTP {
			origin.Scheme = "http"
		}
		origin.Authorizer = docker.NewDockerAuthorizer(docker.WithAuthClient(client), docker.WithAuthCreds(func(host string) (string, string, error) {
			if !a.covers(name) || host != origin.Host {
				return "", "", nil
			}
			if a.IdentityToken != "" {
				return "", a.IdentityToken, nil
			}
			return a.Username, a.Password, nil
		}))
		return append(out, origin), nil
	}
}

// covers: credentials go to the registry they were given for, whatever image their service came to use.
func (a Auth) covers(registry string) bool { return a.Registry != "" && a.Registry == registry }

func httpClient(ca string) (*http.Client, error) {
	t := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout: 10 * time.Second, ResponseHeaderTimeout: 30 * time.Second,
		MaxIdleConns: 8, IdleConnTimeout: 10 * time.Second, ExpectContinueTimeout: 5 * time.Second,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true,
	}
	if ca != "" {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return nil, fmt.Errorf("read its CA: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("its CA %s holds no certificate", ca)
		}
		t.TLSClientConfig.RootCAs = pool
	}
	return &http.Client{Transport: t}, nil
}
