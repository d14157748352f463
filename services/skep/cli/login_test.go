package cli

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"

	"skep.dev/libs/api"
	"skep.dev/libs/id"
	"skep.dev/libs/pki/pkitest"
	"skep.dev/libs/seal"
	skepv1 "skep.dev/proto/skep/v1"
)

const password = "correct horse:battery"

// passwordRegistry takes me and password.
func passwordRegistry(t *testing.T) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u, p, _ := r.BasicAuth(); u != "me" || p != password {
			w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}

// desk is a user with a home of his own.
type desk struct {
	*cluster
	home string
	env  Env
	out  *safeBuffer
	errs *safeBuffer
}

func (c *cluster) desk() *desk {
	d := &desk{cluster: c, home: c.t.TempDir(), out: &safeBuffer{}, errs: &safeBuffer{}}
	d.env = c.env(d.out, d.errs)
	d.env.Getenv = func(k string) string { return map[string]string{"HOME": d.home}[k] }
	return d
}

func (d *desk) do(in string, args ...string) result {
	d.t.Helper()
	*d.out, *d.errs = safeBuffer{}, safeBuffer{}
	d.env.In = strings.NewReader(in)
	return result{Main(d.t.Context(), d.env, args), d.out.String(), d.errs.String()}
}

func (d *desk) config() string { return filepath.Join(d.home, ".docker", "config.json") }

func (d *desk) auths() map[string]any {
	d.t.Helper()
	b, err := os.ReadFile(d.config())
	if err != nil {
		d.t.Fatal(err)
	}
	var c struct{ Auths map[string]any }
	if err := json.Unmarshal(b, &c); err != nil {
		d.t.Fatal(err)
	}
	return c.Auths
}

func TestLoginAndLogout(t *testing.T) {
	d := newCluster(t).desk()
	host := passwordRegistry(t)
	for _, x := range []struct {
		in   string
		args string
		code int
		want string
	}{
		{"", "-u me -p x " + host, 2, "--password: every user of this machine"},
		{"", "--password-stdin " + host, 2, "must provide --username with --password-stdin"},
		{"", "-u me " + host, 1, "cannot log in without a terminal"},
		{"", "-u me --password-stdin --plain-http " + host, 1, "one is empty"},
		{password, "-u me --password-stdin " + host, 1, "speaks HTTP without TLS"},
		{"wrong", "-u me --plain-http --password-stdin " + host, 1, "unauthorized: incorrect username or password"},
		{password, "-u me --password-stdin a b", 2, ""},
		{password, "-u me --password-stdin no^host", 2, "invalid registry"},
		{password, "-u me --plain-http --ca /none --password-stdin " + host, 2, "conflict"},
	} {
		r := d.do(x.in, append([]string{"login"}, strings.Fields(x.args)...)...)
		if r.code != x.code || !strings.Contains(r.err, x.want) || strings.Contains(r.out+r.err, password) {
			t.Errorf("login %s: %+v", x.args, r)
		}
	}
	if _, err := os.Stat(d.config()); err == nil {
		t.Fatal("what did not succeed is kept")
	}
	r := d.do(password+"\r\n", "login", "-u", "me", "--plain-http", "--password-stdin", "http://"+host+"/v2/")
	if r.code != 0 || r.out != "Login Succeeded\n" || !strings.Contains(r.err, "unencrypted") {
		t.Fatalf("%+v", r)
	}
	if st, err := os.Stat(d.config()); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", st, err)
	}
	if a := d.auths(); len(a) != 1 || a[host] == nil {
		t.Errorf("%v", a)
	}
	// Who is logged in needs no password, and a script no terminal.
	if r := d.do("", "login", "--plain-http", host); r.code != 0 || !strings.Contains(r.err, "existing credentials") || !strings.Contains(r.out, "Login Succeeded") {
		t.Errorf("%+v", r)
	}
	if r := d.do("", "__complete", "logout", ""); !strings.Contains(r.out, host) {
		t.Errorf("%+v", r)
	}
	if r := d.do("", "logout", "https://"+host+"/"); r.code != 0 || r.out != "Removing login credentials for "+host+"\n" || len(d.auths()) != 0 {
		t.Errorf("%+v %v", r, d.auths())
	}
	if r := d.do("", "logout", host); r.code != 0 || r.out != "Not logged in to "+host+"\n" {
		t.Errorf("%+v", r)
	}
}

