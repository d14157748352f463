package spec

import (
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

// SecretsDir is where secrets with a relative target stand in a container; configs stand at the root.
const SecretsDir = "/run/secrets"

// FilePath is where a secret or config stands in a container.
func FilePath(kind skepv1.SecretKind, target string) string {
	switch {
	case path.IsAbs(target):
		return path.Clean(target)
	case kind == skepv1.SecretKind_SECRET_KIND_CONFIG:
		return path.Join("/", target)
	}
	return path.Join(SecretsDir, target)
}

// ownerName is a user's or group's name, as useradd takes it.
var ownerName = regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_.-]{0,31}\$?$`)

// validateFiles checks secrets and configs, together: no two of them stand in one place.
func validateFiles(c *skepv1.ContainerSpec) error {
	if n := len(c.Secrets) + len(c.Configs); n > MaxFiles {
		return fault.Invalid("%d secrets and configs: a service may have %d", n, MaxFiles)
	}
	for _, s := range []struct{ flag, signal string }{{"secret-update-signal", c.SecretUpdateSignal}, {"config-update-signal", c.ConfigUpdateSignal}} {
		if s.signal != "" && !knownSignal(s.signal) {
			return fault.Invalid("invalid %s %q: use a name such as SIGHUP, or 1 to 64", s.flag, s.signal)
		}
	}
	taken := map[string]string{} // names, by path
	for _, m := range c.Mounts {
		taken[path.Clean(m.Target)] = "a mount"
	}
	for _, l := range []struct {
		kind  skepv1.SecretKind
		files []*skepv1.FileReference
	}{{skepv1.SecretKind_SECRET_KIND_SECRET, c.Secrets}, {skepv1.SecretKind_SECRET_KIND_CONFIG, c.Configs}} {
		for _, f := range l.files {
			if err := validateFile(l.kind, f); err != nil {
				return err
			}
			target := f.Target
			if target == "" {
				target = f.Name
			}
			at := FilePath(l.kind, target)
			if other, ok := taken[at]; ok {
				if other == "a mount" {
					return fault.Invalid("%s '%s' and a mount have a conflicting target: '%s'", KindWord(l.kind), f.Name, at)
				}
				return fault.Invalid("%s references '%s' and '%s' have a conflicting target: '%s'", KindWord(l.kind), other, f.Name, target)
			}
			taken[at] = f.Name
		}
	}
	// A file has nothing in it.
	for _, p := range slices.Sorted(maps.Keys(taken)) {
		what := "'" + taken[p] + "'"
		if taken[p] == "a mount" {
			what = taken[p]
		}
		for dir := path.Dir(p); dir != "/" && dir != "."; dir = path.Dir(dir) {
			if name, ok := taken[dir]; ok && name != "a mount" {
				return fault.Invalid("'%s' stands at %s, so %s cannot stand at %s", name, dir, what, p)
			}
		}
	}
	return nil
}

func validateFile(kind skepv1.SecretKind, f *skepv1.FileReference) error {
	word := KindWord(kind)
	if f.Name == "" && f.Id == "" {
		return fault.Invalid("%s: source is required", word)
	}
	target := f.Target
	if target == "" {
		target = f.Name
	}
	at := FilePath(kind, target)
	switch {
	case target == "":
		return fault.Invalid("%s %s: a reference by id alone needs a target", word, f.Id)
	case strings.Contains("/"+target+"/", "/../"):
		return fault.Invalid("invalid %s target %q: it must not contain ..", word, target)
	case strings.ContainsFunc(target, unicode.IsControl), len(at) > 1024, slices.ContainsFunc(strings.Split(at, "/"), func(s string) bool { return len(s) > 255 }):
		return fault.Invalid("invalid %s target %.80q: it is too long, or has characters that no file's name has", word, target)
	case at == "/", at == SecretsDir, strings.HasSuffix(target, "/"):
		return fault.Invalid("invalid %s target %q: it is a directory; name a file in it", word, target)
	}
	for _, dir := range []string{"/proc", "/sys", "/dev"} {
		if at == dir || strings.HasPrefix(at, dir+"/") {
			return fault.Invalid("invalid %s target %q: %s is the kernel's", word, target, dir)
		}
	}
	for _, owner := range []string{f.Uid, f.Gid} {
		if owner == "" {
			continue
		}
		if n, err := strconv.ParseUint(owner, 10, 32); err != nil && !ownerName.MatchString(owner) || n == 1<<32-1 {
			return fault.Invalid("invalid owner %q of %s %s: use a number, or a name that the image has", owner, word, f.Name)
		}
	}
	if f.Mode > 0o7777 {
		return fault.Invalid("invalid mode %o of %s %s: use an octal mode such as 0444", f.Mode, word, f.Name)
	}
	return nil
}
