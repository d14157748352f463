package plugin

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"skep.dev/services/node-agent/internal/volume"
)

// listen makes a socket that nobody answers at.
func listen(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "plug")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// Sockets win over spec files, earlier folders over later ones, and a folder of its own is looked into.
func TestScan(t *testing.T) {
	socks, etc, lib := tempDir(t), tempDir(t), tempDir(t)
	d := Dirs{Sockets: []string{socks}, Specs: []string{etc, lib}}
	listen(t, filepath.Join(socks, "a.sock"))
	write(t, filepath.Join(etc, "a.spec"), "tcp://localhost:1")
	if err := os.Mkdir(filepath.Join(socks, "b"), 0o755); err != nil {
		t.Fatal(err)
	}
	listen(t, filepath.Join(socks, "b", "b.sock"))
	write(t, filepath.Join(socks, "b", "other.sock"), "")
	write(t, filepath.Join(etc, "c.spec"), " tcp://127.0.0.1:9000\n")
	write(t, filepath.Join(lib, "c.json"), `{"Addr":"tcp://localhost:1"}`)
	write(t, filepath.Join(lib, "d", "d.json"), `{"Name":"d","Addr":"https://example.com:1","TLSConfig":{"InsecureSkipVerify":true}}`)
	write(t, filepath.Join(lib, "e.spec"), "unix://"+filepath.Join(socks, "a.sock"))
	write(t, filepath.Join(lib, ".hidden.spec"), "tcp://localhost:1")
	write(t, filepath.Join(lib, "f.txt"), "tcp://localhost:1")
	found, more := d.scan()
	got := map[string]string{}
	for name, e := range found {
		got[name] = fmt.Sprint(strings.ReplaceAll(e.address, socks, ""), " ", e.tls.on, e.bad)
	}
	want(t, got, map[string]string{"a": "/a.sock false", "b": "/b/b.sock false", "c": "127.0.0.1:9000 false", "d": "example.com:1 true", "e": "/a.sock false"})
	want(t, more, 0)

	before := found["e"]
	if err := os.Remove(filepath.Join(socks, "a.sock")); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Millisecond) // of the file's time: two within one tick of the kernel's clock are one
	listen(t, filepath.Join(socks, "a.sock"))
	if found, _ := d.scan(); found["e"] == before {
		t.Error("a socket made anew is not seen as another one")
	}
	for i := range 3 * maxPlugins {
		write(t, filepath.Join(lib, fmt.Sprintf("x%03d.spec", i)), "tcp://localhost:1")
	}
	found, more = d.scan()
	want(t, fmt.Sprint(len(found), found["a"].name), fmt.Sprint(maxPlugins, "a"))
	if more == 0 {
		t.Error("nothing is said of those left out")
	}
}

