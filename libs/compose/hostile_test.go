package compose

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"skep.dev/libs/fault"
	"skep.dev/libs/spec"
)

func TestNamesOfStacks(t *testing.T) {
	for _, name := range []string{"web", "Web", "my-stack_2", "A"} {
		if err := ValidateName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"", " ", "\t\n", `""`, "' '", "a b", "a/b", "a.b", "-a", "a_", "ä", "a\x00", strings.Repeat("a", 64), "*", "$(x)"} {
		if err := ValidateName(name); !fault.Is(err, fault.CodeInvalid) {
			t.Errorf("%q is taken: %v", name, err)
		}
		if _, err := load(t, svc(), func(o *Options) { o.Stack = name }); !fault.Is(err, fault.CodeInvalid) {
			t.Errorf("Load takes %q: %v", name, err)
		}
	}
	s := mustLoad(t, svc(), func(o *Options) { o.Stack = "Upper_Case" })
	if got := s.Spec.Services[0].Name; got != "Upper_Case_web" {
		t.Errorf("service %s", got)
	}
	if _, err := load(t, "services: {"+strings.Repeat("a", 62)+": {image: 'i:1'}}"); err == nil || !strings.Contains(err.Error(), "63 characters") {
		t.Errorf("a service's name of 64: %v", err)
	}
}

