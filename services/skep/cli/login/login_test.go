package login

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const word = "correct horse:battery"

func open(t *testing.T, text string) *File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.json")
	if text != "" {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// reopen is the file as the next command finds it.
func (f *File) reopen(t *testing.T) *File {
	t.Helper()
	g, err := Open(f.path)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestHost(t *testing.T) {
	for server, want := range map[string]string{
		"": Hub, "docker.io": Hub, "https://index.docker.io/v1/": Hub, "index.docker.io": Hub, "registry-1.docker.io/": Hub,
		"r.example.com": "r.example.com", "https://r.example.com/": "r.example.com", "http://r:5000/v2/": "r:5000", "r.example.com/group": "r.example.com", "[::1]:5000": "[::1]:5000",
	} {
		if got, err := Host(server); err != nil || got != want {
			t.Errorf("%q: %q %v, want %q", server, got, err, want)
		}
	}
	for _, bad := range []string{"a b", "-x", "u:p@r.example.com", "r?x", "r#x", "r\x1b[2J", "ftp://r", strings.Repeat("a", 300)} {
		if got, err := Host(bad); err == nil {
			t.Errorf("%q: %q", bad, got)
		}
	}
}

// Every spelling that Docker and others leave in the file is found, and is gone after a logout (docker/cli#7326).
func TestSpellings(t *testing.T) {
	const auth = `{"auth":"bWU6Y29ycmVjdCBob3JzZTpiYXR0ZXJ5"}`
	for key, host := range map[string]string{
		"https://index.docker.io/v1/": Hub, "docker.io": Hub, "index.docker.io": Hub, "https://registry-1.docker.io": Hub,
		"r.example.com": "r.example.com", "https://r.example.com": "r.example.com", "https://r.example.com/": "r.example.com", "https://r.example.com/v1/": "r.example.com", "http://r.example.com": "r.example.com",
	} {
		f := open(t, fmt.Sprintf(`{"auths":{%q:%s,"other":{"auth":"YTpi"}}}`, key, auth))
		if c, err := f.Get(t.Context(), host); err != nil || c != (Credentials{Username: "me", Password: word}) {
			t.Errorf("%s: %+v %v", key, c, err)
		}
		if had, err := f.Erase(t.Context(), host); !had || err != nil {
			t.Errorf("%s: %v %v", key, had, err)
		}
		g := f.reopen(t)
		if c, err := g.Get(t.Context(), host); err != nil || !c.Empty() || len(g.auths) != 1 {
			t.Errorf("%s is left after a logout: %v %v", key, c, err)
		}
	}
}

func TestEntries(t *testing.T) {
	for text, want := range map[string]Credentials{
		`{}`:                                  {},
		`null`:                                {},
		`{"auth":""}`:                         {},
		`{"auth":"bWU6cHc="}`:                 {Username: "me", Password: "pw"},
		`{"auth":"bWU6cDp3"}`:                 {Username: "me", Password: "p:w"},
		`{"username":"me","password":"pw"}`:   {Username: "me", Password: "pw"},
		`{"auth":"bWU6","identitytoken":"t"}`: {Username: "me", IdentityToken: "t"},
		`{"identitytoken":"t"}`:               {IdentityToken: "t"},
	} {
		if c, err := open(t, `{"auths":{"r":`+text+`}}`).Get(t.Context(), "r"); err != nil || c != want {
			t.Errorf("%s: %+v %v", text, c, err)
		}
	}
	for _, text := range []string{`{"auth":"c2VjcmV0"}`, `{"auth":"c2VjcmV0!"}`, `"c2VjcmV0"`} {
		if _, err := open(t, `{"auths":{"r":`+text+`}}`).Get(t.Context(), "r"); err == nil || strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "c2VjcmV0") {
			t.Errorf("%s: %v", text, err)
		}
	}
	if got := fmt.Sprintf("%v %+v %s", Credentials{"me", word, ""}, Credentials{"me", word, ""}, Credentials{"me", word, "tok"}); strings.Contains(got, word) {
		t.Error(got)
	}
}

// What the file holds beside credentials stays as it is, its owner alone reads it, and a link to it stays one.
func TestFileIsKept(t *testing.T) {
	f := open(t, `{"HttpHeaders":{"User-Agent":"x"},"psFormat":"table","auths":{"other":{"auth":"YTpi","email":"a@b"}},"n":12345678901234567890}`)
	link := filepath.Join(t.TempDir(), "link.json")
	if err := os.Symlink(f.path, link); err != nil {
		t.Fatal(err)
	}
	l, err := Open(link)
	if err != nil {
		t.Fatal(err)
	}
	if clear, err := l.Put(t.Context(), "r", Credentials{Username: "me", Password: word}); err != nil || !clear {
		t.Fatal(clear, err)
	}
	if st, err := os.Lstat(link); err != nil || st.Mode().Type() != os.ModeSymlink {
		t.Errorf("the link was replaced: %v %v", st, err)
	}
	st, err := os.Stat(f.path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", st.Mode(), err)
	}
	b, err := os.ReadFile(f.path)
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]json.RawMessage
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	if string(m["n"]) != "12345678901234567890" || !strings.Contains(string(b), `"User-Agent": "x"`) || !strings.Contains(string(b), `"email": "a@b"`) || len(m) != 4 {
		t.Errorf("%s", b)
	}
	if c, err := f.reopen(t).Get(t.Context(), "r"); err != nil || c.Password != word {
		t.Errorf("%v %v", c, err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(f.path), "*.new-*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	dangling := filepath.Join(t.TempDir(), "config.json")
	if err := os.Symlink("/none/config.json", dangling); err != nil {
		t.Fatal(err)
	}
	d, err := Open(dangling)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Put(t.Context(), "r", Credentials{Username: "me", Password: word}); err == nil || !strings.Contains(err.Error(), "is a link to") {
		t.Errorf("%v", err)
	}
}

func TestFileOfAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	f := open(t, `{}`)
	if err := os.Chown(f.path, 1000, 1001); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Put(t.Context(), "r", Credentials{Username: "me", Password: word}); err != nil {
		t.Fatal(err)
	}
	if uid, gid := owner(t, f.path); uid != 1000 || gid != 1001 {
		t.Errorf("it is %d:%d's now", uid, gid)
	}
}
