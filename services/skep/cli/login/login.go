// Package login keeps credentials of image registries where Docker's clients keep them: in config.json, or with the
// credential helpers that it names. Whoever has logged in with one of them has with all.
//
// It refuses to send a password over plain HTTP unless told to, and to write a file that it could not read. Other keys of
// the file stay as they are. Passwords stand in no argument list: helpers get them on standard input.
package login

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"

	"skep.dev/libs/fault"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// Hub is Docker's own registry, the one of images that name none.
const Hub = "docker.io"

// hubKey is what Docker calls it in config.json and before helpers.
const hubKey = "https://index.docker.io/v1/"

// Credentials are who one is for a registry: a user with a password, or an identity token that a login gave.
type Credentials struct {
	Username      string
	Password      string
	IdentityToken string
}

// Empty reports whether there is nothing to log in with.
func (c Credentials) Empty() bool {
	return c.IdentityToken == "" && (c.Username == "" || c.Password == "")
}

// String keeps passwords out of logs and errors, whoever prints them.
func (c Credentials) String() string { return "credentials of " + c.Username }

// Value is what is sealed to the vault.
func (c Credentials) Value() ([]byte, error) {
	b, err := json.Marshal(map[string]string{"username": c.Username, "password": c.Password, "identitytoken": c.IdentityToken})
	if err != nil {
		return nil, fmt.Errorf("encode registry credentials: %w", err)
	}
	return b, nil
}

// Host is the registry that a server's name means: with or without a scheme, a path or a slash at the end; "" is the hub.
func Host(server string) (string, error) {
	h := hostOf(server)
	if err := spec.CheckSecret(skepv1.SecretKind_SECRET_KIND_REGISTRY, &skepv1.SecretSpec{Name: h}); err != nil {
		return "", fault.Usage("invalid registry %q: use a host, with :port where that is not 443", server)
	}
	return h, nil
}

func hostOf(server string) string {
	s := strings.TrimPrefix(strings.TrimPrefix(server, "https://"), "http://")
	s, _, _ = strings.Cut(s, "/")
	switch s {
	case "", "index.docker.io", "registry-1.docker.io":
		return Hub
	}
	return s
}

// keyOf is what a host is called in config.json.
func keyOf(host string) string {
	if host == Hub {
		return hubKey
	}
	return host
}

// entry is what config.json has of one registry.
type entry struct {
	Auth          string `json:"auth"`
	Username      string `json:"username"`
	Password      string `json:"password"`
	IdentityToken string `json:"identitytoken"`
}

func (e entry) credentials() (Credentials, error) {
	c := Credentials{e.Username, e.Password, e.IdentityToken}
	if e.Auth != "" {
		b, err := base64.StdEncoding.DecodeString(e.Auth)
		if err != nil {
			return Credentials{}, fmt.Errorf("its auth is not base64")
		}
		user, password, ok := strings.Cut(string(b), ":")
		if !ok && e.IdentityToken == "" {
			return Credentials{}, fmt.Errorf("its auth is not USER:PASSWORD")
		}
		c.Username, c.Password = user, strings.Trim(password, "\x00")
	}
	if c.Empty() {
		return Credentials{}, nil
	}
	return c, nil
}
