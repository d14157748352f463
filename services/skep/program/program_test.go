package program

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"skep.dev/libs/fault"
)

// made builds a program of one file that calls itself the module's command.
func made(t *testing.T, module, body string) string {
	t.Helper()
	dir := t.TempDir()
	src := "package main\n\nimport (\n\t\"fmt\"\n\t\"os\"\n\t\"path/filepath\"\n\t\"time\"\n)\n\nfunc main() {\n" + body + "\n\t_, _, _, _ = fmt.Print, os.Args, time.Now, filepath.Base\n}\n"
	for name, text := range map[string]string{"go.mod": "module " + module + "\n\ngo 1.24\n", "cmd/skep/main.go": src} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("go", "build", "-o", "skep", "./cmd/skep")
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "GOWORK=off", "CGO_ENABLED=0", "GOFLAGS=-mod=mod -buildvcs=false")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return filepath.Join(dir, "skep")
}

// ours is a skep that behaves as the name it is called by says.
const ours = `switch name := filepath.Base(os.Args[0]); name {
	case "fails":
		fmt.Fprintln(os.Stderr, "no such\x1b[2J machine")
		os.Exit(3)
	case "silent":
	case "blank":
		fmt.Println("{\"Client\":{\"Version\":\"1 2\"}}")
	case "endless":
		for {
			if _, err := fmt.Println("0123456789"); err != nil {
				os.Exit(1)
			}
		}
	case "hangs":
		time.Sleep(time.Hour)
	case "good":
		if os.Getenv("SECRET") == "" {
			fmt.Println("[{\"Client\":{\"Version\":\"1.2.3\",\"Os\":\"linux\",\"Arch\":\"" + os.Args[1] + "\"}}]")
		}
	}`

func TestRead(t *testing.T) {
	marker := filepath.Join(t.TempDir(), "ran")
	built := made(t, "skep.dev/services/skep", ours)
	called := func(name string) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.Link(built, path); err != nil {
			t.Fatal(err)
		}
		return path
	}
	foreign := filepath.Join(t.TempDir(), "foreign")
	b, err := os.ReadFile(built)
	if err == nil {
		b[18], b[19] = 0x28, 0x01 // the machine in its header: one that Go does not know either
		err = os.WriteFile(foreign, b, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ file, want string }{
		"a shell":              {"/bin/sh", "/bin/sh is not skep"},
		"nothing":              {filepath.Join(t.TempDir(), "none"), "no such file"},
		"a folder":             {t.TempDir(), "is no file"},
		"another program":      {made(t, "example.com/skep", "os.WriteFile(`"+marker+"`, nil, 0o600)"), "is not skep"},
		"it fails":             {called("fails"), "does not start here: exit status 3: no such"},
		"it says nothing":      {called("silent"), "does not say its version"},
		"it says no version":   {called("blank"), "does not say its version"},
		"it talks and talks":   {called("endless"), "does not start here"},
		"of another processor": {foreign, "is skep for another kind of machine"},
	} {
		b, err := Read(t.Context(), c.file)
		if err == nil || !strings.Contains(err.Error(), c.want) || fault.Of(err) != fault.CodeInvalid {
			t.Errorf("%s: %+v, %v; want %q", name, b, err, c.want)
		}
	}
	if _, err := os.Stat(marker); err == nil {
		t.Error("a program that is not skep was run")
	}
	t.Setenv("SECRET", "x") // nothing of our environment reaches it
	good, err := Read(t.Context(), called("good"))
	if err != nil || good.Version != "1.2.3" || good.OS != "linux" || good.Arch != "version" || good.Size == 0 {
		t.Errorf("%+v %v", good, err)
	}
	// One that hangs ends with who asks.
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := Read(ctx, called("hangs")); err == nil || !strings.Contains(err.Error(), "does not say its version within") {
		t.Errorf("one that hangs: %v", err)
	}
}
