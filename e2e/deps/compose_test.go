package deps

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// deploy/compose.yaml runs every service by its own program, with flags the program has, in the images that `make images` writes.
func TestComposeMatchesThePrograms(t *testing.T) {
	seen := map[string]bool{}
	file := read(t, "compose.yaml")
	probed := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^\s+(?:command: |healthcheck: \{<<: \*health, test: )(\[.*\])\}?$`).FindAllStringSubmatch(file, -1) {
		var argv []string
		if err := json.Unmarshal([]byte(m[1]), &argv); err != nil {
			t.Errorf("command %s: %v", m[1], err)
			continue
		}
		if argv[0] == "CMD" {
			argv = argv[1:]
			probed[argv[0]] = true
		}
		if argv[0] == "containerd" || argv[0] == "node" { // not ours, and the command line's own entrypoint
			continue
		}
		if !strings.HasPrefix(argv[0], "skep") {
			t.Errorf("%s is no program of skep's", argv[0])
			continue
		}
		seen[argv[0]] = true
		help := usage(t, argv[0])
		if argv[0] == "skep" {
			help = usage(t, argv[0], argv[1])
		}
		for _, a := range argv[1:] {
			if strings.HasPrefix(a, "-") && !regexp.MustCompile(`(?m)^ +(-., )?`+regexp.QuoteMeta(a)+`\b`).MatchString(help) {
				t.Errorf("%s has no flag %s:\n%s", argv[0], a, help)
			}
		}
	}
	pinned := regexp.MustCompile(`(?m)^CONTAINERD_VERSION=v(.*)$`).FindStringSubmatch(read(t, "versions.env"))
	if pinned == nil || !strings.Contains(file, "skep-containerd:${SKEP_CONTAINERD_VERSION:-"+pinned[1]+"}") {
		t.Errorf("compose.yaml does not run the containerd of versions.env: %v", pinned)
	}
	for _, bad := range []string{"privileged: true", "docker.sock"} {
		if strings.Contains(file, bad) {
			t.Errorf("compose.yaml has %q", bad)
		}
	}
	unit := read(t, "skep@.service")
	install := read(t, "install.sh")
	for _, name := range []string{"bus", "state", "scheduler", "health", "vault", "mesh", "agent", "engine"} {
		if !seen["skep-"+name] || !probed["skep-"+name] {
			t.Errorf("compose.yaml does not run skep-%s, or does not ask how it is", name)
		}
		if !strings.Contains(unit, "skep@"+name) || !strings.Contains(install, "skep-"+name) {
			t.Errorf("skep@.service does not name skep@%s, or install.sh does not install skep-%s", name, name)
		}
	}
	// The template runs them without any flag; two forms at once are refused.
	if !strings.Contains(unit, "\nExecStart=@PREFIX@/bin/skep-%i\n") || !strings.Contains(unit, "\nConflicts=skep.service\n") {
		t.Errorf("skep@.service:\n%s", unit)
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "deploy", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// usage asks a program, or one of its commands, for its flags.
func usage(t *testing.T, name string, command ...string) string {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join("..", "..", "services", "*", "cmd", name))
	if err != nil || len(dirs) != 1 {
		t.Fatalf("no program %s: %v %v", name, dirs, err)
	}
	bin := filepath.Join(t.TempDir(), name)
	if out, err := exec.Command("go", "build", "-o", bin, dirs[0]).CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", name, err, out)
	}
	out, err := exec.Command(bin, append(command, "--help")...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v --help: %v\n%s", name, command, err, out)
	}
	return string(out)
}
