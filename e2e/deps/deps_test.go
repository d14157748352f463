// Package deps holds the rules of who may import whom. They keep the services separable: one that starts to lean on another's code
// can no longer be run, tested or replaced alone.
package deps

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// pkg is what `go list -json` says of a package.
type pkg struct {
	ImportPath, Dir                    string
	GoFiles, TestGoFiles, XTestGoFiles []string
	Imports, TestImports, XTestImports []string
	Deps                               []string
}

const root = "skep.dev/"

func list(t *testing.T, patterns ...string) []pkg {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-e", "-json=ImportPath,Dir,GoFiles,TestGoFiles,XTestGoFiles,Imports,TestImports,XTestImports,Deps"}, patterns...)...)
	cmd.Dir = filepath.Join("..", "..")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %v: %v\n%s", patterns, err, errs.String())
	}
	var all []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if len(all) == 0 {
		t.Fatalf("go list %v: no packages", patterns)
	}
	return all
}

// workspace lists every package of go.work's modules.
func workspace(t *testing.T) []pkg {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "go.work"))
	if err != nil {
		t.Fatal(err)
	}
	var patterns []string
	for _, line := range strings.Split(string(b), "\n") {
		if dir := strings.TrimSpace(line); strings.HasPrefix(dir, "./") {
			patterns = append(patterns, dir+"/...")
		}
	}
	return list(t, patterns...)
}

// part is the module a package belongs to: "libs", "services/state", "e2e".
func part(importPath string) string {
	rest, ours := strings.CutPrefix(importPath, root)
	if !ours {
		return ""
	}
	words := strings.Split(rest, "/")
	if words[0] == "services" && len(words) > 1 {
		return words[0] + "/" + words[1]
	}
	return words[0]
}

// reserved are the outside packages that only some parts may import themselves.
var reserved = map[string][]string{
	"github.com/containerd/containerd/v2":    {"services/node-agent", "e2e"},
	"github.com/containerd/containerd/api":   {"services/node-agent", "e2e"},
	"github.com/vishvananda/netlink":         {"services/ingress-mesh", "e2e"},
	"github.com/google/nftables":             {"services/ingress-mesh", "e2e"},
	"github.com/coreos/go-iptables":          {"services/ingress-mesh", "e2e"},
	"github.com/nats-io/nats-server/v2":      {"services/bus", "libs", "e2e"}, // libs: kvtest only, below
	"github.com/google/go-containerregistry": {"services/node-agent", "e2e"},
}

func TestImportRules(t *testing.T) {
	for _, p := range workspace(t) {
		from := part(p.ImportPath)
		for _, imports := range [][]string{p.Imports, p.TestImports, p.XTestImports} {
			for _, imp := range imports {
				to := part(imp)
				switch {
				case to == "" || to == from:
				case to == "proto" && from != "proto", to == "libs" && from != "proto" && from != "libs":
				case from == "services/skep" && strings.HasPrefix(to, "services/"): // it assembles them
				case from == "e2e":
				default:
					t.Errorf("%s imports %s: %s may not lean on %s", p.ImportPath, imp, from, to)
				}
			}
		}
		for _, imp := range p.Imports { // tests may reach for a broker or a runtime
			for lib, may := range reserved {
				if (imp == lib || strings.HasPrefix(imp, lib+"/")) && !slices.Contains(may, from) {
					t.Errorf("%s imports %s: only %v may", p.ImportPath, imp, may)
				}
			}
		}
	}
}

// The command line starts in milliseconds because it holds neither the broker nor the container runtime.
func TestCommandLineIsLight(t *testing.T) {
	light(t, root+"services/skep/cli", "github.com/nats-io/nats-server/", "github.com/containerd/containerd/", "github.com/vishvananda/netlink")
}

// Only tests and the bus hold the server: a package of libs that pulled it in would put it into every service.
func TestLibsAreLight(t *testing.T) {
	for _, p := range list(t, "./libs/...") {
		if strings.HasSuffix(p.ImportPath, "/kvtest") {
			continue
		}
		check(t, p, "github.com/nats-io/nats-server/", "github.com/containerd/", root+"services/")
	}
}

func light(t *testing.T, importPath string, heavy ...string) {
	t.Helper()
	for _, p := range list(t, importPath) {
		check(t, p, heavy...)
	}
}

func check(t *testing.T, p pkg, heavy ...string) {
	t.Helper()
	for _, d := range p.Deps {
		for _, h := range heavy {
			if strings.HasPrefix(d, h) {
				t.Errorf("%s depends on %s", p.ImportPath, d)
			}
		}
	}
}