func TestLoginAtATerminal(t *testing.T) {
	d := newCluster(t).desk()
	host := passwordRegistry(t)
	x := newTerminal(t)
	d.env.In, d.env.Out, d.env.Err = x.tty, x.tty, x.tty
	done := make(chan int, 1)
	go func() { done <- Main(t.Context(), d.env, []string{"login", "--plain-http", host}) }()
	x.await(t, "Username: ")
	_, _ = x.master.WriteString("me\n")
	x.await(t, "Password: ")
	_, _ = x.master.WriteString(password + "\n")
	if code := <-done; code != 0 {
		t.Errorf("status %d", code)
	}
	x.await(t, "Login Succeeded")
	if strings.Contains(x.out.String(), password) {
		t.Errorf("the password is shown: %q", x.out.String())
	}
}

// registries is a vault that keeps registry credentials.
func (d *desk) registries() map[string]*skepv1.SealedValue {
	d.t.Helper()
	ca := pkitest.NewCA(d.t)
	key, err := seal.NewKey()
	if err != nil {
		d.t.Fatal(err)
	}
	d.env.CA = func(context.Context) (*x509.Certificate, error) { return ca.Cert, nil }
	kept := map[string]*skepv1.SealedValue{}
	serve(d.cluster, d.rs, api.VaultKey, func(*skepv1.Empty) (*skepv1.VaultKey, error) { return key.Public(ca) })
	serve(d.cluster, d.rs, api.RegistryCreate, func(r *skepv1.CreateSecretRequest) (*skepv1.SecretReply, error) {
		v, err := key.FromClient(r.Sealed, skepv1.SecretKind_SECRET_KIND_REGISTRY, r.Spec.Name, 1)
		if err != nil {
			return nil, err
		}
		o := id.New()
		kept[o] = &skepv1.SealedValue{Name: r.Spec.Name, Value: v}
		return &skepv1.SecretReply{Secret: &skepv1.Secret{Meta: &skepv1.Meta{Id: o}, Spec: r.Spec}}, nil
	})
	return kept
}

