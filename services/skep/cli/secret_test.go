package cli

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/pki"
	"skep.dev/libs/pki/pkitest"
	"skep.dev/libs/seal"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/golden"
)

// fakeVault keeps secrets and configs for a fake cluster; its keys and what is sealed to them are real.
type fakeVault struct {
	ca      *pki.CA
	key     *seal.Key
	public  *skepv1.VaultKey
	objects []*skepv1.Secret
	values  map[string][][]byte // by id, versions from 1
	rolled  []string
	lost    []*skepv1.SecretUse
}

func (c *cluster) authority(context.Context) (*x509.Certificate, error) {
	if c.vault == nil {
		return nil, errors.New("no daemon runs here")
	}
	return c.vault.ca.Cert, nil
}

func (v *fakeVault) find(k skepv1.SecretKind, ref string) (*skepv1.Secret, error) {
	for _, s := range v.objects {
		if s.Kind == k && (s.Spec.Name == ref || s.Meta.Id == ref) {
			return s, nil
		}
	}
	return nil, fault.NotFound("no such %s: %s", spec.KindWord(k), ref)
}

func (v *fakeVault) add(s *skepv1.Secret, value []byte) {
	at := timestamppb.New(testNow.Add(-time.Hour))
	v.values[s.Meta.Id] = append(v.values[s.Meta.Id], value)
	s.Versions = append(s.Versions, &skepv1.SecretVersion{Number: uint64(len(s.Versions) + 1), CreatedAt: at, Author: "root", Size: uint64(len(value))})
	s.Meta.CreatedAt, s.Meta.UpdatedAt = at, timestamppb.New(testNow.Add(-time.Minute))
	s.Meta.Version++
}

// withSecrets adds the vault: pw with two versions, tls, and a config.
func (c *cluster) withSecrets() *cluster {
	c.t.Helper()
	v := &fakeVault{ca: pkitest.NewCA(c.t), values: map[string][][]byte{}}
	var err error
	if v.key, err = seal.NewKey(); err != nil {
		c.t.Fatal(err)
	}
	if v.public, err = v.key.Public(v.ca); err != nil {
		c.t.Fatal(err)
	}
	c.vault = v
	for _, o := range []struct{ kind, name, value string }{{"secret", "pw", "one"}, {"secret", "tls", "k"}, {"config", "web.conf", "listen=80"}} {
		s := &skepv1.Secret{Meta: &skepv1.Meta{Id: (strings.ReplaceAll(o.name, ".", "") + strings.Repeat("0", 25))[:25]}, Kind: skepv1.SecretKind_SECRET_KIND_SECRET, Spec: &skepv1.SecretSpec{Name: o.name, Labels: map[string]string{"env": "test"}}}
		if o.kind == "config" {
			s.Kind = skepv1.SecretKind_SECRET_KIND_CONFIG
		}
		v.add(s, []byte(o.value))
		v.objects = append(v.objects, s)
	}
	v.add(v.objects[0], []byte("two"))
	v.objects[0].Uses = []*skepv1.SecretUse{
		{ServiceName: "db", Version: 2, Holders: []*skepv1.SecretHolder{{TaskName: "db.1", NodeHostname: "w1", Version: 1}}},
		{ServiceName: "old", Revisions: []uint64{1, 3}}, {ServiceName: "pins", Version: 1, Pinned: true},
	}
	serve(c, c.rs, api.VaultKey, func(*skepv1.Empty) (*skepv1.VaultKey, error) { return v.public, nil })
	v.serve(c, aSecret)
	v.serve(c, aConfig)
	c.flush()
	return c
}

