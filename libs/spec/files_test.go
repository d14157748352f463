package spec

import (
	"fmt"
	"path"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"
)

const (
	aSecret = skepv1.SecretKind_SECRET_KIND_SECRET
	aConfig = skepv1.SecretKind_SECRET_KIND_CONFIG
)

func TestFilePath(t *testing.T) {
	for _, c := range []struct {
		kind         skepv1.SecretKind
		target, want string
	}{
		{aSecret, "pw", "/run/secrets/pw"}, {aSecret, "a/b", "/run/secrets/a/b"}, {aSecret, "/etc/x//y", "/etc/x/y"}, {aSecret, "./a", "/run/secrets/a"},
		{aConfig, "web.conf", "/web.conf"}, {aConfig, "etc/web.conf", "/etc/web.conf"}, {aConfig, "/etc/./web.conf", "/etc/web.conf"},
	} {
		if got := FilePath(c.kind, c.target); got != c.want {
			t.Errorf("%s %q stands at %s, want %s", KindWord(c.kind), c.target, got, c.want)
		}
	}
}

// checkFiles is what a service is checked with.
func checkFiles(secrets, configs []*skepv1.FileReference, mounts ...string) string {
	c := &skepv1.ContainerSpec{Image: "i", Secrets: secrets, Configs: configs}
	for _, m := range mounts {
		c.Mounts = append(c.Mounts, &skepv1.Mount{Target: m, Type: skepv1.Mount_TYPE_TMPFS})
	}
	if err := validateFiles(c); err != nil {
		return err.Error()
	}
	return ""
}

func files(f ...*skepv1.FileReference) []*skepv1.FileReference { return f }

func at(name, target string) *skepv1.FileReference {
	return &skepv1.FileReference{Name: name, Target: target, Mode: 0o444}
}

func TestTargetsOfFiles(t *testing.T) {
	many := make([]*skepv1.FileReference, MaxFiles+1)
	for i := range many {
		many[i] = at("a", fmt.Sprint(i))
	}
	for _, c := range []struct{ got, want string }{
		{checkFiles(files(at("a", "")), files(at("a", ""))), ""},
		{checkFiles(files(at("a", "x"), at("b", "y")), files(at("c", "/run/secrets/z"))), ""},
		{checkFiles(files(at("a", "/etc/ssl/key"), at("a", "/etc/ssl/cert")), nil, "/etc", "/run", "/run/secrets"), ""},
		{checkFiles(files(at("a", "...")), nil), ""},
		{checkFiles(files(at("a", "a..b/..c")), nil), ""},
		{checkFiles(many[:MaxFiles], nil), ""},
		{checkFiles(many, nil), "501 secrets and configs: a service may have 500"},
		{checkFiles(many[:300], many[:201]), "501 secrets and configs: a service may have 500"},
		{checkFiles(files(at("a", "x"), at("b", "x")), nil), "secret references 'a' and 'b' have a conflicting target: 'x'"},
		{checkFiles(files(at("a", "x"), at("b", "/run/secrets/./x")), nil), "secret references 'a' and 'b' have a conflicting target: '/run/secrets/./x'"},
		{checkFiles(files(at("a", "")), files(at("c", "/run/secrets/a"))), "config references 'a' and 'c' have a conflicting target: '/run/secrets/a'"},
		{checkFiles(nil, files(at("a", "x"), at("b", "/x"))), "config references 'a' and 'b' have a conflicting target: '/x'"},
		{checkFiles(files(at("a", "/data")), nil, "/data"), "secret 'a' and a mount have a conflicting target: '/data'"},
		{checkFiles(files(at("a", "x"), at("b", "x/y")), nil), "'a' stands at /run/secrets/x, so 'b' cannot stand at /run/secrets/x/y"},
		{checkFiles(files(at("a", "/data")), nil, "/data/deep"), "'a' stands at /data, so a mount cannot stand at /data/deep"},
		{checkFiles(files(at("a", "..")), nil), `invalid secret target "..": it must not contain ..`},
		{checkFiles(files(at("a", "../../etc/shadow")), nil), `invalid secret target "../../etc/shadow": it must not contain ..`},
		{checkFiles(nil, files(at("a", "/etc/../x"))), `invalid config target "/etc/../x": it must not contain ..`},
		{checkFiles(files(at("a", ".")), nil), `invalid secret target ".": it is a directory; name a file in it`},
		{checkFiles(files(at("a", "/")), nil), `invalid secret target "/": it is a directory; name a file in it`},
		{checkFiles(files(at("a", "x/")), nil), `invalid secret target "x/": it is a directory; name a file in it`},
		{checkFiles(nil, files(at("a", "/run/secrets"))), `invalid config target "/run/secrets": it is a directory; name a file in it`},
		{checkFiles(files(at("a", "/proc/1/environ")), nil), `invalid secret target "/proc/1/environ": /proc is the kernel's`},
		{checkFiles(files(at("a", "//sys//x")), nil), `invalid secret target "//sys//x": /sys is the kernel's`},
		{checkFiles(nil, files(at("a", "dev/x"))), `invalid config target "dev/x": /dev is the kernel's`},
		{checkFiles(files(at("a", "/process/x")), nil), ""},
		{checkFiles(files(at("a", "x\x00y")), nil), `invalid secret target "x\x00y": it is too long, or has characters that no file's name has`},
		{checkFiles(files(at("a", "x\ny")), nil), `invalid secret target "x\ny": it is too long, or has characters that no file's name has`},
		{checkFiles(files(at("a", strings.Repeat("x", 255))), nil), ""},
		{checkFiles(files(at("a", strings.Repeat("x", 256))), nil), `invalid secret target "` + strings.Repeat("x", 80) + `": it is too long, or has characters that no file's name has`},
		{checkFiles(files(at("a", strings.Repeat("x/", 510))), nil), `invalid secret target "` + strings.Repeat("x/", 40) + `": it is too long, or has characters that no file's name has`},
		{checkFiles(files(at("", "x")), nil), "secret: source is required"},
		{checkFiles(nil, files(at("", "x"))), "config: source is required"},
		{checkFiles(files(&skepv1.FileReference{Id: "i"}), nil), "secret i: a reference by id alone needs a target"},
		{checkFiles(files(&skepv1.FileReference{Id: "i", Target: "x"}), nil), ""},
	} {
		if c.got != c.want {
			t.Errorf("got  %q\nwant %q", c.got, c.want)
		}
	}
}