// Files that are no compose files, or more than one can bear: refused, at once and in little memory.
func TestBadFiles(t *testing.T) {
	many := func(n int, line string) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, line, i)
		}
		return b.String()
	}
	bomb := "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
	for i := 1; i < 30; i++ {
		bomb += fmt.Sprintf("x-a%d: &a%d [%s*a%d]\n", i, i, strings.Repeat(fmt.Sprintf("*a%d, ", i-1), 9), i-1)
	}
	merge := "x-m0: &m0 {a: 1, b: 2, c: 3}\n"
	for i := 1; i < 30; i++ {
		merge += fmt.Sprintf("x-m%d: &m%d\n  <<: [%s*m%d]\n", i, i, strings.Repeat(fmt.Sprintf("*m%d, ", i-1), 9), i-1)
	}
	chain := "x-c0: &c0 {a: 1}\n"
	for i := 1; i < 90; i++ {
		chain += fmt.Sprintf("x-c%d: &c%d {a: *c%d}\n", i, i, i-1)
	}
	for _, f := range []form{
		{name: "empty", text: "", err: []string{"stdin: it is empty"}},
		{name: "blank", text: "\n\n  \n", err: []string{"stdin: it is empty"}},
		{name: "a comment", text: "# nothing\n", err: []string{"stdin: it is empty"}},
		{name: "a word", text: "hello", err: []string{"stdin: it is no mapping"}},
		{name: "a list", text: "- a\n", err: []string{"stdin: it is no mapping"}},
		{name: "null", text: "~", err: []string{"stdin: it is no mapping"}},
		{name: "no services", text: "volumes: {x: {}}", err: []string{"there are no services"}},
		{name: "services a list", text: "services: [a]", err: []string{"stdin:1:1: services: it is a list and must be a mapping"}},
		{name: "binary", text: "\x7fELF\x02\x01\x01\x00\x00", err: []string{"it is not valid YAML"}},
		{name: "zeros", text: strings.Repeat("\x00", 100), err: []string{"stdin"}},
		{name: "no UTF-8", text: "services: {web: {image: 'i\xff'}}", err: []string{"it is not valid YAML"}},
		{name: "open bracket", text: "services: {web: {image: i", err: []string{"stdin:2:1: ", "it is not valid YAML"}},
		{name: "bad indent", text: "services:\n  web:\n    image: i\n   x: y\n", err: []string{"stdin:4:", "it is not valid YAML"}},
		{name: "unknown anchor", text: "services: *s", err: []string{"stdin:1:", "unknown anchor"}},
		{name: "key of a list", text: "? [a]\n: b\n", err: []string{"a key must be text"}},
		{name: "empty key", text: "services: {~: {image: i}}", err: []string{"a key must be text, and this is empty"}},
		{name: "a tag", text: svc("hostname: !!binary aGk="), err: []string{"binary values are not read"}},
		{name: "a foreign tag", text: svc("hostname: !foo x"), want: []string{`"hostname":"x"`}},
		{name: "5 MB", text: svc() + "# " + strings.Repeat("x", 5<<20), err: []string{"stdin: cannot read the file: it is larger than 1048576 bytes"}},
		{name: "bomb of anchors", text: bomb + svc(), err: []string{"stdin:", "with its aliases replaced it has more than 50000 values"}},
		{name: "bomb of merges", text: merge + svc("labels:\n  <<: *m29"), err: []string{"more than 50000 values"}},
		{name: "holds itself", text: "x-a: &a [*a]\n" + svc(), err: []string{"stdin:1:"}},
		{name: "merges itself", text: "x-a: &a {b: {<<: *a}}\n" + svc(), err: []string{"stdin:1:"}},
		{name: "chain of aliases", text: chain + svc(), err: []string{"it is nested deeper than 64 levels"}},
		{name: "nested lists", text: "x: " + strings.Repeat("[", 5000) + strings.Repeat("]", 5000), err: []string{"nested deeper than 64 levels"}},
		{name: "nested lists, open", text: "x: " + strings.Repeat("[", 900000), err: []string{"stdin:1:", "depth"}},
		{name: "nested maps", text: many(500, "%[1]*[1]s: \n"), err: []string{"stdin"}},
		{name: "many keys", text: "x-k:\n" + many(60000, "  k%d: 1\n") + svc(), err: []string{"more than 50000 values"}},
		{name: "many unknown keys", text: svc() + many(5000, "k%d: 1\n"), err: []string{"k1: unknown key", "and 4950 more"}},
		{name: "many labels", text: svc("labels:") + many(4000, "      l%d: v\n"), want: []string{`"l3999":"v"`}},
		{name: "many services", text: "services:\n" + many(2000, "  s%d: {image: 'i:1', depends_on: [s0]}\n"), err: []string{"s0 → s0"}},
		{name: "many ports", text: svc("ports: ['1-65000:80']"), err: []string{"it publishes more than 1000 ports"}},
		{name: "many ports, both sides", text: svc("ports: ['1-65000:1-65000']"), err: []string{"it publishes more than 1000 ports"}},
		{name: "replicas", text: svc("deploy: {replicas: 99999999999}"), err: []string{"web: invalid replicas value"}},
		{name: "negative replicas", text: svc("deploy: {replicas: -1}"), err: []string{"services.web.deploy.replicas"}},
		{name: "fraction of a replica", text: svc("deploy: {replicas: 1.5}"), err: []string{"services.web.deploy.replicas: it is a number and must be"}},
		{name: "memory", text: svc("deploy: {resources: {limits: {memory: 99999999999999999G}}}"), err: []string{"memory"}},
		{name: "negative memory", text: svc("deploy: {resources: {limits: {memory: -5M}}}"), err: []string{"memory"}},
		{name: "duration", text: svc("stop_grace_period: -5s"), err: []string{"stop-grace-period cannot be negative"}},
		{name: "huge duration", text: svc("stop_grace_period: 99999999999h"), err: []string{"stop_grace_period"}},
		{name: "cpus", text: svc("deploy: {resources: {limits: {cpus: '1e999999999'}}}"), err: []string{"it is no number of processors"}},
		{name: "cpus a fraction", text: svc("deploy: {resources: {limits: {cpus: '1/3'}}}"), err: []string{"it is no number of processors"}},
		{name: "port 0", text: svc("ports: [{target: 0}]"), err: []string{"services.web.ports.0: the port in the container must be 1 to 65535"}},
		{name: "port 70000", text: svc("ports: [{target: 80, published: '70000'}]"), err: []string{"the published port must be 1 to 65535"}},
		{name: "address", text: svc("ports: [{target: 80, host_ip: nowhere, mode: host}]"), err: []string{"\"nowhere\" is no address"}},
		{name: "mode of a file", text: svc("secrets: [{source: pw, mode: 99999}]") + "secrets: {pw: {external: true}}\n", err: []string{"services.web.secrets.0.mode: it is no mode"}},
		{name: "variable without an end", text: svc("hostname: '${X'"), err: []string{"services.web.hostname: ${ } holds no variable's name"}},
		{name: "include of a number", text: "include: 5\n" + svc(), err: []string{"stdin:1:1: include: it is a number and must be a list"}},
		{name: "extends of a list", text: svc("extends: [a]"), err: []string{"services.web.extends"}},
		{name: "extends of nobody", text: svc("extends: nobody"), err: []string{"stdin:4:", "nobody"}},
	} {
		t.Run(f.name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			start := time.Now()
			f.run(t)
			runtime.ReadMemStats(&after)
			if took, mb := time.Since(start), (after.TotalAlloc-before.TotalAlloc)>>20; took > time.Minute || mb > 1000 {
				t.Errorf("it took %v and %d MB", took, mb)
			}
		})
	}
}