func (v *fakeVault) serve(c *cluster, k secretKind) {
	serve(c, c.rs, k.create, func(r *skepv1.CreateSecretRequest) (*skepv1.SecretReply, error) {
		value, err := v.key.FromClient(r.Sealed, k.kind, r.Spec.Name, 1)
		if err != nil {
			return nil, fault.Invalid("%v", err)
		}
		if _, err := v.find(k.kind, r.Spec.Name); err == nil {
			return nil, fault.Conflict("%s %s already exists", k.word, r.Spec.Name)
		}
		s := &skepv1.Secret{Meta: &skepv1.Meta{Id: ("new" + r.Spec.Name + strings.Repeat("0", 25))[:25]}, Kind: k.kind, Spec: r.Spec}
		v.add(s, value)
		v.objects = append(v.objects, s)
		return &skepv1.SecretReply{Secret: s}, nil
	})
	serve(c, c.rs, k.update, func(r *skepv1.UpdateSecretRequest) (*skepv1.SecretReply, error) {
		s, err := v.find(k.kind, r.Ref)
		if err != nil {
			return nil, err
		}
		switch {
		case len(r.Sealed) > 0:
			value, err := v.key.FromClient(r.Sealed, k.kind, s.Spec.Name, uint64(len(s.Versions)+1))
			if err != nil {
				return nil, fault.Invalid("%v", err)
			}
			if list := v.values[s.Meta.Id]; r.IfChanged && bytes.Equal(list[len(list)-1], value) {
				return &skepv1.SecretReply{Secret: s, Unchanged: true}, nil
			}
			if r.DryRun {
				s = proto.CloneOf(s)
				s.Versions = append(s.Versions, &skepv1.SecretVersion{Number: newest(s).GetNumber() + 1})
				return &skepv1.SecretReply{Secret: s}, nil
			}
			v.add(s, value)
		case r.RollbackTo != 0:
			if r.RollbackTo > uint64(len(s.Versions)) {
				return nil, fault.Invalid("%s %s has no version %d", k.word, s.Spec.Name, r.RollbackTo)
			}
			v.add(s, v.values[s.Meta.Id][r.RollbackTo-1])
			newest(s).RollbackTo = r.RollbackTo
		}
		return &skepv1.SecretReply{Secret: s, Rolled: v.rolled}, nil
	})
	serve(c, c.rs, k.remove, func(r *skepv1.RemoveSecretRequest) (*skepv1.RemoveSecretReply, error) {
		s, err := v.find(k.kind, r.Ref)
		if err != nil {
			return nil, err
		}
		if s.Spec.Name == "pw" && !r.Force {
			return nil, fault.Invalid("secret 'pw' is in use by the following service: db")
		}
		v.objects = slices.DeleteFunc(v.objects, func(x *skepv1.Secret) bool { return x == s })
		return &skepv1.RemoveSecretReply{Secret: s, Lost: v.lost}, nil
	})
	serve(c, c.rs, k.inspect, func(r *skepv1.InspectSecretRequest) (*skepv1.InspectSecretReply, error) {
		s, err := v.find(k.kind, r.Ref)
		out := &skepv1.InspectSecretReply{Secret: s}
		if err == nil && r.Reader != "" {
			list := v.values[s.Meta.Id]
			out.Sealed, err = v.key.To(r.Reader, &skepv1.SealedValue{Kind: k.kind, Name: s.Spec.Name, Value: list[len(list)-1]})
		}
		return out, err
	})
	serve(c, c.rs, k.list, func(*skepv1.ListSecretsRequest) (*skepv1.ListSecretsReply, error) {
		out := &skepv1.ListSecretsReply{}
		for _, s := range v.objects {
			if s.Kind == k.kind {
				out.Secrets = append(out.Secrets, s)
			}
		}
		return out, nil
	})
}

// stored is the newest value of an object by name.
func (c *cluster) stored(name string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.vault.objects {
		if s.Spec.Name == name {
			list := c.vault.values[s.Meta.Id]
			return string(list[len(list)-1])
		}
	}
	return "none"
}

// pipe runs a command with something on its standard input.
func (c *cluster) pipe(in string, args ...string) result {
	var out, errs safeBuffer
	env := c.env(&out, &errs)
	env.In = strings.NewReader(in)
	code := Main(c.t.Context(), env, args)
	return result{code, out.String(), errs.String()}
}

func TestSecretSession(t *testing.T) {
	c := newCluster(t).withSecrets()
	golden.Check(t, "secret", session(c,
		"secret ls", "secret list -q", "secret ls --format {{.ID}}:{{.Name}}:{{.Driver}}:{{.Version}}:{{.Labels}}", "secret ls --format json", "secret ls --filter nope=1", "config ls",
		"secret inspect pw", "secret inspect --pretty pw", "secret inspect -f {{.Spec.Name}} pw tls nope", "secret inspect --json tls",
		"config inspect web.conf", "config inspect --pretty web.conf", "secret history pw", "secret history -q pw",
		"secret rollback pw", "secret rollback pw 9", "secret rollback pw x", "secret rollback pw 0", "secret rollback tls", "secret history pw",
		"secret update --label-add a=b --label-rm env pw", "secret rm pw tls nope", "secret ls", "secret rm -f pw", "config rm web.conf", "config ls",
		"secret create", "secret create a b c", "secret create --driver vault a -", "secret create bad/name -", "secret create x", "secret create --random 7 x", "secret create --random 9 x /etc/passwd",
		"secret create x /no/such/file", "secret create --template-driver jinja x -", "config create x -", "secret create -l =v x -",
	))
}

