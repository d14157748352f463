package registry

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	skepv1 "skep.dev/proto/skep/v1"
)

func TestLoad(t *testing.T) {
	file := filepath.Join(t.TempDir(), "registries.toml")
	if c, err := Load(file); err != nil || len(c.Registries) != 0 {
		t.Errorf("no file: %v %v", c, err)
	}
	for text, want := range map[string]string{
		"[registries.\"docker.io\"]\nmirrors = [\"http://10.0.0.5:5000\"]\nmirrors_only = true\n": "",
		"[registries.\"x\"]\nmirrors = [\"10.0.0.5:5000\"]\n":                                     "is not an http:// or https:// URL",
		"[registries.\"x\"]\nmirrors_only = true\n":                                               "without a mirror",
		"[registries.\"x\"]\nplain = true\n":                                                      "unknown key",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(file); want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: want %q, got %v", text, want, err)
		}
	}
}

func TestHosts(t *testing.T) {
	c := Config{Registries: map[string]Host{"docker.io": {Mirrors: []string{"http://m:5000"}}, "plain:5000": {PlainHTTP: true}}}
	for name, want := range map[string]string{
		"docker.io": "http://m:5000/v2 https://registry-1.docker.io/v2", "plain:5000": "http://plain:5000/v2",
		// Not listed: TLS, also on loopback.
		"127.0.0.1:5000": "https://127.0.0.1:5000/v2",
	} {
		hosts, err := c.hosts(Auth{})(name)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, h := range hosts {
			got = append(got, h.Scheme+"://"+h.Host+h.Path)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %v, want %s", name, got, want)
		}
	}
}

func TestAuth(t *testing.T) {
	value := func(kind skepv1.SecretKind, text string) *skepv1.DeliveredValue {
		return &skepv1.DeliveredValue{Id: "o", Kind: kind, Name: "reg.lan", Value: []byte(text)}
	}
	for _, bad := range []*skepv1.DeliveredValue{
		value(skepv1.SecretKind_SECRET_KIND_REGISTRY, "topsecret"), value(skepv1.SecretKind_SECRET_KIND_SECRET, `{"username":"a","password":"topsecret"}`),
	} {
		if a, err := ParseAuth(bad); err == nil || strings.Contains(err.Error(), "topsecret") || a != (Auth{}) {
			t.Errorf("%v %v", a, err)
		}
	}
	// The host is the vault's word, not the value's; and what was delivered is overwritten.
	v := value(skepv1.SecretKind_SECRET_KIND_REGISTRY, `{"username":"a","password":"b","serveraddress":"evil.example"}`)
	a, err := ParseAuth(v)
	if err != nil || a.Username != "a" || a.Password != "b" || !a.covers("reg.lan") || a.covers("evil.example") || a.covers("") || len(bytes.Trim(v.Value, "\x00")) != 0 {
		t.Errorf("%v %v %q", a, err, v.Value)
	}
	if (Auth{}).covers("") || (Auth{}).covers("docker.io") {
		t.Error("no credentials are for some registry")
	}
}
