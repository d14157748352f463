package logfile

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"skep.dev/libs/leaktest"
)

const child = "SKEP_LOGFILE_CHILD"

// TestMain: what is bounded is the standard error of a process, so it takes one.
func TestMain(m *testing.M) {
	switch os.Getenv(child) {
	case "":
		leaktest.Main(m)
	case "panic":
		w := New(os.Stderr, 64<<10, 3)
		for i := range 10_000 {
			fmt.Fprintf(w, "line %06d %s\n", i, strings.Repeat("x", 100))
		}
		fmt.Println("on standard output")
		panic("the end")
	}
}

func run(t *testing.T, f *os.File) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), child+"=panic")
	cmd.Stdout, cmd.Stderr = f, f
	if err := cmd.Run(); err == nil {
		t.Fatal("the child did not panic")
	}
}

func open(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// 1.1 MB of lines into a log of 64 KB and three old files; a panic is in the newest.
func TestTheLogOfAProcessIsBounded(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "skep.log")
	run(t, open(t, path))
	var all []byte
	for _, name := range []string{"skep.log.3", "skep.log.2", "skep.log.1", "skep.log"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if len(b) > 64<<10 || len(b) == 0 {
			t.Errorf("%s has %d bytes", name, len(b))
		}
		if st, err := os.Stat(filepath.Join(dir, name)); err != nil || st.Mode() != 0o600 {
			t.Errorf("%s: %v, %v", name, st.Mode(), err)
		}
		all = append(all, b...)
	}
	if e, err := os.ReadDir(dir); err != nil || len(e) != 4 {
		t.Errorf("%d files, %v", len(e), err)
	}
	for _, want := range []string{"line 009999", "on standard output", "panic: the end"} {
		if !bytes.Contains(all, []byte(want)) {
			t.Errorf("%q is in none of the files", want)
		}
	}
	// Nothing is lost between two files.
	lines := bytes.Split(all[:bytes.Index(all, []byte("on standard"))], []byte("\n"))
	var first int
	if _, err := fmt.Sscanf(string(lines[0]), "line %d", &first); err != nil {
		t.Fatalf("%q: %v", lines[0], err)
	}
	for i, l := range lines[:len(lines)-1] {
		if !bytes.HasPrefix(l, fmt.Appendf(nil, "line %06d ", first+i)) {
			t.Fatalf("line %d of the rest is %q", first+i, l)
		}
	}
}

// Nobody may rename in the directory: the bound holds all the same.
func TestALogThatCannotBeTurnedOverIsEmptied(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "skep.log")
	f := open(t, path)
	if err := os.MkdirAll(filepath.Join(path+".1", "in", "the", "way"), 0o700); err != nil {
		t.Fatal(err)
	}
	run(t, f)
	b, err := os.ReadFile(path)
	if err != nil || len(b) > 64<<10 || !bytes.Contains(b, []byte("panic: the end")) {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	if !bytes.Contains(b, []byte("keep the log small: rename")) {
		t.Error("why is not said")
	}
}

func TestOnlyRegularFilesAreBounded(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if New(w, 1, 1) != w {
		t.Error("a pipe is bounded")
	}
}

func TestAFileOfAnotherProcessIsEmptied(t *testing.T) {
	path := filepath.Join(t.TempDir(), "containerd.log")
	if err := Empty(path, 10); err != nil {
		t.Fatalf("no file: %v", err)
	}
	theirs := open(t, path)
	fmt.Fprint(theirs, "12345")
	if err := Empty(path, 10); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(theirs, "6789abcdefghi")
	if err := Empty(path, 10); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(theirs, "new")
	for name, want := range map[string]string{path: "new", path + ".1": "9abcdefghi"} {
		if b, err := os.ReadFile(name); err != nil || string(b) != want {
			t.Errorf("%s is %q, %v", name, b, err)
		}
	}
}