// Bytes are bytes: nothing is added to them, taken away or understood.
func TestValuesAreBytes(t *testing.T) {
	c := newCluster(t).withSecrets()
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	for i, value := range []string{"plain", "with newline\n", "\n", "\r\n", "a\r\nb\r\n", "\ufeffbom", "\x00", "a\x00b\x00", string(all), " spaces ", "\xff\xfe invalid UTF-8", strings.Repeat("x", spec.MaxSecret-1)} {
		for _, k := range []string{"secret", "config"} {
			piped, filed := fmt.Sprintf("%s-p%dx", k, i), fmt.Sprintf("%s-f%dx", k, i)
			if r := c.pipe(value, k, "create", piped, "-"); r.code != 0 || c.stored(piped) != value {
				t.Errorf("%s: %.40q from a pipe is %.40q: %s", k, value, c.stored(piped), r.err)
			}
			path := filepath.Join(t.TempDir(), "value")
			if err := os.WriteFile(path, []byte(value), 0o600); err != nil {
				t.Fatal(err)
			}
			if r := c.run(k, "create", filed, path); r.code != 0 || c.stored(filed) != value {
				t.Errorf("%s: %.40q from a file is %.40q: %s", k, value, c.stored(filed), r.err)
			}
			if r := c.run(k, "update", piped, path); r.code != 0 || c.stored(piped) != value {
				t.Errorf("%s: %.40q by an update is %.40q: %s", k, value, c.stored(piped), r.err)
			}
		}
	}
	// The clear value was in none of the requests.
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.calls {
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte("with newline")) || bytes.Contains(b, []byte("plain")) {
			t.Errorf("in clear in a %T", m)
		}
	}
}

