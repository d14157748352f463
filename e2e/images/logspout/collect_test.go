package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"skep.dev/libs/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func TestCollect(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) {
		t.Helper()
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(p, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString(content); err != nil {
			t.Fatal(err)
		}
	}
	var heard []string
	c := collector{dir: dir, self: "me", at: map[string]int64{}, hear: func(l string) { heard = append(heard, l) }}
	write("t1/etc/hostname", "web\n")
	write("t1/logs/00000001.log", "12 p 34 56\n100 o hello | world\n200 e ouch\n300 o half")
	write("t2/logs/00000001.log", "100 o no name\n")
	write("t3/etc/hostname", "me\n")
	write("t3/logs/00000001.log", "100 o my own\n")
	c.collect()
	write("t1/logs/00000001.log", " a line\n")
	write("t1/logs/00000002.log", "400 o rotated\n")
	c.collect()
	c.collect()
	want := []string{"web|hello | world\n", "web|ouch\n", "t2|no name\n", "web|half a line\n", "web|rotated\n"}
	if !slices.Equal(heard, want) {
		t.Errorf("%q, want %q", heard, want)
	}
}
