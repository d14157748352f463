package login

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func owner(t *testing.T, path string) (uid, gid int) {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	sys := st.Sys().(*syscall.Stat_t)
	return int(sys.Uid), int(sys.Gid)
}

// fakeHelper keeps one answer per registry in a folder and notes how it was called.
const fakeHelper = `#!/bin/sh
echo "$0 $*" >>%[1]s/calls
in=$(cat)
case $1 in
get) f=%[1]s/$(printf %%s "$in" | tr / _); [ -f "$f" ] && cat "$f" || { echo "credentials not found in native keychain"; exit 1; } ;;
store) url=$(printf %%s "$in" | sed 's/.*"ServerURL":"\([^"]*\)".*/\1/'); printf %%s "$in" >%[1]s/$(printf %%s "$url" | tr / _) ;;
erase) f=%[1]s/$(printf %%s "$in" | tr / _); [ -f "$f" ] && rm "$f" || { echo "The specified item could not be found in the keychain."; exit 1; } ;;
esac
`

func withHelper(t *testing.T, name, script string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if strings.Contains(script, "%[1]s") {
		script = fmt.Sprintf(script, dir)
	}
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-"+name), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return dir
}

func TestHelper(t *testing.T) {
	dir := withHelper(t, "safe", fakeHelper)
	for host, config := range map[string]string{
		"r.example.com": `{"credHelpers":{"r.example.com":"safe"},"auths":{"https://r.example.com/v1/":{"auth":"b2xkOm9sZA=="}}}`,
		"s.example.com": `{"credsStore":"safe"}`,
		Hub:             `{"credHelpers":{"docker.io":"safe"}}`,
	} {
		f := open(t, config)
		// A name with a path and a slash at the end means the same helper, not the file (docker/for-linux#474).
		named, err := Host("https://" + host + "/some/path/")
		if err != nil || named != host {
			t.Fatal(named, err)
		}
		clear, err := f.Put(t.Context(), named, Credentials{Username: "me", Password: word})
		if err != nil || clear {
			t.Fatal(clear, err)
		}
		b, err := os.ReadFile(f.path)
		if err != nil || strings.Contains(string(b), `"auth"`) || !strings.Contains(string(b), keyOf(host)) {
			t.Errorf("%s: %s %v", host, b, err)
		}
		g := f.reopen(t)
		if c, err := g.Get(t.Context(), host); err != nil || c != (Credentials{Username: "me", Password: word}) {
			t.Errorf("%s: %+v %v", host, c, err)
		}
		if had, err := g.Erase(t.Context(), host); err != nil || !had {
			t.Errorf("%v %v", had, err)
		}
		// That there is nothing is no error, whatever the helper calls it (docker/cli#204).
		if had, err := g.reopen(t).Erase(t.Context(), host); err != nil || had {
			t.Errorf("%v %v", had, err)
		}
		if c, err := g.reopen(t).Get(t.Context(), host); err != nil || !c.Empty() {
			t.Errorf("%+v %v", c, err)
		}
	}
	calls, err := os.ReadFile(filepath.Join(dir, "calls"))
	if err != nil || strings.Contains(string(calls), "horse") || strings.Contains(string(calls), "example.com") {
		t.Errorf("arguments show more than a verb: %s %v", calls, err)
	}
	// An identity token goes by its own name.
	f := open(t, `{"credsStore":"safe"}`)
	if _, err := f.Put(t.Context(), "r", Credentials{IdentityToken: "tok"}); err != nil {
		t.Fatal(err)
	}
	if c, err := f.Get(t.Context(), "r"); err != nil || c != (Credentials{IdentityToken: "tok"}) {
		t.Errorf("%+v %v", c, err)
	}
}

func TestHelperFails(t *testing.T) {
	for _, x := range []struct{ name, script, want string }{
		{"desktop", "", "docker-credential-desktop, which config.json names, is not installed here"},
		{"../evil", "", "credential helper"},
		{"broken", "#!/bin/sh\ncat >/dev/null\necho '{\"Secret\":\"hunter2\"}'\necho locked >&2\nexit 3\n", "docker-credential-broken get: exit status 3: locked"},
		{"nonsense", "#!/bin/sh\ncat >/dev/null\necho hunter2\n", "is not what a credential helper says"},
	} {
		if x.script != "" {
			withHelper(t, x.name, x.script)
		}
		f := open(t, fmt.Sprintf(`{"credsStore":%q,"auths":{"r":{}}}`, x.name))
		if _, err := f.Get(t.Context(), "r"); err == nil || !strings.Contains(err.Error(), x.want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", x.name, err)
		}
		if x.script == "" {
			if _, err := f.Put(t.Context(), "r", Credentials{Username: "me", Password: word}); err == nil {
				t.Errorf("%s: a password was kept somewhere else than the file says", x.name)
			}
		}
	}
}

// A helper that waits for somebody ends with the command.
func TestHelperIsInterrupted(t *testing.T) {
	dir := withHelper(t, "slow", "#!/bin/sh\ntouch %[1]s/begun\nexec sleep 1000\n")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := open(t, `{"credsStore":"slow"}`).Get(ctx, "r")
		done <- err
	}()
	for {
		if _, err := os.Stat(filepath.Join(dir, "begun")); err == nil {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