func TestWithRegistryAuth(t *testing.T) {
	d := newCluster(t).desk()
	kept := d.registries()
	if err := os.MkdirAll(filepath.Dir(d.config()), 0o700); err != nil {
		t.Fatal(err)
	}
	// base64 of me:correct horse:battery
	if err := os.WriteFile(d.config(), []byte(`{"auths":{"https://r.example.com/v1/":{"auth":"bWU6Y29ycmVjdCBob3JzZTpiYXR0ZXJ5"}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	// auth is what the last request asked for; the service is that from then on.
	auth := func() string {
		t.Helper()
		d.mu.Lock()
		defer d.mu.Unlock()
		for _, m := range slices.Backward(d.calls) {
			if r, is := m.(*skepv1.UpdateServiceRequest); is {
				d.services[0].Spec = r.Spec
				break
			}
		}
		return d.services[0].Spec.Task.Container.RegistryAuth
	}
	ok := func(args ...string) result {
		t.Helper()
		r := d.do("", args...)
		if r.code != 0 {
			t.Fatalf("%v: %+v", args, r)
		}
		return r
	}
	if r := ok("service", "create", "--name", "web", "--dry-run", "--with-registry-auth", "r.example.com/a"); len(kept) != 0 {
		t.Errorf("a dry run gave the vault something: %+v", r)
	}
	d.services = nil
	ok("service", "create", "-d", "--name", "web", "--with-registry-auth", "r.example.com/a")
	first := auth()
	if v := kept[first]; v == nil || v.Name != "r.example.com" || string(v.Value) != `{"identitytoken":"","password":"correct horse:battery","username":"me"}` {
		t.Fatalf("%q: %v", first, kept)
	}
	pulled := ""
	onNode(d.cluster, api.ImagePull.At(nodeID), func(r *skepv1.PullImageRequest) (*skepv1.PullImageReply, error) {
		pulled = r.RegistryAuth
		return &skepv1.PullImageReply{}, nil
	})
	if ok("image", "pull", "--node", nodeID, "r.example.com/a"); pulled != "" {
		t.Errorf("credentials nobody asked for: %s", pulled)
	}
	if ok("image", "pull", "--with-registry-auth", "--node", nodeID, "r.example.com/a"); kept[pulled] == nil {
		t.Errorf("pulled with %q", pulled)
	}
	// An update without the flag keeps them; one with it gives them anew.
	ok("service", "update", "-d", "--env-add", "A=1", "web")
	if auth() != first {
		t.Errorf("the credentials were lost by an update without the flag: %q", auth())
	}
	ok("service", "update", "-d", "--with-registry-auth", "web")
	if second := auth(); second == first || kept[second] == nil {
		t.Errorf("%q: %v", second, kept)
	}
	// Who has nothing for the registry does not take away what the service has.
	second := auth()
	ok("logout", "r.example.com")
	if r := ok("service", "update", "-d", "--with-registry-auth", "--image", "r.example.com/a:2", "web"); auth() != second || !strings.Contains(r.err, "no credentials for r.example.com") || !strings.Contains(r.err, "keeps") {
		t.Errorf("%+v, %q", r, auth())
	}
	if r := ok("service", "update", "-d", "--with-registry-auth", "--image", "httpd", "web"); auth() != "" || !strings.Contains(r.err, "no credentials for docker.io") {
		t.Errorf("%+v, %q", r, auth())
	}
	// Who says so takes them away (moby/moby#28179).
	d.services[0].Spec.Task.Container.RegistryAuth = second
	if ok("service", "update", "-d", "--with-registry-auth=false", "web"); auth() != "" {
		t.Errorf("the credentials are not gone: %q", auth())
	}
	// Nothing of it went over the connection in clear.
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, m := range d.calls {
		b, err := protojson.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc([]string{password, "bWU6Y29ycmVjdCBob3JzZTpiYXR0ZXJ5", "horse"}, func(s string) bool { return strings.Contains(fmt.Sprint(m)+string(b), s) }) {
			t.Errorf("a request holds the password: %s", b)
		}
	}
}

func TestRegistryFileThatCannotBeRead(t *testing.T) {
	d := newCluster(t).desk()
	if err := os.MkdirAll(filepath.Dir(d.config()), 0o700); err != nil {
		t.Fatal(err)
	}
	const text = `{"auths":{"r":{"auth":"c2VjcmV0`
	if err := os.WriteFile(d.config(), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range []string{"login -u x --password-stdin r.example.com", "logout r.example.com", "service create -d --with-registry-auth r.example.com/a"} {
		if r := d.do("x", strings.Fields(args)...); r.code != 1 || !strings.Contains(r.err, "is left as it is") || strings.Contains(r.err, "c2VjcmV0") {
			t.Errorf("%s: %+v", args, r)
		}
	}
	if b, _ := os.ReadFile(d.config()); string(b) != text {
		t.Errorf("it was changed: %s", b)
	}
}

// TestStackRegistryAuth: services that are made or changed are given credentials, one set each; the others keep theirs, so
// that the same deploy again changes nothing.
func TestStackRegistryAuth(t *testing.T) {
	d := newCluster(t).desk()
	kept := d.registries()
	d.vault = &fakeVault{}
	d.withStacks()
	if err := os.MkdirAll(filepath.Dir(d.config()), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(d.config(), []byte(`{"auths":{"r.example.com":{"auth":"bWU6Y29ycmVjdCBob3JzZTpiYXR0ZXJ5"}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	compose := func(tag string) string {
		return file(t, "services:\n  a:\n    image: r.example.com/a:1\n  b:\n    image: r.example.com/b:"+tag+"\n  c:\n    image: busybox:1\n")
	}
	auths := func() map[string]string {
		out := map[string]string{}
		for _, s := range sent[*skepv1.DeployStackRequest](d.cluster).Spec.Services {
			out[s.Name] = s.Task.Container.RegistryAuth
		}
		return out
	}
	if r := d.do("", "stack", "deploy", "--dry-run", "--with-registry-auth", "-c", compose("1"), "shop"); r.code != 0 || len(kept) != 0 {
		t.Fatalf("a dry run gave the vault %d: %+v", len(kept), r)
	}
	r := d.do("", "stack", "deploy", "-d", "--with-registry-auth", "-c", compose("1"), "shop")
	if first := auths(); r.code != 0 || len(kept) != 2 || first["shop_a"] == "" || first["shop_a"] == first["shop_b"] || first["shop_c"] != "" || strings.Count(r.err, "no credentials for docker.io") != 1 {
		t.Fatalf("%v: %+v", first, r)
	}
	// As the cluster fills in what a deploy leaves as it is.
	for _, s := range d.stacks.list[0].Spec.Services {
		s.Task.Container.RegistryAuth = ""
	}
	if r := d.do("", "stack", "deploy", "-d", "--with-registry-auth", "-c", compose("1"), "shop"); r.code != 0 || !strings.Contains(r.out, "unchanged") || len(kept) != 2 {
		t.Errorf("the same again: %d kept, %+v", len(kept), r)
	}
	if r := d.do("", "stack", "deploy", "-d", "--with-registry-auth", "-c", compose("2"), "shop"); r.code != 0 || len(kept) != 3 || auths()["shop_b"] == "" || auths()["shop_a"] != "" {
		t.Errorf("one changed: %d kept, %+v", len(kept), r)
	}
}