// Files that are none: a pipe nobody writes to, a device without an end, a directory. Nothing waits for them.
func TestSideFilesThatAreNone(t *testing.T) {
	dir := write(t, map[string]string{
		"stack.yml":   svc("secrets: [pw]", "env_file: X") + "secrets: {pw: {file: Y}}\n",
		"inc.yml":     "include: [X]\n" + svc(),
		"ext.yml":     svc("extends: {file: X, service: web}"),
		"labels.yml":  svc("label_file: [X]"),
		"seccomp.yml": svc("security_opt: ['seccomp=X']"),
		"ok.env":      "A=1\n",
		"pw":          "hunter2",
	})
	pipe, loop := filepath.Join(dir, "pipe"), filepath.Join(dir, "loop")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	for from, to := range map[string]string{loop: loop, link: pipe, filepath.Join(dir, "good"): filepath.Join(dir, "pw")} {
		if err := os.Symlink(to, from); err != nil {
			t.Fatal(err)
		}
	}
	run := func(name, x, y string) (*Stack, error) {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		text = []byte(strings.NewReplacer(" X", " "+x, "[X", "["+x, "=X", "="+x, " Y", " "+y).Replace(string(text)))
		return Load(ctx, Options{Files: []string{"-"}, Stdin: strings.NewReader(string(text)), Dir: dir, Stack: "s"})
	}
	for _, c := range []struct{ file, want string }{
		{"pipe", "it is a pipe"}, {"link", "it is a pipe"}, {"/dev/zero", "it is a device"}, {"/dev/tty", "it is a device"}, {".", "it is a directory"}, {"loop", "symbolic links"}, {"gone", "there is no such file"},
		{"/proc/self/mem", ""}, {"/proc/kmsg", ""},
	} {
		for _, name := range []string{"stack.yml", "inc.yml", "ext.yml", "labels.yml", "seccomp.yml"} {
			if c.file == "." && name == "ext.yml" {
				continue // an empty path is a service of the same file
			}
			if c.file == "/proc/kmsg" && name != "stack.yml" {
				continue // it waits for its reader as long as readTime
			}
			_, err := run(name, c.file, "pw")
			var p Problems
			if !errors.As(err, &p) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s with %s: %v", name, c.file, err)
			}
		}
		if _, err := run("stack.yml", "ok.env", c.file); err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "secrets.pw") {
			t.Errorf("secret from %s: %v", c.file, err)
		}
	}
	if s, err := run("stack.yml", "ok.env", "good"); err != nil || string(s.Secrets[0].Data) != "hunter2" {
		t.Errorf("a link to a file: %v", err)
	}
	for _, name := range []string{"pipe", "/dev/zero", ".", "gone"} {
		if _, err := Load(context.Background(), Options{Files: []string{name}, Dir: dir, Stack: "s"}); err == nil || !strings.Contains(err.Error(), "cannot read the file") {
			t.Errorf("-c %s: %v", name, err)
		}
	}
	if _, err := Load(context.Background(), Options{Files: []string{"-", "-"}, Stdin: strings.NewReader(svc()), Stack: "s"}); err == nil {
		t.Error("- twice is taken")
	}
	if _, err := Load(context.Background(), Options{Stack: "s"}); !fault.Is(err, fault.CodeInvalid) {
		t.Errorf("no file: %v", err)
	}
}

