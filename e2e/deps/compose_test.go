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

// deploy/compose.yaml runs every service by its own program, with flags the program has.
func TestComposeMatchesThePrograms(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("..", "..", "deploy", "compose.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^\s+command: (\[.*\])$`).FindAllStringSubmatch(string(b), -1) {
		var argv []string
		if err := json.Unmarshal([]byte(m[1]), &argv); err != nil {
			t.Errorf("command %s: %v", m[1], err)
			continue
		}
		if !strings.HasPrefix(argv[0], "skep-") {
			continue
		}
		seen[argv[0]] = true
		help := usage(t, argv[0])
		for _, a := range argv[1:] {
			if strings.HasPrefix(a, "-") && !regexp.MustCompile(`(?m)^  `+regexp.QuoteMeta(a)+`\b`).MatchString(help) {
				t.Errorf("%s has no flag %s:\n%s", argv[0], a, help)
			}
		}
	}
	for _, name := range []string{"skep-bus", "skep-state", "skep-scheduler", "skep-health", "skep-vault", "skep-mesh", "skep-agent"} {
		if !seen[name] {
			t.Errorf("compose.yaml does not run %s", name)
		}
	}
}

// usage asks a service's program for its flags.
func usage(t *testing.T, name string) string {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join("..", "..", "services", "*", "cmd", name))
	if err != nil || len(dirs) != 1 {
		t.Fatalf("no program %s: %v %v", name, dirs, err)
	}
	bin := filepath.Join(t.TempDir(), name)
	if out, err := exec.Command("go", "build", "-o", bin, dirs[0]).CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", name, err, out)
	}
	out, err := exec.Command(bin, "-help").CombinedOutput()
	if err != nil {
		t.Fatalf("%s -help: %v\n%s", name, err, out)
	}
	return string(out)
}
