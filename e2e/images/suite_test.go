package images

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// release is a suite whose programs are one static program, on a Debian of one file.
func release(t *testing.T) (Inputs, Release) {
	t.Helper()
	in := inputs(t)
	main := filepath.Join(t.TempDir(), "main.go")
	if err := os.WriteFile(main, []byte("package main\n\nfunc main() {}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(in.Bin, "program")
	build := exec.Command("go", "build", "-o", program, main)
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	names := append([]string{"skep", "skep-agent", "skep-mesh", "skep-init", "containerd", "containerd-shim-runc-v2", "runc"}, suitePrograms...)
	for _, n := range names {
		if err := os.Link(program, filepath.Join(in.Bin, n)); err != nil {
			t.Fatal(err)
		}
	}
	var system bytes.Buffer
	raw, err := files{"usr/sbin/iptables": {content: []byte("x"), mode: 0o755}}.tar()
	if err != nil {
		t.Fatal(err)
	}
	z := gzip.NewWriter(&system)
	if _, err := z.Write(raw); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(in.Cache, "node-"+in.Suite+"-"+nodeSystem.recipe+".tar.gz"), system.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	roots := t.TempDir()
	if err := os.WriteFile(filepath.Join(roots, "a.crt"), []byte("-----BEGIN CERTIFICATE-----\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return in, Release{Version: "1.2.3", Commit: "abc", Containerd: "2.0.0", Tools: in.Bin, CertificatesFolder: roots}
}

// The suite's archives are the same bytes each time, name their images for every docker load, and run as who they should.
func TestSuite(t *testing.T) {
	in, r := release(t)
	var before []byte
	for range 2 {
		imgs, err := Suite(context.Background(), in, r)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "suite.tar")
		if err := WriteArchive(file, imgs...); err != nil {
			t.Fatal(err)
		}
		now, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if before != nil && !bytes.Equal(before, now) {
			t.Error("the same programs gave other bytes")
		}
		before = now
		list, err := exec.Command("tar", "-xOf", file, "manifest.json").Output()
		if err != nil {
			t.Fatal(err)
		}
		var docker []dockerImage
		if err := json.Unmarshal(list, &docker); err != nil || len(docker) != 3 {
			t.Fatalf("manifest.json: %v %s", err, list)
		}
		for i, want := range []string{"skep-suite:1.2.3", "skep-node:1.2.3", "skep-containerd:2.0.0"} {
			if len(docker[i].RepoTags) != 1 || docker[i].RepoTags[0] != want {
				t.Errorf("image %d is %v, want %s", i, docker[i].RepoTags, want)
			}
			for _, blob := range append(docker[i].Layers, docker[i].Config) {
				if err := exec.Command("tar", "-tf", file, blob).Run(); err != nil {
					t.Errorf("%s names %s, which is not in the archive", want, blob)
				}
			}
			config, err := imgs[i].ConfigFile()
			if err != nil {
				t.Fatal(err)
			}
			if l := config.Config.Labels; l["org.opencontainers.image.version"] == "" || l["org.opencontainers.image.revision"] != "abc" {
				t.Errorf("%s has labels %v", want, l)
			}
			if root := config.Config.User == ""; root == strings.HasPrefix(want, "skep-suite") {
				t.Errorf("%s runs as user %q", want, config.Config.User)
			}
		}
	}
}

// A program that needs a loader is refused when the image is made: the engine would only say that there is no such file.
func TestSuiteIsStatic(t *testing.T) {
	in, r := release(t)
	sh, err := os.ReadFile("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(in.Bin, "skep-bus")
	if err := os.Remove(program); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(program, sh, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Suite(context.Background(), in, r); err == nil || !strings.Contains(err.Error(), "CGO_ENABLED=0") || !strings.Contains(err.Error(), "skep-bus") {
		t.Errorf("a dynamic program: %v", err)
	}
}