func TestOwnersAndModesOfFiles(t *testing.T) {
	owner := func(o string) func(*skepv1.FileReference) { return func(f *skepv1.FileReference) { f.Uid = o } }
	for _, good := range []string{"", "0", "65534", "4294967294", "app", "_apt", "systemd-network", "Web.User", "machine$"} {
		for _, set := range []func(*skepv1.FileReference){owner(good), func(f *skepv1.FileReference) { f.Gid = good }} {
			f := at("a", "a")
			set(f)
			if got := checkFiles(files(f), nil); got != "" {
				t.Errorf("owner %q: %s", good, got)
			}
		}
	}
	for _, bad := range []string{"-1", "+1", "4294967295", "4294967296", "99999999999999999999", "1.5", "0x10", "a b", "a:b", "a/b", "-a", "é", "a\nroot", strings.Repeat("a", 33), " 0"} {
		f := at("a", "a")
		f.Gid = bad
		if got, want := checkFiles(files(f), nil), fmt.Sprintf("invalid owner %q of secret a: use a number, or a name that the image has", bad); got != want {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	}
	for mode, want := range map[uint32]string{0: "", 0o444: "", 0o7777: "", 0o10000: "invalid mode 10000 of config a: use an octal mode such as 0444", 1 << 31: "invalid mode 20000000000 of config a: use an octal mode such as 0444"} {
		f := at("a", "a")
		f.Mode = mode
		if got := checkFiles(nil, files(f)); got != want {
			t.Errorf("mode %o: %q, want %q", mode, got, want)
		}
	}
}

// Whatever is taken stands below the container's root, in none of the kernel's folders, and in nothing else's place.
func FuzzFileTarget(f *testing.F) {
	for _, s := range []string{"a", "/a/b", "..", "a/../b", "./", "//proc", "/run/secrets", "a\x00", strings.Repeat("a/", 600), "/dev/../etc", "\u202e"} {
		f.Add(s, true)
		f.Add(s, false)
	}
	f.Fuzz(func(t *testing.T, target string, secret bool) {
		kind, c := aConfig, &skepv1.ContainerSpec{Configs: files(at("a", target))}
		if secret {
			kind, c = aSecret, &skepv1.ContainerSpec{Secrets: files(at("a", target))}
		}
		if validateFiles(c) != nil {
			return
		}
		if target == "" {
			target = "a"
		}
		p := FilePath(kind, target)
		if !path.IsAbs(p) || p != path.Clean(p) || p == "/" || strings.Contains(p, "..") && strings.Contains(p+"/", "/../") || strings.ContainsRune(p, 0) || len(p) > 1024 {
			t.Errorf("%q stands at %q", target, p)
		}
		for _, dir := range []string{"/proc/", "/sys/", "/dev/"} {
			if strings.HasPrefix(p+"/", dir) {
				t.Errorf("%q stands at %q", target, p)
			}
		}
		if secret && !path.IsAbs(target) && !strings.HasPrefix(p, SecretsDir+"/") {
			t.Errorf("%q stands at %q", target, p)
		}
	})
}

func TestSecretNamesLabelsAndSizes(t *testing.T) {
	const name = "invalid name, only 64 [a-zA-Z0-9-_.] characters allowed, and the start and end character must be [a-zA-Z0-9]"
	for n, want := range map[string]string{
		"a": "", "A1": "", "a-b_c.d": "", "a..b": "", strings.Repeat("a", 64): "",
		"": name, "-a": name, "a.": name, "_": name, "a b": name, "a/b": name, "é": name, "a\n": name, "a@3": name, "a=b": name, "a*b": name, "a>": name, strings.Repeat("a", 65): name,
	} {
		got := ""
		if err := CheckSecret(aSecret, &skepv1.SecretSpec{Name: n}); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("name %q: %q", n, got)
		}
	}
	for want, s := range map[string]*skepv1.SecretSpec{
		"config a: unknown template driver \"jinja\": it is golang":          {Name: "a", TemplateDriver: "jinja"},
		"config a: invalid label '': its name is empty or has whitespace":    {Name: "a", Labels: map[string]string{"": "v"}},
		"config a: invalid label 'a b': its name is empty or has whitespace": {Name: "a", Labels: map[string]string{"a b": "v"}},
		"config a: its labels are 16385 bytes, at most 16384 fit":            {Name: "a", Labels: map[string]string{"k": strings.Repeat("v", 16384)}},
	} {
		if err := CheckSecret(aConfig, s); err == nil || err.Error() != want {
			t.Errorf("want %q, got %v", want, err)
		}
	}
	if err := CheckSecret(aConfig, &skepv1.SecretSpec{Name: "a", TemplateDriver: TemplateGolang, Labels: map[string]string{"k": strings.Repeat("v", 16383)}}); err != nil {
		t.Error(err)
	}
	for _, c := range []struct {
		kind skepv1.SecretKind
		size int
		want string
	}{
		{aSecret, 1, ""}, {aSecret, 511_999, ""}, {aSecret, 0, "secret data must be larger than 0 and less than 512000 bytes"}, {aSecret, -1, "secret data must be larger than 0 and less than 512000 bytes"},
		{aSecret, 512_000, "secret data must be larger than 0 and less than 512000 bytes"}, {aConfig, 1_023_999, ""}, {aConfig, 1_024_000, "config data must be larger than 0 and less than 1024000 bytes"},
		{skepv1.SecretKind_SECRET_KIND_REGISTRY, 65_536, "registry data must be larger than 0 and less than 65536 bytes"},
	} {
		got := ""
		if err := CheckSecretSize(c.kind, c.size); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%d bytes: %q, want %q", c.size, got, c.want)
		}
	}
}

