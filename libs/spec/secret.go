package spec

import (
	"regexp"
	"strings"
	"unicode"

	"github.com/distribution/reference"

	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

// A secret's value has at least one byte and fewer than these (Docker's limits).
const (
	MaxSecret   = 500 << 10
	MaxConfig   = 1000 << 10
	MaxRegistry = 64 << 10
)

// MaxFiles is how many secrets and configs a service may have.
const MaxFiles = 500

// maxSecretLabels bounds a secret's labels, keys and values together.
const maxSecretLabels = 16 << 10

// TemplateGolang is the one way to fill in a value on the node: text/template with the functions secret, config and env.
const TemplateGolang = "golang"

var secretName = regexp.MustCompile(`^[a-zA-Z0-9]+(?:[a-zA-Z0-9-_.]*[a-zA-Z0-9])?$`)

// KindWord is what a kind of object is called in subjects, events and sentences.
func KindWord(k skepv1.SecretKind) string {
	switch k {
	case skepv1.SecretKind_SECRET_KIND_CONFIG:
		return "config"
	case skepv1.SecretKind_SECRET_KIND_REGISTRY:
		return "registry"
	}
	return "secret"
}

// CheckSecret checks what is known of a new secret, config or registry without its value.
func CheckSecret(kind skepv1.SecretKind, s *skepv1.SecretSpec) error {
	if kind == skepv1.SecretKind_SECRET_KIND_REGISTRY {
		return checkRegistry(s)
	}
	if len(s.GetName()) > 64 || !secretName.MatchString(s.GetName()) {
		return fault.Invalid("invalid name, only 64 [a-zA-Z0-9-_.] characters allowed, and the start and end character must be [a-zA-Z0-9]")
	}
	if d := s.GetTemplateDriver(); d != "" && d != TemplateGolang {
		return fault.Invalid("%s %s: unknown template driver %q: it is %s", KindWord(kind), s.Name, d, TemplateGolang)
	}
	return CheckSecretLabels(kind, s)
}

var registryHost = regexp.MustCompile(`^(?:` + reference.DomainRegexp.String() + `)$`)

// checkRegistry: credentials are known by the host of their registry alone. Who logs in there is part of the value.
func checkRegistry(s *skepv1.SecretSpec) error {
	switch {
	case len(s.GetName()) > 255 || !registryHost.MatchString(s.GetName()):
		return fault.Invalid("invalid registry %q: it is a host, with :port where that is not 443", s.GetName())
	case len(s.Labels) > 0 || s.TemplateDriver != "":
		return fault.Invalid("registry %s: its credentials have neither labels nor a template driver", s.Name)
	}
	return nil
}

// CheckSecretLabels checks labels alone.
func CheckSecretLabels(kind skepv1.SecretKind, s *skepv1.SecretSpec) error {
	n := 0
	for k, v := range s.GetLabels() {
		if k == "" || strings.ContainsFunc(k, unicode.IsSpace) {
			return fault.Invalid("%s %s: invalid label '%s': its name is empty or has whitespace", KindWord(kind), s.GetName(), k)
		}
		n += len(k) + len(v)
	}
	if n > maxSecretLabels {
		return fault.Invalid("%s %s: its labels are %d bytes, at most %d fit", KindWord(kind), s.GetName(), n, maxSecretLabels)
	}
	return nil
}

// SecretLimit is what a value of a kind must be smaller than, in bytes.
func SecretLimit(kind skepv1.SecretKind) int {
	switch kind {
	case skepv1.SecretKind_SECRET_KIND_CONFIG:
		return MaxConfig
	case skepv1.SecretKind_SECRET_KIND_REGISTRY:
		return MaxRegistry
	}
	return MaxSecret
}

// CheckSecretSize checks a value's size, in bytes.
func CheckSecretSize(kind skepv1.SecretKind, size int) error {
	if limit := SecretLimit(kind); size <= 0 || size >= limit {
		return fault.Invalid("%s data must be larger than 0 and less than %d bytes", KindWord(kind), limit)
	}
	return nil
}
