package pki

import (
	"fmt"
	"strings"

	"skep.dev/libs/id"
)

const (
	tokenPrefix = "SKEP-1-"
	secretLen   = id.Len
)

// Token is what a machine needs to join: the digest of the cluster's CA, so that it talks to the right cluster only, and
// the secret of a role.
type Token struct {
	Digest string
	Secret string
}

// NewSecret makes a fresh token secret.
func NewSecret() string { return id.New() }

// String is the token as people pass it around: SKEP-1-<digest, 50>-<secret, 25>.
func (t Token) String() string { return tokenPrefix + t.Digest + "-" + t.Secret }

// ParseToken reads a token and says what is wrong with it. No error repeats the token, which is a secret.
func ParseToken(s string) (Token, error) {
	s = strings.TrimSpace(s)
	const again = "copy it again from: skep join-token worker"
	switch {
	case s == "":
		return Token{}, fmt.Errorf("malformed join token: it is empty; %s", again)
	case strings.HasPrefix(s, "SWMTKN-"):
		return Token{}, fmt.Errorf("malformed join token: it is a Docker Swarm token (SWMTKN-…), skep's begin with %s; %s", tokenPrefix, again)
	case !strings.HasPrefix(s, "SKEP-"):
		return Token{}, fmt.Errorf("malformed join token: it does not begin with %s; %s", tokenPrefix, again)
	case !strings.HasPrefix(s, tokenPrefix):
		return Token{}, fmt.Errorf("malformed join token: its version is not 1, this skep may be too old for the cluster; %s", again)
	}
	parts := strings.Split(s[len(tokenPrefix):], "-")
	if len(parts) != 2 {
		return Token{}, fmt.Errorf("malformed join token: it has %d parts instead of 4 (SKEP-1-<digest>-<secret>); %s", len(parts)+2, again)
	}
	for _, p := range []struct {
		name, text string
		want       int
	}{{"digest", parts[0], digestLen}, {"secret", parts[1], secretLen}} {
		if len(p.text) != p.want {
			return Token{}, fmt.Errorf("malformed join token: its %s has %d characters instead of %d; %s", p.name, len(p.text), p.want, again)
		}
		if strings.Trim(p.text, "0123456789abcdefghijklmnopqrstuvwxyz") != "" {
			return Token{}, fmt.Errorf("malformed join token: its %s contains characters other than 0-9 and a-z; %s", p.name, again)
		}
	}
	return Token{Digest: parts[0], Secret: parts[1]}, nil
}