// What newer versions mean for tasks: nothing where they come with a signal, another task otherwise.
func TestCoreAndVersions(t *testing.T) {
	make := func(signal string, secret, config uint64, pinned bool) *skepv1.ServiceSpec {
		s, c := at("s", "s"), at("c", "c")
		s.Version, s.Pinned, c.Version = secret, pinned, config
		return &skepv1.ServiceSpec{Name: "web", Task: &skepv1.TaskSpec{Container: &skepv1.ContainerSpec{Image: "i", SecretUpdateSignal: signal, Secrets: files(s), Configs: files(c)}}}
	}
	for _, c := range []struct {
		what string
		a, b *skepv1.ServiceSpec
		same bool
	}{
		{"pinning what it has", make("", 1, 1, false), make("", 1, 1, true), true},
		{"another version", make("", 1, 1, false), make("", 2, 1, false), false},
		{"another version with a signal", make("SIGHUP", 1, 1, false), make("SIGHUP", 2, 1, true), true},
		{"another version of what has no signal", make("SIGHUP", 1, 1, false), make("SIGHUP", 1, 2, false), false},
		{"a signal", make("", 1, 1, false), make("SIGHUP", 1, 1, false), false},
	} {
		before := proto.CloneOf(c.a)
		if got := proto.Equal(Core(c.a), Core(c.b)); got != c.same {
			t.Errorf("%s: the same task is %v", c.what, got)
		}
		if !proto.Equal(before, c.a) {
			t.Errorf("%s: the spec was changed", c.what)
		}
	}
}
