package compose

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// write makes files in a new folder, which it returns.
func write(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// load reads one file named stack.yml, with the side files given.
func load(t testing.TB, text string, more ...func(*Options)) (*Stack, error) {
	t.Helper()
	o := Options{Files: []string{"-"}, Stdin: strings.NewReader(text), Dir: t.TempDir(), Stack: "s"}
	for _, f := range more {
		f(&o)
	}
	return Load(context.Background(), o)
}

func mustLoad(t testing.TB, text string, more ...func(*Options)) *Stack {
	t.Helper()
	s, err := load(t, text, more...)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return s
}

func TestSmoke(t *testing.T) {
	s := mustLoad(t, `version: "3.8"
services:
  web:
    image: nginx:1.25
    command: srv --url http://h/?a=1&b=2 $${X} ${Y:-a:b}
    ports: ["80:80", "8000-8002:8000"]
    volumes: ["data:/data", "./x:/x:ro"]
    secrets: [pw]
    environment: {A: 1, B: yes, D: 2024-01-02}
    deploy:
      replicas: 2
      resources: {limits: {cpus: "0.1", memory: 64M}}
volumes: {data: }
secrets: {pw: {environment: PW}}
`, func(o *Options) { o.Env = []string{"PW=hunter2"} })
	for _, n := range s.Notes {
		t.Log(n)
	}
	t.Log(s.Spec)
	out, err := Marshal(s)
	t.Log(string(out), err)
	_, err = load(t, `services:
  web:
    imag: nginx
    ports: [1: 2]
    deploy:
      replicas: many
      env_file: x
  db:
    image: x:y
    privileged: true
    environment: {A: "${FOO:?set it}", B: "${ }"}
foo: bar
`)
	t.Log(err)
}
