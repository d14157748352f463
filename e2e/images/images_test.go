package images

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// inputs are the programs of a test: its own binary stands for whoami, a script for busybox.
func inputs(t *testing.T) Inputs {
	t.Helper()
	dir := t.TempDir()
	bb := filepath.Join(dir, "busybox")
	if err := os.WriteFile(bb, []byte("#!/bin/sh\necho sh; echo ping; echo nslookup\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, p := range programs {
		if err := os.WriteFile(filepath.Join(dir, p), []byte(p), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return Inputs{Bin: dir, Busybox: bb, Cache: dir, Suite: "none"}
}

func TestImagesAreReproducible(t *testing.T) {
	in := inputs(t)
	names := []string{"busybox:latest", "whoami:v1", "whoami:v2", "whoami:sick", "armonly:latest"}
	digests := map[string]bool{}
	for range 2 {
		imgs, err := Build(context.Background(), in, names...)
		if err != nil {
			t.Fatal(err)
		}
		for _, img := range imgs {
			d, err := img.Digest()
			if err != nil {
				t.Fatal(err)
			}
			digests[img.Name+"@"+d.String()] = true
		}
	}
	if len(digests) != len(names) {
		t.Errorf("two builds of %d images gave %d digests", len(names), len(digests))
	}
}

func TestImageConfiguration(t *testing.T) {
	imgs, err := Build(context.Background(), inputs(t), "whoami:sick", "armonly:latest")
	if err != nil {
		t.Fatal(err)
	}
	sick, err := imgs[0].ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if sick.Config.Healthcheck == nil || sick.Architecture != "amd64" {
		t.Errorf("whoami:sick: %+v", sick)
	}
	arm, err := imgs[1].ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if arm.Architecture != "arm64" {
		t.Errorf("armonly is for %s", arm.Architecture)
	}
}

func TestUnknownImageIsNamed(t *testing.T) {
	if _, err := Build(context.Background(), inputs(t), "nosuch"); err == nil {
		t.Fatal("an image without a recipe was built")
	}
}

func TestArchiveHoldsTheName(t *testing.T) {
	imgs, err := Build(context.Background(), inputs(t), "whoami:v1")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "a.tar")
	if err := WriteArchive(file, imgs...); err != nil {
		t.Fatal(err)
	}
	index, err := exec.Command("tar", "-xOf", file, "index.json").Output()
	if err != nil {
		t.Fatal(err)
	}
	if want := `"io.containerd.image.name": "docker.io/library/whoami:v1"`; !strings.Contains(string(index), want) {
		t.Errorf("no %s in %s", want, index)
	}
}

// A machine that reaches no mirror is told so, and keeps nothing half made.
func TestNoMirror(t *testing.T) {
	in := inputs(t)
	in.Cache = t.TempDir()
	tools := t.TempDir()
	if err := os.WriteFile(filepath.Join(tools, "mmdebstrap"), []byte("#!/bin/sh\necho half >\"$5\"\necho E: Could not connect to deb.debian.org >&2\nexit 100\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", tools+":"+os.Getenv("PATH"))
	for _, name := range []string{"mysql:latest", "wordpress:latest", "httpd:latest"} {
		_, err := Build(context.Background(), in, name)
		if err == nil || !strings.Contains(err.Error(), "Could not connect to deb.debian.org") || !strings.Contains(err.Error(), "reach the mirrors") || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	left, err := os.ReadDir(in.Cache)
	if err != nil || len(left) > 0 {
		t.Errorf("left in the cache: %v %v", left, err)
	}
}