// Who could be somebody else than root's plug-in is not asked, and the reason is told.
func TestNotTrusted(t *testing.T) {
	for name, c := range map[string]struct {
		make  func(t *testing.T, dir string)
		words string
	}{
		"link": {func(t *testing.T, dir string) {
			listen(t, filepath.Join(dir, "real"))
			if err := os.Symlink(filepath.Join(dir, "real"), filepath.Join(dir, "x.sock")); err != nil {
				t.Fatal(err)
			}
		}, "is not a socket"},
		"plain file": {func(t *testing.T, dir string) { write(t, filepath.Join(dir, "x.sock"), "") }, "is not a socket"},
		"folder of all": {func(t *testing.T, dir string) {
			listen(t, filepath.Join(dir, "x.sock"))
			if err := os.Chmod(dir, 0o777); err != nil {
				t.Fatal(err)
			}
		}, "lets others than root"},
		"inner folder of all": {func(t *testing.T, dir string) {
			if err := os.Mkdir(filepath.Join(dir, "x"), 0o755); err != nil {
				t.Fatal(err)
			}
			listen(t, filepath.Join(dir, "x", "x.sock"))
			if err := os.Chmod(filepath.Join(dir, "x"), 0o1777); err != nil {
				t.Fatal(err)
			}
		}, "lets others than root"},
		"somebody's socket": {func(t *testing.T, dir string) {
			listen(t, filepath.Join(dir, "x.sock"))
			if err := os.Lchown(filepath.Join(dir, "x.sock"), 4711, 4711); err != nil {
				t.Fatal(err) // the tests of the agent need root
			}
		}, "belongs to user 4711"},
		"spec of all": {func(t *testing.T, dir string) {
			write(t, filepath.Join(dir, "x.spec"), "tcp://localhost:1")
			if err := os.Chmod(filepath.Join(dir, "x.spec"), 0o666); err != nil {
				t.Fatal(err)
			}
		}, "can be written by others"},
		"spec of a socket of all": {func(t *testing.T, dir string) {
			all := filepath.Join(dir, "all")
			if err := os.Mkdir(all, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(all, 0o777); err != nil {
				t.Fatal(err)
			}
			listen(t, filepath.Join(all, "s"))
			write(t, filepath.Join(dir, "x.spec"), "unix://"+filepath.Join(all, "s"))
		}, "lets others than root"},
		"other machine, plain": {func(t *testing.T, dir string) { write(t, filepath.Join(dir, "x.spec"), "tcp://10.0.0.1:80") }, "without TLS"},
		"no address":           {func(t *testing.T, dir string) { write(t, filepath.Join(dir, "x.spec"), "\n") }, "only unix:// and tcp:// are known"},
		"no port":              {func(t *testing.T, dir string) { write(t, filepath.Join(dir, "x.spec"), "tcp://localhost") }, "tcp://host:port"},
		"a path":               {func(t *testing.T, dir string) { write(t, filepath.Join(dir, "x.spec"), "http://localhost:80/x") }, "tcp://host:port"},
		"two lines": {func(t *testing.T, dir string) {
			write(t, filepath.Join(dir, "x.spec"), "tcp://localhost:1\ntcp://localhost:2")
		}, "has no address"},
		"relative":        {func(t *testing.T, dir string) { write(t, filepath.Join(dir, "x.spec"), "unix://run/x.sock") }, "unix:///absolute"},
		"dots":            {func(t *testing.T, dir string) { write(t, filepath.Join(dir, "x.spec"), "unix:///run/../x.sock") }, "unix:///absolute"},
		"no socket there": {func(t *testing.T, dir string) { write(t, filepath.Join(dir, "x.spec"), "unix:///nowhere/x.sock") }, "no such file"},
		"bad json":        {func(t *testing.T, dir string) { write(t, filepath.Join(dir, "x.json"), "{") }, "is not the JSON of a plug-in"},
		"big": {func(t *testing.T, dir string) {
			write(t, filepath.Join(dir, "x.spec"), strings.Repeat(" ", maxSpecFile+1))
		}, "at most"},
		"other scheme": {func(t *testing.T, dir string) { write(t, filepath.Join(dir, "x.spec"), "npipe:////./pipe/x") }, "only unix:// and tcp:// are known"},
		"no CA": {func(t *testing.T, dir string) {
			write(t, filepath.Join(dir, "x.json"), `{"Addr":"tcp://10.0.0.1:1","TLSConfig":{"CAFile":"/nowhere"}}`)
		}, "read the plug-in's CA"},
	} {
		t.Run(name, func(t *testing.T) {
			n, _ := newNode(t)
			n.Close()
			dir := tempDir(t)
			c.make(t, dir)
			n.cfg.Dirs = Dirs{Sockets: []string{dir}, Specs: []string{dir}}
			n.open()
			_, err := n.driver("x").Get(context.Background(), "web")
			if err == nil || !strings.Contains(err.Error(), c.words) {
				t.Errorf("error %v, want %q", err, c.words)
			}
			want(t, len(n.List()), 0)
		})
	}
}

func TestMountpoints(t *testing.T) {
	dir, keep := t.TempDir(), t.TempDir()
	for _, d := range []string{filepath.Join(dir, "data"), filepath.Join(keep, "inner")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(dir, "file"), "")
	for link, to := range map[string]string{"etc": "/etc", "up": "/", "kept": filepath.Join(keep, "inner"), "fine": filepath.Join(dir, "data"), "lost": "/nowhere/at/all"} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	for path, words := range map[string]string{
		filepath.Join(dir, "data"): "", filepath.Join(dir, "data") + "/": "", filepath.Join(dir, "fine"): "",
		"": "names no mount point", "data": "not an absolute path", "./data": "not an absolute path",
		filepath.Join(dir, "data") + "/../data": "leads out", "/..": "leads out",
		"/": "is not given", "//": "is not given", "/etc": "is not given", "/etc/ssl": "is not given", "/proc/1/root": "is not given", "/dev": "is not given",
		"/root/.ssh": "is not given", "/usr/lib": "is not given",
		filepath.Join(dir, "etc"): "is not given", filepath.Join(dir, "up"): "is not given", filepath.Join(dir, "up") + "/etc": "is not given",
		keep: "is not given", filepath.Join(keep, "inner"): "is not given", filepath.Dir(keep): "is not given", filepath.Join(dir, "kept"): "is not given",
		filepath.Join(dir, "file"): "is not a folder", filepath.Join(dir, "nothing"): "no such file", filepath.Join(dir, "lost"): "no such file",
	} {
		real, err := checkMountpoint(path, []string{keep})
		switch {
		case words == "" && (err != nil || real != filepath.Join(dir, "data")):
			t.Errorf("%q: %q %v", path, real, err)
		case words != "" && (err == nil || !strings.Contains(err.Error(), words)):
			t.Errorf("%q: %q %v, want %q", path, real, err, words)
		}
	}
}

func TestParseDirs(t *testing.T) {
	d, err := ParseDirs("")
	want(t, fmt.Sprint(d, err), fmt.Sprint(DefaultDirs(), nil))
	d, err = ParseDirs("/a/,/b")
	want(t, fmt.Sprint(d.Sockets, d.Specs, err), "[/a /b] [/a /b] <nil>")
	for _, bad := range []string{"a", "/a,", ",/a", "/a, /b"} {
		if _, err := ParseDirs(bad); err == nil {
			t.Errorf("%q taken", bad)
		}
	}
}

// The node describes the plug-ins that answer as drivers of volumes, with their scope, and tells when that changes.
func TestDescribed(t *testing.T) {
	n, dirs := newNode(t)
	n.Close()
	told := make(chan struct{}, 100)
	n.cfg.Described = func() { told <- struct{}{} }
	n.open()
	list := func() string {
		var out []string
		for _, p := range n.List() {
			out = append(out, p.Type+" "+p.Name+" "+p.Scope)
		}
		return strings.Join(out, ", ")
	}
	becomes := func(want string) {
		t.Helper()
		await(t, want, func() string {
			n.known.look()
			if got := list(); got != want {
				return got
			}
			return ""
		})
		select {
		case <-told:
		case <-time.After(10 * time.Second):
			t.Error("nobody was told")
		}
	}
	want(t, list(), "")
	f := newFake(t, dirs, "rexray")
	becomes("Volume rexray global")

	g := newFake(t, dirs, "old")
	g.on("Capabilities", says(404, "404 page not found"))
	becomes("Volume old local, Volume rexray global")

	net := newFake(t, dirs, "net")
	net.on("/Plugin.Activate", says(200, `{"Implements":["NetworkDriver"]}`))
	hang := newFake(t, dirs, "hang")
	hang.on("Capabilities", hang.hangs) // it may be one whose volumes are the same everywhere: not described before that is known
	await(t, "both are asked", func() string {
		n.known.look()
		return fewer(net.heard("/Plugin.Activate")+hang.heard("Capabilities"), 2)
	})
	want(t, list(), "Volume old local, Volume rexray global")
	if _, err := n.driver("net").Get(context.Background(), "x"); err == nil || !strings.Contains(err.Error(), "not one for volumes") {
		t.Errorf("network plug-in: %v", err)
	}
	want(t, net.heard("/Plugin.Activate"), 1)
	hang.on("Capabilities", says(200, `{"Capabilities":{"Scope":"galactic"}}`))
	becomes("Volume hang local, Volume old local, Volume rexray global")

	// A file that stays when its process has ended is noticed too.
	f.stop()
	listen(t, f.sock)
	becomes("Volume hang local, Volume old local")
	f.start()
	becomes("Volume hang local, Volume old local, Volume rexray global")
	if err := os.Remove(f.sock); err != nil {
		t.Fatal(err)
	}
	becomes("Volume hang local, Volume old local")
}

func fewer(got, want int) string {
	if got < want {
		return fmt.Sprintf("%d of %d", got, want)
	}
	return ""
}

// Plug-ins of other machines prove who they are, and are shown a certificate.
func TestTLS(t *testing.T) {
	n, dirs := newNode(t)
	asked := make(chan string, 100)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.TLS.PeerCertificates[0].Subject.CommonName
		_ = json.NewEncoder(w).Encode(map[string]any{"Implements": []string{"VolumeDriver"}, "Capabilities": map[string]string{"Scope": "global"}})
	}))
	srv.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	srv.Config.ErrorLog = log.New(io.Discard, "", 0) // a stranger's certificate is what it complains of
	srv.StartTLS()
	defer srv.Close()
	dir := t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	tmpl.Subject.CommonName = "node w1"
	cert, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text := func(kind string, b []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}))
	}
	write(t, filepath.Join(dir, "ca.pem"), text("CERTIFICATE", srv.Certificate().Raw))
	write(t, filepath.Join(dir, "own.pem"), text("CERTIFICATE", cert))
	write(t, filepath.Join(dir, "key.pem"), text("PRIVATE KEY", der))
	conf := func(ca string, insecure bool) string {
		b, err := json.Marshal(map[string]any{"Name": "x", "Addr": strings.Replace(srv.URL, "https", "tcp", 1), "TLSConfig": map[string]any{
			"InsecureSkipVerify": insecure, "CAFile": ca, "CertFile": filepath.Join(dir, "own.pem"), "KeyFile": filepath.Join(dir, "key.pem")}})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	scope := func(name string) (string, error) { return n.driver(name).Scope(context.Background()) }

	write(t, filepath.Join(dirs.Specs[0], "good.json"), conf(filepath.Join(dir, "ca.pem"), false))
	s, err := scope("good")
	want(t, fmt.Sprint(s, " ", err), volume.ScopeGlobal+" <nil>")
	want(t, <-asked, "node w1")
	write(t, filepath.Join(dirs.Specs[0], "lax.json"), conf("", true))
	s, err = scope("lax")
	want(t, fmt.Sprint(s, " ", err), volume.ScopeGlobal+" <nil>")
	write(t, filepath.Join(dirs.Specs[0], "stranger.json"), conf(filepath.Join(dir, "own.pem"), false))
	await(t, "a stranger's certificate", func() string {
		if _, err := scope("stranger"); err == nil || !strings.Contains(err.Error(), "failed to verify certificate") {
			return fmt.Sprint(err)
		}
		return ""
	})
}