// No value of a secret, of a variable or of an env file is in an error, a note, or what prints.
func TestValuesStaySecret(t *testing.T) {
	const value = "hunter2-Zq"
	dir := write(t, map[string]string{
		"big": strings.Repeat(value, spec.MaxSecret/len(value)+1), "empty": "", "pw": value, "bad.env": "A B=" + value + "\nexport X=" + value + "\n",
		"dot.env": "PW=\"" + value + "\n", "ok.env": "PW=" + value + "\n", "bytes": "\ufeff" + value + "\xff\r\n",
	})
	for _, f := range []form{
		{text: svc() + "secrets: {pw: {file: big}}\n", err: []string{"secrets.pw.file: cannot read big: it is larger than 512000 bytes"}},
		{text: svc() + "secrets: {pw: {file: empty}}\n", err: []string{"secrets.pw: its value has 0 bytes"}},
		{text: svc() + "secrets: {pw: {environment: PW, file: pw}}\n", err: []string{"the secret has 2 sources"}},
		{text: svc() + "secrets: {pw: {environment: GONE}}\n", err: []string{"secrets.pw.environment: the variable GONE is not set"}},
		{text: svc() + "secrets: {'a b': {environment: PW}}\n", err: []string{"secrets"}},
		{text: svc() + "secrets: {pw: {environment: PW, template_driver: python}}\n", err: []string{"unknown template driver"}},
		{text: svc("env_file: bad.env"), err: []string{"bad.env:1:1"}},
		{text: svc("environment: {A: '${PW}${'}"), err: []string{"services.web.environment.A"}},
		{text: svc("deploy: {replicas: '${PW}'}"), err: []string{"services.web.deploy.replicas"}},
		{text: svc("hostname: '${PW} '"), err: []string{"services.web: invalid hostname"}},
		{text: svc("image: '${PW}/X'"), err: []string{""}},
		{text: svc("ports: ['${PW}:80']"), err: []string{"services.web.ports.0"}},
		{text: svc("volumes: ['${PW}:${PW}:${PW}:x']"), err: []string{"services.web.volumes.0"}},
		{text: svc("environment: [A, 'B=${PW}']", "healthcheck: {interval: '${PW}'}"), err: []string{"services.web.healthcheck.interval"}},
		{text: svc("deploy: {resources: {limits: {memory: '${PW}'}}}"), err: []string{"memory"}},
	} {
		_, err := load(t, f.text, func(o *Options) { o.Dir, o.Env = dir, []string{"PW=" + value} })
		if err == nil {
			t.Errorf("accepted\n%s", f.text)
			continue
		}
		if !strings.Contains(err.Error(), f.err[0]) {
			t.Errorf("%v\nwant %s", err, f.err[0])
		}
		if strings.Contains(err.Error(), value) {
			t.Errorf("it tells the value: %v\n%s", err, f.text)
		}
	}
	if _, err := load(t, svc(), func(o *Options) { o.Dir, o.EnvFiles = dir, []string{"dot.env"} }); err == nil || strings.Contains(err.Error(), value) {
		t.Errorf("an env file that is none: %v", err)
	}
	s := mustLoad(t, svc("secrets: [pw]")+"secrets: {pw: {environment: PW}, b: {file: bytes}}\nconfigs: {c: {environment: PW}}\n", func(o *Options) { o.Dir, o.EnvFiles = dir, []string{"ok.env"} })
	out, err := Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if text := string(out) + fmt.Sprintf("%v %+v %#v %s", s.Secrets, s.Secrets, s.Secrets, s.Configs) + notesOf(s) + s.Spec.String(); strings.Contains(text, value) {
		t.Errorf("it prints the value: %s", text)
	}
	// Bytes are bytes.
	if got := string(s.Secrets[0].Data); got != "\ufeff"+value+"\xff\r\n" {
		t.Errorf("the value is %q", got)
	}
}