func TestValuesThatAreRefused(t *testing.T) {
	c := newCluster(t).withSecrets()
	large, empty := filepath.Join(t.TempDir(), "large"), filepath.Join(t.TempDir(), "empty")
	for path, size := range map[string]int{large: 501 << 10, empty: 0} {
		if err := os.WriteFile(path, bytes.Repeat([]byte("x"), size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const tooLarge, tooLargeConfig = "secret data must be larger than 0 and less than 512000 bytes", "config data must be larger than 0 and less than 1024000 bytes"
	for _, x := range []struct {
		in   string
		args string
		want string
	}{
		{"", "secret create x -", "error reading from STDIN: data is empty"},
		{"", "config create x -", "error reading from STDIN: data is empty"},
		{"", "secret update pw -", "error reading from STDIN: data is empty"},
		{"", "secret create x " + empty, tooLarge},
		{"", "secret create x " + large, tooLarge},
		{strings.Repeat("x", 501<<10), "secret create x -", tooLarge},
		{strings.Repeat("x", spec.MaxSecret), "secret create x -", tooLarge},
		{strings.Repeat("x", spec.MaxConfig), "config create x -", tooLargeConfig},
		{"v", "secret create x " + t.TempDir(), "is a directory"},
		{"v", "secret create pw -", "secret pw already exists"},
		{"v", "secret update nope -", "no such secret: nope"},
	} {
		r := c.pipe(x.in, strings.Fields(x.args)...)
		if r.code == 0 || r.out != "" || !strings.Contains(r.err, x.want) {
			t.Errorf("%s: %d %q %q, want %q", x.args, r.code, r.out, r.err, x.want)
		}
	}
	if got := c.stored("x"); got != "none" {
		t.Errorf("x was made: %.20q", got)
	}
	if got := c.stored("pw"); got != "two" {
		t.Errorf("pw is %q", got)
	}
	if r := c.run("config", "create", "c501", large); r.code != 0 || len(c.stored("c501")) != 501<<10 {
		t.Errorf("a config of 501 KiB: %v", r)
	}
}

func TestRandomValues(t *testing.T) {
	c := newCluster(t).withSecrets()
	seen := map[string]bool{}
	for i := range 20 {
		name := fmt.Sprintf("r%d", i)
		r := c.run("secret", "create", "--random", "32", "-l", "a=b", "-l", "c", name)
		v := c.stored(name)
		if r.code != 0 || len(v) != 32 || seen[v] || strings.Trim(v, letters) != "" || strings.Contains(r.out+r.err, v) {
			t.Errorf("%q: %v", v, r)
		}
		seen[v] = true
	}
	if s := sent[*skepv1.CreateSecretRequest](c).Spec; s.Labels["a"] != "b" || len(s.Labels) != 2 {
		t.Errorf("labels %v", s.Labels)
	}
}

// What is typed ends before the line's end and is not shown.
func TestAValueThatIsTyped(t *testing.T) {
	c := newCluster(t).withSecrets()
	x := newTerminal(t)
	var out, errs safeBuffer
	env := c.env(&out, &errs)
	env.In = x.tty
	before := x.mode(t)
	done := make(chan int, 1)
	go func() { done <- Main(t.Context(), env, []string{"secret", "create", "typed", "-"}) }()
	await(t, func() bool {
		return strings.Contains(errs.String(), "Value of the secret (it is not shown): ") && x.mode(t) != before
	})
	if _, err := x.master.WriteString("hunter2 é\n"); err != nil {
		t.Fatal(err)
	}
	if code := <-done; code != 0 || c.stored("typed") != "hunter2 é" {
		t.Errorf("%d: %q %s", code, c.stored("typed"), errs.String())
	}
	if strings.Contains(x.out.String()+out.String()+errs.String(), "hunter2") {
		t.Error("it was shown")
	}
	if x.mode(t) != before {
		t.Error("the terminal was left in another mode")
	}
}

// Ctrl-C ends the question as it ends other commands, and leaves the terminal as it was.
func TestAValueThatIsNotTyped(t *testing.T) {
	c := newCluster(t).withSecrets()
	x := newTerminal(t)
	var out, errs safeBuffer
	env := c.env(&out, &errs)
	env.In = x.tty
	before := x.mode(t)
	ctx, interrupt := context.WithCancel(t.Context())
	done := make(chan int, 1)
	go func() { done <- Main(ctx, env, []string{"secret", "create", "typed", "-"}) }()
	await(t, func() bool { return x.mode(t) != before })
	interrupt()
	if code := <-done; code == 0 || c.stored("typed") != "none" {
		t.Errorf("%d: %q %s", code, c.stored("typed"), errs.String())
	}
	if x.mode(t) != before {
		t.Error("the terminal was left in another mode")
	}
}

// A value is sealed to no key that the cluster's CA does not vouch for.
func TestAKeyThatIsNotTheVaults(t *testing.T) {
	c := newCluster(t).withSecrets()
	other, err := seal.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	forged, err := other.Public(pkitest.NewCA(t))
	if err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	c.vault.public = forged
	c.mu.Unlock()
	r := c.pipe("v", "secret", "create", "x", "-")
	if r.code != 1 || !strings.Contains(r.err, "this cluster's CA does not vouch for it") || c.stored("x") != "none" {
		t.Errorf("%v", r)
	}
	if r := c.run("config", "inspect", "web.conf"); r.code != 1 || !strings.Contains(r.err, "does not vouch") || strings.Contains(r.out, "listen") {
		t.Errorf("%v", r)
	}
}

func TestSecretsOfAViewer(t *testing.T) {
	c := newCluster(t).withSecrets()
	c.on = func(m proto.Message) error {
		if r, is := m.(*skepv1.InspectSecretRequest); is && r.Reader != "" {
			return fault.Denied("viewers see no values")
		}
		return nil
	}
	r := c.run("config", "inspect", "--pretty", "web.conf")
	if r.code != 0 || !strings.Contains(r.out, "web.conf") || strings.Contains(r.out, "Data:") {
		t.Errorf("%v", r)
	}
	// Names alone.
	c.poison = func(m proto.Message) {
		if l, is := m.(*skepv1.ListSecretsReply); is {
			for i, s := range l.Secrets {
				l.Secrets[i] = &skepv1.Secret{Meta: &skepv1.Meta{Id: s.Meta.Id}, Kind: s.Kind, Spec: &skepv1.SecretSpec{Name: s.Spec.Name}}
			}
		}
	}
	if r := c.run("secret", "ls"); r.code != 0 || !strings.Contains(r.out, "pw") || strings.Contains(r.out, "1970") {
		t.Errorf("%v", r)
	}
}

func TestSecretCompletion(t *testing.T) {
	c := newCluster(t).withSecrets()
	for line, want := range map[string]string{"secret inspect": "pw tls", "secret rm": "pw tls", "secret update": "pw tls", "secret history": "pw tls", "config rollback": "web.conf"} {
		r := c.run(append(append([]string{"__complete"}, strings.Fields(line)...), "")...)
		if got := strings.Join(strings.Fields(strings.Split(r.out, ":")[0]), " "); got != want {
			t.Errorf("%s: Tab offers %q, want %q", line, got, want)
		}
	}
}