// Whatever a plug-in answers, what is shown of it is short and harmless, and nothing falls over.
func FuzzAnswer(f *testing.F) {
	for _, s := range []string{`{"Mountpoint":"/mnt/x"}`, `{"Err":"no"}`, `{"Volume":{"Name":"a","Status":{"a":[1,{"b":null}]},"CreatedAt":"2024-05-06T07:08:09Z"}}`, `{"Volumes":[{"Name":"\u202e"}]}`, ``, `null`, `[`, "\x1b]0;x\a"} {
		f.Add(200, []byte(s))
		f.Add(500, []byte(s))
	}
	p := &Plugins{}
	f.Fuzz(func(t *testing.T, status int, b []byte) {
		var r struct {
			errText
			Volume  told
			Volumes []told
		}
		if err := decode("VolumeDriver.Get", status, b, &r); err != nil {
			if len(err.Error()) > 2*maxErrText || strings.ContainsAny(err.Error(), "\x1b\n\u202e") {
				t.Errorf("said %q", err)
			}
			return
		}
		i := driver{p, "x"}.info(r.Volume)
		if len(i.Status) > maxStatus || len(i.Mountpoint) > maxErrText {
			t.Errorf("too much: %v", i)
		}
		for k, v := range i.Status {
			if len(k) > maxValue || len(v) > maxValue || strings.ContainsAny(k+v, "\x1b\n\u202e") {
				t.Errorf("status %q=%q", k, v)
			}
		}
	})
}
