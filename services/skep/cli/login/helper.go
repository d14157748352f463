package login

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"time"
)

// A credential helper is a program docker-credential-NAME that Docker's clients share. It is asked to get, store or erase
// on its command line; everything else goes over standard input and output.

// tokenUser is the user under whom helpers keep identity tokens.
const tokenUser = "<token>"

// maxAnswer bounds what a helper may answer.
const maxAnswer = 1 << 20

var helperName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]*$`)

type helper struct {
	name string
	key  string // of the registry, in whose words
}

// helperFor is the helper that keeps a host's credentials, nil when the file does.
func (f *File) helperFor(host string) *helper {
	for k, name := range f.helpers {
		if hostOf(k) == host && name != "" {
			return &helper{name, keyOf(host)}
		}
	}
	if f.store != "" {
		return &helper{f.store, keyOf(host)}
	}
	return nil
}

// secret is what helpers speak.
type secret struct {
	ServerURL string
	Username  string
	Secret    string
}

// get asks for credentials; none are no error.
func (h *helper) get(ctx context.Context) (Credentials, error) {
	out, err := h.run(ctx, "get", []byte(h.key))
	if err != nil {
		if isMissing(out) {
			return Credentials{}, nil
		}
		return Credentials{}, err
	}
	var s secret
	if json.Unmarshal(out, &s) != nil { // whose error could quote a password
		return Credentials{}, fmt.Errorf("%s: its answer is not what a credential helper says", h)
	}
	if s.Username == tokenUser {
		return Credentials{IdentityToken: s.Secret}, nil
	}
	return Credentials{Username: s.Username, Password: s.Secret}, nil
}

func (h *helper) put(ctx context.Context, c Credentials) error {
	s := secret{h.key, c.Username, c.Password}
	if c.IdentityToken != "" {
		s.Username, s.Secret = tokenUser, c.IdentityToken
	}
	in, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encode registry credentials: %w", err)
	}
	_, err = h.run(ctx, "store", in)
	return err
}

// erase forgets credentials; that there are none is no error.
func (h *helper) erase(ctx context.Context) error {
	out, err := h.run(ctx, "erase", []byte(h.key))
	if err != nil && isMissing(out) {
		return nil
	}
	return err
}

// isMissing: helpers say in words that they have nothing. The second are macOS's.
func isMissing(out []byte) bool {
	text := strings.ToLower(string(out))
	return strings.Contains(text, "credentials not found in native keychain") || strings.Contains(text, "could not be found in the keychain")
}

func (h *helper) String() string { return "docker-credential-" + h.name }

func (h *helper) run(ctx context.Context, verb string, in []byte) ([]byte, error) {
	if !helperName.MatchString(h.name) {
		return nil, fmt.Errorf("credential helper %q: its name has letters, digits, '.', '_' and '-' alone", h.name)
	}
	cmd := exec.CommandContext(ctx, h.String(), verb)
	cmd.WaitDelay = time.Second // a child of it may hold its output
	var out, errs bounded
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &out, &errs
	err := cmd.Run()
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return nil, fmt.Errorf("%s, which config.json names, is not installed here: install it, or take credsStore or credHelpers out of the file to keep credentials in it", h)
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		said := bytes.TrimSpace(append(out.b, errs.b...))
		if verb == "get" { // what it says of others' passwords is not for the terminal
			said = bytes.TrimSpace(errs.b)
		}
		return append(out.b, errs.b...), fmt.Errorf("%s %s: %w: %s", h, verb, err, said[:min(len(said), 300)])
	case out.over:
		return nil, fmt.Errorf("%s %s: its answer is longer than %d bytes", h, verb, maxAnswer)
	}
	return out.b, nil
}

// bounded keeps the first of what is written to it.
type bounded struct {
	b    []byte
	over bool
}

func (w *bounded) Write(p []byte) (int, error) {
	n := min(len(p), maxAnswer-len(w.b))
	w.b = append(w.b, p[:n]...)
	w.over = w.over || n < len(p)
	return len(p), nil
}
